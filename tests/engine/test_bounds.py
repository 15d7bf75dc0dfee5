"""No number in a file makes a kernel read or write outside its tensors."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_config

from afina.core.device import cache_folder
from afina.core.errors import BaseModelError
from afina.engine import kernels, ops
from afina.engine.architecture import Rope
from afina.engine.blocks import GGML_FORMATS, NF4, Blocks, quantise
from afina.engine.families import architecture_of
from afina.engine.kv_cache import Cache
from afina.engine.layers import BlockEmbedding, Embedding
from afina.engine.ops import NORM_EACH_HEAD, AttentionSpec, Rotation, Segments
from afina.engine.ops.by_cpp import CppOps

SPEC = AttentionSpec(4, 2, 8, 8, 8**-0.5)


@pytest.fixture(scope="module")
def fused() -> CppOps:
    found = kernels.load(cache_folder())
    if found is None:
        pytest.skip("there is no C++ compiler")
    return CppOps(found)


BAD_SPECS: list[dict[str, Any]] = [
    {"heads": 0}, {"heads": -4}, {"heads": 3}, {"heads": 1 << 40}, {"heads": 4.0}, {"heads": True},
    {"kv_heads": 0}, {"kv_heads": 3}, {"kv_heads": 8}, {"kv_heads": -2},
    {"head_dim": 0}, {"head_dim": -8}, {"head_dim": 1 << 33}, {"head_dim": 4},
    {"rotary_dim": 10}, {"rotary_dim": 7}, {"rotary_dim": -2}, {"rotary_dim": 512},
    {"window": -1}, {"window": 1 << 70}, {"window": None}, {"window": "9"},
    {"norm": 3}, {"scale": float("nan")}, {"scale": float("inf")}, {"eps": -1.0}, {"cap": float("inf")}, {"cap": -3.0},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_SPECS, ids=str)
def test_attention_of_impossible_numbers_cannot_be_made(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|share"):
        replace(SPEC, **bad)


BAD_CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 4.0}}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": -1.0}}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}),
    ("llama", {"num_attention_heads": 3}),
    ("llama", {"num_key_value_heads": 3}),
    ("llama", {"num_key_value_heads": -2}),
    ("llama", {"head_dim": 7}),
    ("llama", {"head_dim": -8}),
    ("llama", {"intermediate_size": 0}),
    ("llama", {"intermediate_size": 1 << 60}),
    ("llama", {"vocab_size": -5}),
    ("llama", {"num_hidden_layers": 0}),
    ("llama", {"num_hidden_layers": 100_000}),
    ("llama", {"rms_norm_eps": float("nan")}),
    ("qwen3", {"head_dim": 15}),
    ("qwen3", {"num_attention_heads": 5}),
    ("gemma3", {"sliding_window": -3}),
    ("gemma3", {"query_pre_attn_scalar": 0}),
    ("gemma3", {"layer_types": ["full_attention"]}),
    ("gpt2", {"n_positions": 0}),
    ("gpt2", {"n_head": 0}),
    ("gpt2", {"layer_norm_epsilon": -1.0}),
]


@pytest.mark.parametrize(("kind", "bad"), BAD_CONFIGS, ids=str)
def test_a_configuration_of_impossible_numbers_is_refused(kind: str, bad: dict[str, Any]) -> None:
    config = tiny_config(kind)
    for name, value in bad.items():
        object.__setattr__(config, name, value)  # past the library's own checks: files of other formats pass them too
    with pytest.raises(BaseModelError, match="describes no model"):
        architecture_of(config)


def test_ropes_are_checked() -> None:
    good = torch.ones(4)
    for bad in (
        {"frequencies": torch.full((4,), float("inf"))}, {"frequencies": good.double()},
        {"frequencies": good, "factor": float("nan")}, {"frequencies": good, "original": 0},
        {"frequencies": good, "original": 5}, {"frequencies": good, "long_frequencies": torch.ones(5)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"rotary|original"):
            Rope(**bad)


def test_segments_begin_at_0_and_do_not_fall() -> None:
    for bounds in ((1, 2), (0, 3, 2), (0, -1), (-1, 4)):
        with pytest.raises(ValueError, match="begin at"):
            Segments(bounds)


@pytest.mark.parametrize("kind", [*GGML_FORMATS, NF4])
def test_blocks_hold_as_many_columns_as_they_say(kind: int) -> None:
    good = quantise(torch.randn(2, 256), "nf4", torch.float32) if kind == NF4 else None
    size = good.data.shape[1] if good else GGML_FORMATS[kind][2] * (256 // GGML_FORMATS[kind][1])
    Blocks(torch.zeros(2, size, dtype=torch.uint8), kind, 256, torch.float32)
    for columns, width in ((512, size), (255, size), (256, size - 1), (256, size + 1)):
        with pytest.raises(ValueError, match="bytes"):
            Blocks(torch.zeros(2, width, dtype=torch.uint8), kind, columns, torch.float32)


def test_a_cache_takes_what_it_has_room_for() -> None:
    cache = Cache((SPEC,), 2, 4, torch.float32, torch.device("cpu"))
    for slots, bounds in (([0], (0, 5)), ([2], (0, 1)), ([-1], (0, 1)), ([0, 0], (0, 1, 2)), ([0], (0, 1, 2))):
        with pytest.raises(IndexError):
            cache.begin(slots, Segments(bounds))
    cache.begin([1], Segments((0, 4)))
    cache.end(Segments((0, 4)))
    cache.begin([0, 1], Segments((0, 4, 4)))
    with pytest.raises(IndexError, match="5 tokens"):
        cache.begin([1], Segments((0, 1)))


def test_kernels_refuse_tensors_that_do_not_fit(fused: CppOps) -> None:
    x, segments = torch.randn(6, 64), Segments((0, 6))
    rotation = Rotation(torch.ones(8, 4), torch.zeros(8, 4), torch.arange(6, dtype=torch.int32))
    qkv = torch.randn(6, SPEC.qk_size + SPEC.kv_size)
    fused.attend(qkv, SPEC, rotation, segments)
    blocks = quantise(torch.randn(4, 64), "int8", torch.float32)
    assert blocks is not None
    normed = replace(SPEC, norm=NORM_EACH_HEAD)
    cache = Cache((SPEC,), 1, 8, torch.float32, torch.device("cpu"))
    cache.begin([0], segments)
    calls = {
        "a norm's weight": lambda: fused.rms_norm(x, torch.ones(63), 1e-6),
        "what is added": lambda: fused.add_rms_norm(x, x[:5], torch.ones(64), 1e-6),
        "another dtype": lambda: fused.add_rms_norm(x, x.bfloat16(), torch.ones(64), 1e-6),
        "columns apart": lambda: fused.rms_norm(x[:, ::2], torch.ones(32), 1e-6),
        "too few columns": lambda: fused.attend(qkv[:, 1:], SPEC, rotation, segments),
        "too few tokens": lambda: fused.attend(qkv[:5], SPEC, None, segments),
        "angles of another width": lambda: fused.attend(qkv, replace(SPEC, rotary_dim=4), rotation, segments),
        "no norm's weight": lambda: fused.rotate(
            qkv, normed, replace(rotation, q_weight=torch.ones(7), k_weight=torch.ones(8))
        ),
        "positions of other rows": lambda: fused.rotate(
            qkv, SPEC, replace(rotation, rows_T=torch.arange(5, dtype=torch.int32))
        ),
        "a cache of other heads": lambda: cache.attend(0, qkv, replace(SPEC, kv_heads=4), None, segments, fused),
        "labels": lambda: ops.summed_cross_entropy(fused, x, torch.randn(10, 64), torch.full((6,), 10)),
        "negative labels": lambda: ops.summed_cross_entropy(fused, x, torch.randn(10, 64), torch.full((6,), -1)),
        "rows of blocks": lambda: blocks.dequantise_into(torch.empty(3, 64), fused),
        "columns of blocks": lambda: blocks.dequantise_into(torch.empty(4, 32), fused),
    }
    if fused.kernels.multiplies_pairs:
        calls["ranks"] = lambda: fused.outer_product(x.bfloat16(), x[:5, :16].bfloat16(), 1.0)
    for call in calls.values():
        with pytest.raises(IndexError, match="expect"):
            call()


def test_positions_stay_within_the_table() -> None:
    kernels.expect_below(4, torch.tensor([0, 3]))
    kernels.expect_below(0, torch.empty(0, dtype=torch.long))
    for bad in ([4], [-1], [0, 9]):
        with pytest.raises(IndexError, match="expected 0 to 3"):
            kernels.expect_below(4, torch.tensor(bad))


def test_a_token_without_an_embedding_is_one_message() -> None:
    plain = Embedding(8, 32, None)
    blocks = quantise(torch.randn(8, 32), "int8", torch.float32)
    assert blocks is not None
    for layer in (plain, BlockEmbedding(blocks, 1.0)):
        with pytest.raises(BaseModelError, match="token 9"):
            layer(torch.tensor([1, 9]))


def test_what_is_read_is_not_what_was_named() -> None:
    """A namespace is no configuration: nothing but numbers that fit passes."""
    with pytest.raises(BaseModelError):
        architecture_of(SimpleNamespace(model_type="llama", num_attention_heads="4"))
