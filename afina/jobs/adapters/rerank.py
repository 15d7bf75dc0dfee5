"""`adapters rerank`: an adapter cut to a lower rank."""

from pathlib import Path

from afina.core.config import Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.core.process.temporary import new_folder
from afina.jobs.adapters._files import WrittenAdapter, copy_companions
from afina.lora.arithmetic import rerank as rerank_files
from afina.runs.facts import adapter_folder
from afina.runs.folder import check_new


class RerankAdapterSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder of a run or of an adapter."""
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    rank: int = setting(..., metavar="N", ge=1)
    """Rank of the new adapter."""


class RerankAdapterResult(WrittenAdapter):
    lost: float
    """Share of the update that is lost."""


def rerank(settings: RerankAdapterSettings, listener: Listener = ignore) -> RerankAdapterResult:
    """Writes the adapter cut to `rank` to `out`. Raises `AdapterError`, `OutputError`."""
    folder = adapter_folder(settings.run)
    check_new(settings.out)
    with new_folder(settings.out) as out:
        lost = rerank_files(folder, settings.rank, out)
        copy_companions(folder, out, settings.out)
    return RerankAdapterResult(adapter=settings.out, lost=lost)


JOB = Job.of(rerank)
