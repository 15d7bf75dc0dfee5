"""The benchmark of graphics cards, as far as a processor can run it: its checks of what is right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_what_is_right_on_the_processor_is_found_right() -> None:
    """The processor as a device, by torch alone, against its own kernels."""
    done = run("--part", "right", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [line for line in done.stdout.splitlines() if line.startswith("  ok  ")]
    for what in ("llama 3: gradients", "gemma2: logits", "gpt2: greedy", "10 formats", "keep, Q5_K", "nf4", "curves"):
        assert any(what in line for line in checks), (what, done.stdout)
    assert len(checks) >= 4 * 10 + 15


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a card here")
def test_without_a_card_it_says_so() -> None:
    done = run("--part", "speed")
    assert (done.returncode, "--device cpu --tiny" in done.stderr) == (2, True)
