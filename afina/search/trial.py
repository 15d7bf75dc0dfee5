"""Short trainings on one base: loaded once, adapted, trained, cleared, as often as wanted."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afina.core.config import changed
from afina.core.errors import Interrupted
from afina.core.events import Event, HeldOut, Listener, Step
from afina.lora.adapters import unload
from afina.runs.assemble import assemble
from afina.settings import RunSettings
from afina.training.loop import Trainer
from afina.training.plan import Plan

HELD_OUT = 96  # rows that a trial is judged on: the same for all, so that few are enough


@dataclass(frozen=True)
class Trial:
    """The lowest held-out loss of a short training, its cost, and its end. `losses` are (rows seen, held-out loss); `training`
    has the loss of each step. For an objective that watches another measure, the held-out loss is `HeldOut.cost`, of which the
    lower is the better."""

    loss: float
    rows: int
    tokens: int
    seconds: float
    training_seconds: float
    reason: str
    losses: list[tuple[int, float]]
    training: list[float]


class Bench:
    """A base with its data, on which one configuration after another is tried."""

    def __init__(self, settings: RunSettings, listener: Listener) -> None:
        """Raises `InputError` as training does."""
        self.whole = whole = assemble(settings, listener)
        self.settings, self.base, self.data = whole.settings, whole.base, whole.data
        self.rows = len(whole.data.train)
        self.held_out = whole.data.held_out[:HELD_OUT]

    def full_rows(self, settings: RunSettings) -> int:
        """How many rows a training with these settings sees."""
        return round(self.whole.resolve(settings).plan.epochs * self.rows)

    def plan(self, settings: RunSettings) -> Plan:
        """What the rules make of these settings."""
        return self.whole.resolve(settings).plan

    def run(
        self,
        settings: RunSettings,
        rows: int,
        evaluations: int = 1,
        *,
        listener: Listener,
        hopeless: Callable[[HeldOut], bool] | None = None,
        rates: Callable[[int], Sequence[float]] | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> Trial:
        """Trains on `rows` rows, whatever the settings' epochs say, and evaluates the held-out rows `evaluations` times on the way.

        `then` is called with the adapter still injected. `hopeless` ends the training early; `rates` gives the learning rates of
        a number of steps, in place of the schedule.
        Raises `NonFiniteLoss` where it diverges, and `Interrupted`.
        """
        gc.collect()
        try:
            plan = self.whole.adapt(settings).plan
            steps = max(1, round(rows / self.rows * plan.steps_per_epoch))
            plan = changed(plan, {"steps": steps, "eval_steps": max(1, -(-steps // evaluations))})
            training: list[float] = []
            losses: list[tuple[int, float]] = []

            def both(event: Event) -> None:
                if isinstance(event, Step):
                    training.append(event.loss)
                    listener(event)
                if isinstance(event, HeldOut):
                    losses.append((round(event.step / plan.steps_per_epoch * self.rows), event.cost))

            trainer = Trainer(
                base=self.base,
                train=self.data.train,
                held_out=self.held_out,
                settings=changed(settings.train, {"early_stopping": 0}),
                plan=plan,
                seed=settings.seed,
                listener=both,
                save=lambda: None,
                checkpoints=None,
                hopeless=hopeless,
                rates=rates(steps) if rates else None,
                first_look=False,
                rehearse=False,
            )
            done = trainer.run()
            if done.reason == "interrupted":
                raise Interrupted("interrupted in a trial; what was finished before it is kept")
            then()
            seconds = done.tokens / done.tokens_per_second if done.tokens_per_second else done.seconds
            return Trial(
                min(loss for _, loss in losses),
                losses[-1][0],
                done.tokens,
                done.seconds,
                seconds,
                done.reason,
                losses,
                training,
            )
        finally:
            unload(self.base.model.module)
