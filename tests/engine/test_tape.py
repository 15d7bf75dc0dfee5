"""Recorded decoding steps against steps that are computed anew."""

from pathlib import Path

import pytest
import torch
from conftest import read
from test_decoder import FAMILIES, ours, randomise

from afina.engine.tape import Tape
from afina.lora import LoraConfig, inject
from afina.models.causal import DecoderModel

# Families whose layers compute with nothing but kernels; the others add or turn with torch.
RECORDED = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"}


def steps(model: DecoderModel) -> list[torch.Tensor]:
    """Logits of eight steps of two texts, then, after one is given up, of six more of the other."""
    with torch.inference_mode():
        sequences = model.start(2, 80)
        found = [read(sequences, [list(range(40, 70)), [5, 6, 7]])]
        for step in range(14):
            if step == 8:
                sequences.retain([1])
            count = len(found[-1]) if step < 8 else 1
            found.append(sequences.decode(torch.tensor([(11 * step + i) % 250 + 3 for i in range(count)])))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_repeated_steps_are_the_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, sizes = FAMILIES[name]
    if "hidden_size" in sizes and "long" not in name:  # so wide that few rows are multiplied by the kernel
        monkeypatch.setitem(FAMILIES, name, (kind, sizes | {"hidden_size": 64, "intermediate_size": 96}))
    model = ours(name, tmp_path, kernels=True)
    inject(model.module, LoraConfig(rank=4))
    randomise(model.module)
    model.module.eval()
    repeated: list[bool] = []
    repeat = Tape.repeat

    def counted(self: Tape, *inputs: torch.Tensor) -> torch.Tensor:
        repeated.append(True)
        return repeat(self, *inputs)

    monkeypatch.setattr(Tape, "repeat", counted)
    found = steps(model)
    taped = len(repeated)
    monkeypatch.setattr(Tape, "record", lambda self, fused, step: setattr(self, "spoiled", True) or step())
    expected = steps(model)
    assert len(repeated) == taped  # none was
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    if name in RECORDED:
        assert taped == 6 + 4  # all but the first two of each number of texts


def test_what_is_computed_by_torch_spoils_a_tape() -> None:
    x, weight = torch.ones(3), torch.ones(3)

    class Fused:
        on_call = None

    def spoiled(step) -> bool:
        tape = Tape([x])
        tape.record(Fused(), step)
        return tape.spoiled

    assert not spoiled(lambda: x[1:].view(2))
    assert not spoiled(lambda: torch.cat([weight * 2, weight]))
    assert not spoiled(lambda: x.new_empty(5)[2:])
    assert spoiled(lambda: x + 1)
    assert spoiled(lambda: x.new_empty(3).copy_(weight))
    assert spoiled(lambda: x[:2].sum())


def test_one_thread_records_at_a_time() -> None:
    class Fused:
        on_call = None

    outer, inner, x = Tape([]), Tape([]), torch.ones(2)
    assert outer.record(Fused(), lambda: inner.record(Fused(), lambda: x)) is x
    assert (outer.spoiled, inner.spoiled) == (False, True)
