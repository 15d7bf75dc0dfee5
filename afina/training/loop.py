"""The training loop. What is trainable decides what is trained: LoRA's weights, or others for the baselines."""

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afina.core.device import (
    fitting,
    forget_peak,
    is_deterministic,
    later,
    memory_gb,
    on_host,
    overlaps,
    peak_memory_gb,
    same_random_numbers,
    wait_for,
)
from afina.core.errors import NonFiniteLoss, NothingTrains, RunFailed, brief, counted
from afina.core.events import Done, Event, HeldOut, Listener, Notice, Step
from afina.core.process.interrupt import StopRequest
from afina.core.world import SINGLE, World
from afina.data.batch import Ahead, numbered
from afina.data.template import Row
from afina.models.load import Base
from afina.training import checkpoint
from afina.training.accumulation import MicroBatch, add_gradients, gradients, micro_batches
from afina.training.checkpoint import State, random_states, set_random_state
from afina.training.loss import device_of
from afina.training.loss_scale import LossScale, is_too_small
from afina.training.objectives import OBJECTIVES, Objective
from afina.training.optimizer import Optimizer
from afina.training.plan import Plan
from afina.training.schedule import learning_rate
from afina.training.settings import TrainingSettings

_REHEARSED = 8  # steps with the longest rows, and with the most tokens, whose passes are looked at for the largest


class _Taken(NamedTuple):
    """A step that was taken, whose numbers (loss, norm of the gradient, and those of the loss scale) may still be on
    their way from the device. `tokens` are those of all steps so far."""

    step: int
    units: Sequence[Any]
    rate: float
    tokens: int
    numbers: Callable[[], Tensor]


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
    _scale: LossScale | None = field(init=False, repr=False)
    _device: torch.device = field(init=False, repr=False)
    _ahead: Ahead[MicroBatch] = field(init=False, repr=False)
    _taken: deque[_Taken] = field(init=False, repr=False)
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
        if self._prompts and len(set(self._prompts)) == len(self._prompts):
            self._tell(Notice("no two rows have the same prompt: --train.group_prompts changes nothing", warning=True))
        self._device, self._taken = device_of(self.base), deque()
        self._scale = LossScale(self._device) if self.base.dtype == torch.float16 else None
        self._optimizer = Optimizer(
            module, settings.weight_decay, settings.lora_plus_ratio, settings.optimizer, self._scale
        )
        self._now, self._started = self.state or State(), time.monotonic()
        stop = StopRequest()
        with stop.listening():
            reason = self._train(stop)
        if reason != "interrupted":
            self._optimizer.set_weights(self._now.best_weights)
        self._save()
        done = self._done(reason)
        self._tell(done)
        return done

    def _done(self, reason: str) -> Done:
        now, host = self._now, None if self._device.type == "cpu" else peak_memory_gb()
        skipped = 0 if self._scale is None else int(self._scale.skipped)
        if skipped:
            self._tell(Notice(f"{counted(skipped, 'step was', 'steps were')} skipped: gradients too large for fp16"))
        return Done(
            steps=now.step,
            reason=reason,
            seconds=self._seconds(),
            tokens=now.tokens,
            tokens_per_second=now.tokens / now.step_seconds if now.step_seconds else 0.0,
            peak_memory_gb=peak_memory_gb(self._device),
            start_memory_gb=self.start_memory_gb,
            host_peak_gb=host,
            skipped_steps=skipped,
        )

    def _train(self, stop: StopRequest) -> str:
        forget_peak(self._device)
        if self.rehearse:
            self._rehearse()
        if self.checkpoints is not None and not is_deterministic(self._device):
            self._tell(
                Notice("if this run is cut off and resumed, it ends with the same adapter up to rounding; "
                       "--train.deterministic makes that bit for bit, and slower")
            )  # fmt: skip
        self._begin()
        self.base.model.module.train()
        self._ahead = Ahead(self._micro_batches(self._now.step), self._device)
        with closing(self._ahead):
            return self._take_steps(stop)

    def _take_steps(self, stop: StopRequest) -> str:
        now, patience, agree = self._now, self.settings.early_stopping, self.world.agree
        for _, made in groupby(self._ahead, attrgetter("step")):
            if patience and agree(now.since_best >= patience):
                return "early stopping"
            self._train_step(made)
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
        if self._scale is not None and self.state.scale:
            self._scale.set_state(self.state.scale)
        set_random_state(self.state.random, self.world, self._device)
        self._tell(Notice(f"resuming after step {self.state.step} of {self.plan.steps}"))

    def _micro_batches(self, done: int) -> Iterator[MicroBatch]:
        """This process's micro-batches of each optimiser step after the first `done`; every epoch in an order of its
        own."""
        lengths, settings = self._objective.lengths(self._units), self.settings
        epochs = (self.plan.batches(lengths, self.seed, epoch, self._prompts) for epoch in count())
        for step, numbers in enumerate(islice(chain.from_iterable(epochs), done, self.plan.steps), done):
            units = [self._units[i] for i in self.world.share(numbers)]
            yield from micro_batches(
                self.base, units, self._objective, settings.tokens_per_pass, settings.micro_batch_size, step
            )

    def _train_step(self, made: Iterator[MicroBatch]) -> None:
        begun = time.monotonic()
        now, settings = self._now, self.settings
        rate = learning_rate(now.step, self.plan, settings) if self.rates is None else self.rates[now.step]
        first = next(made)
        loss, tokens = add_gradients(
            self.base, first.units, chain([first], made), self._objective, self.world,
            None if self._scale is None else self._scale.factor,
        )  # fmt: skip
        norm = self._optimizer.step(rate, settings.max_grad_norm)
        now.step += 1
        now.tokens += tokens
        scale = [] if self._scale is None else [self._scale.factor]
        numbers = later(torch.stack([loss, *(each.to(loss) for each in (norm, *scale))]))
        self._taken.append(_Taken(now.step, first.units, rate, now.tokens, numbers))
        self._catch_up(begun, 1 if overlaps(self._device) else 0)

    def _settle(self) -> None:
        """Catches up with a device that computes on its own time, before anything but the next step."""
        self._ahead.settle()
        if self._taken:
            self._catch_up(time.monotonic(), 0)

    def _catch_up(self, begun: float, behind: int) -> None:
        """Tells of the steps that were taken, but for the last ones that the device may be `behind`. The time since
        `begun` is that of the steps."""
        read = []
        while len(self._taken) > behind:
            taken = self._taken.popleft()
            read.append((taken, taken.numbers().tolist()))
        self._now.step_seconds += time.monotonic() - begun
        for taken, numbers in read:
            self._tell_step(taken, *numbers)

    def _tell_step(self, taken: _Taken, loss: float, norm: float, factor: float | None = None) -> None:
        step = taken.step
        if factor is not None and math.isfinite(loss) and not math.isfinite(norm) and not is_too_small(factor):
            norm = 0.0
            self._tell(
                Notice(
                    f"step {step} is skipped: its gradients are too large for fp16; the loss scale is now {factor:g}"
                )
            )
        else:
            self._check(taken, loss, norm)
        seconds = self._seconds()
        self._tell(
            Step(
                step=step,
                total=self.plan.steps,
                epoch=step / self.plan.steps_per_epoch,
                loss=loss,
                learning_rate=taken.rate,
                grad_norm=norm,
                tokens_per_second=taken.tokens / self._now.step_seconds,
                memory_gb=memory_gb(self._device),
                seconds=seconds,
                seconds_left=seconds / step * (self.plan.steps - step),
                host_gb=None if self._device.type == "cpu" else memory_gb(),
            )
        )

    def _check(self, taken: _Taken, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"step {taken.step}: the loss is {loss}, the norm of its gradient {norm}; the batch was "
                f"{', '.join(unit.location for unit in taken.units)}",
                f"{self._remedy()}; the best adapter so far, if any, is kept",
            )
        if taken.step == 1 and norm == 0:
            raise NothingTrains(
                "step 1: no gradient reaches the adapter", "choose other layers with --lora.target_modules"
            )

    def _remedy(self) -> str:
        """Against numbers that are not finite, of which no learning rate is to blame before the first step."""
        ways = ["lower --train.learning_rate"] if self._now.step else []
        ways += ["use --precision fp32"] if self.base.dtype != torch.float32 else []
        return ", or ".join(ways) or "choose another base: this one's own numbers are not finite"

    def _evaluate(self) -> HeldOut:
        """Tells the held-out measure, and saves if it is the best. Step 0 is before the first."""
        if self._now.step:
            self._settle()
        now, objective = self._now, self._objective
        sums = objective.sums(self.base, self.world.share(self._watched))
        numbers = objective.numbers([self.world.sum(each) for each in sums])
        found = HeldOut(now.step, numbers, False, objective.measure, objective.lower_is_better)
        if not math.isfinite(found.value):
            raise NonFiniteLoss(f"step {now.step}: the held-out {found.measure} is {found.value}", self._remedy())
        found = replace(found, best=now.step > 0 and self.world.agree(found.cost < now.best))
        if found.best:
            now.best, now.since_best = found.cost, 0
            weights = on_host(self._optimizer.weights())  # so that a card has no second copy of what is trained
            now.best_weights = {name: value.clone() for name, value in weights.items()}
            self._save()
        elif now.step > 0:
            now.since_best += 1
        self._tell(found)
        if self.answers and self.world.main:
            self._tell(self.answers(now.step))
        return found

    def _rehearse(self) -> None:
        """One forward and backward pass over the largest micro-batch of the steps with the longest rows and with the
        most tokens, of which nothing is kept: what does not fit into memory is said now and not hours later. Raises
        `OutOfMemory`."""
        module, settings, objective = self.base.model.module, self.settings, self._objective
        limits = settings.tokens_per_pass, settings.micro_batch_size
        module.train()  # under dropout rows share nothing
        known = objective.lengths(self._units)
        groups = self.plan.batches(known, self.seed, 0, self._prompts)[: self.plan.steps]
        tokens, units = 0, self._units[:1]
        for size in (max, sum):
            for numbers in heapq.nlargest(_REHEARSED, groups, key=lambda group: size(known[i] for i in group)):
                step = [self._units[i] for i in numbers]
                for group in objective.passes(self.base, step, *limits):
                    if group.tokens > tokens:
                        tokens, units = group.tokens, [step[i] for i in group.rows]
        longest = max(zip(objective.lengths(units), units, strict=True), key=lambda each: each[0])[1]
        begun = time.monotonic()
        what = f"the largest micro-batch ({counted(tokens, 'token')}, with {longest.location})"
        remedy = (
            "`afina fit BASE DATA` with the same flags says what would; --train.checkpoint_activations true, "
            "a lower --train.tokens_per_pass or --data.max_length need less"
        )
        with same_random_numbers(self._device), fitting(self._device, what, remedy):
            try:
                gradients(self.base, units, objective, *limits)
                wait_for(self._device)
            except RuntimeError as error:
                if not settings.deterministic or "deterministic" not in str(error):
                    raise
                raise RunFailed(
                    f"--train.deterministic: torch has no such form of an operation of this base ({brief(error)})",
                    "leave it out: a run that is resumed is then the same up to rounding",
                ) from error
        module.zero_grad(set_to_none=True)
        seconds = time.monotonic() - begun
        self._tell(Notice(f"rehearsed the largest micro-batch: {counted(tokens, 'token')} in {seconds:.1f} s"))

    def _seconds(self) -> float:
        return self._now.seconds + time.monotonic() - self._started

    def _tell(self, event: Event) -> None:
        if self.world.main:
            self.listener(event)

    def _save(self) -> None:
        if self.world.main:
            self.save()

    def _checkpoint(self) -> None:
        self._settle()
        if self.checkpoints is None:
            return
        state = replace(
            self._now,
            seconds=self._seconds(),
            weights=self._optimizer.weights(),
            moments=self._optimizer.moments(),
            random=random_states(self.world, self._device),
            scale={} if self._scale is None else self._scale.state(),
        )
        if self.world.main:
            checkpoint.write(self.checkpoints, state, self.mark)
