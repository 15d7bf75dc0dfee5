"""The updates of several adapters in one pass, against the same by torch in fp64."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from adapters_made import RowAdapter, row_adapter
from conftest import read
from test_decoder import FAMILIES, ours
from torch import nn

from afina.core.device import cache_folder
from afina.core.errors import AdapterError
from afina.core.updates import Factors
from afina.engine import kernels
from afina.engine.blocks import BlockLinear, quantise
from afina.engine.joined import JoinedLinear
from afina.engine.layers import Conv1D
from afina.engine.mixed import PackedUpdates, Place, RowUpdates
from afina.engine.ops import TORCH
from afina.engine.ops.by_cpp import CppOps
from afina.engine.tape import Tape
from afina.lora import LoraConfig, inject
from afina.models.causal import DecoderModel

WIDTHS = {"q": 64, "k": 35, "v": 18}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def places(inputs: int) -> dict[str, Place]:
    ends = dict(zip(WIDTHS, torch.tensor(list(WIDTHS.values())).cumsum(0).tolist(), strict=True))
    return {name: Place(0, ends[name] - width, ends[name], inputs) for name, width in WIDTHS.items()}


def factors(rank: int, inputs: int, names: str = "qkv", scaling: float = 1.5) -> dict[str, Factors]:
    return {
        name: Factors(0.3 * torch.randn(rank, inputs), 0.3 * torch.randn(WIDTHS[name], rank), scaling) for name in names
    }


def expected(x: torch.Tensor, y: torch.Tensor, rows: list[dict[str, Factors] | None]) -> torch.Tensor:
    """y, and to each row its own update, in fp64."""
    y = y.double().clone()
    for row, own in enumerate(rows):
        for name, place in places(x.shape[1]).items():
            if own and name in own:
                a, b, scaling = own[name]
                y[row, place.begin : place.end] += scaling * (b.double() @ (a.double() @ x[row].double()))
    return y


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def fused(request: pytest.FixtureRequest) -> kernels.Kernels | None:
    found = kernels.load(cache_folder()) if request.param else None
    if request.param and found is None:
        pytest.skip("no compiler here")
    return found


@pytest.mark.parametrize("inputs", [96, 77, 1])
@pytest.mark.parametrize("ranks", [(16, 16), (1, 5), (33, 8), (0, 7)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("threads", [1, 3])
def test_each_row_gets_its_own(
    inputs: int, ranks: tuple[int, int], dtype: torch.dtype, threads: int, fused: kernels.Kernels | None
) -> None:
    torch.manual_seed(0)
    own = [factors(ranks[0], inputs), factors(ranks[1], inputs, "qv", 0.25)]
    packed = [PackedUpdates(each, places(inputs), dtype, torch.device("cpu"), fused) for each in own]
    # Many rows of one adapter, few of the other, interleaved with rows of none.
    which = [0, None, 1, 0, 0, None, 0, 1, 1, 0, 0, 0, 0, None, 0, 0, 0, 0, 0, 0, 0, 1]
    x = torch.randn(len(which), inputs + 3).to(dtype)[:, :inputs]  # strided, as joined outputs are
    before = torch.randn(len(which), sum(WIDTHS.values()) + 5).to(dtype)
    y = before.clone()[:, : sum(WIDTHS.values())]
    beyond = before[:, sum(WIDTHS.values()) :]
    rows = RowUpdates.of([None if i is None else packed[i] for i in which], torch.ones(len(which), dtype=torch.int32))
    assert rows is not None
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows.add(0, x, y, fused)
    finally:
        torch.set_num_threads(threads_before)
    wanted = expected(x, before[:, : y.shape[1]], [None if i is None else own[i] for i in which])
    assert (y.double() - wanted).abs().max() <= TOLERANCES[dtype] * wanted.abs().max()
    bare = [i for i, each in enumerate(which) if each is None]
    assert torch.equal(y[bare], before[bare, : y.shape[1]])
    assert torch.equal(beyond, before[:, y.shape[1] :])
    if fused is not None:  # to the bit what a row gets alone
        for row, i in enumerate(which):
            alone = before[row : row + 1, : y.shape[1]].clone()
            single = RowUpdates.of([None if i is None else packed[i]], torch.ones(1, dtype=torch.int32))
            if single is not None:
                single.add(0, x[row : row + 1], alone, fused)
            assert torch.equal(alone[0], y[row]), row


@pytest.mark.parametrize("kind", [None, "nf4"])
@pytest.mark.parametrize("rows", [3, 40])
def test_beside_frozen_layers_and_blocks(kind: str | None, rows: int, fused: kernels.Kernels | None) -> None:
    torch.manual_seed(0)
    module = nn.Module()
    for name, width in WIDTHS.items():
        layer: nn.Module = nn.Linear(128, width, bias=name == "k")
        if kind and name != "k":
            layer = BlockLinear(quantise(layer.weight, kind, torch.float32), layer.bias)
        module.add_module(name, layer)
    module.eval()
    joined = JoinedLinear(module, *WIDTHS)
    assert joined.places() == places(128)
    own = factors(6, 128, "kv")
    packed = PackedUpdates(own, joined.places(), torch.float32, torch.device("cpu"), fused)
    x = torch.randn(rows, 128)
    segments = [packed if i % 3 else None for i in range(rows)]
    with torch.inference_mode():
        by = TORCH if fused is None else CppOps(fused)
        plain = joined(x, by)
        y = joined(x, by, updates=RowUpdates.of(segments, torch.ones(rows, dtype=torch.int32)))
    wanted = expected(x, plain, [own if each else None for each in segments])
    assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def steps(model, prompts: list[list[int]], updates: list, count: int = 6) -> torch.Tensor:
    """Logits after the prompts and after each of some tokens, (count, B, V)."""
    with torch.inference_mode():
        sequences = model.start(len(prompts), 60)
        found = [read(sequences, prompts, updates)]
        for step in range(count):
            found.append(sequences.decode(torch.tensor([(11 * step + len(p)) % 250 + 3 for p in prompts])))
    return torch.stack(found)


PROMPTS = [list(range(40, 64)), [5, 6, 7], list(range(40, 60)), list(range(40, 64)), [9]]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_what_the_adapter_in_place_gives(name: str, tmp_path: Path) -> None:
    """Every linear layer of every family, the output head included; recorded steps, too."""
    model = ours(name, tmp_path, kernels=True)
    model.module.eval()
    every = row_adapter(model.module, "every")
    some = row_adapter(model.module, "some", 3, paths=sorted(model.module.places())[::2])
    found = steps(model, PROMPTS, [every, None, some, None, some])
    by_torch = copy.deepcopy(model)
    by_torch.module.ops = TORCH
    assert (steps(by_torch, PROMPTS, [every, None, some, None, some]) - found).abs().max() < 2e-4
    for own, rows in ((None, [1, 3]), (every, [0]), (some, [2, 4])):
        alone = copy.deepcopy(model)
        for path, (a, b, scaling) in (own.factors if own else {}).items():
            layer = alone.module.get_submodule(path)
            change = scaling * (b @ a)
            weight = layer.weight.data
            layer.weight = nn.Parameter(weight + (change.T if isinstance(layer, Conv1D) else change))
        assert (steps(alone, [PROMPTS[i] for i in rows], [None] * len(rows)) - found[:, rows]).abs().max() < 2e-4


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DecoderModel:
    """So wide that few rows are multiplied by the kernel."""
    kind, sizes = FAMILIES["llama"]
    monkeypatch.setitem(FAMILIES, "llama", (kind, sizes | {"hidden_size": 64, "intermediate_size": 96}))
    model = ours("llama", tmp_path, kernels=True)
    model.module.eval()
    return model


def test_a_step_in_company_is_to_the_bit_the_step_alone(wide: DecoderModel) -> None:
    """In fp32, after prompts that were read one by one, for as many rows as the kernel of few rows takes."""
    adapters = [row_adapter(wide.module, "a", 4), None, row_adapter(wide.module, "b", 9)]

    def run(rows: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            sequences = wide.start(8, 60)
            for i in rows:
                read(sequences, [[i + 90, *PROMPTS[i]]], [adapters[i % 3]])  # none begins as another
            return torch.stack([sequences.decode(torch.tensor([9 * s + i for i in rows])) for s in range(5)])

    together = run(list(range(5)))
    for i in range(5):
        assert torch.equal(run([i])[:, 0], together[:, i])


def test_a_recorded_step_is_right_for_other_adapters(wide: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide
    repeated: list[int] = []
    repeat = Tape.repeat
    monkeypatch.setattr(Tape, "repeat", lambda self, *inputs: repeated.append(1) or repeat(self, *inputs))
    adapters = [row_adapter(model.module, key, rank) for key, rank in (("a", 4), ("b", 9), ("c", 2))]
    prompts = [[7, 8, 9], [20, 21], [30, 31, 32, 33]]

    def run(taped: bool) -> list[torch.Tensor]:
        with torch.inference_mode():
            sequences = model.start(3, 40)
            found = [read(sequences, prompts, [adapters[0], None, adapters[1]])]
            for step in range(12):
                if step % 3 == 2:  # one leaves, another enters: as many, with other adapters
                    sequences.retain([1, 2])
                    own = [adapters[2], None, adapters[0]][step // 3 % 3]
                    found.append(read(sequences, [prompts[step % 2]], [own]))
                if not taped:
                    sequences._stepped = None
                found.append(sequences.decode(torch.tensor([step + 3, step + 9, step + 20])))
        return found

    found, count = run(True), len(repeated)
    assert count >= 9
    for a, b in zip(found, run(False), strict=True):
        assert torch.equal(a, b)
    assert len(repeated) == count


def test_what_has_no_place_is_named(tmp_path: Path) -> None:
    model = ours("llama", tmp_path, kernels=False)
    good = row_adapter(model.module, "good", 2)
    path = "model.layers.0.self_attn.q_proj"
    a, b, scaling = good.factors[path]
    bad = RowAdapter("bad", {
        **good.factors, "model.layers.9.self_attn.q_proj": good.factors[path], "model.embed_tokens": good.factors[path],
        path: Factors(a[:, :-1], b, scaling), "lm_head": Factors(a, b, scaling),
    })  # fmt: skip
    with pytest.raises(AdapterError) as error:
        model.prepare(bad)
    assert len(error.value.problems) == 3
    assert "2 layers are not among" in error.value.problems[0]
    for name in ("model.layers.9.self_attn.q_proj", "model.embed_tokens"):
        assert name in error.value.problems[0]
    assert error.value.problems[1].startswith("lm_head: A is (2, 48)")
    assert error.value.problems[2].startswith(f"{path}: A is (2, 47)")
    sequences = model.start(2, 20)
    with pytest.raises(AdapterError):
        sequences.add([[1, 2], [3]], [None, bad])
    assert sequences.read(99)[0] == []  # none was added


def test_not_beside_an_adapter_in_place(tmp_path: Path) -> None:
    model = ours("llama", tmp_path, kernels=True)
    own = row_adapter(model.module, "own", 2)
    inject(model.module, LoraConfig(rank=2))
    model.module.eval()
    sequences = model.start(1, 20)
    with torch.inference_mode(), pytest.raises(AdapterError, match="an adapter is in place"):
        read(sequences, [[1, 2, 3]], [own])


def test_packed_once_and_freed_with_the_adapter(tmp_path: Path) -> None:
    model = ours("qwen3", tmp_path, kernels=True)
    own = row_adapter(model.module, "own", 4)
    size = model.prepare(own)
    assert 0 < size < 3 * 4 * sum(each.a_RI.numel() + each.b_OR.numel() for each in own.factors.values())
    packed = model.module.prepare(own)
    assert model.module.prepare(own) is packed
    with torch.inference_mode():
        sequences = model.start(1, 40)
        read(sequences, [[1, 2, 3]], [own])
        for _ in range(4):
            sequences.decode(torch.tensor([5]))
        sequences.retain([])
    gone = weakref.ref(packed)
    del own, packed
    gc.collect()
    assert gone() is None  # the recorded step does not hold it
    assert len(model.module._prepared) == 0
