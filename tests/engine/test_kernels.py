"""The kernels' sources for processors that this one is not: what only those compile is looked at here, too."""

import platform
import subprocess

import pytest

from afina.core.device import compiler
from afina.engine.kernels import SOURCES

FLAGS = ("-fsyntax-only", "-std=c++17", "-fopenmp")


@pytest.mark.parametrize("processor", ["sapphirerapids", "x86-64-v4", "x86-64-v3", "x86-64"])
def test_they_compile_for(processor: str) -> None:
    program = compiler()
    if program is None or platform.machine() != "x86_64":
        pytest.skip("no compiler, or not one for such processors, here")
    known = subprocess.run([program, f"-march={processor}", "-E", "-xc++", "/dev/null"], capture_output=True)
    if known.returncode:
        pytest.skip(f"{program} does not know {processor}")
    command = [program, f"-march={processor}", *FLAGS, *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[:2000]
