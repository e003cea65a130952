"""README.md of an exported folder."""

from __future__ import annotations

from typing import Any

from rmadapter.artifacts.record import Record

TEXT = """# {title}: {classes} classes

An image classifier, exported by rmadapter {version} to {form} ({precision}, {megabytes:.1f} MB). It runs \
{needs}:
{page}
```
pip install -r requirements.txt
python predict.py IMAGES > answers.csv
```

```python
from predict import Model

model = Model()  # the folder of predict.py, or Model("another folder")
for label, probability in model.predict(["cat.jpg"], top=3)[0]:
    print(f"{{label}}: {{probability:.1%}}")
```

## What it is

- method: {title} ({source})
- backbone: {backbone} (weights {digest})
- licence of the weights: {licence}; of predict.py: MIT
- input `pixels`: float32 [batch, 3, {size}, {size}], prepared as preprocess.json says; output `probabilities`: \
[batch, {classes}], in the order of labels.json{features}
- {file} has the SHA-256 {sha256}; SHA256SUMS lists it with those of the other files that are loaded

## How good it is

{numbers}
Before it was written, it was compared with the fitted model on {images} images ({asked}): {same:.1f} % of the answers \
are the same, and probabilities differ by at most {difference:.1e}.{kept} All of this is in export.json, with the \
versions that made it.
"""

FORMS = {"openvino": "OpenVINO", "torch": "a graph of torch", "litert": "LiteRT"}
FEATURES = ", and `features` [batch, length] of unit length, for `Model().embed` and `predict.py --embeddings FILE.npy`"

PAGE = """
```
python -m http.server
```

serves it as a web page at http://localhost:8000; any file server will do. Images never leave the browser. Its \
engine, onnxruntime-web, has the MIT licence. The same folder also works on the command line:
"""


def card(facts: dict[str, Any], record: Record | None, size: int) -> str:
    """README.md. facts: contents of export.json. size: of an image, in pixels."""
    parity = facts["parity"]
    return TEXT.format(
        title=facts["method"]["title"],
        source=facts["method"]["source"],
        classes=facts["classes"],
        version=facts["versions"]["rmadapter"],
        precision=facts["precision"],
        page=PAGE if facts["to"] == "web" else "",
        form=FORMS.get(facts["to"], f"ONNX of opset {facts['opset']}"),
        needs="without rmadapter" if facts["to"] == "torch" else "without torch",
        features=FEATURES if facts["embeddings"] else "",
        file=facts["files"][0],
        megabytes=facts["bytes"] / 1e6,
        backbone=facts["backbone"]["name"],
        digest=facts["backbone"]["digest"][:12],
        licence=facts["licence of the weights"],
        size=size,
        sha256=facts["sha256"],
        numbers=_numbers(record, parity),
        images=parity["images"],
        asked=parity["title"],
        same=100 * parity["same"],
        difference=parity["difference"],
        kept=f" It was kept although {facts['kept in spite of']}."
        if facts["kept in spite of"]
        else "",
    )


def _numbers(record: Record | None, parity: dict[str, Any]) -> str:
    rows = [
        f"| {score.title} ({score.split}) | {score.images:,} | {score.zero_shot:.1f} | {score.accuracy:.1f} |"
        for score in (record.scores if record else ())
        if score.accuracy is not None and score.zero_shot is not None
    ]
    if parity["after"] is not None:
        rows.append(
            f"| {parity['title']}, this export | {parity['images']:,} | | {parity['after']:.1f} |"
        )
    if not rows:
        return ""
    head = ["| images | n | untouched backbone, accuracy in % | this model |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])
