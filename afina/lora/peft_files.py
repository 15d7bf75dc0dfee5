"""Adapter files in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from afina.core.errors import AdapterError, reading
from afina.core.events import Listener, Notice, ignore
from afina.core.files import check_fetched, read_json, write_json, write_tensors
from afina.core.layers import Quantised, not_finite, weight_holder
from afina.core.text import command_line
from afina.lora.config import LoraConfig
from afina.lora.injection import inject, lora_layers
from afina.lora.layer import Wrapper
from afina.lora.modules_to_save import part_copies, trained_copies
from afina.lora.peft_config import (
    CONFIG,
    COPY_AGAIN,
    common_keys,
    config_of,
    peft_config,
    read_peft,
    to_peft,
    unknown_options,
)
from afina.lora.trainable_tokens import TrainableTokens
from afina.lora.variants import VARIANTS

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights (the model's own tensors) by PEFT's names."""
    state: dict[str, Tensor] = {}
    for path, layer in lora_layers(model):
        state |= {f"{PREFIX}{path}.{end}": value for end, value in layer.tensors().items()}
        state |= {f"base_model.{name}": value for name, value in layer.shared_tensors().items()}
    for path, module in model.named_modules():
        if isinstance(module, TrainableTokens) and not any(module.rows is value for value in state.values()):
            state[f"{PREFIX}{path}.token_adapter.trainable_tokens_delta"] = module.rows
    for each in trained_copies(model):  # what two of them share is there under both names, as PEFT needs it
        name = f"{PREFIX}{each.path}".replace(".base.", ".base_layer.")
        state |= {f"{name}.{end}".rstrip("."): value for end, value in each.tensors().items()}
    return {name: value.detach() for name, value in state.items()}  # not .data: changes must be seen as such


def save_adapter(
    model: nn.Module, config: LoraConfig, folder: Path | str, base_name: str | None = None, task_type: str | None = None
) -> None:
    """Writes the adapter in `model` to `folder`, each file atomically. `base_name` is the hub id or path of the base.

    Raises `OutputError` where the folder cannot be written and `AdapterError` where a weight is not finite.
    """
    folder = Path(folder)
    _write_weights(adapter_state(model), folder)
    write_json(folder / CONFIG, peft_config(model, config, base_name, task_type))


def write_adapter(state: dict[str, Tensor], config: LoraConfig, like: Path, folder: Path) -> None:
    """Writes weights by PEFT's names to `folder`, with what the adapter in `like` says of its base and layers."""
    kept = ("task_type", "base_model_name_or_path", "fan_in_fan_out")
    raw = read_json(like / CONFIG)
    _write_weights(state, folder)
    common = common_keys(config, {key: raw.get(key) for key in kept}, to_peft(config.target_modules))
    write_json(folder / CONFIG, VARIANTS[config.variant].to_peft(config, common))


def _write_weights(state: dict[str, Tensor], folder: Path) -> None:
    seen: set[int] = set()  # a file holds no tensor twice: what is shared is copied
    written: dict[str, Tensor] = {}
    for name, value in state.items():
        written[name] = value.to(torch.float32, copy=value.data_ptr() in seen).cpu().contiguous()
        seen.add(value.data_ptr())
    if broken := not_finite(written):
        raise AdapterError(f"the adapter has weights that are not finite: {broken[0]}; it was not saved")
    write_tensors(folder / WEIGHTS, written, {"format": "pt"})


def load_adapter(model: nn.Module, folder: Path | str, listener: Listener = ignore) -> LoraConfig:
    """Injects the adapter in `folder` into `model`; its configuration. Raises `AdapterError`; see `put_adapter`."""
    read_peft(Path(folder))
    return put_adapter(model, Path(folder), read_weights(Path(folder)), listener)


def put_adapter(
    model: nn.Module, folder: Path, state: dict[str, Tensor], listener: Listener = ignore, told: int = 4
) -> LoraConfig:
    """Injects the adapter that the configuration in `folder` describes, and whose tensors are `state`.

    Every weight must be there, fit, and be used. What the configuration names beside that and this base has not is
    told to the `listener`: PEFT ignores it. Raises `AdapterError` otherwise, with the first `told` weights that do not
    fit, also for an option of PEFT's that Afina does not have: ignoring it would give other logits.
    """
    raw, variant = read_peft(folder)
    config, state = config_of(raw, variant, folder / CONFIG), dict(state)

    if unknown := unknown_options(raw):
        text = f"adapter {folder} has options that are not known here, and not used: {', '.join(unknown)}"
        listener(Notice(text, warning=True))

    def unmatched(error: AdapterError) -> None:
        what = "; ".join(error.problems)
        listener(Notice(f"adapter {folder} names what this base has not, which is ignored, as in PEFT: {what}"))

    fitted = _with_tied(config, model, state) if raw.get("ensure_weight_tying") else config
    inject(model, fitted, variant.seed(raw), unmatched=unmatched)
    _share_as_stored(model, state)
    own = {name: value for name, value in adapter_state(model).items() if not variant.may_be_absent(name, raw)}
    problems = _drop_base_copies(model, state, own)
    problems += [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} belongs to no layer of this base" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, this base needs {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = [f"… and {len(problems) - told} more"] if len(problems) > told else []
        raise AdapterError(
            [f"adapter {folder} does not fit this base", *problems[:told], *more], "load the base it was made for"
        )
    for name, value in own.items():
        value.copy_(state[name])
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in `folder`, by PEFT's names. Raises `AdapterError`."""
    path = folder / WEIGHTS
    check_fetched([path, folder / PICKLED], AdapterError)
    if not path.exists() and (folder / PICKLED).exists():
        raise AdapterError(
            f"{folder} holds its weights as {PICKLED} only, a pickle, which can run any code when it is read",
            f"`{command_line('adapters', 'convert', folder, '--out', 'DIR')}` reads its tensors without running "
            f"anything, and writes {WEIGHTS}",
        )
    return checked(path, tensors_in(path))


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `AdapterError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"cannot read {path}: {error.strerror}", "the folder must hold the adapter's weights"
        ) from error
    with reading(f"{path} is damaged", AdapterError, COPY_AGAIN):
        return load(content)


def checked(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file at `path`, those of eight bits in fp32: torch neither compares nor adds these.

    Raises `AdapterError` where some are whole numbers, or hold NaN or infinity.
    """
    if odd := [f"{name} ({value.dtype})" for name, value in state.items() if not value.is_floating_point()]:
        raise AdapterError(
            f"{path}: {odd[0].replace('torch.', '')} holds whole numbers, which mean nothing without the program that "
            "quantised them",
            "restore the adapter in float32, float16 or bfloat16, as it was trained",
        )
    if broken := not_finite(state):
        raise AdapterError(
            f"{path}: {broken[0]} holds numbers that are not finite (NaN or infinity)",
            "the training that wrote it diverged, or the file is damaged: use an earlier checkpoint, or train again",
        )
    return {name: value.float() if value.element_size() == 1 else value for name, value in state.items()}


def _with_tied(config: LoraConfig, model: Any, state: dict[str, Tensor]) -> LoraConfig:
    """What PEFT's ensure_weight_tying adds to the configuration, and does not write down: the layers tied to the
    embedding are adapted, or trained in full, as that is."""
    embedding = model.get_input_embeddings()
    for path, module in model.named_modules():
        tied = module is not embedding and isinstance(module, nn.Embedding | nn.Linear)
        if tied and weight_holder(module) is weight_holder(embedding):
            if f"{PREFIX}{path}.lora_A.weight" in state:
                config = config.adapting(path)
            elif f"{PREFIX}{path}.weight" in state:
                config = config.saving([path])
    return config


def _share_as_stored(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Trained copies share weights where the base's modules do. They part where the file holds different ones, as
    PEFT's do; one that is not in the file is its twin's."""
    names_of: dict[int, list[str]] = {}
    for name, value in adapter_state(model).items():
        names_of.setdefault(value.data_ptr(), []).append(name)
    for names in names_of.values():
        given = [name for name in names if name in state]
        if given and any(not torch.equal(state[name], state[given[0]]) for name in given):
            part_copies(model)
        state.update({name: state[given[0]] for name in names if given and name not in state})


def _drop_base_copies(model: nn.Module, state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Drops from `state` copies of the base's own weights, which PEFT saves beside adapted embeddings: they say nothing
    new. What is wrong with those that are of another base."""
    problems = []
    modules = dict(model.named_modules())
    for name in [name for name in state if name not in own]:
        path, _, end = name.removeprefix(PREFIX).replace(".base_layer.", ".").rpartition(".")
        layer: Any = modules.get(path)
        while isinstance(layer, Wrapper):
            layer = layer.base
        weight = getattr(layer, end, None)
        if not isinstance(weight, Tensor):
            continue
        copied = state.pop(name)
        if not isinstance(layer, Quantised) and not _same_rounded(copied, weight):
            shapes = "" if copied.shape == weight.shape else f" {tuple(copied.shape)}, not {tuple(weight.shape)}"
            problems.append(f"{name} is a copy of the weights of another base than this one{shapes and ':' + shapes}")
    return problems


def _same_rounded(one: Tensor, other: Tensor) -> bool:
    """Whether the two can be roundings of the same numbers to their dtypes."""
    if one.shape != other.shape or not one.is_floating_point():
        return False
    kinds = torch.finfo(one.dtype), torch.finfo(other.dtype)
    relative = sum(kind.eps for kind in kinds) / 2
    absolute = sum(kind.smallest_normal * kind.eps for kind in kinds) / 2  # the smallest numbers have one spacing
    return torch.allclose(one.float(), other.float(), relative, absolute)
