"""What the libraries under torch read from the environment when they are loaded: it is set before, where the user has
not.

How threads wait for one another: by itself the OpenMP runtime spins, also beside other programs. Where Linux says
whether there are any, `neighbours` looks after that; elsewhere threads spin for some microseconds only, and then sleep.
Large memory comes in large pages: to fetch the usual ones takes a tenth of a training step.
"""

import os
import sys

_POLICY, _TURNS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"  # OpenMP 5.0, section 6.7; GNU libgomp's manual, section 3
_FEW_TURNS = "1000"  # of spinning, some microseconds: products that follow at once find their threads awake
_MANY_TURNS = "300000"  # some milliseconds, as the runtime has it by itself
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch's, for Linux


def _delays_are_counted() -> bool:
    """Whether the system says how long threads wait for a processor; where it does not, all three numbers are 0."""
    try:
        with open("/proc/self/schedstat") as file:
            return int(file.read().split()[0]) > 0
    except (OSError, ValueError, IndexError):  # there is no such file, or another one
        return False


_left_open = not {_POLICY, _TURNS} & set(os.environ)
_from_parent = (os.environ.get(_POLICY), os.environ.get(_TURNS)) == ("passive", _MANY_TURNS)
watched = (_left_open or _from_parent) and _delays_are_counted()
"""Whether `neighbours` may look after how threads wait."""
spins = sys.platform == "linux" and "torch" in sys.modules and _left_open and not watched
"""Whether torch was loaded before, and nobody looks after its threads, which spin in this process."""


def set_environment() -> None:
    """To be called before anything loads torch."""
    if _left_open:
        os.environ.update({_POLICY: "passive", _TURNS: _MANY_TURNS if watched else _FEW_TURNS})
    os.environ.setdefault(_LARGE_PAGES, "1")
