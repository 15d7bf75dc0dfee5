"""The training loop. What is trainable decides what is trained: LoRA's weights here, others for the baselines."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from afina.base.load import Base
from afina.core.device import memory_gb, peak_memory_gb
from afina.core.errors import NonFiniteLoss, NothingTrains
from afina.core.events import Done, HeldOut, Listener, Notice, Step
from afina.core.interrupt import StopRequest
from afina.data.batch import epoch_order, pack, packs
from afina.data.template import Row
from afina.training.loss import mean_loss
from afina.training.schedule import learning_rate
from afina.training.settings import Plan, TrainingSettings


@dataclass
class Trainer:
    """Trains the parameters of `base` that require gradients on `train`, watching `held_out`.

    `save` is called whenever the held-out loss is the best so far, and once when the run is interrupted.
    """

    base: Base
    train: Sequence[Row]
    held_out: Sequence[Row]
    settings: TrainingSettings
    plan: Plan
    seed: int
    listener: Listener
    save: Callable[[], None]

    def run(self) -> Done:
        """Trains until the plan's last step, early stopping or Ctrl-C. Raises `NonFiniteLoss` and `NothingTrains`."""
        module = self.base.model.module
        self._device = next(module.parameters()).device
        self._trainable = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trainable, weight_decay=self.settings.weight_decay)
        self._best, self._since_best, self._tokens, self._step_seconds = math.inf, 0, 0, 0.0
        started = time.monotonic()
        reason, steps = "completed", 0
        stop = StopRequest()
        with stop.listening():
            self._evaluate(0)
            module.train()
            for step, rows in enumerate(self._batches(), 1):
                self._train_step(step, rows, started)
                steps = step
                if stop.asked:
                    reason = "interrupted"
                    self.listener(Notice("stopping after this step, as asked; the adapter as it is now is kept"))
                    self.save()
                    break
                if (step % self.plan.eval_steps == 0 or step == self.plan.steps) and self._evaluate(step):
                    reason = "early stopping"
                    break
        seconds = time.monotonic() - started
        rate = self._tokens / self._step_seconds if steps else 0.0
        done = Done(steps, reason, seconds, self._tokens, rate, peak_memory_gb())
        self.listener(done)
        return done

    def _batches(self) -> Iterator[list[Row]]:
        """The rows of each optimiser step; every epoch in an order of its own."""
        size, per_epoch = self.settings.batch_size, self.plan.steps_per_epoch
        order: list[int] = []
        for step in range(self.plan.steps):
            epoch, at = divmod(step, per_epoch)
            if at == 0:
                order = epoch_order(len(self.train), self.seed, epoch)
            yield [self.train[i] for i in order[at * size : (at + 1) * size]]

    def _train_step(self, step: int, rows: list[Row], started: float) -> None:
        begun = time.monotonic()
        rate = learning_rate(step - 1, self.plan, self.settings)
        labelled = sum(row.labelled for row in rows)
        loss = 0.0
        for group in packs(rows, self.settings.tokens_per_pass, self.settings.micro_batch_size):
            packed = pack(group, self._device)
            part = self.base.model.summed_loss(packed) / labelled
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            self._tokens += packed.tokens
        norm = float(torch.nn.utils.clip_grad_norm_(self._trainable, self.settings.max_grad_norm))
        self._check(step, loss, norm, rows)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        self._step_seconds += now - begun
        left = (now - started) / step * (self.plan.steps - step)
        self.listener(
            Step(
                step=step,
                total=self.plan.steps,
                epoch=step / self.plan.steps_per_epoch,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens_per_second=self._tokens / self._step_seconds,
                memory_gb=memory_gb(),
                seconds=now - started,
                seconds_left=left,
            )
        )

    def _check(self, step: int, loss: float, norm: float, rows: list[Row]) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            places = ", ".join(row.where for row in rows)
            raise NonFiniteLoss(
                f"step {step}: the loss is {loss}, its gradient's norm {norm}; the batch was {places}\n"
                "  → lower --train.learning_rate, or use --precision fp32; the best adapter so far, if any, is kept"
            )
        if step == 1 and norm == 0:
            raise NothingTrains(
                "step 1: no gradient reaches the adapter\n  → choose other layers with --lora.target_modules"
            )

    def _evaluate(self, step: int) -> bool:
        """Records the held-out loss and saves if it is the best; whether it is time to stop early. Step 0 is the start."""
        loss = mean_loss(self.base, self.held_out)
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"step {step}: the held-out loss is {loss}\n  → lower --train.learning_rate")
        best = step > 0 and loss < self._best
        if best:
            self._best, self._since_best = loss, 0
            self.save()
        elif step > 0:
            self._since_best += 1
        self.listener(HeldOut(step, loss, math.exp(min(loss, 700.0)), best))
        return bool(self.settings.early_stopping) and self._since_best >= self.settings.early_stopping
