"""The loop's numbers against closed forms and plain torch, and what it does when things go wrong."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import tiny_module

from afina.base.load import Base
from afina.core.errors import NonFiniteLoss, NothingTrains
from afina.core.events import HeldOut, Step
from afina.data.batch import collate
from afina.data.load import load_data
from afina.data.settings import DataSettings
from afina.lora import LoraConfig, adapter_state, inject
from afina.training import Trainer, TrainingSettings, mean_loss, plan, summed_loss
from afina.training.schedule import learning_rate


@pytest.fixture
def data(colours: Path, tiny: Base):
    return load_data(DataSettings(path=colours, prompt="{q}", completion="{a}", held_out=0.2), tiny)


def fit(base: Base, data, listener=lambda _: None, save=lambda: None, **settings):
    training = TrainingSettings(**({"learning_rate": 1e-2, "epochs": 1} | settings))
    inject(base.model.module, LoraConfig(rank=4))
    steps, _ = plan(training, len(data.train), 32)
    return Trainer(base, data.train, data.held_out, training, steps, 0, listener, save).run()


def test_loss_is_transformers_own(data, tiny: Base) -> None:
    batch = collate(data.train[:5], tiny.tokenizer.pad_id, torch.device("cpu"))
    labels = batch.labels_BT.roll(1, 1)  # transformers shifts by itself
    labels[:, 0] = -100
    with torch.no_grad():
        theirs = tiny_module()(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=labels).loss
        assert math.isclose(summed_loss(tiny, batch).item() / batch.labelled, theirs.item(), rel_tol=1e-5)


def test_mean_loss_does_not_depend_on_batches(data, tiny: Base) -> None:
    assert math.isclose(mean_loss(tiny, data.train, 1), mean_loss(tiny, data.train, 16), rel_tol=1e-5)


def test_accumulated_equals_one_batch(data, tiny_folder: Path) -> None:
    from afina.base import load_base

    states = []
    for size in (8, 3, 1):
        base = load_base(str(tiny_folder), precision="fp32", device="cpu")
        losses: list[float] = []
        fit(
            base,
            data,
            lambda e, losses=losses: losses.append(e.loss) if isinstance(e, Step) else None,
            micro_batch_size=size,
        )
        states.append((losses, adapter_state(base.model.module)))
    for losses, state in states[1:]:
        assert losses == pytest.approx(states[0][0], rel=1e-4)
        assert all(torch.allclose(value, states[0][1][name], atol=1e-3) for name, value in state.items())


def test_gradients_of_one_step_to_1e_5(data, tiny: Base) -> None:
    """Rows of unequal length in passes of one, normalised by the labelled tokens of the whole step."""
    inject(tiny.model.module, LoraConfig(rank=4))
    rows = data.train[:6]
    gradients = []
    for size in (6, 1):
        tiny.model.module.zero_grad()
        labelled = sum(row.labelled for row in rows)
        for at in range(0, 6, size):
            batch = collate(rows[at : at + size], tiny.tokenizer.pad_id, torch.device("cpu"))
            (summed_loss(tiny, batch) / labelled).backward()
        gradients.append([p.grad.clone() for p in tiny.model.module.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_it_learns_and_saves_the_best(data, tiny: Base) -> None:
    seen, saved = [], []
    done = fit(
        tiny, data, seen.append, lambda: saved.append(mean_loss(tiny, data.held_out)), epochs=8, learning_rate=3e-2
    )
    held = [e for e in seen if isinstance(e, HeldOut)]
    assert held[0].step == 0
    assert held[-1].loss < 0.5 * held[0].loss
    assert [e.loss for e in held if e.best] == pytest.approx(saved, rel=1e-4)
    assert done.tokens == 8 * data.tokens
    assert done.reason == "completed"


def test_early_stopping(data, tiny: Base) -> None:
    done = fit(tiny, data, epochs=50, learning_rate=1e-9, eval_steps=1, early_stopping=2, warmup=0.5)
    assert done.reason == "early stopping"
    assert done.steps < 300


def test_schedules() -> None:
    for name, end in (("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)):
        settings = TrainingSettings(epochs=1, learning_rate=1.0, batch_size=1, warmup=0.1, schedule=name)
        steps, _ = plan(settings, 100, 32)
        rates = [learning_rate(step, steps, settings) for step in range(101)]
        assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert rates[10] == 1.0
        assert rates[100] == pytest.approx(end)
    settings = TrainingSettings(epochs=1, learning_rate=1.0, batch_size=1, warmup=0, schedule="cosine")
    assert learning_rate(25, plan(settings, 100, 32)[0], settings) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_the_plan_gives_its_reasons() -> None:
    steps, reasons = plan(TrainingSettings(), 1600, 576)
    assert (steps.epochs, steps.steps) == (1, 200)
    assert any("learning rate" in reason for reason in reasons)
    short, _ = plan(TrainingSettings(), 40, 576)
    assert short.epochs == 5
    assert short.learning_rate == pytest.approx(1.5 * steps.learning_rate, rel=0.05)
    assert plan(TrainingSettings(epochs=1, learning_rate=1e-3, eval_steps=5), 100, 576)[1] == []


def test_non_finite_loss_names_step_and_rows(data, tiny: Base) -> None:
    saved = []
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*(colours\.jsonl:\d+|held-out)"):
        fit(tiny, data, learning_rate=1e30, save=lambda: saved.append(1))


def test_nothing_trains_is_said(data, tiny: Base) -> None:
    inject(tiny.model.module, LoraConfig())
    for name, parameter in tiny.model.module.named_parameters():
        if "lora_a" in name:
            parameter.data.zero_()  # with A and B both zero, no gradient reaches either
    steps, _ = plan(TrainingSettings(epochs=1), len(data.train), 32)
    with pytest.raises(NothingTrains, match="no gradient"):
        Trainer(tiny, data.train, data.held_out, TrainingSettings(), steps, 0, lambda _: None, lambda: None).run()


def test_ctrl_c_stops_after_the_step_and_saves(data, tiny: Base) -> None:
    saved = []

    def press(event) -> None:
        if isinstance(event, Step) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    done = fit(tiny, data, press, lambda: saved.append(1), epochs=5, eval_steps=100)
    assert (done.steps, done.reason, saved) == (2, "interrupted", [1])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
