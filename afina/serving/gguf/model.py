"""The merged model as a GGUF file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.errors import BaseModelError
from afina.core.layers import weight_holder
from afina.engine.architecture import Architecture
from afina.engine.decoder import Decoder
from afina.engine.families import FAMILIES, GgufLayout, architecture_of
from afina.lora.layer import Wrapper
from afina.lora.modules_to_save import trained_copies
from afina.models.formats.gguf_models import names_in_file, read_config, stored_as
from afina.models.formats.gguf_rope import RopeInFile, rope_in_file
from afina.models.load import Base
from afina.models.skeleton import decoder_skeleton
from afina.serving.gguf._file import Head, Writing, opened
from afina.serving.gguf.facts import GgufFacts, general, hyperparameters
from afina.serving.gguf.types import TypePlan, check_type, plan_types
from afina.serving.gguf.vocabulary import Vocabulary, vocabulary

_ELSE = "export the merged safetensors"
_SAME_NUMBERS = 1e-5  # of settings that the file holds in fp32
_HEAD = "output.weight"


@dataclass(frozen=True)
class Contents:
    """What a base's file holds: the names in it, and their shapes there, by transformers' names of tensors, and its
    rotations. Of a family whose files need a head, tied embeddings are there twice."""

    layout: GgufLayout
    config: Any
    arch: Architecture
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    rope: RopeInFile

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors in the file, by their names there."""
        return {name: tuple(value.shape) for name, value in self.rope.tensors.items()} | self.shapes


def contents(base: Base) -> Contents:
    """Raises `BaseModelError` where GGUF has no place for the base."""
    module: Any = base.model.module
    model_type = module.config.model_type
    layout = FAMILIES[model_type].gguf if model_type in FAMILIES else None
    if layout is None or not isinstance(module, Decoder):
        known = ", ".join(sorted(family.name for family in FAMILIES if family.gguf))
        why = "" if layout is None else f" (it runs {base.engine})"
        raise BaseModelError(f"no GGUF file is written of a model of type {model_type!r}{why}, only of {known}", _ELSE)
    arch, config = module.arch, module.config
    state = decoder_skeleton(config, arch).state_dict()
    head = f"{arch.names.head}.weight"
    if _shares_head(module):
        del state[head]
    names = names_in_file(layout, len(arch.specs), state)
    if lost := [name for name in state if name not in names]:
        raise BaseModelError(f"GGUF has no name for {', '.join(lost[:3])}", _ELSE)
    shapes = {names[name]: _shape(layout, names[name], weight) for name, weight in state.items()}
    if layout.needs_head and head not in state:
        shapes[_HEAD] = shapes["token_embd.weight"]
    return Contents(layout, config, arch, names, shapes, rope_in_file(config, arch))


def _shape(layout: GgufLayout, name: str, weight: Tensor) -> tuple[int, ...]:
    shape = tuple(weight.shape)
    return shape[::-1] if stored_as(layout, name).turned and len(shape) == 2 else shape


def _shares_head(module: Decoder) -> bool:
    """Whether the output head is the token embeddings, also once an adapter is merged."""
    ends = module.get_input_embeddings(), module.get_output_embeddings()
    if any(isinstance(end, Wrapper) for end in ends):
        return False
    paths = (module.arch.names.embedding, module.arch.names.head)
    if any(each.path.startswith(paths) for each in trained_copies(module)):
        return False
    return weight_holder(ends[0]) is weight_holder(ends[1])


def plan_model(base: Base, type: str) -> TypePlan:
    """What a file of `type` will hold, before there are weights. Raises `SettingsError` for an unknown type, and
    `BaseModelError` where GGUF has no place for the base or its tokenizer."""
    check_type(type)
    held = contents(base)
    return _planned(held, vocabulary(base, held.arch.vocabulary, None), type)


def _planned(held: Contents, words: Vocabulary, type: str) -> TypePlan:
    notes = (*held.rope.notes, *_window(held), *words.notes)
    return replace(plan_types(held.tensors, type), notes=notes)


def _window(held: Contents) -> Iterator[str]:
    windows = {spec.window for spec in held.arch.specs if spec.window}
    if held.layout.window_is_ignored and windows:
        yield (
            f"llama.cpp computes {held.layout.architecture} without its sliding window of {max(windows):,} tokens: "
            "longer texts are answered otherwise"
        )


def write_model(base: Base, weights: Iterable[tuple[str, Tensor]], path: Path, type: str, facts: GgufFacts) -> TypePlan:
    """Writes `weights`, the base's with what was trained merged into them, by transformers' names and in any order and
    dtype, to `path`, in `type`.

    They are taken one by one: no more than one is in memory. Before the first is taken the head of the file is read
    back, and describes the base's architecture. Raises `BaseModelError` where GGUF cannot hold the model,
    `SettingsError` where its numbers are too large for the type, `OutputError`, and `ValueError` where the weights are
    not those of the base.
    """
    check_type(type)
    held = contents(base)
    words = vocabulary(base, held.arch.vocabulary, facts.template)
    plan = _planned(held, words, type)
    metadata = general(facts, "model", type) | hyperparameters(held.layout, held.config, held.arch, held.rope)
    head = Head(held.layout.architecture, metadata | words.metadata, plan.types, held.tensors, words.kinds)
    with opened(path, head) as file:
        for name, value in held.rope.tensors.items():
            file.put(name, value)
        _check_head(file, held)
        _put_weights(file, held, weights)
    return plan


@torch.no_grad()
def _put_weights(file: Writing, held: Contents, weights: Iterable[tuple[str, Tensor]]) -> None:
    head, embedding = f"{held.arch.names.head}.weight", f"{held.arch.names.embedding}.weight"
    embeddings: Tensor | None = None
    for given, weight in weights:
        name = held.arch.renamed.get(given, given)
        if name.endswith(held.arch.computed):
            continue
        if name == head and head not in held.names:
            if embeddings is not None and embeddings is not weight and not torch.equal(embeddings, weight):
                raise ValueError(f"{given} is not {embedding}, though the base ties them")
            continue
        stored = held.names[name]
        lies = stored_as(held.layout, stored)
        if name == embedding:
            embeddings = weight
            if _HEAD in held.shapes and head not in held.names:
                file.put(_HEAD, weight)
        file.put(stored, lies.to_file(weight.float() if lies.offset else weight, held.config))


def _check_head(file: Writing, held: Contents) -> None:
    """Raises `BaseModelError` where the file, as Afina reads it, describes another model: what GGUF has no key for."""
    found = architecture_of(read_config(file.so_far()))
    differing = [
        f"{each.name}: {_first_difference(getattr(held.arch, each.name), getattr(found, each.name))}"
        for each in fields(Architecture)
        if each.name not in ("model_type", "tied", "names", "renamed", "computed")
        and not _same(getattr(held.arch, each.name), getattr(found, each.name))
    ]
    if differing:
        kind = held.layout.architecture
        raise BaseModelError([f"a GGUF file of {kind!r} cannot say of the model: {each}" for each in differing], _ELSE)


def _first_difference(one: Any, other: Any) -> str:
    """'layer 3: … , the file would say …' of values by layer."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if not _same(a, b))
        return f"layer {at}: {_first_difference(one[at], other[at])}"
    for each in fields(one) if hasattr(one, "__dataclass_fields__") else ():
        if not _same(getattr(one, each.name), getattr(other, each.name)):
            return f"{each.name} {_first_difference(getattr(one, each.name), getattr(other, each.name))}"
    if isinstance(one, Tensor):
        return "the frequencies of its rotations"
    return f"{one!r}; the file would say {other!r}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, _SAME_NUMBERS, 0)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if hasattr(one, "__dataclass_fields__") and type(one) is type(other):
        return all(_same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and isclose(one, other, rel_tol=_SAME_NUMBERS)
    return bool(one == other)
