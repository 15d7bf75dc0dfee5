"""Training speed beside a program that is busy in as many threads as there are processors, as a share of that alone.

    python benchmarks/beside.py [--rows FILE] [--rounds N] [--spins 0,1000,10000] [--json]

The other program multiplies matrices with PyTorch, whose threads spin while they wait, or, with `--other loops`, counts
in plain Python. By default Afina waits as it does for users; `--spins` compares spin counts (`GOMP_SPINCOUNT`;
300000 is what the runtime does by itself). Medians of rounds that alternate.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import train_speed

OTHERS = {
    "torch": "import torch\na = torch.randn(1024, 1024)\nwhile True: a @ a",
    "loops": "import os\nfor _ in range(os.cpu_count() - 1):\n    if not os.fork(): break\nwhile True: pass",
}
BATCH, STEPS = "8", "6"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", choices=list(OTHERS), default="torch")
    parser.add_argument("--spins", help="spin counts to compare, separated by commas")
    options = parser.parse_args()
    common.defaults(options)
    ways = {f"spin count {n}": n for n in options.spins.split(",")} if options.spins else {"as for users": None}
    found: dict[str, dict[str, list[float]]] = {way: {"alone": [], "beside": []} for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        common.prepare(options, int(BATCH) * (train_speed.WARM_UP + int(STEPS)), {"afina"})
        for _ in range(options.rounds):
            for way, spins in ways.items():
                found[way]["alone"].append(speed(options, spins))
                with busy(options.other):
                    found[way]["beside"].append(speed(options, spins))
    result = {"machine": common.machine(), "other": options.other, "rounds": options.rounds}
    medians = {way: {k: statistics.median(v) for k, v in speeds.items()} for way, speeds in found.items()}
    shares = {way: statistics.median(b / a for a, b in zip(*s.values(), strict=True)) for way, s in found.items()}
    if options.json:
        print(json.dumps(result | {"tokens_per_second": medians, "share": shares}, indent=1))
        return
    print(f"{result['machine']}; beside {options.other}, medians of {options.rounds}")
    for way, each in medians.items():
        print(f"{way:18} {each['alone']:5.0f} tokens/s alone, {each['beside']:5.0f} beside: {shares[way]:.0%}")


def speed(options: argparse.Namespace, spins: str | None) -> float:
    if spins is not None:
        os.environ["GOMP_SPINCOUNT"] = spins
    flags = ("--batch", BATCH, "--steps", STEPS)
    return float(common.worker(train_speed.__file__, "afina", options, *flags)["tokens_per_second"])


@contextmanager
def busy(other: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", OTHERS[other]], env=common.ENVIRONMENT, start_new_session=True)
    try:
        time.sleep(3)  # until it has loaded
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


if __name__ == "__main__":
    main()
