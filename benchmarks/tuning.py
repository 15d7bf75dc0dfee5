"""Whether a search of settings is worth its time: `afina tune` against the defaults, judged on rows that it never saw.

    python benchmarks/tuning.py [--rows FILE] [--minutes 20] [--out runs/tune] [--kill-after SECONDS]

FILE is E2E's train.jsonl; the search is on sentiment_pt beside its folder. Without it: the tickets that come with
Afina. With --kill-after the search is killed so many seconds after its start, and then resumed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import common
from common import TICKETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=TICKETS)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    parser.add_argument("--kill-after", type=float)
    options = parser.parse_args()
    tweets = options.rows.parent.parent / "sentiment_pt"
    data = [str(options.rows), "--prompt", "{message}", "--completion", "{ticket}"]
    if options.rows != TICKETS:
        asked = ["--prompt", "Sentimento do tweet: {text}", "--completion", "{label}"]
        data = [str(tweets / "train.csv"), *asked, "--test-data", str(tweets / "test.csv")]
    command = [
        sys.executable,
        "-m",
        "afina",
        "tune",
        *data,
        "--minutes",
        str(options.minutes),
        "--out",
        str(options.out),
    ]
    print(common.machine())
    begun = time.monotonic()
    if options.kill_after:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(options.kill_after)
        process.kill()
        process.wait()
        time.sleep(2)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((options.out / "tuning.json").read_text())
    killed = f", killed after {options.kill_after:.0f} s and gone on" if options.kill_after else ""
    print(f"{Path(data[0]).parent.name}, {(time.monotonic() - begun) / 60:.1f} minutes in all{killed}")
    print("\n".join(found["words"]))
    ranked = sorted(found["importances"].items(), key=lambda each: -each[1])
    print("what mattered: " + ", ".join(f"{name} {100 * part:.0f} %" for name, part in ranked))


if __name__ == "__main__":
    main()
