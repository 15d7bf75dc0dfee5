"""Training as it is on a card, on the processor: nothing waits but what is read a step late, and the numbers are the
same."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _waits import Copies, Waits
from conftest import save_tiny
from torch import Tensor
from trainers import colour_data, train_adapter

from afina.core.errors import BaseModelError, NonFiniteLoss, OutOfMemory, RunFailed
from afina.core.events import Event, HeldOut, Notice, Step
from afina.data.batch import Ahead, HostPack
from afina.data.load import Dataset
from afina.engine import kernels
from afina.lora import LoraConfig, adapter_state, inject
from afina.models.load import Base, load_base
from afina.training import loop, loss_scale
from afina.training.accumulation import gradients
from afina.training.checkpoint import read_latest
from afina.training.loop import Trainer
from afina.training.loss import row_losses
from afina.training.loss_scale import LossScale
from afina.training.objectives import OBJECTIVES
from afina.training.objectives.supervised import Supervised
from afina.training.optimizer import Optimizer

HOW = {"epochs": 2, "eval_steps": 5, "early_stopping": 0, "checkpoint_steps": 4, "micro_batch_size": 3}
CPU = torch.device("cpu")


class Card:
    """The processor, taken for a card: it computes on its own time, and numbers come from it later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits = Waits()
        self.read: list[str] = []  # in order: 'asked' where a step's numbers are sent, 'read' where they are read
        for place in ("training.loop", "training.optimizer", "data.batch"):
            monkeypatch.setattr(f"afina.{place}.overlaps", lambda device: True)
        monkeypatch.setattr(loop, "later", self.later)

    def later(self, values: Tensor) -> Callable[[], Tensor]:
        self.read.append("asked")

        def arrived() -> Tensor:
            self.read.append("read")
            with self.waits.allowed():
                return values.clone().detach()

        return arrived


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


@pytest.fixture
def fresh(tiny_folder: Path) -> Callable[..., Base]:
    def load(precision: str = "fp32", **config: Any) -> Base:
        base = load_base(str(tiny_folder), precision=precision, device="cpu")
        inject(base.model.module, LoraConfig(rank=4, **config))
        return base

    return load


@pytest.fixture
def data(colours: Path, tiny: Base) -> Dataset:
    return colour_data(colours, tiny)


def numbers(events: list[Event]) -> list[tuple[Any, ...]]:
    """What is told, but for times and memory."""
    return [
        (e.step, e.loss, e.grad_norm, e.learning_rate) if isinstance(e, Step) else (e.step, e.value, e.best)
        for e in events
        if isinstance(e, Step | HeldOut)
    ]


def test_the_counter_counts() -> None:
    x, other = torch.ones(3), torch.ones(3)
    reads: dict[str, Callable[[Tensor], Any]] = {
        "item": lambda y: y.sum().item(),
        "bool": lambda y: bool(y.sum() > 1),
        "int": lambda y: int(y.sum()),
        "tolist": lambda y: y.tolist(),
        "cpu": lambda y: y.cpu(),
        "nonzero": lambda y: y.nonzero(),
        "a choice": lambda y: y[y > 0],
        "unique": lambda y: y.unique(),
        "to": lambda y: y.to("cpu"),
        "copy_": lambda y: torch.empty(3).copy_(y),
        "tensor": lambda y: torch.as_tensor([y.sum()]),
        "allclose": lambda y: torch.allclose(y, torch.ones(3)),
    }
    for name, read in reads.items():
        with Waits(x) as waits:
            read(other)
            (x * 2 + other).sum()
            torch.empty(3, device=x.device).copy_(x.to(x.device, torch.float64))
            assert not waits.found, name
            read(x * other)
        assert waits.found, name


@pytest.mark.parametrize(
    ("precision", "config", "how"),
    [
        ("fp16", {}, {}),
        ("bf16", {"modules_to_save": ("layers.1.mlp.down_proj", "norm")}, {"micro_batch_size": None}),
        ("fp32", {}, {"share": False, "checkpoint_activations": True}),
    ],
)
def test_a_step_reads_nothing_from_the_card_but_late(
    card: Card, fresh, data: Dataset, monkeypatch: pytest.MonkeyPatch, precision: str, config: Any, how: Any
) -> None:
    """With loss scaling; with weights trained in full, and their masters; with activations computed again."""
    monkeypatch.setattr(kernels, "load", lambda cache: None)
    base, waits, to, step = fresh(precision, **config), card.waits, HostPack.to, Trainer._train_step
    for parameter in base.model.module.parameters():
        waits.put(parameter)

    def sent(packed: HostPack, device: torch.device) -> Any:
        waits.put(packed.numbers)
        return to(packed, device)

    def counted_step(trainer: Trainer, made: Any) -> None:
        if trainer._scale is not None:
            waits.put(trainer._scale.factor)
        with waits:
            step(trainer, made)

    monkeypatch.setattr(HostPack, "to", sent)
    monkeypatch.setattr(Trainer, "_train_step", counted_step)
    done = train_adapter(base, data, None, **HOW | {"epochs": 1} | how)
    assert card.read.count("read") == card.read.count("asked") == done.steps > 5
    assert waits._there
    assert not waits.found, "\n".join(dict.fromkeys(waits.found))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_step_needs_no_numbers(kind: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's meta device, which has none: all is on the base's device, nothing is read from it, and what it gets is
    pinned and not waited for."""
    copies = Copies()
    for place in ("core.device.queue", "training.optimizer", "data.batch"):
        monkeypatch.setattr(f"afina.{place}.overlaps", lambda device: device.type == "meta")
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: copies.pin(tensor))
    base = load_base(str(save_tiny(tmp_path / kind, kind)), precision="bf16", device="cpu")
    inject(base.model.module, LoraConfig(rank=4))
    base.model.module.to("meta").train()
    known = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(known, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    optimizer = Optimizer(base.model.module, 0.0)
    gradients(base, data.train[:8], Supervised(), 100)  # makes the tables of angles, once
    optimizer.step(1e-3, 1.0)
    with copies:
        loss, tokens = gradients(base, data.train[:8], Supervised(), 100)
    assert (loss.device.type, tokens) == ("meta", sum(len(row.input_ids) for row in data.train[:8]))
    found = [p.grad for p in base.model.module.parameters() if p.requires_grad]
    assert {g.device.type for g in found if g is not None} == {"meta"}
    assert None not in found
    with copies:
        norm = optimizer.step(1e-3, 1.0)
    assert norm.device.type == "meta"
    assert copies.pinned
    assert not copies.found, "\n".join(dict.fromkeys(copies.found))


def test_steps_are_told_one_late_and_are_the_same(card: Card, fresh, data: Dataset, tmp_path: Path) -> None:
    events: list[Event] = []
    ours = fresh(dropout=0.2)
    train_adapter(ours, data, tmp_path / "card", events.append, **HOW)
    assert card.read[:4] == ["asked", "asked", "read", "asked"]  # the first is read when the second was asked for
    with pytest.MonkeyPatch.context() as plain:
        for place in ("training.loop", "training.optimizer", "data.batch"):
            plain.setattr(f"afina.{place}.overlaps", lambda device: False)
        twin, expected = fresh(dropout=0.2), list[Event]()
        train_adapter(twin, data, tmp_path / "plain", expected.append, **HOW)
    assert numbers(events) == numbers(expected)
    for name, value in adapter_state(twin.model.module).items():
        assert torch.equal(adapter_state(ours.model.module)[name], value)


def test_a_batch_without_a_loss_is_named_though_it_is_seen_late(
    card: Card, fresh, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    taken, step = Supervised.loss, Trainer._train_step

    def broken(self: Supervised, base: Base, batch: Any) -> Tensor:
        return taken(self, base, batch) * (float("nan") if len(batches) == 3 else 1.0)

    def noted(trainer: Trainer, made: Any) -> None:
        made = list(made)
        batches.append([unit.location for unit in made[0].units])
        step(trainer, iter(made))

    monkeypatch.setattr(Supervised, "loss", broken)
    monkeypatch.setattr(Trainer, "_train_step", noted)
    with pytest.raises(NonFiniteLoss, match="step 3") as error:
        train_adapter(fresh(), data, None, **HOW | {"eval_steps": 100})
    assert len(batches) == 4  # the next was asked for already
    assert all(location in str(error.value) for location in batches[2])
    assert not any(location in str(error.value) for location in batches[3])


def test_a_step_that_is_not_finite_is_skipped_without_asking(card: Card) -> None:
    """By fused AdamW itself: neither weights nor moments nor their count change."""
    layer = torch.nn.Linear(3, 2)
    optimizer = Optimizer(layer, 0.1)
    for value in (1.0, float("inf"), 2.0, float("nan")):
        before = {k: v.clone() for k, v in (optimizer.weights() | optimizer.moments()).items()}
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
        norm = optimizer.step(0.1, 1.0)
        after = optimizer.weights() | optimizer.moments()
        changes = [k for k, v in after.items() if k not in before or not torch.equal(v, before[k])]
        assert bool(norm.isfinite()) == bool(changes)
    assert {float(v) for k, v in optimizer.moments().items() if k.endswith("step")} == {2.0}


@pytest.mark.parametrize(
    ("kind", "waits"), [("adamw", 0), ("muon", 0), ("riemannian", 0), ("lora_pro", 1), ("lora_rite", 6)]
)
def test_optimisers_of_factors_skip_by_themselves_too(card: Card, kind: str, waits: int) -> None:
    """With the numbers of the processor's, where it is asked whether a step is finite. Eigenvalues are waited for."""

    def made() -> tuple[torch.nn.Module, Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 4))
        inject(model, LoraConfig(rank=2, target_modules=("0",)))
        model[0].lora_b.data.normal_()
        return model, Optimizer(model, 0.0, kind=kind)

    (ours, optimizer), (plain, expected) = made(), made()
    for value in (float("inf"), 1.0, 2.0, float("nan"), -1.0):
        for model in (ours, plain):
            torch.manual_seed(3)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = value * torch.rand_like(parameter)
        with pytest.MonkeyPatch.context() as processor:
            processor.setattr("afina.training.optimizer.overlaps", lambda device: False)
            expected.step(0.1, 1.0)
        counted = Waits(*(p.grad for p in ours.parameters() if p.grad is not None), *ours.parameters())
        with counted:
            optimizer.step(0.1, 1.0)
        assert len(counted.found) == waits, counted.found
        for name, weight in expected.weights().items():
            assert torch.equal(weight, optimizer.weights()[name])
        for name, moment in expected.moments().items():
            assert torch.equal(moment, optimizer.moments()[name])


def test_what_is_made_ahead_is_what_would_be_made(card: Card) -> None:
    made: list[int] = []

    def items() -> Any:
        for i in range(1, 5):
            made.append(i)
            yield i

    ahead = Ahead(items(), CPU)
    assert next(ahead) == 1
    ahead.settle()
    assert made == [1, 2]
    assert list(ahead) == [2, 3, 4]
    assert list(ahead) == []
    ahead.close()

    def broken() -> Any:
        yield 1
        raise ValueError("a row that cannot be read")

    ahead = Ahead(broken(), CPU)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="a row"):
        next(ahead)
    ahead.close()


def test_on_the_processor_nothing_is_made_ahead() -> None:
    made: list[int] = []
    ahead = Ahead((made.append(i) or i for i in (1, 2)), CPU)
    assert (next(ahead), made) == (1, [1])
    ahead.settle()
    ahead.close()
    assert made == [1]


def test_the_loss_scale_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "_PATIENCE", 3)
    ours, theirs = LossScale(CPU), torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    skips = [0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    for skip in skips:
        theirs.scale(parameter.sum() * (float("inf") if skip else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(torch.tensor(float(skip)))
        assert float(ours.factor) == theirs.get_scale()
    assert float(ours.skipped) == sum(skips)
    again = LossScale(CPU)
    again.set_state(ours.state())
    for scale in (ours, again):
        scale.update(torch.tensor(0.0))
    assert again.state() == ours.state()


def test_fp16_learns_as_fp32_does(fresh, data: Dataset) -> None:
    found = []
    for precision in ("fp32", "fp16"):
        events: list[Event] = []
        done = train_adapter(fresh(precision), data, None, events.append, **HOW)
        assert done.skipped_steps == 0
        found.append([e.loss for e in events if isinstance(e, Step)])
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_steps_too_large_for_fp16_are_skipped_said_and_counted(
    card: Card, fresh, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that is resumed, which ends with the same bits."""
    monkeypatch.setattr(loss_scale, "_FIRST", 2.0**26)
    events: list[Event] = []
    whole = fresh("fp16")
    done = train_adapter(whole, data, tmp_path / "whole", events.append, **HOW | {"epochs": 4})
    said = [e.text for e in events if isinstance(e, Notice) and "too large for fp16" in e.text]
    steps = [e for e in events if isinstance(e, Step)]
    assert 0 < done.skipped_steps < done.steps
    assert len(said) == done.skipped_steps + 1
    assert [e.step for e in steps] == list(range(1, done.steps + 1))
    skipped = [e.step for e in steps if e.grad_norm == 0]
    assert skipped[:4] == [1, 2, 3, 4]
    assert len(skipped) == done.skipped_steps

    class Killed(Exception): ...

    def kill(event: Event) -> None:
        if isinstance(event, Step) and event.step == 10:
            raise Killed

    with pytest.raises(Killed):
        train_adapter(fresh("fp16"), data, tmp_path / "cut", kill, **HOW | {"epochs": 4})
    found = read_latest(tmp_path / "cut")
    assert found
    assert float(found[0].scale["factor"]) < 2.0**26
    resumed = fresh("fp16")
    again = train_adapter(resumed, data, tmp_path / "cut", state=found[0], **HOW | {"epochs": 4})
    assert again.skipped_steps == done.skipped_steps
    for name, value in adapter_state(whole.model.module).items():
        assert torch.equal(value, adapter_state(resumed.model.module)[name])


@pytest.mark.parametrize(("precision", "remedy"), [("fp16", "use --precision fp32"), ("fp32", "choose another base: ")])
def test_a_base_that_gives_no_numbers_is_not_blamed_on_the_learning_rate(
    fresh, data: Dataset, monkeypatch: pytest.MonkeyPatch, precision: str, remedy: str
) -> None:
    base = fresh(precision)
    taken = type(base.model).summed_loss
    monkeypatch.setattr(type(base.model), "summed_loss", lambda *given: taken(*given) * float("nan"))
    with pytest.raises(NonFiniteLoss, match="step 0: the held-out loss is nan") as error:
        train_adapter(base, data, None, **HOW)
    assert str(error.value.remedy).startswith(remedy)


def test_a_token_beyond_the_embeddings_is_said_before_a_card_sees_it(fresh, data: Dataset) -> None:
    """Which would end the process there, in words of CUDA's."""
    base, rows = fresh(), list(data.train)
    beyond = base.facts.vocabulary
    rows[3] = replace(rows[3], input_ids=[*rows[3].input_ids[:-1], beyond])
    for read in (lambda: gradients(base, rows, OBJECTIVES["supervised"], 1024), lambda: row_losses(base, rows)):
        with pytest.raises(BaseModelError) as error:
            read()
        assert error.value.problems == [
            f"{rows[3].location}: token {beyond:,} is beyond the {beyond:,} that the base has embeddings for"
        ]


def test_no_scale_that_helps_is_an_error(fresh, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Tensor.backward

    def infinite(loss: Tensor, *args: Any, **more: Any) -> None:
        backward(loss * float("inf"), *args, **more)

    monkeypatch.setattr(loss_scale, "_FIRST", 4.0)
    monkeypatch.setattr(Tensor, "backward", infinite)
    with pytest.raises(NonFiniteLoss, match="step 3") as error:
        train_adapter(fresh("fp16"), data, None, **HOW)
    assert str(error.value.remedy).startswith("lower --train.learning_rate, or use --precision fp32; ")


def test_a_run_on_the_processor_asks_no_card(fresh, data: Dataset, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a run on the processor asked a card")

    for name in (
        "current_device", "get_rng_state", "set_rng_state", "max_memory_allocated", "max_memory_reserved",
        "memory_reserved", "mem_get_info", "synchronize", "set_device", "empty_cache", "reset_peak_memory_stats",
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    done = train_adapter(fresh(), data, tmp_path, **HOW)
    found = read_latest(tmp_path)
    assert found
    assert set(found[0].random) == {"cpu"}
    assert (done.host_peak_gb, done.skipped_steps) == (None, 0)


def test_whether_a_resumed_run_has_the_same_bits_is_said_once(
    fresh, data: Dataset, tmp_path: Path, monkeypatch
) -> None:
    for same in (True, False):
        monkeypatch.setattr(loop, "is_deterministic", lambda device, same=same: same)
        events: list[Event] = []
        train_adapter(fresh(), data, tmp_path, events.append, **HOW | {"epochs": 1})
        said = [e for e in events if isinstance(e, Notice) and "up to rounding" in e.text]
        assert len(said) == (0 if same else 1)


def test_an_operation_without_a_deterministic_form_is_said_before_the_first_step(
    fresh, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Tensor:
        raise RuntimeError("scatter_cuda does not have a deterministic implementation, but you set …")

    monkeypatch.setattr(Supervised, "loss", refuse)
    with pytest.raises(RunFailed, match=r"--train.deterministic.*scatter_cuda"):
        train_adapter(fresh(), data, None, **HOW, deterministic=True)
    with pytest.raises(RuntimeError, match=r"^scatter"):
        train_adapter(fresh(), data, None, **HOW)


def test_what_does_not_fit_is_said_with_the_memory_of_the_device(fresh, data: Dataset, monkeypatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Supervised, "loss", full)
    with pytest.raises(OutOfMemory, match=r"the largest micro-batch \(.*\) does not fit into memory"):
        train_adapter(fresh(), data, None, **HOW)
