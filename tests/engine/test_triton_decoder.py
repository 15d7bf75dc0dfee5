"""A whole decoder with Triton's operations, run by its interpreter on the processor: against torch's, and without a
wait for what would be on a card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _waits import Waits
from adapters_made import row_adapter
from test_decoder import ours, randomise
from torch.utils._python_dispatch import TorchDispatchMode

from afina.engine import ops
from afina.engine.kv_cache import Cache
from afina.engine.mixed import RowUpdates
from afina.engine.ops import TORCH, Segments
from afina.lora import LoraConfig, inject
from afina.models.causal import DecoderModel

pytest.importorskip("triton", reason="Triton is not installed")

from afina.engine.ops.cards import by_triton

BY_TRITON = by_triton.TritonOps(devices=("cpu",))
IDS = torch.randint(3, 259, (12,), generator=torch.Generator().manual_seed(0))
ROWS = Segments((0, 6, 7, 12))
FOREST = Segments((0, 5, 8, 12), (-1, 0, 0))


@pytest.fixture(autouse=True)
def _no_rows_of_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow."""
    monkeypatch.setattr("afina.engine.ops.losses._FEWEST", 1)


def adapted(name: str, folder: Path) -> DecoderModel:
    model = ours(name, folder, kernels=False)
    inject(model.module, LoraConfig(rank=4))
    randomise(model.module)
    model.module.train()
    return model


def test_ranks_are_filled_up(tmp_path: Path) -> None:
    """So that rows of joined outputs begin where fast kernels can read."""
    model = adapted("llama", tmp_path)
    joined = model.module.decoder_layers()[0]._qkv
    for own, ranks in ((TORCH, 12), (BY_TRITON, 16)):
        product = joined._prepare([joined._owner._modules[name] for name in joined._names], own)
        assert len(product.low) == ranks
        assert not product.low[12:].any()


def step(model: DecoderModel, own: ops.Ops, segments: Segments) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.module.ops = own
    model.module.zero_grad()
    loss = forward(model, torch.tensor([1, 4, 9]), segments)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def forward(model: DecoderModel, at_N: torch.Tensor, segments: Segments) -> torch.Tensor:
    """The loss of three labels."""
    module = model.module
    hidden = module.normed(*module(IDS, segments, at_N=at_N))
    return ops.summed_cross_entropy(module.ops_for(hidden), hidden, module.get_output_embeddings().weight, IDS[:3])


@pytest.mark.parametrize(("name", "segments"), [("llama", ROWS), ("qwen3", FOREST), ("gemma3", ROWS), ("olmo2", ROWS)])
def test_a_step_is_torchs(name: str, segments: Segments, tmp_path: Path) -> None:
    model = adapted(name, tmp_path)
    loss, grads = step(model, TORCH, segments)
    found, own = step(model, BY_TRITON, segments)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert own.keys() == grads.keys()
    for name, grad in grads.items():
        assert (own[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


@pytest.mark.parametrize("own", [TORCH, BY_TRITON], ids=["torch", "triton"])
@pytest.mark.parametrize(("checkpointing", "segments"), [(False, ROWS), (True, ROWS), (False, FOREST)])
def test_nothing_waits_for_a_card_in_a_pass(
    own: ops.Ops, checkpointing: bool, segments: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, from token ids on the card to gradients there."""
    model = adapted("gemma3", tmp_path)
    module = model.module
    module.ops, module.checkpointing = own, checkpointing
    at_N = torch.tensor([1, 4, 9])
    waits = Waits(IDS, at_N, *module.parameters(), *module.buffers())
    launch = by_triton._launch

    def launched(*arguments, **constants) -> None:
        with waits.allowed():  # the interpreter reads what a card would
            launch(*arguments, **constants)
        for each in arguments:
            if isinstance(each, torch.Tensor):
                waits.put(each)

    monkeypatch.setattr(by_triton, "_launch", launched)
    with waits:
        loss = forward(model, at_N, segments)
        loss.backward()
    assert waits.found == []
    with waits:
        loss.item()
    assert len(waits.found) == 1  # it counts


class _Sent(TorchDispatchMode):
    """What goes to another device inside `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs and kwargs.get("device"):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_what_layers_share_is_sent_once(tmp_path: Path) -> None:
    """To torch's device without numbers, of which nothing can be read."""
    model = adapted("gemma3", tmp_path)
    module = model.module.to("meta")
    module.ops = TORCH
    ids, at_N = IDS.to("meta"), torch.empty(3, dtype=torch.int64, device="meta")
    for table in (2 * 2, 0):  # cosines and sines of two kinds of layers: once for all passes
        segments = Segments(ROWS.bounds)
        with _Sent() as sent:
            sum(module(ids, segments, at_N=at_N)).sum().backward()
        tokens = [shape for shape in sent.shapes if shape == (12,)]
        assert len(tokens) == 3  # positions, segments and places in them
        assert len(sent.shapes) == 3 + table


def test_what_generation_asks_of_the_host_is_sent_once_a_pass(tmp_path: Path) -> None:
    """Slots, what is there, whose rows are whose: not for each layer and product."""
    module = ours("llama", tmp_path, kernels=False).module
    own = [row_adapter(module, name, 2) for name in "ab"]
    module = module.to("meta").eval()
    packed = [module.prepare(each) for each in own]
    cache = Cache(module.arch.specs, 3, 8, module.dtype, torch.device("meta"))
    ids = IDS.to("meta")
    with torch.no_grad():
        for table in (2, 0):  # cosines and sines, for all passes
            cache.begin([2, 0, 1], ROWS)
            updates = RowUpdates.of([packed[0], None, packed[1]], ROWS.lengths_S)
            with _Sent() as sent:
                module(ids, Segments(ROWS.bounds), cache, None, updates)
            tokens, others = [(12,)] * 3, [(3,)] * 2 + [(6,), (5,)]
            assert sorted(shape for shape in sent.shapes if len(shape) == 1) == sorted(tokens + others)
            assert len(sent.shapes) == len(tokens + others) + table


def test_they_compile_for_cards(tmp_path: Path) -> None:
    """In a process without the interpreter: for NVIDIA's cards from the T4 to the H100, and for AMD's MI300."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).parents[1] / "compiled_kernels.py"
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
