"""Kills a training with SIGKILL at random moments, resumes it, and compares the adapter with one never killed, bit for bit.

    python benchmarks/kill_and_resume.py [--kills 50] [--seed 0]

A tiny random model and 400 steps, so that a run is mostly training. Every third kill waits for a checkpoint being written and
strikes then; every fifth run is killed a second time while it resumes.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import save_tiny

ADAPTER = "adapter/adapter_model.safetensors"
SETTINGS = (
    "--epochs",
    "40",
    "--train.checkpoint_steps",
    "4",
    "--train.eval_steps",
    "50",
    "--train.early_stopping",
    "0",
    "--precision",
    "bf16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        equal, where = trial(Path(folder), options.kills, options.seed)
    print(f"{options.kills} kills: {equal} ends bit-identical to the run never killed")
    print("killed after: " + ", ".join(where))
    sys.exit(equal != options.kills)


def trial(folder: Path, kills: int, seed: int) -> tuple[int, list[str]]:
    """(how many of the `kills` ended with the same adapter, where each was killed)."""
    rows = [{"prompt": f"word {i}" * (1 + i % 4), "completion": f"answer {i % 7}"} for i in range(90)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(folder / "tiny")
    begun = time.monotonic()
    start(folder, folder / "whole").wait()
    whole = time.monotonic() - begun
    expected = (folder / "whole" / ADAPTER).read_bytes()
    chance = random.Random(seed)
    equal, where = 0, []
    for kill in range(kills):
        run, struck = folder / f"run-{kill}", False
        while not struck:  # again where the run was over before
            shutil.rmtree(run, ignore_errors=True)
            struck = strike(start(folder, run), run, chance.uniform(0.2, 1.0) * whole, writing=kill % 3 == 0)
        where.append(reached(run))
        if kill % 5 == 0:
            strike(go_on(folder, run), run, chance.uniform(0.2, 0.8) * whole, writing=False)
        go_on(folder, run).wait()
        equal += (run / ADAPTER).read_bytes() == expected
    return equal, where


def start(folder: Path, run: Path) -> subprocess.Popen[bytes]:
    return afina(str(folder / "rows.jsonl"), "--base", str(folder / "tiny"), "--out", str(run), *SETTINGS)


def go_on(folder: Path, run: Path) -> subprocess.Popen[bytes]:
    """Resumes; a run killed before it had written its settings, or after it was complete, has nothing to resume."""
    if (run / "evaluation.json").exists():
        return subprocess.Popen(["true"])
    return afina("--resume", str(run)) if (run / "config.yaml").exists() else start(folder, run)


def afina(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "afina", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def strike(process: subprocess.Popen[bytes], run: Path, seconds: float, writing: bool) -> bool:
    """SIGKILL after `seconds`, or then as soon as a checkpoint is being written; False where the run was over before."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        late = time.monotonic() > end
        if late and (not writing or list((run / "checkpoints").glob(".step-*"))):
            process.send_signal(signal.SIGKILL)
        time.sleep(0.0005 if late else 0.02)
    return process.wait() == -signal.SIGKILL


def reached(run: Path) -> str:
    if (run / "evaluation.json").exists():
        return "the end"
    found = sorted((run / "checkpoints").glob("step-*.safetensors")) if run.exists() else []
    return f"step {int(found[-1].stem[5:])}" if found else "no checkpoint"


if __name__ == "__main__":
    main()
