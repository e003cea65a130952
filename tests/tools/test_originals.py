"""tools/originals.py: the names that our tensors have in the authors' code, for encoders of any
size."""

from __future__ import annotations

from types import SimpleNamespace

import parity
import pytest
from originals import MAKERS, Sizes

from rmadapter.methods import load_method
from tests.helpers.clones import small  # noqa: F401


@pytest.mark.parametrize("sizes", [Sizes(3, 2, 3), Sizes(5, 4, 2)])
@pytest.mark.parametrize("name", MAKERS)
def test_every_tensor_of_ours_has_a_name_of_its_own_in_theirs(
    name: str, sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "DEPTH", sizes.depth)
    peer, backbone = MAKERS[name](sizes), parity.tiny_clip()
    module = SimpleNamespace(IMAGENET_TEMPLATES=("a {}.",))
    method = load_method(name, peer.settings(module))  # type: ignore[arg-type]
    ours = parity.untrained(method, parity.shots_of(peer, backbone))[0].get_submodule(peer.inner)
    names = [own for own, p in ours.named_parameters() if p.requires_grad and own not in peer.later]
    assert len({peer.called(own) for own in names}) == len(names)
    heads = {own if own in peer.names else own.rpartition(".")[0] for own in names}
    assert heads == {*peer.names}, "a name that nothing has"
