"""Seconds to print help, to import, and to load the starter; each the median of five fresh processes.

python benchmarks/start_up.py [--json]
"""

import json
import platform
import statistics
import subprocess
import sys
import time

from afina.core.device import processor

LOAD = "import time; t = time.perf_counter(); import afina; {}; print(time.perf_counter() - t)"
CASES = {
    "import_package": LOAD.format("pass"),
    "import_library": LOAD.format("afina.train, afina.evaluate"),
    "import_and_load_starter": LOAD.format("afina.load_base('starter')"),
}


def main() -> None:
    results = {"help": statistics.median(help_seconds() for _ in range(5))}
    for name, code in CASES.items():
        results[name] = statistics.median(inside_seconds(code) for _ in range(5))
    results["load_starter"] = results["import_and_load_starter"] - results["import_library"]
    if "--json" in sys.argv:
        print(json.dumps(results))
        return
    print(f"{processor()}, Python {platform.python_version()}")
    for name, seconds in results.items():
        print(f"{name:24} {seconds:6.2f} s")


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "afina", "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


def inside_seconds(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
