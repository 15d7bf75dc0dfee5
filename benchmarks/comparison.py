"""LoRA beside prompting, transfer learning, its last layers and full fine-tuning, by `afina compare`, as a table.

    python benchmarks/comparison.py [--rows FILE] [--out runs/compare]

FILE is E2E's train.jsonl; where sentiment_pt lies beside its folder, that is compared too. Without it: the tickets
that come with Afina. What is in --out already is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import common
from common import TICKETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=TICKETS)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    print(common.machine())
    for name, flags in tasks(options.rows).items():
        command = [sys.executable, "-m", "afina", "compare", *flags, "--out", str(options.out / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        show(name, json.loads((options.out / name / "comparison.json").read_text()))


def tasks(rows: Path) -> dict[str, list[str]]:
    """The flags of each comparison, by its name."""
    if rows == TICKETS:
        return {"tickets": [str(rows), "--prompt", "{message}", "--completion", "{ticket}"]}
    test = ["--test-data", str(rows.parent / "test.jsonl"), "--references", "references", "--data.test_rows", "128"]
    asked = ["--prompt", "Describe: {mr}", "--completion", "{text}"]
    found = {"e2e": [str(rows), *asked, "--limit", "1600", "--epochs", "1", *test]}
    tweets = rows.parent.parent / "sentiment_pt"
    if tweets.is_dir():
        asked = ["--prompt", "Sentimento do tweet: {text}", "--completion", "{label}"]
        found["sentiment_pt"] = [
            str(tweets / "train.csv"),
            *asked,
            "--limit",
            "1000",
            "--epochs",
            "1",
            "--test-data",
            str(tweets / "test.csv"),
        ]
    return found


def show(name: str, found: dict) -> None:
    from afina.search.comparison import table

    heads, lines = table(found)
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    print(f"\n{name}, {found['rows']} rows")
    for line in (heads, *lines):
        print(
            "  ".join(
                cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    print("\n".join(found["words"]))


if __name__ == "__main__":
    main()
