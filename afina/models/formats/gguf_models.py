"""The model in a GGUF file: its configuration, and its weights by transformers' names.

Names of tensors come from the `gguf` package's own table; what the converter of llama.cpp does to some of them is
undone as the family says (`engine.families`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from afina.core.errors import BaseModelError, reading
from afina.engine.blocks import Blocks, Quantiser, full_precision
from afina.engine.families import GgufLayout, family_of_gguf
from afina.models.formats.checks import check_counts, check_numbers
from afina.models.formats.gguf import GGUF

# What Llama 3.1 and later divide their rotary frequencies by; of its settings only the largest factor differs among
# them.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_config(file: GGUF) -> Any:
    """transformers' configuration of the model; None where it is of no family that is read here (or has scaled
    rotations).

    Raises `BaseModelError` where the file lacks what its family needs.
    """
    with reading(f"{file.path}: its metadata are not those of a model", BaseModelError, "download it again"):
        of_model = {key: value for key, value in file.metadata.items() if not key.startswith("tokenizer.")}
        check_counts({key.rpartition(".")[2]: value for key, value in of_model.items()})
        try:
            return _config(file)
        except KeyError as error:
            raise ValueError(f"{error} is missing") from error


def _config(file: GGUF) -> Any:
    from transformers import AutoConfig

    known = family_of_gguf(architecture_name(file))
    if known is None:
        return None
    family, layout = known
    metadata = {key.removeprefix(f"{layout.architecture}."): value for key, value in file.metadata.items()}
    scaled = metadata.get("rope.scaling.type", "none") != "none" or metadata.get("rope.scaling.factor", 1.0) != 1.0
    if scaled or isinstance(metadata.get("attention.head_count_kv"), list):
        return None
    settings = {name: metadata[key] for name, key in layout.settings.items() if key in metadata}
    return AutoConfig.for_model(
        family.name,
        **settings,
        **layout.further(metadata, _rope(file, metadata)),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=None,
    )


def _rope(file: GGUF, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rotary parameters."""
    heads, hidden = metadata["attention.head_count"], metadata["embedding_length"]
    head_dim = metadata.get("attention.key_length", hidden // heads)
    rope = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base", 10000.0)}
    if _ROPE_FACTORS in file.tensors:
        rope |= _LLAMA_3 | {"factor": float(file.tensor(_ROPE_FACTORS).max())}
    if "rope.dimension_count" in metadata:
        rope["partial_rotary_factor"] = metadata["rope.dimension_count"] / head_dim
    return rope


def architecture_name(file: GGUF) -> str | None:
    """What llama.cpp calls the model's architecture."""
    name: str | None = file.metadata.get("general.architecture")
    return name


def read_weights(
    file: GGUF, config: Any, names: Iterable[str], dtype: torch.dtype, quantiser: Quantiser = full_precision,
    keep: bool = False,
) -> dict[str, Tensor | Blocks]:  # fmt: skip
    """The weights among transformers' `names` that the file has, each in `dtype` and then as `quantiser` gives it.

    With `keep`, matrices stay in the file's blocks, (outputs, inputs). Tensors beyond `names` come under their own
    names.
    """
    import gguf

    known = family_of_gguf(architecture_name(file))
    assert known is not None, "read_config gave a configuration"
    layout: GgufLayout = known[1]
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    by_file = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in names}
    found: dict[str, Tensor | Blocks] = {}
    for stored in file.tensors:
        if stored == _ROPE_FACTORS:
            continue
        name = by_file.get(stored, stored)
        blocks = file.blocks(stored, dtype) if keep else None
        if blocks is None:
            weight = layout.restored(file.tensor(stored), stored, config).to(dtype).contiguous()
            check_numbers(file.path, {stored: weight})
            found[name] = quantiser(name, weight)
        else:
            found[name] = blocks.take(layout.restored(torch.arange(blocks.rows), stored, config))
    return found
