"""The environment of torch's libraries, in processes of their own: it is read once."""

import os
import subprocess
import sys

import pytest

from afina.core.process import runtime

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")
SHOW = (
    "import os; from afina.core.process import runtime; "
    f"print(*[os.environ.get(name) for name in {NAMES}], runtime.spins)"
)


# What a system that does not count delays says.
HIDDEN = (
    "import builtins; real = builtins.open; "
    "builtins.open = lambda file, *a, **k: real('/absent' if 'schedstat' in str(file) else file, *a, **k); "
)
MANY = "300000" if runtime.watched else "1000"


@pytest.mark.parametrize(
    ("given", "code", "expected"),
    [
        ({}, "import afina; assert 'torch' not in __import__('sys').modules; " + SHOW, f"passive {MANY} 1 False"),
        ({}, HIDDEN + "import afina; " + SHOW, "passive 1000 1 False"),
        ({}, HIDDEN + "import torch, afina; " + SHOW, f"passive 1000 1 {sys.platform == 'linux'}"),
        ({"OMP_WAIT_POLICY": "active"}, "import afina; " + SHOW, "active None 1 False"),
        ({"GOMP_SPINCOUNT": "7"}, "import torch; " + SHOW, "None 7 1 False"),
        ({"THP_MEM_ALLOC_ENABLE": "0"}, "import torch, afina; " + SHOW, f"passive {MANY} 0 {not runtime.watched}"),
    ],
)
def test_it_is_set_where_the_user_has_not(given: dict[str, str], code: str, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(("policy", "inherited"), [("passive", runtime.watched), ("active", False)])
def test_what_a_parent_process_set_is_told_from_what_a_user_did(policy: str, inherited: bool) -> None:
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": "300000"}
    show = "from afina.core.process import runtime; print(runtime.watched)"
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(inherited)
