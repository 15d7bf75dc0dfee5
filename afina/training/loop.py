"""The training loop. What is trainable decides what is trained: LoRA's weights here, others for the baselines."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import torch

from afina.core.device import memory_gb, peak_memory_gb
from afina.core.errors import NonFiniteLoss, NothingTrains, OutOfMemory
from afina.core.events import Done, HeldOut, Listener, Notice, Step
from afina.core.interrupt import StopRequest
from afina.data.batch import micro_batches, pack
from afina.data.store import lengths
from afina.data.template import Row
from afina.models.load import Base
from afina.training import checkpoint
from afina.training.checkpoint import State
from afina.training.loss import mean_loss, perplexity
from afina.training.optimizer import Optimizer
from afina.training.plan import Plan
from afina.training.schedule import learning_rate
from afina.training.settings import TrainingSettings


def gradients(base: Base, rows: Sequence[Row], tokens: int, most: int | None = None) -> tuple[float, int]:
    """Adds the gradients of the mean loss over the labelled tokens of `rows`; that loss, in nats, and the count of tokens.

    The rows go in passes of up to `tokens` tokens and `most` rows, by length: the result is the same as in one pass.
    """
    device = next(base.model.module.parameters()).device
    labelled = sum(row.labelled for row in rows)
    loss, read = 0.0, 0
    for group in micro_batches(rows, tokens, most):
        packed = pack(group, device)
        part = base.model.summed_loss(packed) / labelled
        part.backward()
        loss += part.item()
        read += packed.tokens
    return loss, read


@dataclass
class Trainer:
    """Trains the parameters of `base` that require gradients on `train`, watching `held_out`.

    `save` is called whenever the held-out loss is the best so far; at the end, with the best weights back in place; and when
    the run is interrupted. With `state`, the run goes on from there. Checkpoints go to the folder `checkpoints`, where there is
    one. `rehearse`: the largest pass is tried before the first step. A trial among many ends where `hopeless`, asked after each evaluation, says so. `rates` take the place of the schedule. `first_look`:
    the held-out loss of the start is measured too.
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
    rates: Sequence[float] | None = None
    first_look: bool = True
    rehearse: bool = True

    def run(self) -> Done:
        """Trains until the plan's last step, early stopping or Ctrl-C. Raises `NonFiniteLoss` and `NothingTrains`."""
        module = self.base.model.module
        if self.plan.checkpoint_activations:
            self.base.model.checkpoint_activations()
        self._optimizer = Optimizer(module, self.settings.weight_decay, self.settings.lora_plus_ratio)
        self._started = time.monotonic()
        stop = StopRequest()
        with stop.listening():
            reason = self._train(module, stop)
        if reason != "interrupted":
            self._optimizer.set_weights(self._now.best_weights)
        self.save()
        now = self._now
        rate = now.tokens / now.step_seconds if now.step_seconds else 0.0
        done = Done(now.step, reason, self._seconds(), now.tokens, rate, peak_memory_gb(), self.start_memory_gb)
        self.listener(done)
        return done

    def _train(self, module: torch.nn.Module, stop: StopRequest) -> str:
        if self.rehearse:
            self._rehearse()
        if self.state is None:
            self._now = State()
            torch.manual_seed(self.seed)
            if self.first_look:
                self._evaluate()
        else:
            self._resume(self.state)
        module.train()
        patience = self.settings.early_stopping
        for rows in self._batches(self._now.step):
            if patience and self._now.since_best >= patience:
                return "early stopping"
            self._train_step(rows)
            step, last = self._now.step, self._now.step == self.plan.steps
            evaluated = step % self.plan.eval_steps == 0 or last
            if evaluated:
                self._evaluate()
            if stop.asked:
                self._checkpoint()
                self.listener(Notice("stopping after this step, as asked; the adapter as it is now is kept"))
                return "interrupted"
            if evaluated and self.hopeless is not None and self.hopeless(self._last):
                return "pruned"
            if evaluated or step % self.settings.checkpoint_steps == 0:
                self._checkpoint()
        return "completed"

    def _rehearse(self) -> None:
        """One pass with the longest batch, of which nothing is kept: what does not fit is said now and not hours later. Raises
        `OutOfMemory`."""
        module, settings = self.base.model.module, self.settings
        known = lengths(self.train)
        groups = self.plan.batches(known, self.seed, 0)[: self.plan.steps]
        numbers = max(groups, key=lambda group: (max(known[i] for i in group), sum(known[i] for i in group)))
        rows = micro_batches([self.train[i] for i in numbers], settings.tokens_per_pass, settings.micro_batch_size)
        longest = max(rows, key=lambda group: sum(len(row.input_ids) for row in group))
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        module.train()
        begun = time.monotonic()
        with torch.random.fork_rng(devices=devices):
            try:
                _, tokens = gradients(self.base, longest, settings.tokens_per_pass, settings.micro_batch_size)
            except RuntimeError as error:
                if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
                    raise
                tokens = sum(len(row.input_ids) for row in longest)
                raise OutOfMemory(
                    f"the longest pass ({tokens:,} tokens, with {longest[-1].location}) does not fit into memory",
                    "`afina fit BASE DATA` with the same flags says what would; --train.checkpoint_activations true, a lower "
                    "--train.tokens_per_pass or --data.max_length need less",
                ) from error
        module.zero_grad(set_to_none=True)
        seconds = time.monotonic() - begun
        self.listener(Notice(f"rehearsed the longest pass: {tokens:,} tokens in {seconds:.1f} s"))

    def _batches(self, done: int) -> Iterator[list[Row]]:
        """The rows of each optimiser step after the first `done`; every epoch in an order of its own."""
        epochs = (self.plan.batches(lengths(self.train), self.seed, epoch) for epoch in count())
        for numbers in islice(chain.from_iterable(epochs), done, self.plan.steps):
            yield [self.train[i] for i in numbers]

    def _train_step(self, rows: list[Row]) -> None:
        begun = time.monotonic()
        now, settings = self._now, self.settings
        rate = learning_rate(now.step, self.plan, settings) if self.rates is None else self.rates[now.step]
        loss, tokens = gradients(self.base, rows, settings.tokens_per_pass, settings.micro_batch_size)
        norm = self._optimizer.step(rate, settings.max_grad_norm)
        now.step += 1
        now.tokens += tokens
        now.step_seconds += time.monotonic() - begun
        self._check(loss, norm, rows)
        seconds = self._seconds()
        self.listener(
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

    def _check(self, loss: float, norm: float, rows: list[Row]) -> None:
        step = self._now.step
        if not (math.isfinite(loss) and math.isfinite(norm)):
            places = ", ".join(row.location for row in rows)
            raise NonFiniteLoss(
                f"step {step}: the loss is {loss}, its gradient's norm {norm}; the batch was {places}",
                "lower --train.learning_rate, or use --precision fp32; the best adapter so far, if any, is kept",
            )
        if step == 1 and norm == 0:
            raise NothingTrains(
                "step 1: no gradient reaches the adapter", "choose other layers with --lora.target_modules"
            )

    def _evaluate(self) -> None:
        """Records the held-out loss, and saves if it is the best. Step 0 is the start."""
        now = self._now
        loss = mean_loss(self.base, self.held_out)
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"step {now.step}: the held-out loss is {loss}", "lower --train.learning_rate")
        best = now.step > 0 and loss < now.best
        if best:
            now.best, now.since_best = loss, 0
            now.best_weights = {name: value.clone() for name, value in self._optimizer.weights().items()}
            self.save()
        elif now.step > 0:
            now.since_best += 1
        self._last = HeldOut(now.step, loss, perplexity(loss), best)
        self.listener(self._last)

    def _seconds(self) -> float:
        return self._now.seconds + time.monotonic() - self._started

    def _checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        whole = replace(
            self._now,
            seconds=self._seconds(),
            weights=self._optimizer.weights(),
            moments=self._optimizer.moments(),
            random=random,
        )
        checkpoint.write(self.checkpoints, whole, self.mark)

    def _resume(self, state: State) -> None:
        self._now = state
        self._optimizer.set_weights(state.weights)
        self._optimizer.set_moments(state.moments)
        torch.set_rng_state(state.random["cpu"])
        if "cuda" in state.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(state.random["cuda"])
        self.listener(Notice(f"going on after step {state.step} of {self.plan.steps}"))
