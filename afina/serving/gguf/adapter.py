"""A LoRA adapter as a GGUF file beside the base's: A and B of each layer, by the base's names.

llama.cpp adds alpha / rank · B A, with one alpha for the file and each layer's own rank
(https://github.com/ggml-org/llama.cpp, src/llama-adapter.h).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from afina.core.errors import AdapterError
from afina.lora.config import LoraConfig
from afina.lora.peft_config import CONFIG, config_of, read_peft
from afina.lora.peft_files import PREFIX, read_weights
from afina.lora.targets import pattern_value
from afina.models.formats.gguf import GGUF, read_gguf
from afina.models.formats.gguf_models import names_in_file, stored_as
from afina.models.load import Base
from afina.serving.gguf._file import Head, opened
from afina.serving.gguf.facts import GgufFacts, general
from afina.serving.gguf.model import Contents, contents

_A, _B = ".lora_A.weight", ".lora_B.weight"
_MERGED = "export the merged model instead (--to gguf:TYPE)"
_ALPHA = "adapter.lora.alpha"
_APART = ("token_embd.weight", "output.weight", "position_embd.weight")  # llama.cpp adds to no embedding, nor head


@dataclass(frozen=True)
class _Pair:
    """A (rank, inputs) and B (outputs, rank) of the layer at `path`, called `name` in the file, and what its update is
    multiplied by."""

    path: str
    name: str
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def alpha(self) -> float:
        """The alpha with which llama.cpp scales it as it was trained."""
        return self.scaling * len(self.a)


def write_adapter(
    base: Base, adapter_folder: Path, path: Path, facts: GgufFacts, dtype: Literal["F16", "F32"] = "F16"
) -> None:
    """Writes the adapter in PEFT's format in `adapter_folder` to `path`, its numbers as `dtype`.

    Where its layers need different alphas (ranks and alphas by pattern, with rsLoRA ranks alone), the difference is in
    their B. Raises `AdapterError` for what llama.cpp does not add to a model, by name, and `BaseModelError`,
    `SettingsError` and `OutputError`.
    """
    held = contents(base)
    config, pairs = _pairs(held, adapter_folder)
    alphas = {round(pair.alpha, 6) for pair in pairs}
    alpha = pairs[0].alpha if len(alphas) == 1 else config.alpha
    metadata = general(facts, "adapter", dtype) | {"adapter.type": "lora", _ALPHA: float(alpha)}
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        b = stored_as(held.layout, pair.name).rows_to_file(pair.b.float(), held.config)
        tensors[f"{pair.name}.lora_a"] = pair.a.float()
        tensors[f"{pair.name}.lora_b"] = b if len(alphas) == 1 else b * (pair.alpha / alpha)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    head = Head(held.layout.architecture, metadata, dict.fromkeys(shapes, dtype), shapes)
    with opened(path, head) as file:
        for name, value in tensors.items():
            file.put(name, value)


def read_adapter(path: Path, base: Base) -> dict[str, tuple[Tensor, Tensor]]:
    """By the paths of the base's layers, A (rank, inputs) and s·B (outputs, rank) of the adapter in a GGUF file, in
    fp32: what llama.cpp adds. Raises `AdapterError` where it is none for this base, and `BaseModelError` where the file
    is damaged."""
    file, held = read_gguf(path), contents(base)
    if file.metadata.get("adapter.type") != "lora" or _ALPHA not in file.metadata:
        raise AdapterError(f"{path} is no LoRA adapter", "give the file of one")
    paths = {name: given.removesuffix(".weight") for given, name in held.names.items()}
    found = {}
    for name in dict.fromkeys(each.rpartition(".")[0] for each in file.tensors):
        if name not in paths or f"{name}.lora_a" not in file.tensors or f"{name}.lora_b" not in file.tensors:
            raise AdapterError(f"{path}: {name} is no layer of this base, or not whole", "give the base it is for")
        found[paths[name]] = _read_pair(file, name, held)
    return found


def _read_pair(file: GGUF, name: str, held: Contents) -> tuple[Tensor, Tensor]:
    a, b = file.tensor(f"{name}.lora_a"), file.tensor(f"{name}.lora_b")
    alpha = file.metadata[_ALPHA]
    lies = stored_as(held.layout, name)
    return a, lies.rows_restored(b, held.config) * (alpha / len(a) if alpha else 1.0)


def _pairs(held: Contents, folder: Path) -> tuple[LoraConfig, list[_Pair]]:
    raw, variant = read_peft(folder)
    config = config_of(raw, variant, folder / CONFIG)
    if not variant.summable:
        raise AdapterError(f"adapter {folder} is of the form {variant.name}, of which llama.cpp knows nothing", _MERGED)
    state = read_weights(folder)
    if problems := list(dict.fromkeys(_refused(held, state))):
        more = [f"… and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise AdapterError([f"adapter {folder} cannot be a GGUF file of its own", *problems[:5], *more], _MERGED)
    pairs = []
    for name, a in state.items():
        if not name.endswith(_A):
            continue
        path, rank = name.removeprefix(PREFIX).removesuffix(_A), len(a)
        scaling = config.scaling(rank, pattern_value(config.alpha_pattern, path, config.alpha))
        stored = held.names[held.arch.renamed.get(f"{path}.weight", f"{path}.weight")]
        pairs.append(_Pair(path, stored, a, state[name.removesuffix(_A) + _B], scaling))
    if not pairs:
        raise AdapterError(f"adapter {folder} adapts no layer", _MERGED)
    return config, pairs


def _refused(held: Contents, state: dict[str, Tensor]) -> Iterator[str]:
    """What is in an adapter that llama.cpp does not add, or that is not this base's."""
    names = names_in_file(held.layout, len(held.arch.specs), [f"{held.arch.names.head}.weight", *held.names])
    for name, value in sorted(state.items()):  # files have no order that is always the same
        path, end = _split(name)
        given = f"{path}.weight"
        stored = names.get(held.arch.renamed.get(given, given))
        if end not in (_A, _B):
            yield f"{path or name} holds more than A and B of a layer ({end.strip('.') or 'a trained copy'})"
        elif stored is None or (stored not in _APART and stored not in held.shapes):
            yield f"{path} is no layer of this base"
        elif stored in _APART:
            yield f"{path} is adapted, and llama.cpp adds to no embedding and no output head"
        elif f"{PREFIX}{path}{_B if end == _A else _A}" not in state:
            yield f"{path} has {end.strip('.')} alone"
        elif value.shape[1 if end == _A else 0] != held.shapes[stored][1 if end == _A else 0]:
            yield f"{path} is of another size in this base"


def _split(name: str) -> tuple[str, str]:
    """The path of a layer, and the end of PEFT's name for a tensor of it."""
    name = name.removeprefix(PREFIX)
    for end in (_A, _B, ".lora_embedding_A", ".lora_embedding_B", ".token_adapter.trainable_tokens_delta"):
        if name.endswith(end):
            return name.removesuffix(end), end
    path, _, end = name.rpartition(".")
    return path.replace(".base_layer", ""), f".{end}"
