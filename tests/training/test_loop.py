"""The loop's numbers against plain sums, and what it does when things go wrong."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainers import colour_data, train_adapter, trainer

from afina.core.errors import NonFiniteLoss, NothingTrains
from afina.core.events import Done, HeldOut, Notice, Step
from afina.data.batch import epoch_order
from afina.data.load import Dataset
from afina.data.template import Row
from afina.lora import LoraConfig, adapter_state, inject
from afina.models.load import Base, load_base
from afina.training import TrainingSettings, mean_loss
from afina.training.accumulation import gradients
from afina.training.objectives import OBJECTIVES


@pytest.fixture
def data(colours: Path, tiny: Base) -> Dataset:
    return colour_data(colours, tiny)


@pytest.fixture
def fit(data: Dataset, tmp_path: Path) -> Callable[..., Done]:
    """`train_adapter` on the data, with checkpoints in a folder of the test's own."""

    def run(base: Base, *args: Any, **settings: Any) -> Done:
        return train_adapter(base, data, tmp_path / "checkpoints", *args, **settings)

    return run


def test_accumulated_equals_one_batch(fit, tiny_folder: Path) -> None:
    states = []
    for size in (8, 3, 1):
        base = load_base(str(tiny_folder), precision="fp32", device="cpu")
        losses: list[float] = []
        fit(
            base,
            lambda e, losses=losses: losses.append(e.loss) if isinstance(e, Step) else None,
            micro_batch_size=size,
        )
        states.append((losses, adapter_state(base.model.module)))
    for losses, state in states[1:]:
        assert losses == pytest.approx(states[0][0], rel=1e-4)
        assert all(torch.allclose(value, states[0][1][name], atol=1e-3) for name, value in state.items())


def test_gradients_of_one_step_to_1e_5(data, tiny: Base) -> None:
    """Rows of unequal length in smaller micro-batches, normalised by the labelled tokens of the whole step."""
    inject(tiny.model.module, LoraConfig(rank=4))
    rows = data.train[:6]
    found = []
    for tokens, most in ((10_000, None), (10_000, 1), (1, None), (60, None)):
        tiny.model.module.zero_grad()
        loss, read = gradients(tiny, rows, OBJECTIVES["supervised"], tokens, most)
        assert read == sum(len(row.input_ids) for row in rows)
        found.append([loss, *(p.grad.clone() for p in tiny.model.module.parameters() if p.requires_grad)])
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0], other, strict=True))


def test_it_learns_and_saves_the_best(fit, data, tiny: Base) -> None:
    seen, saved = [], []
    done = fit(tiny, seen.append, lambda: saved.append(mean_loss(tiny, data.held_out)), epochs=8, learning_rate=3e-2)
    held = [e for e in seen if isinstance(e, HeldOut)]
    assert held[0].step == 0
    assert held[-1].value < 0.5 * held[0].value
    best = [e.value for e in held if e.best]
    assert [*best, best[-1]] == pytest.approx(saved, rel=1e-4)  # and once more at the end, with the best weights
    assert mean_loss(tiny, data.held_out) == pytest.approx(best[-1], rel=1e-4)
    assert done.tokens == 8 * data.train.tokens
    assert done.reason == "completed"


def test_early_stopping(fit, tiny: Base) -> None:
    done = fit(tiny, epochs=50, learning_rate=1e-9, eval_steps=1, early_stopping=2, warmup=0.5)
    assert done.reason == "early stopping"
    assert done.steps < 300


def test_non_finite_loss_names_step_and_rows(fit, tiny: Base) -> None:
    saved = []
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*(colours\.jsonl:\d+|held-out)"):
        fit(tiny, learning_rate=1e30, save=lambda: saved.append(1))


def test_nothing_trains_is_said(data, tiny: Base, tmp_path: Path) -> None:
    inject(tiny.model.module, LoraConfig())
    for name, parameter in tiny.model.module.named_parameters():
        if "lora_a" in name:
            parameter.data.zero_()  # with A and B both zero, no gradient reaches either
    with pytest.raises(NothingTrains, match="no gradient"):
        trainer(tiny, data, TrainingSettings(epochs=1), tmp_path).run()


def test_ctrl_c_stops_after_the_step_and_saves(fit, tiny: Base) -> None:
    saved = []
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run behind a shell's back

    def press(event) -> None:
        if isinstance(event, Step) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    done = fit(tiny, press, lambda: saved.append(1), epochs=5, eval_steps=100)
    assert (done.steps, done.reason, saved) == (2, "interrupted", [1])
    assert signal.getsignal(signal.SIGINT) is before


# Of 60 tokens, of which 50 are shared.
ALIKE = [Row([*range(5, 55), *([60 + i] * 10)], [-100] * 50 + [1] * 10, f"alike:{i}") for i in range(4)]


def rehearsed(base: Base, rows: list[Row], **settings) -> list[str]:
    """What a training on the rows, four a step, says of its rehearsal."""
    said: list[str] = []
    given = TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-3, **settings)
    data = SimpleNamespace(train=rows, held_out=ALIKE[:1])
    trainer(base, data, given, None, lambda e: said.append(e.text) if isinstance(e, Notice) else None).run()
    return [text for text in said if text.startswith("rehearsed the largest micro-batch: ")]


def test_under_dropout_rows_that_share_nothing_are_rehearsed(tiny: Base) -> None:
    inject(tiny.model.module, LoraConfig(rank=4, dropout=0.1))
    (said,) = rehearsed(tiny, ALIKE, tokens_per_pass=150)
    assert said.startswith("rehearsed the largest micro-batch: 120 tokens")


def test_the_largest_micro_batch_is_rehearsed_and_not_that_of_the_longest_rows(tiny: Base) -> None:
    """Rows of 60 tokens that share 50 need less than others of 50 that share none."""
    apart = [Row([100 + i] * 50, [-100] * 40 + [1] * 10, f"apart:{i}") for i in range(4)]
    inject(tiny.model.module, LoraConfig(rank=4))
    by_place = dict(zip(epoch_order(8, 0, 0), [*ALIKE, *apart], strict=True))  # the first step's, and the second's
    (said,) = rehearsed(tiny, [by_place[i] for i in range(8)])
    assert said.startswith("rehearsed the largest micro-batch: 200 tokens")
