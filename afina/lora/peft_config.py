"""An adapter's configuration as PEFT writes it, `adapter_config.json`, and as a `LoraConfig`."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from afina.core.config import build
from afina.core.errors import AdapterError, InputError, SettingsError, shortened
from afina.core.files import check_fetched, read_json
from afina.core.layers import is_conv1d
from afina.core.limits import ALPHA, LAYERS, PATTERNS, WIDEST
from afina.core.text import command_line
from afina.lora.config import PRESETS, LoraConfig
from afina.lora.injection import lora_layers
from afina.lora.layer import LoraLayer
from afina.lora.modules_to_save import trained_copies
from afina.lora.targets import ends_with, matches, pattern_value
from afina.lora.variants import VARIANTS, Variant

CONFIG = "adapter_config.json"
# What PEFT may store that changes the computation, with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}
# What says nothing of the computation, or nothing once there are weights.
_SAYS_NOTHING = {
    "auto_mapping", "corda_config", "d_initial", "eva_config", "fan_in_fan_out", "inference_mode", "init_weights",
    "loftq_config", "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config",
}  # fmt: skip

# Inits with which PEFT changes the base itself, and does so again on loading.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
COPY_AGAIN = "copy it again from where it was made"
_MERGE = "merge it into its base with PEFT (merge_and_unload), and use the model that gives"
Listed = Annotated[list[str], Field(max_length=PATTERNS)] | str | None
Alpha = Annotated[float, Field(gt=0, le=ALPHA)]
Integer = Annotated[int, Field(ge=0, le=1 << 62)]


class PeftFile(BaseModel):
    """What is read of an `adapter_config.json`, of any variant."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: Any = None  # whatever it is, a base can be named beside the adapter
    r: int | None = Field(None, ge=1, le=WIDEST)
    lora_alpha: Alpha | None = None
    lora_dropout: float | None = Field(None, ge=0, lt=1)
    vera_dropout: float | None = Field(None, ge=0, lt=1)
    target_modules: Listed = None
    target_parameters: Listed = None
    exclude_modules: Listed = None
    layers_to_transform: Integer | Annotated[list[Integer], Field(max_length=LAYERS)] | None = None
    layers_pattern: Listed = None
    modules_to_save: Listed = None
    bias: str | None = None
    rank_pattern: Annotated[dict[str, int], Field(max_length=PATTERNS)] | None = None
    alpha_pattern: Annotated[dict[str, Alpha], Field(max_length=PATTERNS)] | None = None
    trainable_token_indices: Integer | list[Integer] | dict[str, list[Integer]] | None = None
    init_lora_weights: bool | str | None = True
    use_rslora: bool | None = None
    use_dora: bool | None = None
    ensure_weight_tying: bool | None = None
    save_projection: bool | None = None
    projection_prng_key: Integer | None = None


def read_config(folder: Path) -> LoraConfig:
    """The `LoraConfig` that an `adapter_config.json` describes. Raises `AdapterError`."""
    return config_of(*read_peft(folder), folder / CONFIG)


def read_peft(folder: Path) -> tuple[dict[str, Any], Variant]:
    """The `adapter_config.json` in `folder`, and the variant that it describes. Raises `AdapterError`."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(
            f"{folder} contains no adapter: there is no {CONFIG}", "give the folder that holds the adapter's files"
        )
    check_fetched([path], AdapterError)
    try:
        raw = read_json(path)
    except InputError as error:
        raise AdapterError(str(error)) from error
    variant = next((v for v in VARIANTS if v.reads(raw)), None) if isinstance(raw, dict) else None
    if variant is None:
        if isinstance(raw, dict) and "lora_parameters" in raw:
            raise AdapterError(
                f"{path} is mlx-lm's, not PEFT's",
                f"`{command_line('adapters', 'convert', folder, '--base', 'BASE', '--out', 'DIR')}` rewrites it",
            )
        kind = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        *others, last = sorted({repr(v.peft_type) for v in VARIANTS})
        raise AdapterError(f"{path}: peft_type is {kind!r}, only {', '.join(others)} and {last} are supported", _MERGE)
    try:
        PeftFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} is {shortened(first['input'])}: {first['msg']}"
        raise AdapterError(f"{path} is not a complete LoRA configuration: {what}", COPY_AGAIN) from error
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.split("_niter")[0] in _CHANGES_BASE:
        raise AdapterError(
            f"{path}: init_lora_weights is {init!r}, so these weights belong to a base that was changed",
            "save it in PEFT with path_initial_model_for_weight_conversion, or load it there and merge it",
        )
    used = [f"{key} = {raw[key]!r}" for key, unused in _UNUSED.items() if key in raw and raw[key] not in unused]
    if used:
        raise AdapterError(f"{path} uses what Afina does not support: {', '.join(used)}", _MERGE)
    return raw, variant


def unknown_options(raw: dict[str, Any]) -> list[str]:
    """Options of an `adapter_config.json` that no PEFT known here has, as far as they are set."""
    known = _SAYS_NOTHING | _UNUSED.keys() | PeftFile.model_fields.keys()
    return [name for name, value in raw.items() if name not in known and value not in (None, False, "", [], {})]


def config_of(raw: dict[str, Any], variant: Variant, path: Path) -> LoraConfig:
    try:
        common = {
            "variant": variant.name,
            "target_modules": _targets(raw),
            "exclude_modules": _from_peft(raw.get("exclude_modules") or ()),
            "layers": _listed(raw.get("layers_to_transform")),
            "layers_pattern": raw.get("layers_pattern") or (),
            "bias": raw.get("bias") or "none",
            "modules_to_save": _ends(raw.get("modules_to_save") or []),
        }
        return build(LoraConfig, common | variant.from_peft(raw))
    except (KeyError, TypeError, SettingsError) as error:
        raise AdapterError(f"{path} is not a complete LoRA configuration: {error}", COPY_AGAIN) from error


def _ends(names: list[str] | str) -> str | tuple[str, ...]:
    """PEFT takes any module whose path ends with one of the names, in the middle of a word too."""
    names = [names] if isinstance(names, str) else names
    return f"re:.*({'|'.join(map(re.escape, names))})" if names else ()


def _listed(value: Any) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


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


def to_peft(names: str | tuple[str, ...]) -> str | list[str] | None:
    if isinstance(names, str):
        return names.removeprefix("re:")
    return sorted(names) or None


def peft_config(model: nn.Module, config: LoraConfig, base_name: str | None, task_type: str | None) -> dict[str, Any]:
    layers = dict(lora_layers(model))
    parameters = [f"{path}.{name}" for path, layer in layers.items() for name in layer.target_parameters]
    config = _as_adapted(config, [*layers, *parameters])
    modules = to_peft(config.target_modules)
    mixed = not isinstance(config.target_modules, str) and any(name.startswith("re:") for name in config.target_modules)
    named = config.target_modules not in PRESETS and all(matches(config.target_modules, path) for path in layers)
    if not named or mixed or config.layers or parameters:
        modules = _explicit_targets(model)
    config = _with_actual_ranks(config.saved(), layers)
    about = {
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
        "modules_to_save": [each.path for each in trained_copies(model) if each.is_module] or None,
    }
    common = common_keys(config, about, modules)
    if parameters:
        common["target_parameters"] = parameters
    return VARIANTS[config.variant].to_peft(config, common)


def common_keys(config: LoraConfig, about: dict[str, Any], targets: str | list[str] | None) -> dict[str, Any]:
    return about | {
        "inference_mode": True,
        "r": config.rank,
        "target_modules": targets,
        "exclude_modules": to_peft(config.exclude_modules),
        "bias": config.bias,
        "layers_to_transform": None,
    }


def _as_adapted(config: LoraConfig, paths: list[str]) -> LoraConfig:
    """`config` without names and patterns that match none of the adapted `paths`: one that was read may have such."""

    def kept(patterns: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in patterns.items() if any(ends_with(key, path) for path in paths)}

    names = config.target_modules
    if not isinstance(names, str):
        names = tuple(name for name in names if any(matches(name, path) for path in paths))
    patterns = {"rank_pattern": kept(config.rank_pattern), "alpha_pattern": kept(config.alpha_pattern)}
    return config.model_copy(update={"target_modules": names, **patterns})


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
