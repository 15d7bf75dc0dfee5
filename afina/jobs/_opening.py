"""How the jobs that use an adapter open it."""

from pathlib import Path

from afina.core.config import Settings, setting
from afina.core.events import Listener, ignore
from afina.runs.opening import Adapted, open_run


class OpenSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder that `afina train` wrote, or an adapter's folder."""
    device: str | None = None
    """cpu, cuda (of several cards cuda:0, cuda:1 …), mps; by default the best that is there."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""
    base: str | None = None
    """The base, where it is not where it was in training."""
    force: bool = False
    """Take a base that the adapter was not made for."""

    def open(self, listener: Listener = ignore, *, exact: bool = False) -> Adapted:
        """Loads base and adapter; `exact`: in fp32. Raises `AdapterError`, `BaseModelError`."""
        return open_run(
            self.run,
            device=self.device,
            cache_dir=self.cache_dir,
            base=self.base,
            force=self.force,
            exact=exact,
            listener=listener,
        )
