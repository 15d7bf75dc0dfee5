"""Rows that share what they begin with: the forest itself, and what is computed on it against each row by itself."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoder import FAMILIES, ours, randomise

from afina.data.batch import pack, passes
from afina.data.template import Row
from afina.engine.blocks import quantise_linears
from afina.engine.forest import SHORTEST, groups, plant
from afina.engine.ops import Segments
from afina.engine.ops.segments import NO_PARENT
from afina.lora import LoraConfig, inject
from afina.models.causal import DecoderModel
from afina.models.model import IGNORE_INDEX

CPU = torch.device("cpu")


def grown(draw: random.Random, rows: int, longest: int = 90) -> list[list[int]]:
    """Rows each of which begins as one before it does, up to some token, or shares nothing; some are the same."""
    found: list[list[int]] = []
    for _ in range(rows):
        old = draw.choice([[], *found])
        kept = old[: draw.choice([0, len(old), draw.randrange(len(old) + 1), 3 * len(old) // 4])]
        new = [draw.randrange(3, 259) for _ in range(draw.randrange(1 if not kept else 0, longest - 20))]
        found.append((kept + draw.choice([new, new[:2], []]))[:longest] or [7])
    return found


def labelled(ids: list[list[int]], draw: random.Random) -> list[Row]:
    rows = []
    for number, row in enumerate(ids):
        part = draw.choice([0.1, 0.5, 1.0])
        labels = [token if draw.random() < part else IGNORE_INDEX for token in row]
        rows.append(Row(row, labels, f"row {number}"))
    return [*rows, Row([5, 6, 7], [5, 6, 7], "the last")]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=60), min_size=1, max_size=12),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_a_forest_holds_its_rows(short: list[list[int]], seed: int, kinds: bool) -> None:
    draw = random.Random(seed)
    rows = short + grown(draw, draw.randrange(1, 12))
    of_kind = [draw.randrange(2) if kinds else 0 for _ in rows]
    forest = plant(rows, of_kind)
    assert [[forest.ids[at] for at in forest.places(i)] for i in range(len(rows))] == rows
    segments = forest.segments
    for i, path in enumerate(forest.rows):
        assert [segments.parents[s] for s in path] == [NO_PARENT, *path][: len(path)]
        assert segments.positions_T[forest.places(i)].tolist() == list(range(len(rows[i])))
    for a, first in enumerate(rows):
        for b, second in enumerate(rows):
            same = next(
                (n for n, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second))
            )
            together = len(set(forest.places(a)) & set(forest.places(b)))
            assert together <= same
            if of_kind[a] != of_kind[b]:
                assert not together
            elif first == second:
                assert together == len(first)
            else:
                assert together > same - SHORTEST


def test_a_forest_by_hand() -> None:
    trunk, branch = list(range(100, 120)), list(range(50, 70))
    rows = [trunk + branch + [1], [9], [*trunk, 3], trunk + branch + [2], [9], trunk]
    forest = plant(rows, [0] * 6)
    assert forest.ids == [9, *trunk, 3, *branch, 1, 2]
    assert forest.segments == Segments((0, 1, 21, 22, 42, 43, 44), (-1, -1, 1, 1, 3, 3))
    assert forest.rows == [[1, 3, 4], [0], [1, 2], [1, 3, 5], [0], [1]]
    assert forest.segments.trees_tensor.tolist() == [0, 1, 6]
    assert forest.segments.lengths_T.tolist() == [1, *[41] * 20, 21, *[41] * 20, 41, 41]
    assert plant(rows, None).segments == Segments((0, 41, 42, 63, 104, 105, 125))


@pytest.mark.parametrize(
    ("bounds", "parents"),
    [
        ((0, 1, 2), (-1,)), ((0, 1, 2), (-1, 1)), ((0, 1, 2), (0, -1)), ((0, 1, 2), (-1, -2)), ((0, 1, 2), (-1, 5)),
        ((0, 1, 2, 3), (-1, -1, 0)), ((0, 1, 2, 3, 4), (-1, 0, 0, 1)),
    ],
)  # fmt: skip
def test_what_is_no_forest_is_refused(bounds: tuple[int, ...], parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"parents|which is not on the way"):
        Segments(bounds, parents)


def test_groups_are_of_tokens_that_are_computed() -> None:
    trunk = list(range(100))
    rows = [[*trunk, i] for i in range(6)] + [[7] * 30]
    assert groups(rows, [0] * 7, 105) == [([0, 1, 2, 3, 4], 105), ([5], 101), ([6], 30)]
    assert groups(rows, [0] * 7, 1000, 3) == [([0, 1, 2], 103), ([3, 4, 5], 103), ([6], 30)]
    assert groups(rows, None, 210) == [([6, 0], 131), ([1, 2], 202), ([3, 4], 202), ([5], 101)]
    assert groups([[1] * 50] * 3, [0, 1, 0], 60) == [([0, 2], 50), ([1], 50)]
    assert groups([], [], 60) == []


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", FAMILIES)
def test_shared_is_what_each_row_gives_alone(name: str, kernels: bool, tmp_path: Path) -> None:
    """Loss, losses of labels, and every gradient, with and without recomputed activations."""
    compare(ours(name, tmp_path, kernels))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_shared_is_what_each_row_gives_alone_on_quantised_weights(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, arguments = FAMILIES[name]
    whole_blocks = {"n_embd": 64} if name == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    monkeypatch.setitem(FAMILIES, name, (config, {**arguments, **whole_blocks}))
    model = ours(name, tmp_path, True)
    assert not quantise_linears(model.module, kind, torch.float32)
    compare(model)


def compare(model: DecoderModel) -> None:
    draw = random.Random(3)
    inject(model.module, LoraConfig(rank=4), seed=3)
    randomise(model.module)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    saved = 0
    for trial in range(3):
        rows = labelled(grown(draw, 9), draw)
        found = []
        for shares in (None, model.shares):
            model.module.train()
            packed = pack(rows, CPU, shares)
            loss = model.summed_loss(packed)
            loss.backward()
            with torch.no_grad():
                losses = model.label_losses(packed)
            found.append((loss.detach(), [losses[each].sum() for each in packed.rows], [p.grad for p in trained]))
            for parameter in trained:
                parameter.grad = None
        (alone, by_row, gradients), (shared, shared_by_row, shared_gradients) = found
        saved += sum(len(row.input_ids) for row in rows) - len(packed.ids_T)
        assert shared.item() == pytest.approx(alone.item(), rel=1e-5)
        assert torch.allclose(torch.stack(shared_by_row), torch.stack(by_row), rtol=1e-5, atol=1e-4)
        for a, b in zip(gradients, shared_gradients, strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm()
        if trial == 1:
            model.checkpoint_activations()
    assert saved > 50


@pytest.mark.parametrize("rows", [[[5, 6, 7, 8] * 20], [[5, 6, 7, 8] * 20] * 6, [[5] * 40, [5] * 40 + [6] * 30]])
def test_one_row_equal_rows_and_a_row_that_goes_on(rows: list[list[int]], tmp_path: Path) -> None:
    model = ours("llama", tmp_path, True)
    found = [Row(row, [IGNORE_INDEX] * 30 + row[30:], "") for row in rows]
    plain, shared = (pack(found, CPU, shares) for shares in (None, model.shares))
    assert len(shared.ids_T) == max(map(len, rows))
    assert shared.labelled == plain.labelled == sum(len(row) - 30 for row in rows)
    assert model.summed_loss(shared).item() == pytest.approx(model.summed_loss(plain).item(), rel=1e-5)


def test_dropout_shares_nothing(tmp_path: Path) -> None:
    model = ours("llama", tmp_path, False)
    inject(model.module, LoraConfig(rank=4, dropout=0.1), seed=3)
    rows = [Row([5] * 40 + [i], [IGNORE_INDEX] * 40 + [i], "") for i in range(4)]
    model.module.train()
    assert model.shares([41]) is None
    assert [group.rows for group in passes(rows, 60, shares=model.shares)] == [[0], [1], [2], [3]]
    model.module.eval()
    assert [group.rows for group in passes(rows, 60, shares=model.shares)] == [[0, 1, 2, 3]]
