"""`adapters combine`: a weighted sum of adapters of one base."""

from pathlib import Path
from typing import Annotated

from afina.core.config import LISTED, Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.core.process.temporary import new_folder
from afina.jobs.adapters._files import WrittenAdapter, copy_companions
from afina.jobs.adapters.show import ShowAdapterSettings, check_one_base, show
from afina.lora.arithmetic import Kind
from afina.lora.arithmetic import combine as combine_files
from afina.runs.facts import adapter_folder
from afina.runs.folder import check_new


class CombineAdaptersSettings(Settings):
    runs: tuple[Path, ...] = setting(..., positional="RUN", min_length=2)
    """Folders of runs or of adapters."""
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    weights: Annotated[tuple[float, ...], LISTED] = setting((), metavar="W,W")
    """A weight for each adapter, with commas between; 1 each by default."""
    kind: Kind = "svd"
    """How they are combined."""
    rank: int | None = setting(None, metavar="N", ge=1)
    """Rank of the new adapter; by default the largest of the ranks."""
    density: float = setting(0.5, metavar="SHARE")
    """ties, dare: the share of the values that is kept."""
    seed: int = setting(0, metavar="N")
    """dare: decides which values are kept."""


def combine(settings: CombineAdaptersSettings, listener: Listener = ignore) -> WrittenAdapter:
    """Writes the weighted sum of adapters (see `afina.lora.combine`) to `out`, which is ready for `generate`.

    Tokenizer and templates are those of the first. Raises `AdapterError`, `OutputError`.
    """
    folders = [adapter_folder(run) for run in settings.runs]
    check_one_base([show(ShowAdapterSettings(run=folder)) for folder in folders], listener)
    check_new(settings.out)
    with new_folder(settings.out) as out:
        combine_files(
            folders,
            settings.weights or [1.0] * len(folders),
            out,
            kind=settings.kind,
            rank=settings.rank,
            density=settings.density,
            seed=settings.seed,
        )
        copy_companions(folders[0], out, settings.out)
    return WrittenAdapter(adapter=settings.out)


JOB = Job.of(combine)
