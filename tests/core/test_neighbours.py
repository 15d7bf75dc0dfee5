"""When threads spin and when they sleep; what needs torch's runtime, in a process of its own."""

import os
import subprocess
import sys

import pytest

from afina.core.process import runtime
from afina.core.process.neighbours import Neighbours

PROCESSORS = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
RUNTIME = """
import ctypes, os, time
import torch
from afina.core.process import neighbours

def threads():
    return len(os.listdir("/proc/self/task"))

def seconds_of_waiting():
    torch.ones(1 << 20).add_(1)
    begun = time.process_time()
    time.sleep(0.5)
    return time.process_time() - begun
"""
SWITCHED = """
alone, before = seconds_of_waiting(), threads()
sleepers = neighbours._Sleepers(ctypes.CDLL(None))
while threads() < before + os.cpu_count() + 1:
    time.sleep(0.01)
beside = seconds_of_waiting()
sleepers.end()
while threads() > before:
    time.sleep(0.01)
print(alone > 0.1, beside < 0.05, seconds_of_waiting() > 0.1)
"""
BESIDE = """
import subprocess, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
before = threads()
neighbours.share_the_processor()
neighbours.share_the_processor()
once = threads() == before + 1
until = time.monotonic() + 60
while threads() < before + 1 + os.cpu_count() and time.monotonic() < until:
    sum(range(10**5))
other.kill()
print(once, threads() > before + 1)
"""


def test_who_waits_for_the_processor_is_beside_others_until_two_seconds_after() -> None:
    waited = {"1": 0, "2": 50}
    neighbours = Neighbours(lambda: dict(waited))

    def look(nanoseconds: int) -> bool:
        waited["1"] += nanoseconds
        return neighbours.look(0.5)

    assert not look(10_000_000)
    waited["3"] = 10**12  # a thread that was not there: when it waited is not known
    assert not look(0)
    waited["2"] += 45_000_000  # neither waited for a tenth
    assert not look(45_000_000)
    assert look(60_000_000)
    assert [look(n) for n in (0, 0, 60_000_000, 0, 0, 0, 0, 0)] == [True] * 6 + [False] * 2


@pytest.mark.skipif(not runtime.watched, reason="this system does not say how long threads wait for a processor")
@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        pytest.param(
            SWITCHED,
            {"GOMP_SPINCOUNT": "1000000000000", "OMP_NUM_THREADS": "2"},
            "True True True",
            marks=pytest.mark.skipif(PROCESSORS < 2, reason="two threads do not spin on one processor"),
        ),
        (BESIDE, {}, "True True"),
    ],
    ids=["threads sleep and spin", "another program is seen"],
)
def test_the_runtime_is_switched(code: str, given: dict[str, str], expected: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-c", RUNTIME + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == expected, done.stderr
