"""Load a CLIP-like model by name: from open_clip, the Hugging Face hub, a folder, or memory."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from PIL import Image

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.build import (
    LOCAL,
    as_backbone,
    build_model,
    first_line,
    load_tokenizer,
    load_weights,
)
from rmadapter.backbones.image_only import (
    from_timm_folder,
    is_published_timm,
    is_timm_folder,
    load_image_only,
)
from rmadapter.backbones.known import (
    Seen,
    find_facts,
    key_of,
    load_image_first,
    read_facts,
    write_facts,
)
from rmadapter.backbones.names import (
    HF_HUB,
    INSTEAD,
    NO_WEIGHTS,
    TIMM,
    WEIGHTS_SUFFIXES,
    check_architecture,
    check_name,
    full_name,
    names_in,
    nearest,
)
from rmadapter.backbones.numbers import check_numbers
from rmadapter.backbones.packaged import OWN_PACKAGES, is_packaged, load_package, packaged_names
from rmadapter.backbones.trust import (
    CONFIG,
    PICKLE_SUFFIXES,
    check_config,
    check_folder,
    check_hub_names,
    how_to_convert,
    is_plain,
)
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import JsonObject, user_path
from rmadapter.support.hub import Unreachable, check_reachable, hub_errors
from rmadapter.support.machine import find_device
from rmadapter.support.terminal import note

OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
SMALL_FILES = ["*.json", "*.txt", "*.model"]  # configurations and tokenizers on the hub
# By name, device and thread: methods hook into the model while they train.
IN_USE: WeakValueDictionary[tuple[str, str, int], Backbone] = WeakValueDictionary()
TRUSTED: set[str] = set()  # what the user named in this process


def load_backbone(name: str, revision: str = "") -> Backbone:
    """Load a model, frozen, in float32, on the CPU.

    `name` is one of

    - the name of a backbone that an installed package brings: `"pocket-3"`, the small offline
      default, and `"pocket"`, at 112 pixels in a fifth of the time, come with rmadapter-pocket
      (docs/reference/pocket.md);
    - `"laptop"`, `"accuracy"` or `"phone"`: a published model for that use, as `rmadapter
      backbones` lists them;
    - `"ARCHITECTURE/TAG"`: an open_clip architecture and the tag of its weights, as in
      `"ViT-B-16/openai"`. Weights trained with QuickGELU get it, whether or not the architecture's
      name says `-quickgelu`;
    - `"ARCHITECTURE/none"`: random weights, always the same ones;
    - `"ARCHITECTURE/FILE.safetensors"`: a local checkpoint for an open_clip architecture (an
      absolute file gives two slashes, as in `"ViT-B-16//data/my.safetensors"`). Here only the
      architecture's name decides about QuickGELU;
    - `"hf-hub:OWNER/NAME"`: a repository on the Hugging Face hub, read from the local cache if it
      is there;
    - a folder with `open_clip_config.json`, or with the `config.json` of a Hugging Face CLIP,
      SigLIP, MetaCLIP 2 or Chinese-CLIP, and safetensors weights;
    - `"timm:NAME.TAG"`: an image encoder of timm with published weights, as in
      `"timm:vit_small_patch14_dinov2.lvd142m"`; also `"timm:NAME/none"`,
      `"timm:NAME/FILE.safetensors"` and `"timm:FOLDER"`. It has no text encoder. `@SIZE` at the end
      sets the side of its images, as in `"timm:vit_small_patch14_dinov2.lvd142m@224"`.

    Weights are only read from safetensors, never from a pickle, and no code in a folder or
    repository is run. An encoder that is not a transformer gives only its features, which is enough
    for some methods.

    Args:
        name: Name of one of the kinds above.
        revision: Commit of its repository on the hub, if not the cached or the newest one; what is
            not from the hub has none.

    Returns:
        The backbone, with its transform and tokenizer.

    Raises:
        UserError: Unknown name; weights that cannot be fetched, read or fitted, or are for another
            activation; a folder that holds or asks for code, or leads outside of it.

    Example:
        >>> from rmadapter import load_backbone
        >>> backbone = load_backbone("tiny")  # a folder; "pocket-3" is the default elsewhere
        >>> backbone.image_size, len(backbone.digest)
        (32, 64)
    """
    name = full_name(name)
    folder = user_path(name)
    if name.startswith(HF_HUB):
        return _load_repository(name, revision)
    if is_packaged(name):
        package = load_package(name)
        place = package.build()
        backbone = _from_folder(name, place)
        package.check(place, backbone)
        return backbone
    if folder.is_dir():
        return _load_untrusted(name, folder)
    if name.startswith(TIMM):
        get = partial(fetch, typed=name, revision=revision)
        return _smoke_test(name, lambda: load_image_only(name, get))
    check_name(name)
    return _from_architecture(name, revision)


def first_of(names: str, device: str = "cpu") -> Backbone:
    """Load a backbone by name or, of several names separated by commas, the first that is here or
    can be fetched. A note says which it is and why.

    Args:
        names: Names as for `load_backbone`.
        device: As for `load`.

    Raises:
        UserError: As `load_backbone`, also for a wrong name before the last; an unknown device.
    """
    choices = names_in(names)
    for name, other in zip(choices, [*choices[1:], ""], strict=True):
        try:
            backbone = load_backbone(name)
        except Unreachable as error:
            if not other:
                raise
            note(f"{error}; using {other} instead")
        else:
            if len(choices) > 1:
                note(f"backbone: {name}")
            return backbone.to(find_device(device))
    raise AssertionError("the last one is returned or raises")


def load_known(name: str, revision: str = "") -> Backbone:
    """Load a backbone as `load_backbone` does, but of a folder that was loaded here before, and has
    not changed since, only the image encoder until something asks for the rest.

    Args:
        name: Name as for `load_backbone`.
        revision: Commit of its repository on the hub, if not the cached or the newest one.
    """
    package = load_package(name) if is_packaged(name) else None
    folder = package.build() if package else user_path(name)
    weights = _weights_in(folder) if folder.is_dir() and not name.startswith(HF_HUB) else None
    if weights is None:
        return load_backbone(name, revision)
    key = key_of(folder)
    facts = read_facts(key)
    if facts and facts.alone:
        place = folder.resolve()  # later there may be another current folder
        load = partial(load_backbone, name) if package else partial(_load_untrusted, name, place)
        first = load_image_first(name, weights, Seen(place, key, facts), load)
        if first:
            if package:
                package.check(folder, first)
            return first
    backbone = load_backbone(name)
    if facts is None or key_of(folder) != key:
        facts = find_facts(backbone, folder, weights)
        if key_of(folder) == key:
            write_facts(key, facts)
    return backbone.knowing(facts)


def is_published(name: str) -> bool:
    """Return whether a name alone determines the weights: a package's or one of open_clip's, not a
    folder, file or hub name."""
    if name in (*OWN_PACKAGES, *packaged_names()):
        return True
    if name.startswith(TIMM):
        return is_published_timm(name)
    import open_clip

    architecture, _, tag = name.partition("/")
    drawn = tag == NO_WEIGHTS and architecture in open_clip.list_models()
    known = drawn or open_clip.is_pretrained_cfg(architecture, tag)
    return known and not os.path.exists(Path(name).expanduser())


def identity_of(backbone: Backbone) -> str:
    """Return a digest of all that a run depends on: the weights and, if the name does not determine
    them, the tokenizer and the transform."""
    if is_published(backbone.name):
        return backbone.digest
    transform = [backbone.image_size, backbone.mean, backbone.std, backbone.resizing]
    facts = [backbone.digest, backbone.tokenizer_digest, *transform]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def trust_name(name: str) -> None:
    """Record that the user named this folder, file or repository, so that `reload` may read it."""
    TRUSTED.add(name)


def check_trusted(name: str) -> None:
    """Raise UserError unless the backbone is a published one or the user named it."""
    if not (is_published(name) or name in TRUSTED):
        raise UserError(
            f"the model names {name!r:.300}, a folder, a file or a repository; to trust it, name "
            "it yourself: repeat the setting in `load(run, settings={...})` or `eval --set`"
        )


def shared(name: str, device: torch.device, revision: str = "") -> Backbone:
    """Load a backbone that the user named on a device, or return the copy in use if the name alone
    determines the weights.

    Args:
        name: Name of the backbone.
        device: The device.
        revision: As for `load_known`.
    """
    trust_name(name)
    key = (name, str(device), threading.get_ident())
    backbone = IN_USE.get(key) if is_published(name) else None
    if backbone is None:
        backbone = IN_USE[key] = load_known(name, revision).to(device)
    return backbone


def reload(
    name: str, digest: str, device: torch.device, *, trusted: bool = False, revision: str = ""
) -> Backbone:
    """Return the backbone that a model was fitted on: the copy in use, or loaded by its name.

    Args:
        name: Name of the backbone.
        digest: Digest that it must have.
        device: Device of the copy.
        trusted: Whether the user gave the name; else only published backbones are loaded.
        revision: Commit that it was loaded from, of a repository on the hub.

    Raises:
        UserError: The backbone is not trusted, is gone, or has other weights.
    """
    if not trusted:
        check_trusted(name)
    backbone = IN_USE.get((name, str(device), threading.get_ident()))
    if backbone is None or backbone.digest != digest:
        backbone = shared(name, device, revision)
    if backbone.digest != digest:
        raise UserError(
            f"the model was fitted on {name} ({digest[:12]}), but the backbone of that name here "
            f"({backbone.digest[:12]}) has other weights: restore the original, or fit again"
        )
    return backbone


def fetch(repository: str, file: str, typed: str = "", revision: str = "") -> Path:
    """Fetch one file. A cached copy is used as it is, so that a backbone stays the same.

    Args:
        repository: Repository on the hub.
        file: Path in it.
        typed: What the user named, if that is not the repository.
        revision: Commit, if not the cached or the newest one.

    Raises:
        UserError: It is not cached and cannot be fetched.
    """
    import huggingface_hub

    with _hub_errors(repository, typed):
        download = partial(
            huggingface_hub.hf_hub_download, repository, file, revision=revision or None
        )
        try:
            return Path(download(local_files_only=True))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            check_reachable()
            return Path(download())


def model_folder(repository: str, revision: str = "") -> Path:
    """Return a folder with the configuration, tokenizer and safetensors weights of a repository.

    Args:
        repository: Repository on the hub.
        revision: Commit, if not the cached or the newest one.

    Raises:
        UserError: It is not cached and cannot be fetched.
    """
    folder = _snapshot(repository, ("*.safetensors",), ("*config.json",), revision=revision)
    if any(folder.glob("*.safetensors")):
        return folder
    open_clip = (folder / "open_clip_config.json").is_file()
    weights = "open_clip_model.safetensors" if open_clip else "model.safetensors"
    return fetch(repository, weights, revision=revision).parent


def tokenizer_folder(repository: str, revision: str = "") -> Path:
    """Return a folder with the small files of a repository, including its tokenizer.

    Args:
        repository: Repository on the hub.
        revision: As for `model_folder`.

    Raises:
        UserError: It is not cached and cannot be fetched.
    """
    return _snapshot(repository, ("tokenizer*", "vocab*", "*.model"), revision=revision)


def _hub_errors(repository: str, typed: str = "") -> AbstractContextManager[None]:
    return hub_errors(
        repository,
        typed=typed,
        missing="; or it has no safetensors weights: if it holds a pickle, fetch that: "
        + how_to_convert(Path("FILE")),
        otherwise=INSTEAD,
    )


def _snapshot(repository: str, *kinds: tuple[str, ...], revision: str) -> Path:
    """Return the cached snapshot if it has a file of each kind, matching one of its patterns; else
    fetch its small files."""
    import huggingface_hub

    with _hub_errors(repository):
        # Without the patterns, files that were never asked for count as missing.
        fetch_files = partial(
            huggingface_hub.snapshot_download,
            repository,
            revision=revision or None,
            allow_patterns=SMALL_FILES,
        )
        try:
            folder = Path(fetch_files(local_files_only=True))
            if all(any(any(folder.glob(pattern)) for pattern in kind) for kind in kinds):
                return folder
        except huggingface_hub.errors.LocalEntryNotFoundError:
            pass
        check_reachable()
        return Path(fetch_files())


def architecture_config(name: str, architecture: str) -> tuple[JsonObject, list[str]]:
    """Return open_clip's configuration of an architecture, and the tags of its published weights.

    Args:
        name: Backbone, for messages.
        architecture: open_clip's name of its architecture.

    Raises:
        UserError: open_clip has no such architecture.
    """
    import open_clip

    check_architecture(name, architecture, open_clip.list_models())
    config: JsonObject = open_clip.get_model_config(architecture) or {}
    check_hub_names(config)
    return config, open_clip.list_pretrained_tags_by_model(architecture)


def transform_of(architecture: str, tags: list[str]) -> JsonObject:
    """Return the transform for random weights and local files: that of the architecture's first
    published weights, if any."""
    import open_clip

    return open_clip.get_pretrained_cfg(architecture, tags[0]) if tags else {}


def _from_architecture(name: str, revision: str) -> Backbone:
    architecture, _, tag = name.partition("/")
    config, tags = architecture_config(name, architecture)
    file = None if tag == NO_WEIGHTS else user_path(tag)
    published: JsonObject = {}
    if file and file.suffix not in WEIGHTS_SUFFIXES:
        published = published_config(architecture, tag, tags)
        file = fetch(*hub_file(published["hf_hub"]), name, revision)
    model = build_model(
        name,
        architecture,
        draw=file is None,
        quick_gelu=published.get("quick_gelu", False),
        transform=published or transform_of(architecture, tags),
    )
    if file:
        load_weights(name, model, file)
    elsewhere = config["text_cfg"].get("hf_tokenizer_name")
    place = tokenizer_folder(elsewhere) if elsewhere else None
    backbone = as_backbone(name, model, load_tokenizer(name, config["text_cfg"], place))
    return replace(backbone, revision=file.parent.name) if published and file else backbone


def published_config(architecture: str, tag: str, tags: list[str]) -> JsonObject:
    """Return open_clip's record of published weights: their location, transform and activation.

    Args:
        architecture: open_clip's name of an architecture.
        tag: Name of the weights.
        tags: Weights that there are, for the message.

    Raises:
        UserError: There are no such weights, or they are for another activation.
    """
    import open_clip

    record: JsonObject = open_clip.get_pretrained_cfg(architecture, tag)
    if record:
        return record
    plain = architecture.removesuffix("-quickgelu")
    if plain != architecture and open_clip.is_pretrained_cfg(plain, tag):
        raise UserError(
            f"QuickGELU mismatch: {tag!r} was trained with GELU, but {architecture!r} computes "
            f"QuickGELU; use {plain + '/' + tag!r}"
        )
    near = nearest(tag, tags)
    raise UserError(
        f"open_clip has no published weights {tag!r} for {architecture!r}; "
        f"{f'the nearest are {near}' if near else 'it has none'}; "
        f"{architecture + '/' + NO_WEIGHTS!r} has random weights"
    )


def hub_file(location: str) -> tuple[str, str]:
    """Split `owner/name/` or `owner/name/weights.bin` into repository and safetensors file."""
    repository, file = os.path.split(location)
    if file in ("", "open_clip_pytorch_model.bin"):
        return repository, OPEN_CLIP_WEIGHTS[0]
    return repository, str(Path(file).with_suffix(".safetensors"))


def _from_folder(name: str, folder: Path, repository: str = "") -> Backbone:
    """Load a model folder.

    Args:
        name: Name of the backbone.
        folder: The folder.
        repository: Repository on the hub, if the folder is a snapshot of one.
    """
    weights = _weights_in(folder)
    if weights is None:
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLE_SUFFIXES]
        hint = ""
        if pickles:
            hint = f"; {pickles[0]} is a pickle, and {how_to_convert(folder / pickles[0])}"
        raise UserError(f"{folder} holds no safetensors weights{hint}")
    if not (folder / CONFIG).is_file() and is_timm_folder(folder):
        return from_timm_folder(name, folder)
    check_folder(folder)
    check_numbers(folder)
    if (folder / CONFIG).is_file():
        text = check_config(folder)["text_cfg"]
        place = _tokenizer_place(folder, repository, text.get("hf_tokenizer_name"))
        tokenizer = load_tokenizer(name, text, place)
        model = build_model(name, f"{LOCAL}{folder}", draw=False)
        load_weights(name, model, weights)
        return as_backbone(name, model, tokenizer)
    from rmadapter.backbones.hugging_face import load_hf

    return as_backbone(name, *load_hf(name, folder))


def _tokenizer_place(folder: Path, repository: str, named: object) -> Path | None:
    """Return the folder of a Hugging Face tokenizer: the model's own or, for a model of the hub,
    the one that it names."""
    if not named:
        return None
    if not repository:
        return folder  # whatever it is called
    if named != repository and not is_plain(str(named), "hf_tokenizer_name"):
        raise UserError(
            f"{folder / CONFIG}: hf_tokenizer_name leads out of the repository, "
            f"to {str(named)[:200]!r}"
        )
    own = folder.name if named == repository else ""  # of the same commit as the weights
    return tokenizer_folder(str(named), own)


def _load_repository(name: str, revision: str = "") -> Backbone:
    """Load a repository of the hub, which keeps the commit that it was loaded from."""
    repository = name.removeprefix(HF_HUB)
    folder = model_folder(repository, revision)
    return replace(_load_untrusted(name, folder, repository), revision=folder.name)


def _load_untrusted(name: str, folder: Path, repository: str = "") -> Backbone:
    """Load a folder that anybody may have written, and try its transform once."""
    return _smoke_test(str(folder), lambda: _from_folder(name, folder, repository))


def _smoke_test(where: str, load: Callable[[], Backbone]) -> Backbone:
    """Load a backbone from files that anybody may have written, and try it once.

    Args:
        where: Folder or name, for messages.
        load: Loads the backbone.

    Raises:
        UserError: Its files cannot be loaded or used.
    """
    try:
        backbone = load()
        shape = tuple(backbone.preprocess(Image.new("RGB", (9, 9))).shape)
        if shape != (3, backbone.image_size, backbone.image_size):
            raise UserError(
                f"{where}: its transform makes images of {shape}, which the model does not take"
            )
        check_vocabulary(where, backbone)
        assert backbone.embedding_size  # of a first prompt or image
    except UserError:
        raise
    except Exception as error:  # its files can make libraries raise anything
        raise UserError(f"{where}: not a usable model: {first_line(error)}") from error
    return backbone


def check_vocabulary(where: str, backbone: Backbone) -> None:
    """Raise UserError for a Hugging Face tokenizer with words that the text encoder does not
    have."""
    tokenizer = getattr(backbone.tokenizer, "tokenizer", None)
    if tokenizer is None:
        return
    embeddings = [one for one in backbone.model.modules() if isinstance(one, torch.nn.Embedding)]
    rows = max(one.num_embeddings for one in embeddings)
    unused = {*tokenizer.all_special_ids}  # which files may list beyond the vocabulary
    for word, number in tokenizer.get_vocab().items():
        if number >= rows and number not in unused:
            raise UserError(
                f"{where}: its tokenizer has word {quoted(word)} as number {number:,}, but its "
                f"text encoder has {rows:,} words"
            )


def _weights_in(folder: Path) -> Path | None:
    """Return the safetensors file of a model folder; open_clip's names come first."""
    files = folder.glob("*.safetensors")
    return min(files, key=lambda one: (one.name not in OPEN_CLIP_WEIGHTS, one.name), default=None)
