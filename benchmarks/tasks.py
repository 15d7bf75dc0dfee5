"""Quality of the default settings on real tasks: trains, evaluates, and prints one line a task.

    python benchmarks/tasks.py DATASETS [TASK ...] [--out runs/tasks]

DATASETS is a folder with the data sets named below; a task that has a run in --out already is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

TASKS: dict[str, tuple[str, list[str]]] = {
    "data-to-text": (
        "e2e/train.jsonl",
        ["--prompt", "Describe: {mr}", "--completion", "{text}", "--limit", "1600", "--epochs", "1"],
    ),
    "structured": (
        "restaurant8k_slots/train.jsonl",
        ["--prompt", "Asked: {requested}\n{utterance}", "--completion", "{slots}", "--limit", "1200"],
    ),
    "sentiment": ("sentiment_pt/train.csv", ["--prompt", "Sentimento do tweet: {text}", "--completion", "{label}"]),
    "response": ("chat_pt/train.jsonl", []),
    "translation": (
        "mt_geneval_en_pt/train.csv",
        ["--prompt", "Translate into Portuguese: {english}", "--completion", "{portuguese}", "--limit", "1200"],
    ),
    "summarisation": (
        "scitldr/train.jsonl",
        [
            *("--prompt", "Summarise in one sentence: {source}", "--completion", "{target[0]}"),
            *("--references", "target", "--limit", "1000"),
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    options = parser.parse_args()
    unknown = set(options.tasks) - set(TASKS)
    if unknown:
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    for name in options.tasks or TASKS:
        file, flags = TASKS[name]
        run = options.out / name
        if not (run / "evaluation.json").exists():
            command = [sys.executable, "-m", "afina", "train", str(options.datasets / file), *flags]
            subprocess.run([*command, "--out", str(run), "--overwrite"], check=True, stdout=subprocess.DEVNULL)
        found = json.loads((run / "evaluation.json").read_text())
        main_metric = found["main_metric"]
        difference, over = found["difference"][main_metric], found["over_trivial"]
        print(
            f"{name:14} {main_metric:14} base {found['base'][main_metric]:.3g} "
            f" adapted {found['adapted'][main_metric]:.3g}  "
            f"difference {difference['low']:.3g} to {difference['high']:.3g}  "
            f"over trivial {over['low']:.3g} to {over['high']:.3g}  ({found['rows']} rows)",
            flush=True,
        )


if __name__ == "__main__":
    main()
