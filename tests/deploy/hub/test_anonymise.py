"""Names of folders and files that nobody else needs; test_push.py looks at all that is sent."""

from __future__ import annotations

from pathlib import Path

from rmadapter.artifacts.record import BackboneName, MethodName, read_record
from rmadapter.deploy.hub.anonymise import anonymise_command, anonymise_names, anonymise_record
from rmadapter.support.files import last_part


def test_names_without_folders(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    outside = MethodName(
        name=f"{tmp_path}/m.py:Mine",
        settings={"file": str(tmp_path / "a.json"), "rank": 4, "x": "a/b"},
    )
    method, backbone = anonymise_names(
        outside, BackboneName(name=f"ViT-B-16/{tmp_path}/w.safetensors", digest="0")
    )
    assert (method.name, method.settings) == (
        "m.py:Mine",
        {"file": "a.json", "rank": 4, "x": "a/b"},
    )
    assert backbone.name == "w.safetensors"
    for name in ("pocket", "ViT-B-16/openai", "hf-hub:a/b"):
        assert anonymise_names(outside, BackboneName(name=name, digest="0"))[1].name == name
    assert [*map(last_part, ("C:\\Users\\anna\\pets", "/home/anna/pets/", "pets", ""))] == [
        "pets",
        "pets",
        "pets",
        "",
    ]


def test_anonymised_record_keeps_its_figures(finished: Path) -> None:
    record = read_record(finished / "run.json")
    found = anonymise_record(record)
    assert (found.scores, found.judgement, found.split_digest) == (
        record.scores,
        record.judgement,
        record.split_digest,
    )


def test_a_command_without_folders() -> None:
    written = (
        "rmadapter export '/home/anna/my run' --out runs/model --to onnx --backbone ViT-B-16/openai"
    )
    assert (
        anonymise_command(written)
        == "rmadapter export 'my run' --out model --to onnx --backbone ViT-B-16/openai"
    )
    assert anonymise_command("rmadapter export hf:a/b --data=/home/anna/pets --set a=b/c") == (
        "rmadapter export hf:a/b --data=pets --set a=b/c"
    )
    assert (
        anonymise_command(r"rmadapter export r '--data=C:\Users\anna\pets'")
        == "rmadapter export r --data=pets"
    )
    assert anonymise_command("as tested") == "as tested"
    command = "rmadapter fit --data=acme/photos --set descriptions=acme/t.json"
    assert anonymise_command(f"{command} lweib.descriptions=b/t.json") == (
        "rmadapter fit --data=photos --set descriptions=t.json lweib.descriptions=t.json"
    )


def test_settings_that_name_files_lose_their_folders() -> None:
    method = MethodName(
        name="lweib",
        title="LwEIB",
        settings={"descriptions": "acme/merger/texts.json", "init": "a / b"},
    )
    assert anonymise_names(method, BackboneName(name="pocket", digest=""))[0].settings == {
        "descriptions": "texts.json",
        "init": "a / b",
    }
