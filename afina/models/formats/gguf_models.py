"""The model in a GGUF file: its configuration, and its weights by transformers' names.

Names of tensors come from the `gguf` package's own table; how some of them lie otherwise than in transformers is for
the family to say (`engine.families`). Files are read and written by the same tables.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from afina.core.device import HOST
from afina.core.errors import BaseModelError, reading
from afina.engine.blocks import Blocks, Quantiser, full_precision
from afina.engine.families import AS_IT_IS, GgufLayout, Stored, family_of_gguf
from afina.models.formats.checks import check_counts, check_numbers
from afina.models.formats.gguf import GGUF
from afina.models.formats.gguf_rope import ROPE_TENSORS, is_read, read_rope


def read_config(file: GGUF) -> Any:
    """transformers' configuration of the model; None where it is of no family that is read here (or its rotations are
    scaled in a way that is not).

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
    if not is_read(metadata) or isinstance(metadata.get("attention.head_count_kv"), list):
        return None
    settings = {name: metadata[key] for name, key in layout.settings.items() if key in metadata}
    return AutoConfig.for_model(
        family.name,
        **settings,
        **layout.further(metadata, read_rope(file, metadata)),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=None,
    )


def architecture_name(file: GGUF) -> str | None:
    """What llama.cpp calls the model's architecture."""
    name: str | None = file.metadata.get("general.architecture")
    return name


def read_weights(
    file: GGUF, config: Any, names: Iterable[str], dtype: torch.dtype, quantiser: Quantiser = full_precision,
    keep: bool = False, device: torch.device = HOST,
) -> dict[str, Tensor | Blocks]:  # fmt: skip
    """The weights among transformers' `names` that the file has, each in `dtype` and then as `quantiser` gives it, on
    `device`, where all this is done: one tensor at a time passes through the host.

    With `keep`, matrices stay in the file's blocks, (outputs, inputs). Tensors beyond `names` come under their own
    names.
    """
    known = family_of_gguf(architecture_name(file))
    assert known is not None, "read_config gave a configuration"
    layout: GgufLayout = known[1]
    by_file = {stored: name for name, stored in names_in_file(layout, config.num_hidden_layers, names).items()}
    found: dict[str, Tensor | Blocks] = {}
    for stored in file.tensors:
        if stored in ROPE_TENSORS:
            continue
        name, lies = by_file.get(stored, stored), stored_as(layout, stored)
        blocks = file.blocks(stored, dtype, device) if keep else None
        if blocks is None:
            found[name] = quantiser(name, _checked(file, stored, lies, config, dtype, device))
        else:
            found[name] = blocks.take(lies.restored(torch.arange(blocks.rows), config))
    return found


def _checked(file: GGUF, name: str, lies: Stored, config: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    weight = lies.restored(file.tensor(name, device), config).to(dtype).contiguous()
    check_numbers(file.path, {name: weight})
    return weight


def names_in_file(layout: GgufLayout, layers: int, names: Iterable[str]) -> dict[str, str]:
    """By transformers' `names` of tensors, those of the file; names for which it has none are left out."""
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    table = gguf.get_tensor_name_map(number, layers)
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name: stored for name, stored in found.items() if stored is not None}


def stored_as(layout: GgufLayout, name: str) -> Stored:
    """How the tensor `name` lies in files of the layout."""
    part = re.sub(r"^blk\.\d+\.|\.(weight|bias)$", "", name)
    return layout.stored.get(part, AS_IT_IS)
