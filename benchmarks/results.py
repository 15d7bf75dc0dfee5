"""Runs the benchmarks one after another and writes what they print, with date and machine, to benchmarks/RESULTS.md.

    python benchmarks/results.py [--rows FILE] [NAME ...]

Without names all are run (some hours); with names only those, and the other sections of the file stay as they are.
"""

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
ROWS = "--rows"  # given to those that read examples
DATASETS = "DATASETS"  # the folder of data sets that those lie in: without examples, such a benchmark is left out
SCRIPTS: dict[str, list[str]] = {
    "start_up": ["start_up.py"],
    "train_speed_batch_8": ["train_speed.py", ROWS, "--batch", "8"],
    "train_speed_batch_32": ["train_speed.py", ROWS, "--batch", "32", "--steps", "3", "--peers", "afina,peft"],
    "train_speed_instruction": [
        *("train_speed.py", ROWS, "--batch", "32", "--steps", "2", "--instruction", "300"),
        *("--rounds", "2", "--peers", "afina,peft"),
    ],
    "train_speed_file": ["train_speed.py", ROWS, "--batch", "8", "--order", "file"],
    "train_speed_fp32": ["train_speed.py", ROWS, "--batch", "8", "--precision", "fp32", "--steps", "3"],
    "step_profile": ["step_profile.py", ROWS],
    "time_to_loss": ["time_to_loss.py", ROWS],
    "generate_speed": ["generate_speed.py", ROWS],
    "beside": ["beside.py", ROWS],
    "growth": ["growth.py"],
    "data_speed": ["data_speed.py", "--plot", str(HERE / "data_memory.svg")],
    "full_tuning": ["full_tuning.py", ROWS],
    "comparison": ["comparison.py", ROWS],
    "tuning": ["tuning.py", ROWS, "--kill-after", "240"],
    "precision": ["precision.py", ROWS, "--plot", str(HERE / "precision.svg")],
    "quantised": ["quantised.py", ROWS],
    "forecast": ["forecast.py"],
    "published": ["published.py"],
    "choice": ["choice.py", ROWS],
    "optimisers": ["quality.py", DATASETS, "optimisers", "data to text", "--settings", "muon", "--rows=96"],
    "rate": ["quality.py", DATASETS, "rate", "data to text", "--settings", "rule × 0.5"],
    "warmup": ["quality.py", DATASETS, "warmup", "data to text", "--settings", "10 %"],
    "batch": ["quality.py", DATASETS, "batch", "data to text", "--settings", "4 rows"],
    "serving": ["serving.py"],
    "server": ["server.py"],
    "load": ["load.py"],
    "adapters_peer": ["adapters_peer.py"],
    "kill_and_resume": ["kill_and_resume.py"],
}
SMALL = dict.fromkeys(
    ("optimisers", "rate", "warmup", "batch"), "One task, three seeds, and fewer rows than a training has."
)
HEAD = """# Results of the benchmarks

Written by `make bench` (`benchmarks/results.py`); each script says what it measures.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[])
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    unknown = set(options.names) - set(SCRIPTS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    for name in options.names or SCRIPTS:
        script, *flags = SCRIPTS[name]
        if DATASETS in flags and not options.rows:
            print(f"{name}: left out, for it needs --rows", file=sys.stderr)
            continue
        shown = [script, *(f for f in flags if f != ROWS and not f.endswith(".svg") and f != "--plot")]
        if ROWS in flags:
            at = flags.index(ROWS)
            flags[at : at + 1] = [ROWS, str(options.rows)] if options.rows else []
            shown += [f"({options.rows.parent.name}/{options.rows.name})"] if options.rows else ["(the tickets)"]
        flags = [str(options.rows.resolve().parents[1]) if flag == DATASETS else flag for flag in flags]
        print(f"{name} …", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(HERE / script), *flags], capture_output=True, text=True)
        text = done.stdout.strip() if done.returncode == 0 else f"FAILED\n{(done.stdout + done.stderr).strip()[-1500:]}"
        said = f"`{' '.join(shown)}`, {datetime.date.today()}\n\n"
        said += f"{SMALL[name]}\n\n" if name in SMALL else ""
        put(name, f"{said}```\n{text}\n```\n")


def put(name: str, body: str) -> None:
    """Replaces the section `name` of the file, or adds it."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    sections[name] = body + "\n"
    ordered = [known for known in SCRIPTS if known in sections]
    RESULTS.write_text(HEAD + "".join(f"\n## {known}\n\n{sections[known].rstrip()}\n" for known in ordered))


if __name__ == "__main__":
    main()
