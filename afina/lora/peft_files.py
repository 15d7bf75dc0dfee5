"""Adapter files in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from afina.core.config import build
from afina.core.errors import AdapterError, InputError, SettingsError
from afina.core.files import read_json, write_json, write_tensors
from afina.core.layers import is_conv1d
from afina.lora.config import PRESETS, LoraConfig
from afina.lora.injection import inject, lora_layers
from afina.lora.layer import LoraLayer
from afina.lora.modules_to_save import trained_copies
from afina.lora.targets import pattern_value
from afina.lora.trainable_tokens import TrainableTokens
from afina.lora.variants import VARIANTS, Variant

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
# What PEFT may store that changes the computation, with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "layers_pattern": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}

# Inits with which PEFT changes the base itself, and does so again on loading.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights (the model's own tensors) by PEFT's names."""
    state: dict[str, Tensor] = {}
    for path, layer in lora_layers(model):
        state |= {f"{PREFIX}{path}.{end}": value for end, value in layer.tensors().items()}
        state |= {f"base_model.{name}": value for name, value in layer.shared_tensors().items()}
    for path, module in model.named_modules():
        if isinstance(module, TrainableTokens) and not any(module.rows is value for value in state.values()):
            state[f"{PREFIX}{path}.token_adapter.trainable_tokens_delta"] = module.rows
    for each in trained_copies(model):
        name = f"{PREFIX}{each.path}".replace(".base.", ".base_layer.")
        known = {id(value) for value in state.values()}  # what two modules share is saved once
        state |= {f"{name}.{end}".rstrip("."): v for end, v in each.tensors().items() if id(v) not in known}
    return {name: value.detach() for name, value in state.items()}  # not .data: changes must be seen as such


def save_adapter(
    model: nn.Module, config: LoraConfig, folder: Path | str, base_name: str | None = None, task_type: str | None = None
) -> None:
    """Writes the adapter in `model` to `folder`, each file atomically. `base_name` is the hub id or path of the base.

    Raises `OutputError` where the folder cannot be written and `AdapterError` where a weight is not finite.
    """
    folder = Path(folder)
    _write_weights(adapter_state(model), folder)
    write_json(folder / CONFIG, _peft_config(model, config, base_name, task_type))


def write_adapter(state: dict[str, Tensor], config: LoraConfig, like: Path, folder: Path) -> None:
    """Writes weights by PEFT's names to `folder`, with what the adapter in `like` says of its base and layers."""
    kept = ("task_type", "base_model_name_or_path", "fan_in_fan_out")
    raw = read_json(like / CONFIG)
    _write_weights(state, folder)
    common = _common_keys(config, {key: raw.get(key) for key in kept}, _to_peft(config.target_modules))
    write_json(folder / CONFIG, VARIANTS[config.variant].to_peft(config, common))


def _write_weights(state: dict[str, Tensor], folder: Path) -> None:
    state = {name: value.to(torch.float32).cpu().contiguous() for name, value in state.items()}
    if broken := not_finite(state):
        raise AdapterError(f"the adapter has weights that are not finite: {broken[0]}; it was not saved")
    write_tensors(folder / WEIGHTS, state, {"format": "pt"})


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """The names of the tensors with values that are not finite, by their extremes: `isfinite` alone needs a copy."""
    return [k for k, v in state.items() if v.numel() and not torch.stack(v.float().aminmax()).isfinite().all()]


def load_adapter(model: nn.Module, folder: Path | str) -> LoraConfig:
    """Injects the adapter in `folder` into `model`; its configuration.

    Every weight must be there, fit, and be used. Raises `AdapterError` otherwise, also for an option of PEFT's that
    Afina does not have: ignoring it would give other logits.
    """
    folder = Path(folder)
    raw, variant = _read_peft(folder)
    config = _config(raw, variant, folder / CONFIG)
    state = read_weights(folder)
    inject(model, config, seed=variant.seed(raw))
    own = {name: value for name, value in adapter_state(model).items() if not variant.may_be_absent(name, raw)}
    _drop_base_copies(model, state)
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} belongs to no layer of this base" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, this base needs {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = [f"… and {len(problems) - 4} more"] if len(problems) > 4 else []
        raise AdapterError(
            [f"adapter {folder} does not fit this base", *problems[:4], *more], "load the base it was made for"
        )
    for name, value in own.items():
        value.copy_(state[name])
    return config


def read_config(folder: Path) -> LoraConfig:
    """The `LoraConfig` that an `adapter_config.json` describes. Raises `AdapterError`."""
    return _config(*_read_peft(folder), folder / CONFIG)


def _read_peft(folder: Path) -> tuple[dict[str, Any], Variant]:
    """The `adapter_config.json` in `folder`, and the variant that it describes. Raises `AdapterError`."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(
            f"{folder} holds no adapter: there is no {CONFIG}", "give the folder that holds the adapter's files"
        )
    try:
        raw = read_json(path)
    except InputError as error:
        raise AdapterError(str(error)) from error
    variant = next((v for v in VARIANTS if v.reads(raw)), None) if isinstance(raw, dict) else None
    if variant is None:
        kind = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        *others, last = sorted({repr(v.peft_type) for v in VARIANTS})
        raise AdapterError(f"{path}: peft_type is {kind!r}, only {', '.join(others)} and {last} are supported")
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.split("_niter")[0] in _CHANGES_BASE:
        raise AdapterError(
            f"{path}: init_lora_weights is {init!r}, so these weights belong to a base that was changed",
            "save it in PEFT with path_initial_model_for_weight_conversion, or load it there and merge it",
        )
    used = [f"{key} = {raw[key]!r}" for key, unused in _UNUSED.items() if key in raw and raw[key] not in unused]
    if used:
        raise AdapterError(f"{path} uses what Afina does not support: {', '.join(used)}")
    return raw, variant


def _config(raw: dict[str, Any], variant: Variant, path: Path) -> LoraConfig:
    try:
        common = {
            "variant": variant.name,
            "target_modules": _targets(raw),
            "exclude_modules": _from_peft(raw.get("exclude_modules") or ()),
            "layers": _listed(raw.get("layers_to_transform")),
            "bias": raw.get("bias") or "none",
            "modules_to_save": _ends(raw.get("modules_to_save") or []),
        }
        return build(LoraConfig, common | variant.from_peft(raw))
    except (KeyError, TypeError, SettingsError) as error:
        raise AdapterError(
            f"{path} is not a complete LoRA configuration: {error}", "copy it again from where it was made"
        ) from error


def _ends(names: list[str]) -> str | tuple[str, ...]:
    """PEFT takes any module whose path ends with one of the names, in the middle of a word too."""
    return f"re:.*({'|'.join(map(re.escape, names))})" if names else ()


def _listed(value: Any) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in `folder`, by PEFT's names. Raises `AdapterError`."""
    path = folder / WEIGHTS
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"cannot read {path}: {error.strerror}", "the folder must hold the adapter's weights"
        ) from error
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged: {error}", "copy it again from where it was made") from error


def _drop_base_copies(model: nn.Module, state: dict[str, Tensor]) -> None:
    """PEFT saves the embedding itself beside its adapter; one that equals the base's own says nothing new."""
    for path, layer in lora_layers(model):
        name = f"{PREFIX}{path}.base_layer.weight"
        if name in state and torch.equal(state[name], layer.base.weight.to(state[name].dtype)):
            del state[name]


def _targets(raw: dict[str, Any]) -> str | tuple[str, ...]:
    """PEFT lists layers and tensors (of experts) separately."""
    layers, tensors = raw["target_modules"] or (), raw.get("target_parameters") or ()
    if isinstance(layers, str) and tensors:
        raise TypeError(f"target_parameters beside a pattern for target_modules, {layers!r}")
    return _from_peft((*layers, *tensors) if tensors else layers)


def _from_peft(names: str | list[str] | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(names, str):
        return names if names in PRESETS else f"re:{names}"
    return tuple(names)


def _to_peft(names: str | tuple[str, ...]) -> str | list[str] | None:
    if isinstance(names, str):
        return names.removeprefix("re:")
    return sorted(names) or None


def _peft_config(model: nn.Module, config: LoraConfig, base_name: str | None, task_type: str | None) -> dict[str, Any]:
    layers = dict(lora_layers(model))
    parameters = [f"{path}.{name}" for path, layer in layers.items() for name in layer.target_parameters]
    modules = _to_peft(config.target_modules)
    if config.target_modules in PRESETS or config.layers or parameters:
        modules = _explicit_targets(model)
    config = _with_actual_ranks(config.saved(), layers)
    about = {
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
        "modules_to_save": [each.path for each in trained_copies(model) if each.is_module] or None,
    }
    common = _common_keys(config, about, modules)
    if parameters:
        common["target_parameters"] = parameters
    return VARIANTS[config.variant].to_peft(config, common)


def _common_keys(config: LoraConfig, about: dict[str, Any], targets: str | list[str] | None) -> dict[str, Any]:
    return about | {
        "inference_mode": True,
        "r": config.rank,
        "target_modules": targets,
        "exclude_modules": _to_peft(config.exclude_modules),
        "bias": config.bias,
        "layers_to_transform": None,
    }


def _with_actual_ranks(config: LoraConfig, layers: dict[str, LoraLayer]) -> LoraConfig:
    """`config` with ranks and alphas by path, where layers have other ranks than it says: eva redistributes them."""
    layers = {path: layer for path, layer in layers.items() if not layer.target_parameters}
    if all(layer.rank == pattern_value(config.rank_pattern, path, config.rank) for path, layer in layers.items()):
        return config
    roots = {path: layer.rank**0.5 if config.rslora else layer.rank for path, layer in layers.items()}
    patterns = {
        "rank_pattern": {re.escape(path): layer.rank for path, layer in layers.items()},
        "alpha_pattern": {re.escape(path): layer.scaling * roots[path] for path, layer in layers.items()},
    }
    return build(LoraConfig, config.model_dump() | patterns)


def _explicit_targets(model: nn.Module) -> list[str]:
    """`all-linear` as names, for readers whose idea of all differs: the last names of the paths where these select the
    same layers, otherwise the paths."""
    paths = [path for path, layer in lora_layers(model) if not layer.target_parameters]
    ends = sorted({path.rsplit(".", 1)[-1] for path in paths})
    plain = {p for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding) or is_conv1d(m)}
    others = {p for p in plain if p.removesuffix(".base") not in paths}
    return ends if not any(p.rsplit(".", 1)[-1] in ends for p in others) else sorted(paths)
