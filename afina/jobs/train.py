"""`train`: adapt a base model to a file of examples, verify and evaluate it."""

from pathlib import Path

from afina.core.config import Result
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.evaluate import EvaluateResult
from afina.measure.verification import Verification
from afina.runs.training import TrainedRun, train_run
from afina.settings import RunSettings


class TrainResult(Result):
    folder: Path
    adapter: Path
    report: Path
    prompt: str | None
    """The template of the prompts, where there is one."""
    evaluation: EvaluateResult
    """How the adapted model does on the held-out rows (or the test split)."""
    verification: Verification
    """How far the saved adapter is from the trained one, and from the base."""


def train(settings: RunSettings, listener: Listener = ignore) -> TrainResult:
    """Trains a LoRA adapter as `settings` say, verifies what was saved, and evaluates it against the base.

    Raises `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    return train_result(train_run(settings, listener))


def train_result(trained: TrainedRun) -> TrainResult:
    return TrainResult(
        folder=trained.folder,
        adapter=trained.adapter,
        report=trained.report,
        prompt=trained.prompt,
        evaluation=EvaluateResult.of(trained.evaluation),
        verification=trained.verification,
    )


JOB = Job.of(train)
