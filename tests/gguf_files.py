"""Random models of every family as GGUF files, as llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tiny_tokenizer import gguf_close, gguf_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SIZES = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "eos_token_id": 2}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128, "pad_token_id": None}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "llama 3": LlamaConfig(
        **SIZES,
        **HEADS | {"max_position_embeddings": 9000},
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "qwen2": Qwen2Config(**SIZES, **HEADS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **HEADS, head_dim=32, tie_word_embeddings=False),
    "phi3": Phi3Config(**SIZES, **HEADS),
    "gemma2": Gemma2Config(**SIZES, **HEADS, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
    "gemma3": Gemma3TextConfig(**SIZES, **HEADS, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
    "olmo2": Olmo2Config(**SIZES, **HEADS),
    "gptneox": GPTNeoXConfig(
        **SIZES, num_attention_heads=8, max_position_embeddings=128, rotary_pct=0.25, use_parallel_residual=False
    ),
    "gpt2": GPT2Config(vocab_size=320, n_embd=256, n_layer=2, n_head=8, n_positions=128, eos_token_id=2),
}


def write(path: Path, family: str, kind: str = "F32") -> PreTrainedModel:
    """A random model of the family as llama.cpp's converter writes it, matrices in blocks of `kind`."""
    config = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():  # norms and biases too
        p.data += 0.05 * torch.randn_like(p)
    three, family = family == "llama 3", family.split()[0]
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(1024 if family == "gpt2" else 256)
    writer.add_head_count(8)
    if family == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    elif family == "gptneox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_rope_dimension_count(8)
        writer.add_parallel_residual(False)
    else:
        writer.add_head_count_kv(4)
        writer.add_key_length(32)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(32)
        if three:
            writer.add_rope_freq_base(500000.0)
            writer.add_tensor("rope_freqs.weight", llama_3_factors())
        if family == "gemma3":
            writer.add_rope_freq_base(1e6)
        if family.startswith("gemma"):
            writer.add_sliding_window(16)
        if family == "gemma2":
            writer.add_attn_logit_softcapping(50.0)
            writer.add_final_logit_softcapping(30.0)
    gguf_tokenizer(writer, 320)
    table = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == family), 2)
    dtype = gguf.GGMLQuantizationType[kind]
    for key, value in model.state_dict().items():
        if ("lm_head" in key or "embed_out" in key) and config.tie_word_embeddings:
            continue
        array = value.numpy()
        if family == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            array = array.T
        if family.startswith("gemma") and key.endswith("norm.weight"):
            array = array + 1
        if family == "llama" and ("q_proj" in key or "k_proj" in key):
            array = array.reshape(8 if "q_proj" in key else 4, 2, 16, 256).swapaxes(1, 2).reshape(array.shape)
        if family == "gptneox" and "query_key_value" in key:
            array = array.reshape(8, 3, 32, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        name = table.get_name(key, try_suffixes=(".weight", ".bias"))
        if value.ndim == 2 and kind != "F32":
            writer.add_tensor(name, blocks(array, dtype), raw_dtype=dtype)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    gguf_close(writer)
    return model.eval()


def llama_3_factors() -> np.ndarray:
    """As the converter computes them (Llama 3.1's reference code)."""
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 32, 2) / 32)
    smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
    return np.float32(1 / ((1 - smooth) / 32 + smooth))


def blocks(array: np.ndarray, dtype: gguf.GGMLQuantizationType) -> np.ndarray:
    """The array quantised, or, for the kinds that the package only reads, random blocks with small scales."""
    try:
        return gguf.quants.quantize(np.ascontiguousarray(array), dtype)
    except NotImplementedError:
        size, width = gguf.GGML_QUANT_SIZES[dtype]
        count = array.size // size
        raw = np.random.default_rng(array.shape[0]).integers(0, 256, (count, width), dtype=np.uint8)
        for at in SCALES[dtype.name]:
            raw[:, at : at + 2] = np.frombuffer(np.float16(0.0005).tobytes(), np.uint8)
        return raw.reshape(array.shape[0], -1)


SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # bytes at which fp16 scales lie
