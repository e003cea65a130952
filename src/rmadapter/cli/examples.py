"""Examples below the options in each verb's --help: working commands to begin with."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("rmadapter demo --out runs/demo",),
    "suspects": (
        "rmadapter suspects my-images --out suspects",
        "rmadapter suspects photos.csv --method rmadapter",
    ),
    "fit": (
        "rmadapter fit my-images --out runs/first",
        "rmadapter fit photos.csv --label-column species --out runs/species",
        "rmadapter fit my-images --backbone ViT-B-16/openai --out runs/clip",
    ),
    "predict": (
        "rmadapter predict runs/first photos --top 3",
        "rmadapter predict runs/first photos --out answers.csv",
        "rmadapter predict runs/first photos --sort-into sorted --unsure 0.5",
    ),
    "eval": (
        "rmadapter eval runs/first new-images",
        "rmadapter eval runs/first my-images --split heldout --json",
    ),
    "add": (
        "rmadapter add runs/first zebra --out runs/wider",
        "rmadapter add runs/first new-photos --out runs/grown",
    ),
    "compare": ("rmadapter compare runs/first runs/second --data new-images",),
    "export": (
        "rmadapter export runs/first --out my-model",
        "rmadapter export runs/first --to web",
        "rmadapter export runs/first --precision int8 --data my-images",
    ),
    "serve": (
        "rmadapter serve runs/first",
        "rmadapter serve my-model birds=runs/second --port 8080",
    ),
    "push": (
        "rmadapter push runs/first anna/sea-horses --to look-at-it",
        "rmadapter push runs/first anna/sea-horses --private --licence cc-by-4.0",
    ),
    "app": ("rmadapter app --open", "rmadapter app --runs runs --backbone ViT-B-16/openai"),
    "explain": ("rmadapter explain runs/first photos/001.jpg --out why",),
    "suggest": (
        "rmadapter suggest runs/first unlabelled --n 20 --out next.csv",
        "rmadapter suggest unlabelled --start --names cat,dog,zebra",
    ),
    "tune": (
        "rmadapter tune my-images --out tuned --method clip-lora --trials 20",
        "rmadapter tune my-images --out tuned --search rank=8,16,32 --search alpha",
    ),
    "bench": (
        "rmadapter bench few-shot --datasets my-images --methods mma,coop --out few",
        "rmadapter bench base-to-novel --datasets dtd --root data --out results",
        "rmadapter bench few-shot --datasets my-images --methods mma --tune 10 --out t",
    ),
    "plan": (
        "rmadapter plan few-shot --datasets my-images --methods mma,coop --out few",
        "rmadapter plan base-to-novel --datasets dtd --root data --out results",
    ),
    "report": ("rmadapter report results --out report", "rmadapter report runs/first"),
    "leaderboard": ("rmadapter leaderboard results --out board",),
    "reproduce": (
        "rmadapter reproduce --root data --out results --plan",
        "rmadapter reproduce --root data --out results --tables 1,2",
    ),
    "methods": ("rmadapter methods", "rmadapter methods --json"),
    "params": ("rmadapter params --method mma --classes 50",),
    "data": ("rmadapter data", "rmadapter data dtd --root data --download"),
    "backbones": ("rmadapter backbones", "rmadapter backbones get pocket"),
    "convert": ("rmadapter convert clip.pt --architecture ViT-B-32 --out my-clip",),
    "cache": ("rmadapter cache", "rmadapter cache unpacked --clear", "rmadapter cache --clear"),
    "doctor": ("rmadapter doctor",),
}


def epilog(verb: str) -> str:
    """Return the examples as paragraphs, which Typer keeps apart."""
    return "\n\n".join(("Examples:", *EXAMPLES.get(verb, ())))
