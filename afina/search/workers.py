"""Several processes on one study: they share its file, and the processor's threads."""

import signal
import subprocess
import threading
from typing import Any

import torch

from afina.core.errors import RunFailed, counted
from afina.core.events import Listener
from afina.runs.worker import finish, start


def search_in_processes(arguments: dict[str, Any], workers: int, threads: int | None, listener: Listener) -> None:
    """Runs the trials of `search_trials` in `workers` processes until the budget is used up.

    Each has an equal part of `threads`. Raises `RunFailed` where one fails, and `Interrupted`.
    """
    share = max(1, (threads or torch.get_num_threads()) // workers)
    own = arguments | {"settings": arguments["settings"] | {"threads": share}}
    processes = [start("search", own | {"phases": ["trials"], "worker": i}) for i in range(workers)]
    failures: list[Exception] = []

    def wait(process: subprocess.Popen[str]) -> None:
        try:
            finish(process, listener)
        except Exception as error:
            failures.append(error)

    waiting = [threading.Thread(target=wait, args=(process,)) for process in processes[1:]]
    for thread in waiting:
        thread.start()
    try:
        finish(processes[0], listener)
    except BaseException:  # Ctrl-C reaches the first of them; what ends one ends all
        for process in processes[1:]:
            process.send_signal(signal.SIGINT)
        raise
    finally:
        for thread in waiting:
            thread.join()
        for process in processes:
            process.wait()
    if failures:
        raise RunFailed(f"{len(failures)} of {counted(workers, 'worker')} failed: {failures[0]}")
