"""PromptKD: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models",
CVPR 2024 (arXiv 2403.03781).

A teacher, PromptSRC on a larger backbone, is fitted to the shots. The student has prompts in the
blocks of the smaller image encoder, followed by a projection into the teacher's space; class
features are the teacher's. It learns from unlabelled images of all classes of the data: with the
logits z_T of the teacher and z_S of the student, over the names of all classes, the loss is

    weight tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)),

summed over classes and divided by the number of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.backbones.load import reload, shared
from rmadapter.encoders import States
from rmadapter.methods.parts.features import FixedFeatures, Places
from rmadapter.methods.parts.learned_prompts import check_room, draw, encode_image
from rmadapter.methods.promptsrc import IndependentPrompts, PromptSRC
from rmadapter.prompts import Cosines, cosine_logits
from rmadapter.settings import Positive, Size
from rmadapter.support.machine import seeded
from rmadapter.training.cache import Cache
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Method,
    Parameters,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
    count,
    minimise,
    shaped,
)
from rmadapter.training.loop import key_of
from rmadapter.training.shots import Unfinished

FIRST = 1  # block of both image encoders whose input is read
STUDENT, TEACHER, CLASSES, DIGEST = "student.", "teacher.", "classes", "digest"  # of tensors


class Student(nn.Module):
    """Prompts [n, d] of the image encoder's lower blocks, and a projection of its features into
    `size` dimensions."""

    def __init__(self, backbone: Backbone, n_image: int, depth: int, size: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone.with_blocks("image")
        check_room(backbone, "PromptKD")
        drawn = draw(depth * n_image, backbone.image.width, seed).split(n_image)
        self.prompts = nn.ParameterList(prompt.clone() for prompt in drawn[: backbone.image.depth])
        with seeded(seed):
            self.down, self.norm = nn.Linear(backbone.embedding_size, size), nn.BatchNorm1d(size)
            self.up = nn.Linear(size, size)
        self.to(backbone.device)

    def image_features(self, states: States) -> Tensor:
        """Return features [B, e'] in the teacher's space, not normalised, from tokens that enter
        block 1."""
        x = self.down(encode_image(self.backbone, states, [*self.prompts]))
        n = self.norm
        alone = self.training and len(x) == 1  # a single image has no variance
        x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias) if alone else n(x)
        return self.up(x.relu())


class Lesson(nn.Module):
    """Everything that a resumed training needs.

    Args:
        student: Student to train.
        teacher: Fitted teacher.
        classes: The teacher's features [C, e'], normalised.
    """

    classes: Tensor

    def __init__(self, student: Student, teacher: IndependentPrompts, classes: Tensor) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.register_buffer(CLASSES, classes)


@dataclass(frozen=True)
class PromptKD(Method):
    """A student's prompts that copy a teacher's answers.

    As with the authors, the student sees the shots and all other train images, those of novel
    classes included, and the names of all classes. If the data has no test split, the other images
    are tested on and so not seen. The authors take the best epoch on test images of the base
    classes; here it is the last one. The released script has a weight of 200 for three data sets.

    Args:
        teacher: Name of the teacher's backbone, such as a larger one; empty for the student's own.
        teaching: Epochs of the teacher.
        n_image: The student's prompts per block.
        depth: The student's prompted blocks.
        tau: Temperature tau of the loss.
        weight: Weight of the loss.
    """

    title = "PromptKD"
    source = (
        "Li et al., CVPR 2024 (arXiv 2403.03781); vit_b16_c2_ep20_batch8_4+4ctx.yaml and "
        "scripts/promptkd/base2new_train.sh of github.com/zhengli97/PromptKD"
    )
    traits = Traits(
        uses=Uses(
            track="teacher",
            extra="all train images without labels, 20 general templates",
            teacher="PromptSRC, fitted to the same shots, on another backbone where one is named",
            backbones=("teacher",),
            constants="weight of the loss",
            tuned=PUBLISHED,
            on_test="the epoch (authors' code), here the last",
        ),
        unlabelled=True,
        whole_batches=True,  # for its batch norm
        in_epochs=("teaching",),
        about=About(
            "encoders",
            "a student's prompts that copy a teacher's answers",
            "many images without labels",
        ),
    )
    teacher: str = ""
    teaching: Size = 20
    n_image: Size = 4
    depth: Size = 9
    tau: Positive = 1.0
    weight: Positive = 1000.0
    recipe: Recipe = Recipe(learning_rate=0.005, epochs=20, batch_size=8)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        large = self._large(backbone)
        kept = shots.unfinished
        if kept is not None:
            shots = replace(shots, unfinished=replace(kept, before=f"{kept.key}, teacher"))
        known, theirs = shots.known, self._seen_by(large, shots)
        images = shots.images if shots.unlabelled is None else shots.unlabelled
        lesson = self._lesson(backbone, large, shots, theirs, images.classes)
        shots, theirs = replace(shots, images=images), replace(theirs, images=images)
        source = shots.source(FIRST)
        above = source if theirs.cache is shots.cache else theirs.source(FIRST)
        epochs = self.recipe.length(images.labels)[0]
        seen = FixedFeatures(above, lesson.teacher.image_features, epochs)

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                expected = cosine_logits(large, seen.features(batch, source), lesson.classes)
            features = lesson.student.image_features(batch.images)
            predicted = cosine_logits(backbone, features, lesson.classes)
            return self.loss(predicted, expected)

        trained = minimise(lesson, loss, self.recipe, shots, source)
        digest = torch.frombuffer(bytearray(large.digest.encode()), dtype=torch.uint8).to(
            backbone.device
        )
        classes = lesson.classes[[images.classes.index(name) for name in known.classes]]
        return self.restore(
            backbone, known, {**lesson.state_dict(), CLASSES: classes, DIGEST: digest}
        ).after(trained)

    def loss(self, predicted: Tensor, expected: Tensor) -> Tensor:
        """Return the scalar loss of logits [B, C] of the student, `predicted`, and of the teacher,
        `expected`."""
        z_s, z_t = ((z / self.tau).log_softmax(-1) for z in (predicted, expected))
        divergence = F.kl_div(z_s, z_t, reduction="sum", log_target=True)
        return self.weight * self.tau**2 * divergence / predicted.numel()

    def module(self, backbone: Backbone, seed: int = 1, large: Backbone | None = None) -> Lesson:
        """Return an untrained student and an untrained teacher, without classes.

        Args:
            backbone: The student's backbone.
            seed: Seed of the initialisation.
            large: The teacher's backbone.
        """
        large = self._large(backbone) if large is None else large
        student = self._student(backbone, large.embedding_size, seed)
        return Lesson(
            student, self._tutor().module(large, seed), torch.zeros(0, large.embedding_size)
        )

    def _lesson(
        self, backbone: Backbone, large: Backbone, shots: Shots, theirs: Shots, names: Sequence[str]
    ) -> Lesson:
        """Return the student to train on images of these classes, with a fitted teacher. A student
        whose training was killed was saved with its teacher, so no teacher is fitted again."""
        lesson, kept = self.module(backbone, shots.seed, large), shots.unfinished
        if kept is None or key_of(kept) != kept.key:
            first = kept and Unfinished(kept.path, kept.before)
            taught = self._tutor().fit(large, replace(theirs, unfinished=first, callbacks=()))
            lesson.teacher.load_state_dict(dict(taught.tensors))
        lesson.classes = encode_classes(lesson.teacher, names)
        return lesson

    def _seen_by(self, large: Backbone, shots: Shots) -> Shots:
        """Return the same shots, with the same views, for the teacher."""
        cache = shots.cache
        if not self.teacher:
            return shots
        cache = Cache(
            large,
            cache.machine,
            cache.augmentation,
            cache.views,
            cache.seed,
            progress=shots.progress,
        )
        return replace(shots, cache=cache)

    def _large(self, backbone: Backbone) -> Backbone:
        return shared(self.teacher, backbone.device) if self.teacher else backbone

    def _tutor(self) -> PromptSRC:
        """Return the teacher's method, as in vit_l14_c2_ep20_batch8_4+4ctx.yaml."""
        recipe = replace(PromptSRC.recipe, learning_rate=0.005, epochs=self.teaching, batch_size=8)
        longer = self.teaching / PromptSRC.recipe.epochs
        return PromptSRC(recipe=recipe, mean=longer * PromptSRC.mean, std=longer * PromptSRC.std)

    def _student(self, backbone: Backbone, size: int, seed: int = 1) -> Student:
        return Student(backbone, self.n_image, self.depth, size, seed)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        classes = shaped(tensors, CLASSES, len(known.classes), -1)
        student = self._student(backbone, classes.shape[1]).eval()
        student.load_state_dict(_part(tensors, STUDENT))
        teacher = cache(partial(self._teacher, backbone, tensors))

        def for_classes(names: Sequence[str]) -> ToLogits:
            places = Places.of(self.title, backbone, known.classes, names)
            every = places.weights(
                lambda _, rows: classes[rows], lambda new: encode_classes(teacher(), new)
            )
            return Cosines(backbone, student.image_features, every)

        return Fitted(self, backbone, known, tensors, for_classes, FIRST, count(student))

    def _teacher(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> IndependentPrompts:
        """Return the teacher, for features of further classes; loads its backbone. Raises UserError
        if that has other weights now."""
        large = backbone
        if self.teacher:
            digest = tensors[DIGEST].cpu().numpy().tobytes().decode(errors="replace")
            large = reload(self.teacher, digest, backbone.device)
        teacher = self._tutor().module(large)
        teacher.load_state_dict(_part(tensors, TEACHER))
        return teacher

    def starts_at(self, backbone: Backbone) -> int:
        return FIRST

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(count(self.module(backbone).student))


@torch.no_grad()
def encode_classes(teacher: IndependentPrompts, names: Sequence[str]) -> Tensor:
    """Return class features [C, e'], normalised."""
    return F.normalize(teacher.class_features(teacher.text(names)), dim=-1)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
