"""One piece of work in a process of its own: `python -m afina.ui.studio.worker FOLDER` (see `work`)."""

import sys
from pathlib import Path
from typing import Any

import psutil

from afina.core.errors import AfinaError, Interrupted
from afina.core.events import Event, row
from afina.core.files import append_text, read_json, write_json
from afina.core.process.homes import cache_home
from afina.core.process.interrupt import interrupt_on_all_signals
from afina.core.process.locks import open_to_lock, take
from afina.core.text import json_text


def main(folder: Path) -> int:
    """Does the work that `folder` records; what comes of it stands there in the end. The exit code of the job. As long
    as it lives it holds the folder's lock; where another process did the work before, it does nothing."""
    lock = open_to_lock(folder)
    if lock is not None:
        take(lock, wait=True)
    if (folder / "process.json").exists():
        return 0
    own = psutil.Process()
    interrupt_on_all_signals()
    try:
        # From now on it may be stopped.
        write_json(folder / "process.json", {"pid": own.pid, "began": own.create_time()})
        cache_home()
        write_json(folder / "result.json", _done(folder))
        return 0
    except AfinaError as error:
        return _tell(folder, error)
    except KeyboardInterrupt:
        return _tell(folder, Interrupted("interrupted"))
    except Exception as error:
        from afina.core.process.crash import explained

        return _tell(folder, explained(error))


def _done(folder: Path) -> Any:
    from afina.core.config import build, json_object
    from afina.jobs import JOBS

    work = read_json(folder / "work.json")
    job = JOBS[work["job"]].load()

    def tell(event: Event) -> None:
        append_text(folder / "events.jsonl", f"{json_text(row(event))}\n", 0o600)

    return json_object(job.function(build(job.settings, work["settings"]), tell))


def _tell(folder: Path, error: AfinaError) -> int:
    from afina.ui.studio.words import recorded

    write_json(folder / "error.json", recorded(error))
    print(error, file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
