"""What the libraries under torch read from the environment when they are loaded: it is set before, where the user has
not.

How threads wait for one another: by itself the OpenMP runtime spins. Beside another program its threads then keep the
processor from it, and are kept from it when they have work; so they give it away. Large memory comes in large pages:
to fetch the usual ones takes a tenth of a training step.
"""

import os
import sys

_POLICY, _TURNS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"  # OpenMP 5.0, section 6.7; GNU libgomp's manual, section 3
_FEW_TURNS = "1000"  # of spinning, some microseconds: products that follow at once find their threads awake
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch's, for Linux

_left_open = not {_POLICY, _TURNS} & set(os.environ)
spins = sys.platform == "linux" and "torch" in sys.modules and _left_open
"""Whether torch was loaded before: its threads spin in this process."""


def set_environment() -> None:
    """To be called before anything loads torch."""
    if _left_open:
        os.environ.update({_POLICY: "passive", _TURNS: _FEW_TURNS})
    os.environ.setdefault(_LARGE_PAGES, "1")
