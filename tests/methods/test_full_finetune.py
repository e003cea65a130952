"""Full fine-tuning against the backbone's own forward pass, and against Skip Tuning that skips
nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.methods.full_finetune import FullFinetune
from rmadapter.methods.parts.tuned import TunedCLIP
from rmadapter.methods.skip_tuning import SkipTuning
from tests.helpers.rounding import double
from tests.helpers.shots import noise_images, shots_of, untrained
from tests.helpers.tuned import TEMPLATES, plain_logits, plain_model

NAMES = ("cat", "a small red car. a blue bird", "dog", "house")


@pytest.mark.parametrize("sides", ["both", "image"])
@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip"])
def test_loss_and_gradients_are_those_of_the_plain_forward(
    name: str, sides: str, request: pytest.FixtureRequest
) -> None:
    given: Backbone = request.getfixturevalue(name)
    backbone, pixels = double(given), torch.randn(5, 3, 32, 32).double()
    shots = shots_of(given, noise_images(5, NAMES), templates=TEMPLATES)
    start = untrained(load_method("full-finetune", {"sides": sides}), backbone, shots)
    module: TunedCLIP = start.module
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = plain_model(module)
    plain = F.cross_entropy(plain_logits(model, backbone, pixels, NAMES), shots.labels)
    ours = start.terms(range(5), images=backbone.image.frozen(pixels, 1))["loss"]
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    ours.backward()
    learnt = [tensor for tensor in model.parameters() if tensor.requires_grad]
    plain.backward(inputs=learnt)
    theirs = dict(model.named_parameters())
    assert len(module.tuned) == len(learnt)
    scale = max(float(tensor.grad.norm()) for tensor in module.tuned.values())
    for key, tensor in module.tuned.items():
        expected = theirs[key.replace("/", ".")].grad
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-7, atol=1e-9 * scale)


def test_with_both_sides_it_is_skip_tuning_that_skips_nothing(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noise_images(5, NAMES), templates=TEMPLATES)
    ours = untrained(FullFinetune(), tiny_clip, shots)
    theirs = untrained(SkipTuning(skipped=0.0, ratio=1.0), tiny_clip, shots)
    assert ours.module.state_dict().keys() == theirs.module.state_dict().keys()
    losses = [one.terms(range(5))["loss"] for one in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_with_images_alone_the_classes_stay(tiny_clip: Backbone) -> None:
    method, both = FullFinetune(sides="image"), FullFinetune()
    blocks = sum(p.numel() for block in tiny_clip.image.blocks for p in block.parameters())
    assert blocks < method.parameters(tiny_clip).trained < both.parameters(tiny_clip).trained
    shots = shots_of(tiny_clip, noise_images(5, NAMES), templates=TEMPLATES)
    module = untrained(method, tiny_clip, shots).module
    own = {name.split("/")[0] for name in module.tuned}
    assert own == {"visual"}
