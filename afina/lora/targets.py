"""Which layers an adapter is for, by the dotted paths of a model's modules."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from afina.core.errors import AdapterError, near
from afina.core.layers import is_conv1d
from afina.core.limits import PATTERN_BYTES, PATTERN_SECONDS
from afina.core.limits.process import Exceeded, bounded
from afina.lora.config import ALL_LINEAR, PRESETS, LoraConfig, Names
from afina.lora.layer import Size, Target, TargetKind
from afina.lora.variants._experts import expert_tensors, experts_transposed

Unmatched = Callable[[AdapterError], None]  # told of each part of a configuration that matches nothing in a model


@contextmanager
def matching() -> Iterator[None]:
    """Within a limit of time, since a pattern may come with an adapter, and may try for ever. Raises `AdapterError`."""
    try:
        with bounded(PATTERN_SECONDS, PATTERN_BYTES):
            yield
    except (Exceeded, MemoryError) as error:
        raise AdapterError(
            f"the patterns of the adapter's layers are still tried after {PATTERN_SECONDS:.0f} s",
            "name the layers instead, or write patterns without one repetition inside another",
        ) from error


def refuse(error: AdapterError) -> None:
    raise error


@matching()
def find_targets(model: nn.Module, config: LoraConfig, unmatched: Unmatched = refuse) -> list[str]:
    """The paths of the layers that `config` targets, in the model's order, then those of experts' tensors.

    Raises `AdapterError` where nothing is left to adapt; where one of several targets matches nothing (naming near
    ones), or matches what cannot be adapted, or a layer's number or a pattern does not exist, that is for `unmatched`.
    """
    layers = {path: module for path, module in model.named_modules() if _adaptable(module)}
    adaptable = [*layers, *expert_tensors(model)]
    if config.target_modules in PRESETS:
        head = _output_head(model)
        vocabulary = {path for path, module in layers.items() if module is head or isinstance(module, nn.Embedding)}
        wanted = [p for p in adaptable if p not in vocabulary and _in_preset(p, str(config.target_modules))]
    else:
        wanted = [path for path in adaptable if matches(config.target_modules, path)]
        if error := _unmatched_names(model, config, adaptable):
            (unmatched if wanted else refuse)(error)
    saved = _saved_paths(model, config)
    named = () if isinstance(config.target_modules, str) else config.target_modules
    numbers = {path: layer_number(path, config.layers_pattern) for path in wanted}
    known = {number for number in numbers.values() if number is not None}
    if unknown := [number for number in config.layers if number not in known]:
        remedy = f"layers takes {min(known)} to {max(known)}" if known else ""
        unmatched(AdapterError(f"there is no layer {unknown[0]} to adapt", remedy))
    targets = [
        path
        for path in wanted
        if not matches(config.exclude_modules, path)
        and not any(path == module or path.startswith(f"{module}.") for module in saved)
        and (not config.layers or numbers[path] in config.layers or path in named)
    ]
    patterns = [*config.rank_pattern, *config.alpha_pattern]
    if not config.target_modules:
        return []
    if unread := [key for key in patterns if not any(ends_with(key, path) for path in targets)]:
        ends = "name adapted layers by the end of their paths, such as q_proj or 3.self_attn.q_proj"
        unmatched(
            AdapterError(f"pattern {unread[0]!r} of rank_pattern or alpha_pattern matches no adapted layer", ends)
        )
    if not targets:
        raise AdapterError(
            f"target {config.target_modules!r} without {config.exclude_modules!r} leaves no layer to adapt",
            "change target_modules, exclude_modules or layers",
        )
    return targets


@matching()
def described(model: nn.Module, paths: Sequence[str], config: LoraConfig) -> list[Target]:
    """What is to be adapted at `paths` (of `find_targets`), with the sizes that `config` gives: layers in their order,
    then the modules that hold tensors of experts."""
    tensors = set(expert_tensors(model))
    layers = [_layer(path, model.get_submodule(path), config) for path in paths if path not in tensors]
    experts: dict[str, dict[str, Size]] = {}
    for path in paths:
        if path in tensors:
            parent, _, name = path.rpartition(".")
            module = model.get_submodule(parent)
            weight = getattr(module, name)
            count, outputs, inputs = weight.mT.shape if experts_transposed(module) else weight.shape
            experts.setdefault(parent, {})[name] = _size(path, config, outputs, inputs, count)
    return layers + [
        Target(path, model.get_submodule(path), "experts", sizes, config.dropout) for path, sizes in experts.items()
    ]


def _layer(path: str, module: nn.Module, config: LoraConfig) -> Target:
    rows, columns = module.weight.shape  # type: ignore[misc]
    swapped = is_conv1d(module) or isinstance(module, nn.Embedding)
    outputs, inputs = (columns, rows) if swapped else (rows, columns)
    kind: TargetKind = "embedding" if isinstance(module, nn.Embedding) else "linear"
    return Target(path, module, kind, {"weight": _size(path, config, outputs, inputs)}, config.dropout)


def _size(path: str, config: LoraConfig, outputs: int, inputs: int, experts: int = 1) -> Size:
    rank = int(pattern_value(config.rank_pattern, path, config.rank))
    alpha = pattern_value(config.alpha_pattern, path, config.alpha)
    return Size(outputs, inputs, rank, config.scaling(rank, alpha), experts)


def _adaptable(module: nn.Module) -> bool:
    # The output layer of torch's own attention is never called: its weight is read.
    called = type(module).__name__ != "NonDynamicallyQuantizableLinear"
    return (called and isinstance(module, nn.Linear | nn.Embedding)) or is_conv1d(module)


def _output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter else None


def _in_preset(path: str, preset: str) -> bool:
    """Of what is neither the output head nor an embedding: all-linear takes every layer; attention those inside a
    module whose name says attention; mlp the others of the repeated layers."""
    attention = bool(re.search("attn|attention", path.lower()))
    numbered = layer_number(path) is not None
    return preset == ALL_LINEAR or (attention if preset == "attention" else numbered and not attention)


def layer_number(path: str, lists: Names = ()) -> int | None:
    """The number of the repeated layer that `path` is in: the first in the path, or the first after the name of one of
    `lists` (PEFT's rule for layers_pattern)."""
    for name in lists or (None,):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)" if name is None else rf"(?:^|\.){name}\.(\d+)\.", path)
        if number:
            return int(number[1])
    return None


@matching()
def saved_modules(model: nn.Module, config: LoraConfig, unmatched: Unmatched = refuse) -> list[str]:
    """The paths of the modules to be trained in full. Tells `unmatched` of names that match none."""
    paths = _saved_paths(model, config)
    names = (config.modules_to_save,) if isinstance(config.modules_to_save, str) else config.modules_to_save
    known = [path for path, _ in model.named_modules() if path]
    ends = sorted({path.rsplit(".", 1)[-1] for path in known})
    for name in names:
        if not any(matches(name, path) for path in known):
            problem = f"modules_to_save {name!r} matches no module.{near(name, ends)}"
            unmatched(AdapterError(problem, f"modules: {', '.join(ends)}"))
    return paths


def _saved_paths(model: nn.Module, config: LoraConfig) -> list[str]:
    if not config.modules_to_save:
        return []
    paths = [path for path, _ in model.named_modules() if path and matches(config.modules_to_save, path)]
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def matches(names: str | tuple[str, ...], path: str) -> bool:
    """PEFT's rule: a name is a path or the end of one; a pattern (re:…) matches the entire path."""
    return any(
        bool(re.fullmatch(name.removeprefix("re:"), path))
        if name.startswith("re:")
        else path == name or path.endswith(f".{name}")
        for name in ((names,) if isinstance(names, str) else names)
    )


def _unmatched_names(model: nn.Module, config: LoraConfig, adaptable: list[str]) -> AdapterError | None:
    names = (config.target_modules,) if isinstance(config.target_modules, str) else config.target_modules
    unmatched = [name for name in names if not any(matches(name, path) for path in adaptable)]
    if not unmatched:
        return None
    ends = sorted({path.rsplit(".", 1)[-1] for path in adaptable})
    problems = []
    for name in unmatched:
        other = [type(m).__name__ for path, m in model.named_modules() if path and matches(name, path)]
        why = f"matches {other[0]} layers, which cannot be adapted" if other else "matches no layer"
        problems.append(f"target {name!r} {why}.{near(name, ends)}")
    return AdapterError(problems, f"layers that can be adapted: {', '.join(ends)}; or all-linear")


def pattern_value(patterns: dict[str, int] | dict[str, float], path: str, default: float) -> float:
    """The value of the first pattern that matches the end of `path`: PEFT's rule for rank_pattern and alpha_pattern."""
    return next((value for key, value in patterns.items() if ends_with(key, path)), default)


def ends_with(pattern: str, path: str) -> bool:
    return path == pattern or path.endswith(f".{pattern}") or bool(re.match(rf"(.*\.)?({pattern})$", path))
