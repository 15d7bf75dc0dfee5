"""Kills a training with SIGKILL at random moments, resumes it, and compares the adapter with one never killed, bit for
bit.

    python benchmarks/kill_and_resume.py [--kills 50] [--seed 0]

A tiny random model and 400 steps, so that a run is mostly training. Every third kill waits for a checkpoint being
written and strikes then; every fifth run is killed a second time while it resumes.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import save_tiny

ADAPTER = "adapter/adapter_model.safetensors"
SETTINGS = [
    "--train.checkpoint_steps",
    "4",
    "--train.eval_steps",
    "50",
    "--train.early_stopping",
    "0",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        equal, where = Trial(Path(folder)).run(options.kills, options.seed)
    print(f"{options.kills} kills: {equal} ends bit-identical to the run never killed")
    print("killed after: " + ", ".join(where))
    sys.exit(equal != options.kills)


def afina(*arguments: str) -> Any:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "afina", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@dataclass
class Trial:
    """Kills and resumes trainings of `steps` steps in `folder`; `launch` starts a command, as `afina` does."""

    folder: Path
    steps: int = 450
    precision: str = "bf16"
    launch: Callable[..., Any] = afina

    def run(self, kills: int, seed: int) -> tuple[int, list[str]]:
        """(how many of the `kills` ended with the same adapter, where each was killed)."""
        rows = [{"prompt": f"word {i}" * (1 + i % 4), "completion": f"answer {i % 7}"} for i in range(90)]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_tiny(self.folder / "tiny")
        self._start(self.folder / "whole").wait()
        expected = (self.folder / "whole" / ADAPTER).read_bytes()
        chance = random.Random(seed)
        equal, where = 0, []
        for kill in range(kills):
            run, struck = self.folder / f"run-{kill}", False
            while not struck:  # again where the run was over before
                shutil.rmtree(run, ignore_errors=True)
                struck = strike(self._start(run), run, chance.randrange(self.steps - 20), writing=kill % 3 == 0)
            where.append(reached(run))
            if kill % 5 == 0:
                strike(self._resume(run), run, chance.randrange(self.steps - 20), writing=False)
            self._resume(run).wait()
            equal += (run / ADAPTER).read_bytes() == expected
        return equal, where

    def _start(self, run: Path) -> Any:
        rows, base = self.folder / "rows.jsonl", self.folder / "tiny"
        epochs = self.steps * 8 / 81  # 8 of 81 rows a step; the others are held out
        named = ("train", str(rows), "--base", str(base), "--out", str(run), "--epochs", f"{epochs:.4f}")
        return self.launch(*named, *SETTINGS, "--precision", self.precision)

    def _resume(self, run: Path) -> Any:
        """A run killed before it had written its settings is started again; one that is complete has nothing to
        resume."""
        if (run / "evaluation.json").exists():
            return self.launch("--version")
        return self.launch("train", "--resume", str(run)) if (run / "config.yaml").exists() else self._start(run)


def strike(process: Any, run: Path, step: int, writing: bool) -> bool:
    """SIGKILL once `step` is reached, or then as soon as a checkpoint is being written; False where the run was over
    before."""
    late = False
    while process.poll() is None:
        late = late or steps_done(run) >= step
        if late and (not writing or list((run / "checkpoints").glob(".step-*"))):
            process.send_signal(signal.SIGKILL)
        time.sleep(0.0005 if late else 0.005)
    return process.wait() == -signal.SIGKILL


def steps_done(run: Path) -> int:
    with suppress(OSError):
        return (run / "metrics.jsonl").read_bytes().count(b'"event": "step"')
    return 0


def reached(run: Path) -> str:
    if (run / "evaluation.json").exists():
        return "the end"
    found = sorted((run / "checkpoints").glob("step-*.safetensors")) if run.exists() else []
    return f"step {int(found[-1].stem[5:])}" if found else "no checkpoint"


if __name__ == "__main__":
    main()
