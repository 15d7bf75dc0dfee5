"""Adapter files in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from afina.core.config import build
from afina.core.errors import AdapterError, InputError, SettingsError
from afina.core.files import read_json, write_atomic, write_json
from afina.lora.config import ALL_LINEAR, LoraConfig
from afina.lora.injection import inject, lora_layers
from afina.lora.layer import LoraEmbedding, LoraLinear, is_conv1d

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# What PEFT may store that changes the computation, with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights (the model's own tensors) by PEFT's names."""
    state: dict[str, Tensor] = {}
    for path, layer in lora_layers(model):
        a, b = _names(path, isinstance(layer, LoraEmbedding))
        state[a], state[b] = layer.lora_a.detach(), layer.lora_b.detach()  # not .data: changes must be seen as such
    return state


def save_adapter(
    model: nn.Module, config: LoraConfig, folder: Path, base_name: str | None = None, task_type: str | None = None
) -> None:
    """Writes the adapter in `model` to `folder`, each file whole. `base_name` is the hub id or path of the base.

    Raises `OutputError` where the folder cannot be written and `AdapterError` where a weight is not finite.
    """
    state = {name: value.to(torch.float32).cpu().contiguous() for name, value in adapter_state(model).items()}
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise AdapterError(f"the adapter has weights that are not finite: {broken[0]}; it was not saved")
    write_atomic(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(folder / CONFIG, _peft_config(model, config, base_name, task_type))


def load_adapter(model: nn.Module, folder: Path) -> LoraConfig:
    """Injects the adapter in `folder` into `model`; its configuration.

    Every weight must be there, fit, and be used. Raises `AdapterError` otherwise, also for an option of PEFT's that Afina does
    not have: ignoring it would give other logits.
    """
    config = read_config(folder)
    state = _read_weights(folder / WEIGHTS)
    inject(model, config)
    own = adapter_state(model)
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
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(
            f"{folder} holds no adapter: there is no {CONFIG}", "give the folder that holds the adapter's files"
        )
    try:
        raw = read_json(path)
    except InputError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        found = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        raise AdapterError(f"{path}: peft_type is {found!r}, only 'LORA' is supported")
    used = [f"{key} = {raw[key]!r}" for key, unused in _UNUSED.items() if key in raw and raw[key] not in unused]
    if used:
        raise AdapterError(f"{path} uses what Afina does not support: {', '.join(used)}")
    try:
        values = {
            "rank": raw["r"],
            "alpha": raw["lora_alpha"],
            "dropout": raw.get("lora_dropout", 0.0),
            "target_modules": _from_peft(raw["target_modules"]),
            "exclude_modules": _from_peft(raw.get("exclude_modules") or ()),
            "rank_pattern": raw.get("rank_pattern") or {},
            "alpha_pattern": raw.get("alpha_pattern") or {},
        }
        return build(LoraConfig, values)
    except (KeyError, TypeError, SettingsError) as error:
        raise AdapterError(
            f"{path} is not a whole LoRA configuration: {error}", "copy it again from where it was made"
        ) from error


def _names(path: str, embedding: bool) -> tuple[str, str]:
    if embedding:
        return f"{_PREFIX}{path}.lora_embedding_A", f"{_PREFIX}{path}.lora_embedding_B"
    return f"{_PREFIX}{path}.lora_A.weight", f"{_PREFIX}{path}.lora_B.weight"


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"cannot read {path}: {error.strerror}", "the folder must hold the adapter's weights"
        ) from error
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged: {error}", "copy it again from where it was made") from error


def _drop_base_copies(model: nn.Module, state: dict[str, Tensor]) -> None:
    """PEFT saves a whole embedding beside its adapter; one that equals the base's own says nothing new."""
    for path, layer in lora_layers(model):
        name = f"{_PREFIX}{path}.base_layer.weight"
        if name in state and torch.equal(state[name], layer.weight.to(state[name].dtype)):
            del state[name]


def _from_peft(names: str | list[str] | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(names, str):
        return names if names == ALL_LINEAR else f"re:{names}"
    return tuple(names)


def _to_peft(names: str | tuple[str, ...]) -> str | list[str] | None:
    if isinstance(names, str):
        return names.removeprefix("re:")
    return sorted(names) or None


def _peft_config(model: nn.Module, config: LoraConfig, base_name: str | None, task_type: str | None) -> dict[str, Any]:
    targets = _to_peft(config.target_modules)
    if config.target_modules == ALL_LINEAR:
        targets = _explicit_targets(model)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "exclude_modules": _to_peft(config.exclude_modules),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(layer, LoraLinear) and layer.transposed for _, layer in lora_layers(model)),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _explicit_targets(model: nn.Module) -> list[str]:
    """`all-linear` as names, for readers whose idea of all differs: the last part of each path where these select the same."""
    paths = [path for path, _ in lora_layers(model)]
    ends = sorted({path.rsplit(".", 1)[-1] for path in paths})
    plain = {p for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding) or is_conv1d(m)}
    others = {p for p in plain if p.removesuffix(".base") not in paths}
    return ends if not any(p.rsplit(".", 1)[-1] in ends for p in others) else sorted(paths)
