"""The model that a GGUF file holds: its configuration and its weights, by transformers' names.

Names of tensors come from the `gguf` package's own table; how the converter of llama.cpp changes some of them is undone here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from afina.core.errors import BaseModelError
from afina.engine.blocks import Blocks, Packing, as_read
from afina.engine.families import NONSENSE
from afina.models.formats.gguf import GGUF

# transformers' names of settings, and the file's, which come after the architecture's name and a dot.
_USUAL = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_GROUPED = {
    **_USUAL,
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_GEMMA = {
    **_GROUPED,
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_SETTINGS = {
    "llama": _GROUPED | {"head_dim": "attention.key_length"},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": "attention.key_length"},
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "phi3": _GROUPED | {"sliding_window": "attention.sliding_window"},
    "olmo2": _GROUPED,
    "gpt2": {
        "n_embd": "embedding_length",
        "n_inner": "feed_forward_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "n_positions": "context_length",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    "gptneox": _USUAL
    | {"layer_norm_eps": "attention.layer_norm_epsilon", "use_parallel_residual": "use_parallel_residual"},
}
_MODEL_TYPES = {"gemma3": "gemma3_text", "gptneox": "gpt_neox"}  # where transformers has another name
_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the models that scale scores by hidden size / heads
_MATRICES_TURNED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")

# What Llama 3.1 and later divide their rotary frequencies by; of its settings only the largest factor differs among them.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(file: GGUF) -> Any:
    """transformers' configuration of the model; None where it is of no family that is read here (or has scaled rotations).

    Raises `BaseModelError` where the file lacks what its family needs.
    """
    try:
        return _config(file)
    except NONSENSE as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise BaseModelError(
            f"{file.path}: its metadata are not those of a model ({reason})", "download it again"
        ) from error


def _config(file: GGUF) -> Any:
    from transformers import AutoConfig

    family = file.metadata.get("general.architecture")
    meta = {key.removeprefix(f"{family}."): value for key, value in file.metadata.items()}
    scaled = meta.get("rope.scaling.type", "none") != "none" or meta.get("rope.scaling.factor", 1.0) != 1.0
    if family not in _SETTINGS or scaled or isinstance(meta.get("attention.head_count_kv"), list):
        return None
    found = {name: meta[key] for name, key in _SETTINGS[family].items() if key in meta}
    width = meta.get("attention.key_length", meta["embedding_length"] // meta["attention.head_count"])
    rope = {"rope_type": "default", "rope_theta": meta.get("rope.freq_base", 10000.0)}
    if _ROPE_FACTORS in file.tensors:
        rope |= _LLAMA_3 | {"factor": float(file.tensor(_ROPE_FACTORS).max())}
    if "rope.dimension_count" in meta:
        rope["partial_rotary_factor"] = meta["rope.dimension_count"] / width
    if family == "gemma3":
        sliding = {"rope_type": "default", "rope_theta": meta.get("rope.freq_base_swa", 10000.0)}
        found["rope_parameters"] = {"full_attention": rope, "sliding_attention": sliding}
    elif family != "gpt2":
        found["rope_parameters"] = rope
    if family in _LARGEST:
        largest = meta["block_count"] == _LARGEST[family]
        found["query_pre_attn_scalar"] = meta["embedding_length"] // meta["attention.head_count"] if largest else width
    return AutoConfig.for_model(
        _MODEL_TYPES.get(family, family),
        **found,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=None,
    )


def weights(
    file: GGUF, config: Any, names: Iterable[str], dtype: torch.dtype, packed: Packing = as_read,
    keep: bool = False,
) -> dict[str, Tensor | Blocks]:  # fmt: skip
    """The weights among `names` that the file has, in `dtype` and then as `packed` has them; with `keep` its matrices stay in their
    blocks, (outputs, inputs). What it has beyond them comes under its own name."""
    import gguf

    family = file.metadata["general.architecture"]
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    sources = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in names}
    found: dict[str, Tensor | Blocks] = {}
    for name in file.tensors:
        if name == _ROPE_FACTORS:
            continue
        blocks = file.blocks(name, dtype) if keep else None
        if blocks is None:
            value = _restored(file.tensor(name), name, family, config).to(dtype).contiguous()
            found[sources.get(name, name)] = packed(sources.get(name, name), value)
        else:
            found[sources.get(name, name)] = blocks.take(_restored(torch.arange(blocks.rows), name, family, config))
    return found


def _restored(value: Tensor, name: str, family: str, config: Any) -> Tensor:
    """The tensor as transformers has it; or the numbers of a matrix's rows in that order."""
    if family == "llama" and (".attn_q." in name or ".attn_k." in name):  # rows in interleaved rotary order
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return value.view(heads, -1, 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return value - 1
    if family == "gpt2" and name.endswith(_MATRICES_TURNED):
        return value.T if value.dim() == 2 else value
    if family == "gptneox" and ".attn_qkv." in name:  # q, k and v of each head together
        return value.view(3, config.num_attention_heads, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
    return value
