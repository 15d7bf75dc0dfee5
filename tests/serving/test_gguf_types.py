"""Which type each tensor of a file gets, and how many bytes that makes."""

from pathlib import Path

import pytest

from afina.core.errors import SettingsError
from afina.serving.gguf import TYPES, plan_types

LAYER = {
    "attn_norm.weight": (1,), "attn_q.weight": (1, 1), "attn_k.weight": (1, 1), "attn_v.weight": (1, 1),
    "attn_output.weight": (1, 1), "attn_q.bias": (1,), "ffn_norm.weight": (1,), "ffn_gate.weight": (3, 1),
    "ffn_up.weight": (3, 1), "ffn_down.weight": (1, 3),
}  # fmt: skip


def shapes(layers: int, width: int, head: bool = True) -> dict[str, tuple[int, ...]]:
    found = {"token_embd.weight": (1000, width), "output_norm.weight": (width,), "rope_freqs.weight": (16,)}
    if head:
        found["output.weight"] = (1000, width)
    for i in range(layers):
        found |= {f"blk.{i}.{name}": tuple(n * width for n in shape) for name, shape in LAYER.items()}
    return found


def layers_of(types: dict[str, str], part: str, type: str) -> list[int]:
    return [int(name.split(".")[1]) for name, found in types.items() if found == type and f".{part}." in name]


@pytest.mark.parametrize(("type", "most"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_a_mix_gives_the_ends_and_every_third_layer_more(type: str, most: str) -> None:
    types = plan_types(shapes(32, 256), type).types
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for part in ("attn_v", "ffn_down"):
        assert layers_of(types, part, "Q6_K") == more
        assert layers_of(types, part, most) == [i for i in range(32) if i not in more]
    assert {types[f"blk.5.{part}.weight"] for part in ("attn_q", "attn_k", "attn_output", "ffn_up", "ffn_gate")} == {
        most
    }
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == most
    assert {types[name] for name in ("output_norm.weight", "blk.0.attn_q.bias", "rope_freqs.weight")} == {"F32"}


def test_tied_embeddings_are_the_head() -> None:
    assert plan_types(shapes(4, 256, head=False), "Q4_K_M").types["token_embd.weight"] == "Q6_K"
    assert plan_types(shapes(4, 256, head=False), "Q4_0").types["token_embd.weight"] == "Q6_K"
    assert plan_types(shapes(4, 256, head=False), "Q8_0").types["token_embd.weight"] == "Q8_0"
    assert plan_types(shapes(4, 256, head=False), "BF16").types["token_embd.weight"] == "BF16"


def test_eighty_layers_give_v_a_bit_more() -> None:
    types = plan_types(shapes(80, 256), "Q4_K_M").types
    assert layers_of(types, "attn_v", "Q4_K") == []
    assert 11 not in layers_of(types, "attn_v", "Q6_K")
    assert 12 in layers_of(types, "attn_v", "Q6_K")
    assert 11 in layers_of(types, "attn_v", "Q5_K")
    assert 11 in layers_of(types, "ffn_down", "Q4_K")


def test_rows_that_fill_no_block_of_256_fall_back_and_are_told() -> None:
    plan = plan_types(shapes(30, 576, head=False), "Q4_K_M")
    assert {plan.types[f"blk.{i}.attn_q.weight"] for i in range(30)} == {"Q5_0"}
    for part in ("attn_v", "ffn_down"):  # 3 · 576 is no multiple of 256 either; what should be Q6_K is Q8_0
        assert {plan.types[f"blk.{i}.{part}.weight"] for i in (0, 2, 5, 29)} == {"Q8_0"}
        assert plan.types[f"blk.3.{part}.weight"] == "Q5_0"
    assert plan.types["token_embd.weight"] == "Q8_0"
    assert sum(int(each.split()[0]) for each in plan.fallbacks) == 30 * 7 + 1
    assert any("Q5_0 instead of Q4_K: rows of 576 numbers do not fill blocks of 256" in each for each in plan.fallbacks)
    odd = plan_types({"blk.0.attn_q.weight": (8, 40), "output.weight": (9, 64)}, "Q4_0")
    assert odd.types == {"blk.0.attn_q.weight": "F16", "output.weight": "Q8_0"}
    assert len(odd.fallbacks) == 2


def test_positions_and_norms_stay_whole() -> None:
    types = plan_types({"position_embd.weight": (64, 256), "blk.0.attn_qkv.weight": (768, 256)}, "Q8_0").types
    assert types == {"position_embd.weight": "F32", "blk.0.attn_qkv.weight": "Q8_0"}


@pytest.mark.parametrize("type", TYPES)
def test_bytes_are_those_of_the_file(type: str, tmp_path: Path) -> None:
    import torch

    from afina.serving.gguf._file import Head, opened

    given = shapes(2, 40 if type == "F16" else 256)
    plan = plan_types(given, type)
    with opened(tmp_path / "a.gguf", Head("llama", {"general.name": "a"}, plan.types, given)) as file:
        head = file._places["token_embd.weight"]
        for name, shape in given.items():
            file.put(name, torch.randn(shape))
    assert (tmp_path / "a.gguf").stat().st_size == head + plan.bytes


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(SettingsError, match="'Q3_K_M' are not written"):
        plan_types({}, "Q3_K_M")
