"""`train --resume`: resume a run that was killed or interrupted."""

from pathlib import Path

from afina.core.config import Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.train import TrainResult, train_result
from afina.runs.training import resume_run


class ResumeSettings(Settings):
    run: Path = setting(..., "--resume", metavar="RUN")
    """Resume a run that was killed or interrupted, with the settings that it recorded."""


def resume(settings: ResumeSettings, listener: Listener = ignore) -> TrainResult:
    """Resumes the run in the folder `run` with the settings that it recorded.

    On the same machine it ends with the adapter that it would have had, bit for bit. A run that was killed before its
    first checkpoint starts again. Raises as `train` does, also where the run is complete or its data have changed.
    """
    return train_result(resume_run(settings.run, listener), listener)


JOB = Job.of(resume)
