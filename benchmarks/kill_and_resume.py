"""Kills commands with SIGKILL, starts them again, and compares what they end with, byte by byte.

    python benchmarks/kill_and_resume.py [--kills 1000] [--seed 0] [--only NAME]

Every other kill is at a random moment, the others strike before one change of the disk after the other (each file or
folder that is made, renamed, removed: of the run, its checkpoints, its adapter, the cache), so that every place is hit.
Every fifth time what puts it right is killed as well, at a random moment. Afterwards the user does what the next
message says. It has to end as if nothing had been killed: the same files, but for times, and nothing left over, in the
cache neither. A finished run that is replaced has to be there, whole, until the new one has an adapter.

A tiny random model, few steps, and processes that begin with the libraries imported (tests/forked.py).
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import own_cache, save_tiny
from forked import Forked

WEIGHTS = "adapter/adapter_model.safetensors"
TIMED = {
    "tokens_per_second", "answers_per_second", "latency", "seconds", "seconds_left", "memory_gb", "start_memory_gb",
    "peak_memory_gb", "host_gb", "host_peak_gb",
}  # fmt: skip
PAGES = {"report.html", "adapter/README.md", "forecast.json"}  # which tell times; resumed runs have no forecast
SETTINGS = [
    "--epochs", "1", "--train.batch_size", "4", "--train.checkpoint_steps", "2", "--train.eval_steps", "3",
    "--train.early_stopping", "0", "--lora.rank", "2", "--device", "cpu",
]  # fmt: skip
# Runs a command that dies before its `changes`-th change of the disk below `folder`, and counts those it makes.
STRUCK = """
import os, signal, sys
folder, left = {folder!r}, [{changes}]
CHANGES = {{"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}}
def hook(event, arguments):
    if event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = str(arguments[0])
        if path.startswith(folder) or not os.path.isabs(path):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
sys.addaudithook(hook)
from afina.measure import outputs
from afina.measure.pages import report
outputs.general_rows, report.loss_curve = lambda *_: {{}}, lambda *_: ""  # which take most of the time
from afina.ui.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the scenarios whose names begin so")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder).resolve(), random.Random(options.seed))
        problems = trial.run(options.kills, options.only, lambda line: print(line, flush=True))
    sys.exit(bool(problems))


@dataclass
class Trial:
    """Kills commands whose files lie in `folder`: what they write, and a cache of their own, in `folder/now`."""

    folder: Path
    chance: random.Random
    precisions: tuple[str, ...] = ("fp32", "bf16")
    scenarios: list["Scenario"] = field(init=False)
    whole: dict[str, tuple[dict[str, Any], float]] = field(default_factory=dict)  # by precision: files and seconds

    def __post_init__(self) -> None:
        self.now = self.folder / "now"
        rows = [{"prompt": f"word {i}", "completion": f"answer {i % 3}"} for i in range(30)]
        rows += [{"prompt": f"word {i} of many", "completion": ""} for i in range(3)]  # which are rejected
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_tiny(self.folder / "tiny")
        self.start(["--version"]).wait()  # the libraries are imported once
        self.scenarios = [
            training(self, precision) for precision in self.precisions for training in (New, Over, Resumed)
        ]
        self.scenarios += [Prepared(self, form) for form in ("jsonl", "parquet")]

    def run(self, kills: int, only: str = "", say: Callable[[str], None] = lambda line: None) -> list[str]:
        """What was wrong after any of the kills, which are shared out among the scenarios."""
        scenarios = [each for each in self.scenarios if each.name.startswith(only)]
        problems: list[str] = []
        counts: Counter[str] = Counter()
        attempts = [each.attempts() for each in scenarios]
        for kill in range(kills):
            which = kill % len(scenarios)
            problem = next(attempts[which])
            counts[scenarios[which].name] += 1
            if problem:
                problems.append(f"{scenarios[which].name}, {problem}")
                say(problems[-1])
            if (kill + 1) % 50 == 0 or kill + 1 == kills:
                say(f"{kill + 1} kills, {kill + 1 - len(problems)} ends as if never killed")
        say(", ".join(f"{name}: {count}" for name, count in counts.items()))
        return problems

    def start(self, arguments: list[str], changes: int = -1) -> Any:
        """A command that is killed before that change, or never."""
        code = STRUCK.format(folder=str(self.now), changes=changes)
        return Forked(arguments, code=code, env={**os.environ, "AFINA_CACHE": str(self.now / "cache")})

    def fresh(self) -> None:
        shutil.rmtree(self.now, ignore_errors=True)
        own_cache(self.now / "cache")


class Scenario:
    """A command that is killed. It writes into `out`."""

    name: str

    def __init__(self, trial: Trial) -> None:
        self.trial, self.out = trial, trial.now / "out"
        self.expected: dict[str, Any] = {}
        self.seconds = 0.0

    def begin(self) -> None:
        """Makes what is there before the command."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def again(self) -> list[str] | None:
        """What a user does after the kill; None where all is done."""
        raise NotImplementedError

    def lost(self) -> bool:
        """Whether the kill took what was there before the command, and left nothing in its place."""
        return False

    def outcome(self) -> dict[str, Any]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Does it once without a kill."""
        self._fresh()
        begun = time.monotonic()
        code = self.trial.start(self.command()).wait()
        assert code == 0, f"{self.name}: exit code {code}"
        self.seconds = time.monotonic() - begun
        self.expected = self.outcome()

    def attempts(self) -> Iterator[str]:
        """Kills again and again; what was wrong each time, or ''."""
        self.prepare()
        changes, count = 0, 0
        while True:
            for on_purpose in (False, True):
                struck = False
                while not struck:  # again where it was over before
                    self._fresh()
                    if on_purpose:
                        where = f"killed before change {changes}"
                        struck = self._killed(self.trial.start(self.command(), changes), None)
                        changes = changes + 1 if struck else 0
                    else:
                        after = self.trial.chance.uniform(0, self.seconds)
                        where = f"killed after {after:.3f} s"
                        struck = self._killed(self.trial.start(self.command()), after)
                count += 1
                yield from self._ended(where, again=count % 5 == 0)

    def _ended(self, where: str, again: bool) -> Iterator[str]:
        if self.lost():
            yield f"{where}: what was there before is lost"
            return
        if again and (command := self.again()):
            after = self.trial.chance.uniform(0, self.seconds)
            if self._killed(self.trial.start(command), after):
                where += f", and again after {after:.3f} s"
        codes = []
        while (command := self.again()) and len(codes) < 3 and not codes.count(0):
            codes.append(self.trial.start(command).wait())
        if codes and codes[-1] and self.again():
            yield f"{where}: exit codes {codes} afterwards"
            return
        found = self.outcome()
        other = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        left = sorted(str(path.relative_to(self.trial.now)) for path in self.trial.now.rglob(".*"))
        yield f"{where}: {other} are not as if never killed, {left} are left over" if other or left else ""

    def _fresh(self) -> None:
        self.trial.fresh()
        self.begin()

    @staticmethod
    def _killed(process: Any, after: float | None) -> bool:
        if after is not None:
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
        return bool(process.wait() == -signal.SIGKILL)


class New(Scenario):
    """A training into a new folder."""

    kind = "new run"

    def __init__(self, trial: Trial, precision: str) -> None:
        super().__init__(trial)
        self.name, self.precision = f"{self.kind}, {precision}", precision

    def prepare(self) -> None:
        if self.precision not in self.trial.whole:
            super().prepare()
            self.trial.whole[self.precision] = self.expected, self.seconds
        self.expected, self.seconds = self.trial.whole[self.precision]

    def command(self) -> list[str]:
        return self._train(seed=1)

    def again(self) -> list[str] | None:
        if (self.out / "evaluation.json").exists() and not (self.out / "checkpoints").exists():
            return None
        return ["train", "--resume", str(self.out)] if (self.out / "config.yaml").exists() else self.command()

    def outcome(self) -> dict[str, Any]:
        return run_outcome(self.out)

    def _train(self, seed: int) -> list[str]:
        rows, base = self.trial.folder / "rows.jsonl", self.trial.folder / "tiny"
        named = ["train", str(rows), "--base", str(base), "--out", str(self.out), "--seed", str(seed)]
        return [*named, *SETTINGS, "--precision", self.precision]


class Over(New):
    """A training that replaces a finished run."""

    kind = "over a finished run"

    def prepare(self) -> None:
        self.kept = self.trial.folder / f"former {self.precision}"
        self.trial.fresh()
        assert self.trial.start(self._train(seed=2)).wait() == 0
        self.former = self.outcome()
        shutil.copytree(self.out, self.kept)
        super().prepare()

    def begin(self) -> None:
        shutil.copytree(self.kept, self.out)

    def command(self) -> list[str]:
        return [*super().command(), "--overwrite"]

    def lost(self) -> bool:
        if (self.out / WEIGHTS).exists():  # the former's, or the new one's
            return False
        former = self.out / ".former"
        if former.exists():
            return run_outcome(former) != self.former
        return {**run_outcome(self.out), **run_outcome(self.out / ".moving")} != self.former  # moved halfway

    def again(self) -> list[str] | None:
        settled = ["runs", "show", str(self.out)]
        if any((self.out / name).exists() for name in (".moving", ".former")):
            self.trial.start(settled).wait()
        return self.command() if self.outcome() == self.former else super().again()


class Resumed(New):
    """A training that was killed before, resumed."""

    kind = "resumed run"

    def prepare(self) -> None:
        self.kept = self.trial.folder / f"killed {self.precision}"
        self.trial.fresh()
        changes = 0
        while not list(self.out.glob("checkpoints/step-*")):
            self.trial.fresh()
            assert self.trial.start(super().command(), changes := changes + 10).wait() == -signal.SIGKILL
        shutil.copytree(self.out, self.kept)
        super().prepare()

    def begin(self) -> None:
        shutil.copytree(self.kept, self.out)

    def command(self) -> list[str]:
        return ["train", "--resume", str(self.out)]


class Prepared(Scenario):
    """Data cleaned and split, into a new folder."""

    def __init__(self, trial: Trial, form: str) -> None:
        super().__init__(trial)
        self.name, self.form = f"prepared data, {form}", form

    def command(self) -> list[str]:
        rows, base = self.trial.folder / "rows.jsonl", self.trial.folder / "tiny"
        named = ["data", "prepare", str(rows), "--base", str(base), "--out", str(self.out), "--format", self.form]
        return [*named, "--test", "0.2"]

    def again(self) -> list[str] | None:
        return None if (self.out / "prepared.json").exists() else self.command()

    def outcome(self) -> dict[str, Any]:
        return {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


def run_outcome(run: Path) -> dict[str, Any]:
    """The files of a run, without what is timed."""
    found: dict[str, Any] = {}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.is_file() and name not in PAGES and not name.startswith("."):
            found[name] = path.read_bytes()
            if name.endswith(".json"):
                found[name] = untimed(json.loads(found[name]))
            elif name == "metrics.jsonl":
                found[name] = [untimed(json.loads(line)) for line in found[name].splitlines()]
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if key not in TIMED}
    return [untimed(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
