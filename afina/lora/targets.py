"""Which layers an adapter is for, by the dotted paths of a model's modules."""

import re
from collections.abc import Sequence

from torch import nn

from afina.core.errors import AdapterError, near
from afina.core.layers import is_conv1d
from afina.lora.config import ALL_LINEAR, PRESETS, LoraConfig
from afina.lora.layer import Size, Target, TargetKind
from afina.lora.variants._experts import expert_tensors, experts_transposed


def find_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """The paths of the layers that `config` targets, in the model's order, then those of experts' tensors.

    Raises `AdapterError` where a target matches nothing, naming near ones, or matches what cannot be adapted.
    """
    layers = {path: module for path, module in model.named_modules() if _adaptable(module)}
    adaptable = [*layers, *expert_tensors(model)]
    if config.target_modules in PRESETS:
        head = _output_head(model)
        vocabulary = {path for path, module in layers.items() if module is head or isinstance(module, nn.Embedding)}
        wanted = [p for p in adaptable if p not in vocabulary and _in_preset(p, str(config.target_modules))]
    else:
        wanted = [path for path in adaptable if matches(config.target_modules, path)]
        _refuse_unmatched(model, config, adaptable)
    saved = saved_modules(model, config)
    numbers = {number for path in wanted if (number := layer_number(path)) is not None}
    unknown = [number for number in config.layers if number not in numbers]
    if unknown:
        raise AdapterError(
            f"there is no layer {unknown[0]} to adapt",
            f"--lora.layers takes {min(numbers)} to {max(numbers)}" if numbers else "",
        )
    targets = [
        path
        for path in wanted
        if not matches(config.exclude_modules, path)
        and not any(path == module or path.startswith(f"{module}.") for module in saved)
        and (not config.layers or layer_number(path) in config.layers)
    ]
    patterns = [*config.rank_pattern, *config.alpha_pattern]
    if not config.target_modules:
        return []
    unread = [key for key in patterns if not any(ends_with(key, path) for path in targets)]
    if unread:
        raise AdapterError(f"pattern {unread[0]!r} of rank_pattern or alpha_pattern matches no adapted layer")
    if not targets:
        raise AdapterError(
            f"target {config.target_modules!r} without {config.exclude_modules!r} leaves no layer to adapt",
            "change --lora.target_modules, --lora.exclude_modules or --lora.layers",
        )
    return targets


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


def layer_number(path: str) -> int | None:
    """The first number in the path: that of the repeated layer."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(number[1]) if number else None


def saved_modules(model: nn.Module, config: LoraConfig) -> list[str]:
    """The paths of the modules to be trained in full. Raises `AdapterError` where a name matches none."""
    if not config.modules_to_save:
        return []
    paths = [path for path, _ in model.named_modules() if path and matches(config.modules_to_save, path)]
    names = (config.modules_to_save,) if isinstance(config.modules_to_save, str) else config.modules_to_save
    ends = sorted({path.rsplit(".", 1)[-1] for path, _ in model.named_modules() if path})
    for name in names:
        if not any(matches(name if name.startswith("re:") else (name,), path) for path in paths):
            raise AdapterError(
                f"modules_to_save {name!r} matches no module.{near(name, ends)}", f"modules: {', '.join(ends)}"
            )
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def matches(names: str | tuple[str, ...], path: str) -> bool:
    """PEFT's rule: a name is a path or the end of one; a pattern (re:…) matches the entire path."""
    if isinstance(names, str):
        return bool(re.fullmatch(names.removeprefix("re:"), path))
    return any(path == name or path.endswith(f".{name}") for name in names)


def _refuse_unmatched(model: nn.Module, config: LoraConfig, adaptable: list[str]) -> None:
    names = config.target_modules
    each = (names,) if isinstance(names, str) else tuple((name,) for name in names)
    unmatched = [name for name in each if not any(matches(name, path) for path in adaptable)]
    if not unmatched:
        return
    ends = sorted({path.rsplit(".", 1)[-1] for path in adaptable})
    problems = []
    for name in unmatched:
        text = name if isinstance(name, str) else name[0]
        other = [type(m).__name__ for path, m in model.named_modules() if path and matches(name, path)]
        why = f"matches {other[0]} layers, which cannot be adapted" if other else "matches no layer"
        problems.append(f"target {text!r} {why}.{near(text, ends)}")
    raise AdapterError(problems, f"layers that can be adapted: {', '.join(ends)}; or all-linear")


def pattern_value(patterns: dict[str, int] | dict[str, float], path: str, default: float) -> float:
    """The value of the first pattern that matches the end of `path`: PEFT's rule for rank_pattern and alpha_pattern."""
    return next((value for key, value in patterns.items() if ends_with(key, path)), default)


def ends_with(pattern: str, path: str) -> bool:
    return bool(re.match(rf"(.*\.)?({pattern})$", path))
