"""`train`: adapt a base model to a file of examples, verify and evaluate it."""

from pathlib import Path

from afina.core.config import Result
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.evaluate import EvaluateResult
from afina.jobs.export import ExportResult, check_before, export_run
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
    export: ExportResult | None = None
    """What was written for other programs, where --export asked for it."""


def train(settings: RunSettings, listener: Listener = ignore) -> TrainResult:
    """Trains a LoRA adapter as `settings` say, verifies what was saved, and evaluates it against the base.

    With `export` it is written for other programs afterwards; what stands against that is found before. Raises
    `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    if settings.export:
        check_before(settings)
    return train_result(train_run(settings, listener), listener)


def train_result(trained: TrainedRun, listener: Listener) -> TrainResult:
    """The result of a run, exported where its settings say so. Raises `RunFailed`."""
    settings = trained.settings
    return TrainResult(
        folder=trained.folder,
        adapter=trained.adapter,
        report=trained.report,
        prompt=settings.data.prompt,
        evaluation=EvaluateResult.of(trained.evaluation),
        verification=trained.verification,
        export=export_run(trained.folder, settings, listener) if settings.export else None,
    )


JOB = Job.of(train)
