"""A base model by its configuration alone: the module on the meta device, without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afina.core.errors import BaseModelError, reading, shortened
from afina.core.events import Listener, Notice, ignore
from afina.core.files import read_json
from afina.core.task import CAUSAL, CLASSIFY, SEQ2SEQ, TASKS, Task, TaskName, task_named
from afina.engine.architecture import Architecture, Unsupported, checking_configuration
from afina.engine.decoder import Decoder
from afina.engine.families import architecture_of
from afina.engine.ops import TORCH, Ops
from afina.models.formats import gguf, gguf_models
from afina.models.formats.checks import check_counts
from afina.models.formats.number_formats import check_number_formats
from afina.models.formats.safetensors_files import check_header
from afina.models.sources.catalogue import Entry, known_models
from afina.models.sources.hub import fetch_headers
from afina.models.sources.source import Source, hub_id_of, is_local, locate


@dataclass(frozen=True)
class Skeleton:
    """What is known of a base without its weights.

    `module` is on the meta device. `file_bytes` are those of its weight files; `is_local` says whether they are on
    this disk.
    """

    name: str
    module: Any
    task: Task
    context_length: int
    file_bytes: int
    is_local: bool
    revision: str | None = None
    entry: Entry | None = None

    @property
    def config(self) -> Any:
        return self.module.config

    @property
    def is_decoder(self) -> bool:
        """Whether Afina's own decoder runs it."""
        return isinstance(self.module, Decoder)

    @property
    def heads(self) -> tuple[str, ...]:
        """The paths of the modules that are new in the model, and trained whole."""
        return heads_beside(self.module) if self.task.needs_classes else ()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def read_skeleton(
    name: str, *, revision: str | None = None, cache_dir: Path, task: TaskName | None = None,
    classes: Sequence[str] = (), listener: Listener = ignore,
) -> Skeleton:  # fmt: skip
    """The skeleton of the base called `name`: from what is on this disk, else from the catalogue, else from the hub,
    of which config.json and the headers of the weight files are fetched. Raises `BaseModelError`."""
    entry = known_models().get(name) or next((each for each in known_models().values() if each.hub_id == name), None)
    local = is_local(name, cache_dir, revision)
    size: int | None = None
    if local or not (entry or hub_id_of(name)):
        source = locate(name, revision, cache_dir)  # says what is wrong with a name that means nothing
        config, size = config_of(source), _file_bytes(source)
    elif entry and revision is None:
        config, source = _known_config(entry), None
        size = entry.package.size_mb * 1_000_000 if entry.package else None
    else:
        listener(Notice(f"asking the hub for the shapes of {name}"))
        folder, size = fetch_headers(entry.hub_id if entry and entry.hub_id else name, revision)
        source = Source(name, "hub", folder, folder.name)
        config = config_of(source)
    if task:
        chosen = task_named(task)
    elif source:
        chosen = task_of(source)
    else:
        chosen = next((each for each in TASKS.values() if entry and each.model_kind == entry.kind), CAUSAL)
    module = build_skeleton(config, chosen, len(classes))
    if size is None:  # of the catalogue: 16 bits per parameter
        size = 2 * sum(p.numel() for p in module.parameters())
    return Skeleton(name, module, chosen, context_of(config), size, local, source.revision if source else None, entry)


_NUMBERS_PER_BYTE = 4  # the most that any format packs


def _known_config(entry: Entry) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**entry.config)


def _file_bytes(source: Source) -> int:
    if source.is_gguf:
        return source.path.stat().st_size
    files = list(source.path.glob("*.safetensors"))
    for path in files:
        check_header(path)
    return sum(path.stat().st_size for path in files)


def build_skeleton(config: Any, task: Task, classes: int = 0) -> Any:
    """The module on the meta device: Afina's decoder where that knows the family, else transformers' class.

    Raises `BaseModelError`.
    """
    if not task.continues_text:
        return _other_skeleton(config, task, classes)
    try:
        return decoder_skeleton(config, architecture_of(config))
    except Unsupported:
        return causal_skeleton(config)


def heads_beside(module: Any) -> tuple[str, ...]:
    """The paths of a classifier's modules beside its base model."""
    return tuple(
        path
        for path, child in module.named_children()
        if path != module.base_model_prefix and next(child.parameters(), None) is not None
    )


def need_classes(classes: Sequence[str]) -> None:
    """Raises `BaseModelError` where there are fewer than two classes."""
    if len(classes) < 2:
        raise BaseModelError(
            f"a classifier needs two classes or more, each in several rows; {len(classes) or 'none'} were found",
            "check --completion: each different one is a class. Free answers are learned by a base that writes text, "
            "such as starter",
        )


@checking_configuration()
def decoder_skeleton(config: Any, arch: Architecture, ops: Ops = TORCH) -> Decoder:
    with torch.device("meta"):
        return Decoder(arch, config, ops)


@checking_configuration()
def causal_skeleton(config: Any) -> Any:
    """In transformers' class."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise BaseModelError(
            f"models of type {config.model_type!r} do not generate text", "choose a decoder-only (causal) base"
        ) from error


@checking_configuration()
def _other_skeleton(config: Any, task: Task, classes: int) -> nn.Module:
    """A classifier with a head for `classes` (or as its configuration has it), or an encoder-decoder."""
    import transformers

    if classes:
        config.num_labels = classes
    try:
        with torch.device("meta"):
            made: nn.Module = getattr(transformers, task.auto_class).from_config(config, trust_remote_code=False)
            return made
    except ValueError as error:
        raise BaseModelError(
            f"models of type {config.model_type!r} cannot be used with --task {task.name}", "choose another base"
        ) from error


def config_of(source: Source) -> Any:
    """The configuration of a model on this disk, as transformers parses it. Raises `BaseModelError`, also where its
    weights are in a format that cannot be read."""
    from transformers import AutoConfig

    check_number_formats(source.path)
    if source.is_gguf:
        file = gguf.read_gguf(source.path)
        family = shortened(file.metadata.get("general.architecture"))
        with reading(f"{source.path}: architecture {family} is not supported", BaseModelError, "choose another base"):
            return gguf_models.read_config(file) or AutoConfig.from_pretrained(
                source.path.parent, gguf_file=source.path.name, trust_remote_code=False, local_files_only=True
            )
    with reading(f"{source.path}/config.json: it describes no model", BaseModelError, "choose another base"):
        check_counts(read_json(source.path / "config.json"))
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
        config._attn_implementation = None  # what computes here is not the file's to say
        return config


def check_fits(module: nn.Module, source: Source) -> None:
    """Raises `BaseModelError` where a model is far larger than its files: what they lack, transformers would fill with
    random numbers, however much that is."""
    numbers, held = sum(p.numel() for p in module.parameters()), _file_bytes(source)
    if held and numbers > _NUMBERS_PER_BYTE * held:
        raise BaseModelError(
            f"{source.path}: config.json describes a model of {numbers:,} numbers, its weights have {held:,} bytes",
            "the folder needs complete *.safetensors files that fit its config.json",
        )


@checking_configuration()
def task_of(source: Source) -> Task:
    """The task that a base was made for, by the architectures in its config.json."""
    if source.is_gguf:
        return CAUSAL
    config = config_of(source)
    named = " ".join(config.architectures or ())
    if config.is_encoder_decoder:
        return SEQ2SEQ
    causal = not named or "CausalLM" in named or "LMHead" in named
    return CAUSAL if causal else CLASSIFY


def context_length(source: Source) -> int:
    """`context_of` its configuration, which is not made where a GGUF file says it: it takes seconds to import. Raises
    `BaseModelError`."""
    if source.is_gguf:
        metadata = gguf.read_gguf(source.path).metadata
        stated = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        if isinstance(stated, int) and stated > 0:
            return stated
    return context_of(config_of(source))


def context_of(config: Any) -> int:
    """The longest sequence that the model takes, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)
