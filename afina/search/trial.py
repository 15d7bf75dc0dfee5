"""Short trainings on one base: it is loaded once, then adapted, trained and cleared as often as wanted."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afina.core.config import changed
from afina.core.errors import Interrupted
from afina.core.events import Done, Event, HeldOut, Listener, Step
from afina.lora.adapters import unload
from afina.runs.assemble import assemble
from afina.settings import RunSettings
from afina.training.loop import Trainer
from afina.training.plan import Plan

HELD_OUT = 96  # rows that a trial is evaluated on: the same for all, so that few are enough


@dataclass(frozen=True)
class TrialResult:
    """The lowest held-out loss of a short training, its cost, and why it ended.

    `losses` are (rows seen, held-out loss); `step_losses` are the training loss of each step. `seconds` are all of it,
    `training_seconds` those of its steps alone. For an objective with another measure, the held-out loss is
    `HeldOut.cost`, which is lower for the better.
    """

    loss: float
    rows: int
    tokens: int
    seconds: float
    training_seconds: float
    reason: str
    losses: list[tuple[int, float]]
    step_losses: list[float]


class TrialRunner:
    """A base with its data, on which one configuration after another is tried."""

    def __init__(self, settings: RunSettings, listener: Listener) -> None:
        """Raises `InputError` as training does."""
        self.assembled = assembled = assemble(settings, listener)
        self.settings, self.base, self.data = settings, assembled.base, assembled.data
        self.rows = len(assembled.data.train)
        self.held_out = assembled.data.held_out[:HELD_OUT]
        self._listener = listener

    def plan(self, settings: RunSettings) -> Plan:
        """The plan of a full training with these settings."""
        return self.assembled.resolve(settings).plan

    def full_rows(self, settings: RunSettings) -> int:
        """How many rows a full training with these settings sees."""
        return round(self.plan(settings).epochs * self.rows)

    def run(
        self,
        settings: RunSettings,
        rows: int,
        evaluations: int = 1,
        *,
        should_prune: Callable[[HeldOut], bool] | None = None,
        rates: Callable[[int], Sequence[float]] | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> TrialResult:
        """Trains on `rows` rows, whatever the epochs of the settings, with `evaluations` of the held-out rows.

        `should_prune`, asked after each evaluation, ends it early. `rates` gives the learning rates for a number of
        steps, instead of the schedule. `then` is called while the adapter is still in the base. Raises `NonFiniteLoss`
        where the loss diverges, and `Interrupted`.
        """
        gc.collect()
        try:
            plan = self.assembled.adapt(settings).plan
            steps = max(1, round(rows / self.rows * plan.steps_per_epoch))
            plan = changed(plan, {"steps": steps, "eval_steps": max(1, -(-steps // evaluations))})
            step_losses: list[float] = []
            losses: list[tuple[int, float]] = []

            def collect(event: Event) -> None:
                if isinstance(event, Step):
                    step_losses.append(event.loss)
                    self._listener(event)
                if isinstance(event, HeldOut):
                    losses.append((round(event.step / plan.steps_per_epoch * self.rows), event.cost))

            done = self._train(settings, plan, collect, should_prune, rates(steps) if rates else None)
            then()
            seconds = done.tokens / done.tokens_per_second if done.tokens_per_second else done.seconds
            return TrialResult(
                loss=min(loss for _, loss in losses),
                rows=losses[-1][0],
                tokens=done.tokens,
                seconds=done.seconds,
                training_seconds=seconds,
                reason=done.reason,
                losses=losses,
                step_losses=step_losses,
            )
        finally:
            unload(self.base.model.module)

    def _train(
        self,
        settings: RunSettings,
        plan: Plan,
        listener: Listener,
        should_prune: Callable[[HeldOut], bool] | None,
        rates: Sequence[float] | None,
    ) -> Done:
        trainer = Trainer(
            base=self.base,
            train=self.data.train,
            held_out=self.held_out,
            settings=changed(settings.train, {"early_stopping": 0}),
            plan=plan,
            seed=settings.seed,
            listener=listener,
            save=lambda: None,
            checkpoints=None,
            hopeless=should_prune,
            rates=rates,
            first_look=False,
            rehearse=False,
        )
        done = trainer.run()
        if done.reason == "interrupted":
            raise Interrupted("interrupted in a trial; those that were finished are kept")
        return done
