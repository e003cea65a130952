"""The untrained control against scikit-learn's regression and the prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge as SklearnRidge

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.methods.ridge import Ridge
from rmadapter.methods.zero_shot import GENERAL_TEMPLATES
from tests.helpers.shots import logits_of, noisy_colors, pixels_of, shots_of


@torch.no_grad()
def test_logits_are_the_prompts_and_the_regression(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, noisy_colors(3))
    fitted = Ridge(head=0.7, penalty=0.5).fit(tiny_clip, shots)
    g = F.normalize(tiny_clip.model.encode_image(pixels_of(tiny_clip, shots.images)), dim=-1)
    targets = F.one_hot(shots.labels, len(shots.classes)) - 1 / len(shots.classes)
    oracle = SklearnRidge(alpha=0.5, fit_intercept=False).fit(g.numpy(), targets.numpy())
    regression = torch.from_numpy(oracle.predict(g.numpy())).float()

    def zero_shot(name: str, templates: tuple[str, ...] = ()) -> torch.Tensor:
        method = load_method("zero-shot", {"templates": templates})
        return logits_of(method.fit(tiny_clip, shots), shots, (name, "other"))[:, 0]

    new, known = "house", shots.classes[1]
    of_known = zero_shot(known) + 0.7 * tiny_clip.logit_scale * regression[:, 1]
    expected = [zero_shot(new, (*shots.templates, *GENERAL_TEMPLATES)), of_known]
    found = logits_of(fitted, shots, (new, known))
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-4, atol=1e-3)
