"""Kills a training with SIGKILL before its n-th change of the disk, for every n, and compares what it ends with.

    python benchmarks/kill_on_purpose.py [--every 1] [--first 0]

A tiny random model and a few steps, so that every file that is made, renamed or removed (in the run's folder, its
checkpoints, its adapter and the cache) is struck. Three ways to begin: into a new folder, over a finished run, and
resuming a run that was killed before. Afterwards the run is resumed, or started again where it had written nothing. It
has to end as one that was never killed: adapter, predictions and evaluation bit for bit, nothing left over. The
finished run that is replaced has to be there, whole, until the new one has an adapter.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import own_cache, save_tiny
from forked import Forked

from afina.runs.folder import settle

TIMED = {"tokens_per_second", "answers_per_second", "latency"}
WEIGHTS = "adapter/adapter_model.safetensors"
SETTINGS = [
    "--epochs", "1", "--train.batch_size", "4", "--train.checkpoint_steps", "2", "--train.eval_steps", "3",
    "--train.early_stopping", "0", "--precision", "fp32", "--lora.rank", "2",
]  # fmt: skip
# Runs a command that dies before its `changes`-th change of the disk below `folder`.
KILLED = """
import os, signal, sys
folder, left = {folder!r}, [{changes}]
CHANGES = {{"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}}
def hook(event, arguments):
    if event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if str(arguments[0]).startswith(folder):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
sys.addaudithook(hook)
from afina.ui.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="strike at every so many changes")
    parser.add_argument("--first", type=int, default=0, help="the first change to strike at")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder).resolve())
        for name, scenario in trial.scenarios().items():
            kills = [0, 0]
            for problem in trial.strike(scenario, options.first, options.every):
                kills[bool(problem)] += 1
                if problem:
                    print(f"{name}: {problem}", flush=True)
            print(f"{name}: {sum(kills)} kills, {kills[0]} ends as if never killed", flush=True)


@dataclass
class Trial:
    folder: Path

    def __post_init__(self) -> None:
        rows = [{"prompt": f"word {i}", "completion": f"answer {i % 3}"} for i in range(30)]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_tiny(self.folder / "tiny")
        own_cache(self.folder / "cache")
        for whole, seed in (("new", 1), ("old", 2)):
            assert self._afina(*self._train(self.folder / whole, seed)).wait() == 0
        self.expected = outcome(self.folder / "new")
        self.former = outcome(self.folder / "old")
        self._killed = self.folder / "killed"
        assert self._afina(*self._train(self._killed, 1), changes=80).wait() == -signal.SIGKILL

    def scenarios(self) -> dict[str, Callable[[Path, int | None], Any]]:
        """What is done in a folder, killed before a change where one is named."""
        return {"new folder": self.new, "over a finished run": self.over, "resumed": self.resumed}

    def new(self, run: Path, changes: int | None) -> Any:
        return self._afina(*self._train(run, 1), changes=changes)

    def over(self, run: Path, changes: int | None) -> Any:
        if changes is not None:
            shutil.copytree(self.folder / "old", run)
        return self._afina(*self._train(run, 1), "--overwrite", changes=changes)

    def resumed(self, run: Path, changes: int | None) -> Any:
        if changes is not None:
            shutil.copytree(self._killed, run)
        return self._afina("train", "--resume", str(run), changes=changes)

    def strike(self, scenario: Callable[[Path, int | None], Any], first: int, every: int) -> Iterator[str]:
        """Kills at one change after the other until the command survives; what was wrong after each, or ''."""
        changes = first
        while True:
            run = self.folder / "run"
            for each in (run, self.folder / "cache"):
                shutil.rmtree(each, ignore_errors=True)
            own_cache(self.folder / "cache")
            if scenario(run, changes).wait() != -signal.SIGKILL:
                return
            yield self._end(scenario, run, changes)
            changes += every

    def _end(self, scenario: Callable[[Path, int | None], Any], run: Path, changes: int) -> str:
        """What is wrong with the run once it was resumed, or started again."""
        if scenario == self.over and not (run / WEIGHTS).exists():  # moved halfway: two places together
            found: dict[str, Any] = {}
            for place in (run, run / ".moving", run / ".former"):
                found = {**outcome(place), **found}
            if found != self.former:
                return f"killed before change {changes}: the former run is lost"
        settle(run)
        ended = (run / "evaluation.json").exists() and outcome(run) != self.former
        if not ended:
            code = self._afina("train", "--resume", str(run)).wait() if (run / "config.yaml").exists() else 2
            if code:
                code = scenario(run, None).wait()
            if code:
                return f"killed before change {changes}: exit code {code} afterwards"
        if outcome(run) != self.expected:
            return f"killed before change {changes}: it ended otherwise"
        left = sorted(str(path.relative_to(run)) for path in run.rglob(".*"))
        return f"killed before change {changes}: {left} are left over" if left else ""

    def _train(self, run: Path, seed: int) -> list[str]:
        rows, base = self.folder / "rows.jsonl", self.folder / "tiny"
        return ["train", str(rows), "--base", str(base), "--out", str(run), "--seed", str(seed), *SETTINGS]

    def _afina(self, *arguments: str, changes: int | None = None) -> Any:
        code = KILLED.format(folder=str(self.folder), changes=-1 if changes is None else changes)
        return Forked(arguments, code=code, env={**os.environ, "AFINA_CACHE": str(self.folder / "cache")})


def outcome(run: Path) -> dict[str, Any]:
    """What a run ends with, as far as it is there, without what is timed."""
    found: dict[str, Any] = {n: (run / n).read_bytes() for n in (WEIGHTS, "predictions.jsonl") if (run / n).exists()}
    with suppress(FileNotFoundError):
        found["evaluation.json"] = untimed(json.loads((run / "evaluation.json").read_text()))
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if key not in TIMED}
    return [untimed(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
