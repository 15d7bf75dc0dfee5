"""The loop's numbers against closed forms and plain torch, and what it does when things go wrong."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import tiny_module

from afina.core.errors import NonFiniteLoss, NothingTrains
from afina.core.events import HeldOut, Step
from afina.data.batch import pack
from afina.data.load import load_data
from afina.data.settings import DataSettings
from afina.lora import LoraConfig, adapter_state, inject, lora_layers
from afina.models.footprint import activation_bytes
from afina.models.load import Base, load_base
from afina.training import Trainer, TrainingSettings, make_plan, mean_loss
from afina.training.checkpoint import State, read_latest, write
from afina.training.loop import gradients
from afina.training.optimizer import Optimizer
from afina.training.plan import Plan, PlanFacts
from afina.training.schedule import learning_rate


@pytest.fixture
def data(colours: Path, tiny: Base):
    return load_data(DataSettings(path=colours, prompt="{q}", completion="{a}", held_out=0.2), tiny)


@pytest.fixture
def fit(data, tmp_path: Path):
    """Trains an adapter on the data; the arguments are settings, or fields of the trainer."""

    def run(base: Base, listener=lambda _: None, save=lambda: None, state=None, **settings):
        training = TrainingSettings(**({"learning_rate": 1e-2, "epochs": 1} | settings))
        if not list(lora_layers(base.model.module)):
            inject(base.model.module, LoraConfig(rank=4))
        return trainer(base, data, training, tmp_path / "checkpoints", listener, save, state).run()

    return run


def trainer(base, data, training, checkpoints, listener=lambda _: None, save=lambda: None, state=None) -> Trainer:
    steps, _ = make_plan(training, PlanFacts([len(row.input_ids) for row in data.train], 32), 0)
    return Trainer(base, data.train, data.held_out, training, steps, 0, listener, save, checkpoints, state)


def test_loss_is_transformers_own(data, tiny: Base) -> None:
    module, total, labelled = tiny_module(), 0.0, 0
    with torch.no_grad():
        for row in data.train[:5]:
            labels = torch.tensor([row.labels])  # transformers shifts by itself
            total += module(input_ids=torch.tensor([row.input_ids]), labels=labels).loss.item() * row.labelled
            labelled += row.labelled
    assert math.isclose(mean_loss(tiny, data.train[:5]), total / labelled, rel_tol=1e-5)


def test_batches_by_tokens(data) -> None:
    lengths = [len(row.input_ids) for row in data.train]

    def planned(**settings) -> Plan:
        return make_plan(TrainingSettings(**settings), PlanFacts(lengths, 32), 0)[0]

    groups = planned(tokens_per_batch=200).batches(lengths, 0, 1)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in group) for group in groups]
    assert max(sums) <= 200
    assert min(sums[:-1]) > 200 - max(lengths)
    assert planned(tokens_per_batch=1).batches(lengths, 0, 0) == [
        [row] for group in planned().batches(lengths, 0, 0) for row in group
    ]


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
    """Rows of unequal length in smaller passes, normalised by the labelled tokens of the whole step."""
    inject(tiny.model.module, LoraConfig(rank=4))
    rows = data.train[:6]
    found = []
    for tokens, most in ((10_000, None), (10_000, 1), (1, None), (60, None)):
        tiny.model.module.zero_grad()
        loss, read = gradients(tiny, rows, tokens, most)
        assert read == sum(len(row.input_ids) for row in rows)
        found.append([torch.tensor(loss), *(p.grad.clone() for p in tiny.model.module.parameters() if p.requires_grad)])
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0], other, strict=True))


def test_it_learns_and_saves_the_best(fit, data, tiny: Base) -> None:
    seen, saved = [], []
    done = fit(tiny, seen.append, lambda: saved.append(mean_loss(tiny, data.held_out)), epochs=8, learning_rate=3e-2)
    held = [e for e in seen if isinstance(e, HeldOut)]
    assert held[0].step == 0
    assert held[-1].loss < 0.5 * held[0].loss
    best = [e.loss for e in held if e.best]
    assert [*best, best[-1]] == pytest.approx(saved, rel=1e-4)  # and once more at the end, with the best weights
    assert mean_loss(tiny, data.held_out) == pytest.approx(best[-1], rel=1e-4)
    assert done.tokens == 8 * data.train.tokens
    assert done.reason == "completed"


def test_early_stopping(fit, tiny: Base) -> None:
    done = fit(tiny, epochs=50, learning_rate=1e-9, eval_steps=1, early_stopping=2, warmup=0.5)
    assert done.reason == "early stopping"
    assert done.steps < 300


def test_schedules() -> None:
    for name, end in (("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)):
        settings = TrainingSettings(epochs=1, learning_rate=1.0, batch_size=1, warmup=0.1, schedule=name)
        steps, _ = make_plan(settings, PlanFacts([10] * 100, 32), 0)
        rates = [learning_rate(step, steps, settings) for step in range(101)]
        assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert rates[10] == 1.0
        assert rates[100] == pytest.approx(end)
    settings = TrainingSettings(epochs=1, learning_rate=1.0, batch_size=1, warmup=0, schedule="cosine")
    assert learning_rate(25, make_plan(settings, PlanFacts([10] * 100, 32), 0)[0], settings) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )


def test_the_plan_gives_its_reasons() -> None:
    steps, reasons = make_plan(TrainingSettings(), PlanFacts([10] * 1600, 576), 0)
    assert (steps.epochs, steps.steps) == (1, 200)
    assert any("learning rate" in reason for reason in reasons)
    short, _ = make_plan(TrainingSettings(), PlanFacts([10] * 40, 576), 0)
    assert short.epochs == 5
    assert short.learning_rate == pytest.approx(1.5 * steps.learning_rate, rel=0.05)
    assert (
        make_plan(TrainingSettings(epochs=1, learning_rate=1e-3, eval_steps=5), PlanFacts([10] * 100, 576), 0)[1] == []
    )


def test_activations_are_recomputed_where_memory_is_short() -> None:
    rows = [100] * 20 + [3000]
    enough, reasons = make_plan(
        TrainingSettings(), PlanFacts(rows, 576, activation_bytes=1_000_000, free_bytes=6_000_000_000), 0
    )
    short, why = make_plan(
        TrainingSettings(), PlanFacts(rows, 576, activation_bytes=1_000_000, free_bytes=4_000_000_000), 0
    )
    assert (enough.checkpoint_activations, short.checkpoint_activations) == (False, True)
    assert set(why) - set(reasons) == {
        "activations are recomputed in the backward pass, to save memory: a micro-batch would need 3.0 GB, 4.0 GB are free"
    }
    asked, _ = make_plan(
        TrainingSettings(checkpoint_activations=False),
        PlanFacts(rows, 576, activation_bytes=1_000_000, free_bytes=0),
        0,
    )
    assert not asked.checkpoint_activations


def test_the_forecast_is_what_the_backward_pass_keeps(data, tiny: Base) -> None:
    inject(tiny.model.module, LoraConfig(rank=1, target_modules=("q_proj",)))
    packed = pack(data.train, torch.device("cpu"))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.dim() == 2 and len(tensor) >= packed.tokens and not isinstance(tensor, torch.nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tiny.model.summed_loss(packed)
    a_token = sum(kept.values()) / (-(-packed.tokens // 64) * 64)
    assert 0.6 < a_token / activation_bytes(tiny.model.module, tiny.dtype, longest=64) < 1.2


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


@pytest.mark.parametrize("stopped_at", [2, 7, 11])
def test_a_resumed_run_ends_as_one_never_stopped(fit, tiny_folder: Path, tmp_path: Path, stopped_at: int) -> None:
    """Dropout needs the random state, AdamW its moments, the schedule its step, and the best adapter its weights."""
    how = {"epochs": 2, "checkpoint_steps": 3, "eval_steps": 4, "early_stopping": 0}

    def fresh() -> Base:
        base = load_base(str(tiny_folder), precision="fp32", device="cpu")
        inject(base.model.module, LoraConfig(rank=4, dropout=0.2))
        return base

    class Killed(Exception): ...

    def kill(event) -> None:
        if isinstance(event, Step) and event.step == stopped_at:
            raise Killed

    whole, cut, resumed = fresh(), fresh(), fresh()
    expected = fit(whole, **how)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(Killed):
        fit(cut, kill, **how)
    found = read_latest(tmp_path / "checkpoints")
    done = fit(resumed, state=found[0] if found else None, **how)
    assert (done.steps, done.tokens, done.reason) == (expected.steps, expected.tokens, "completed")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    for name, value in adapter_state(whole.model.module).items():
        assert torch.equal(value, adapter_state(resumed.model.module)[name])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, State(step=step, best=0.5, weights={"w": torch.full((2,), float(step))}), "mark")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000002.safetensors", "step-00000003.safetensors"]
    newest = tmp_path / names[-1]
    newest.write_bytes(newest.read_bytes()[:50])
    state, mark = read_latest(tmp_path)
    assert (state.step, state.best, state.weights["w"].tolist(), mark) == (2, 0.5, [2.0, 2.0], "mark")


def test_masters_keep_updates_too_small_for_bf16() -> None:
    layer = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    optimizer = Optimizer(layer, 0.0)
    for _ in range(100):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step(1e-4, 1e9)
    assert torch.allclose(layer.weight.float(), torch.tensor(0.99), atol=0.003)
