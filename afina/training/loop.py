"""The training loop. What is trainable decides what is trained: LoRA's weights, or others for the baselines."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch

from afina.core.device import memory_gb, peak_memory_gb
from afina.core.errors import NonFiniteLoss, NothingTrains, OutOfMemory, counted
from afina.core.events import Done, Event, HeldOut, Listener, Notice, Step
from afina.core.process.interrupt import StopRequest
from afina.core.world import SINGLE, World
from afina.data.batch import numbered
from afina.data.template import Row
from afina.models.load import Base
from afina.training import checkpoint
from afina.training.checkpoint import State, random_states, set_random_state
from afina.training.objectives import OBJECTIVES, Objective, U
from afina.training.optimizer import Optimizer
from afina.training.plan import Plan
from afina.training.schedule import learning_rate
from afina.training.settings import TrainingSettings


def gradients(
    base: Base, units: Sequence[U], objective: Objective[U], max_tokens: int, max_units: int | None = None,
    world: World = SINGLE,
) -> tuple[float, int]:  # fmt: skip
    """Adds the gradients of the mean loss over the `units` of all processes; that loss, and the tokens read.

    The units go in micro-batches of up to `max_tokens` tokens and `max_units` units, with the result of a single one.
    """
    weight = world.sum(sum(objective.weight(unit) for unit in units))
    loss, tokens = 0.0, 0
    for numbers, _ in objective.passes(base, units, max_tokens, max_units):
        group = [units[i] for i in numbers]
        part = objective.loss(base, group) / weight
        part.backward()
        loss += part.item()
        tokens += sum(objective.lengths(group))
    world.sum_gradients(p for p in base.model.module.parameters() if p.requires_grad)
    return world.sum(loss), world.sum(tokens)


@dataclass
class Trainer:
    """Trains the parameters of `base` that require gradients on `train`, watching `held_out`.

    `save` is called whenever the held-out measure is the best so far; at the end, with the best weights back in place;
    and when the run is interrupted. With `state`, the run is resumed from there. Checkpoints go to the folder
    `checkpoints`, where one is given, with the fingerprint `mark`. `rehearse`: the largest micro-batch is tried before
    the first step. A trial among many ends where `hopeless`, asked after each evaluation, says so. `answers` gives what
    is told after it of the model as it is by then. `rates` take the place of the schedule. `first_look`: the held-out
    rows are evaluated before the first step too. Of the processes of `world` only the main one saves, writes
    checkpoints and tells the listener.
    """

    base: Base
    train: Sequence[Row]
    held_out: Sequence[Row]
    settings: TrainingSettings
    plan: Plan
    seed: int
    listener: Listener
    save: Callable[[], None]
    checkpoints: Path | None
    state: State | None = None
    mark: str = ""
    start_memory_gb: float = 0.0
    hopeless: Callable[[HeldOut], bool] | None = None
    answers: Callable[[int], Event] | None = None
    rates: Sequence[float] | None = None
    first_look: bool = True
    rehearse: bool = True
    world: World = SINGLE
    _objective: Objective[Any] = field(init=False, repr=False)
    _units: Sequence[Any] = field(init=False, repr=False)
    _watched: Sequence[Any] = field(init=False, repr=False)
    _prompts: Sequence[int] | None = field(init=False, repr=False)
    _optimizer: Optimizer = field(init=False, repr=False)
    _now: State = field(init=False, repr=False)
    _started: float = field(init=False, repr=False)

    def run(self) -> Done:
        """Trains until the plan's last step, early stopping or Ctrl-C.

        Raises `NonFiniteLoss`, `NothingTrains`, and `OutOfMemory` where rehearsed.
        """
        settings, module = self.settings, self.base.model.module
        self.base.model.sharing &= settings.share
        if self.plan.checkpoint_activations:
            self.base.model.checkpoint_activations()
        self._objective = OBJECTIVES[settings.objective]
        self._units, self._watched = self._objective.units(self.train), self._objective.units(self.held_out)
        prompts = (self._objective.prompt(unit) for unit in self._units)
        self._prompts = numbered(prompts) if settings.group_prompts else None
        self._optimizer = Optimizer(module, settings.weight_decay, settings.lora_plus_ratio, settings.optimizer)
        self._now, self._started = self.state or State(), time.monotonic()
        stop = StopRequest()
        with stop.listening():
            reason = self._train(stop)
        if reason != "interrupted":
            self._optimizer.set_weights(self._now.best_weights)
        self._save()
        now = self._now
        rate = now.tokens / now.step_seconds if now.step_seconds else 0.0
        done = Done(now.step, reason, self._seconds(), now.tokens, rate, peak_memory_gb(), self.start_memory_gb)
        self._tell(done)
        return done

    def _train(self, stop: StopRequest) -> str:
        if self.rehearse:
            self._rehearse()
        self._begin()
        self.base.model.module.train()
        now, patience, agree = self._now, self.settings.early_stopping, self.world.agree
        for units in self._steps(now.step):
            if patience and agree(now.since_best >= patience):
                return "early stopping"
            self._train_step(units)
            evaluated = now.step % self.plan.eval_steps == 0 or now.step == self.plan.steps
            found = self._evaluate() if evaluated else None
            if agree(stop.asked):
                self._checkpoint()
                self._tell(Notice("stopping after this step, as asked; the adapter as it is now is kept"))
                return "interrupted"
            if found and self.hopeless and agree(self.world.main and self.hopeless(found)):
                return "pruned"
            if evaluated or now.step % self.settings.checkpoint_steps == 0:
                self._checkpoint()
        return "completed"

    def _begin(self) -> None:
        """The state before the first step, or the one that the run is resumed from."""
        if self.state is None:
            torch.manual_seed(self.world.seed(self.seed))
            if self.first_look:
                self._evaluate()
            return
        self._optimizer.set_weights(self.state.weights)
        self._optimizer.set_moments(self.state.moments)
        set_random_state(self.state.random, self.world)
        self._tell(Notice(f"resuming after step {self.state.step} of {self.plan.steps}"))

    def _steps(self, done: int) -> Iterator[list[Any]]:
        """This process's units of each optimiser step after the first `done`; every epoch in an order of its own."""
        lengths = self._objective.lengths(self._units)
        epochs = (self.plan.batches(lengths, self.seed, epoch, self._prompts) for epoch in count())
        for numbers in islice(chain.from_iterable(epochs), done, self.plan.steps):
            yield [self._units[i] for i in self.world.share(numbers)]

    def _train_step(self, units: list[Any]) -> None:
        begun = time.monotonic()
        now, settings = self._now, self.settings
        rate = learning_rate(now.step, self.plan, settings) if self.rates is None else self.rates[now.step]
        loss, tokens = gradients(
            self.base, units, self._objective, settings.tokens_per_pass, settings.micro_batch_size, self.world
        )
        norm = self._optimizer.step(rate, settings.max_grad_norm)
        now.step += 1
        now.tokens += tokens
        now.step_seconds += time.monotonic() - begun
        self._check(loss, norm, units)
        seconds = self._seconds()
        self._tell(
            Step(
                step=now.step,
                total=self.plan.steps,
                epoch=now.step / self.plan.steps_per_epoch,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens_per_second=now.tokens / now.step_seconds,
                memory_gb=memory_gb(),
                seconds=seconds,
                seconds_left=seconds / now.step * (self.plan.steps - now.step),
            )
        )

    def _check(self, loss: float, norm: float, units: list[Any]) -> None:
        step = self._now.step
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"step {step}: the loss is {loss}, the norm of its gradient {norm}; the batch was "
                f"{', '.join(unit.location for unit in units)}",
                "lower --train.learning_rate, or use --precision fp32; the best adapter so far, if any, is kept",
            )
        if step == 1 and norm == 0:
            raise NothingTrains(
                "step 1: no gradient reaches the adapter", "choose other layers with --lora.target_modules"
            )

    def _evaluate(self) -> HeldOut:
        """Tells the held-out measure, and saves if it is the best. Step 0 is before the first."""
        now, objective = self._now, self._objective
        sums = objective.sums(self.base, self.world.share(self._watched))
        numbers = objective.numbers([self.world.sum(each) for each in sums])
        found = HeldOut(now.step, numbers, False, objective.measure, objective.lower_is_better)
        if not math.isfinite(found.value):
            raise NonFiniteLoss(
                f"step {now.step}: the held-out {found.measure} is {found.value}", "lower --train.learning_rate"
            )
        found = replace(found, best=now.step > 0 and self.world.agree(found.cost < now.best))
        if found.best:
            now.best, now.since_best = found.cost, 0
            now.best_weights = {name: value.clone() for name, value in self._optimizer.weights().items()}
            self._save()
        elif now.step > 0:
            now.since_best += 1
        self._tell(found)
        if self.answers and self.world.main:
            self._tell(self.answers(now.step))
        return found

    def _rehearse(self) -> None:
        """One forward and backward pass over the longest micro-batch, of which nothing is kept: what does not fit into
        memory is said now and not hours later. Raises `OutOfMemory`."""
        module, settings, objective = self.base.model.module, self.settings, self._objective
        limits = settings.tokens_per_pass, settings.micro_batch_size
        known = objective.lengths(self._units)
        groups = self.plan.batches(known, self.seed, 0, self._prompts)[: self.plan.steps]
        numbers = max(groups, key=lambda group: (max(known[i] for i in group), sum(known[i] for i in group)))
        units = [self._units[i] for i in numbers]
        largest = max(objective.passes(self.base, units, *limits), key=lambda group: group.tokens)
        longest = [units[i] for i in largest.rows]
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        module.train()
        begun = time.monotonic()
        with torch.random.fork_rng(devices=devices):
            try:
                gradients(self.base, longest, objective, *limits)
            except RuntimeError as error:
                if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
                    raise
                raise OutOfMemory(
                    f"the longest micro-batch ({counted(largest.tokens, 'token')}, with {longest[-1].location}) "
                    "does not fit into memory",
                    "`afina fit BASE DATA` with the same flags says what would; --train.checkpoint_activations true, "
                    "a lower --train.tokens_per_pass or --data.max_length need less",
                ) from error
        module.zero_grad(set_to_none=True)
        seconds = time.monotonic() - begun
        self._tell(Notice(f"rehearsed the longest micro-batch: {counted(largest.tokens, 'token')} in {seconds:.1f} s"))

    def _seconds(self) -> float:
        return self._now.seconds + time.monotonic() - self._started

    def _tell(self, event: Event) -> None:
        if self.world.main:
            self.listener(event)

    def _save(self) -> None:
        if self.world.main:
            self.save()

    def _checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        state = replace(
            self._now,
            seconds=self._seconds(),
            weights=self._optimizer.weights(),
            moments=self._optimizer.moments(),
            random=random_states(self.world),
        )
        if self.world.main:
            checkpoint.write(self.checkpoints, state, self.mark)
