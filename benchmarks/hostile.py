"""Gives files that mean harm to whole commands, each in a process of its own, and measures how that ends.

    python benchmarks/hostile.py [--cases ../shared/cases/hostile] [--only WORD] [--keep FOLDER]

A command ends with the right result or with one message and exit code 2; without a trace or a signal; within 10 s and
2 GB (its largest resident set). Without `--cases` only the files of `hostile_inputs.py` are given.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
SECONDS, BYTES, PATIENCE = 10.0, 2 << 30, 60.0
ENVIRONMENT = {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "2", "RUST_BACKTRACE": "0"}


def attempt(words: list[str], codes: list[int], folder: Path) -> tuple[float, float, int, str]:
    """Seconds, those of processors, bytes, and what is wrong ('' where nothing is) of a command's whole run."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-P", "-m", "afina", *words]
        begun = time.monotonic()
        child = subprocess.Popen(
            command, cwd=folder, env=os.environ | ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        killer = threading.Timer(PATIENCE, child.kill)
        killer.start()
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begun
        killer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said = err.read().decode(errors="replace")
        shown = out.read().decode(errors="replace")
    wrong = []
    if child.returncode < 0:
        wrong.append(f"signal {signal.Signals(-child.returncode).name}")
    elif child.returncode not in codes:
        wrong.append(f"exit code {child.returncode}, expected {' or '.join(map(str, codes))}")
    if re.search(r"Traceback|panicked at|afina: unexpected", said + shown):
        wrong.append("a trace")
    if child.returncode == 2 and len(re.findall(r"^afina: ", said, re.MULTILINE)) != 1:
        wrong.append("not one message")
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]", said + shown):
        wrong.append("a control character")
    if len(said) + len(shown) > 20_000:
        wrong.append(f"{len(said) + len(shown):,} characters are printed")
    if seconds > SECONDS:
        wrong.append("too long")
    if used.ru_maxrss * 1024 > BYTES:
        wrong.append("too much memory")
    last = said.strip() or shown.strip()
    return (
        seconds,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss * 1024,
        "; ".join(wrong) + (f"\n    {last[-600:]}" if wrong else ""),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="a folder of further hostile files")
    parser.add_argument("--only", default="", help="only cases with this word in their names")
    parser.add_argument("--keep", type=Path, help="a folder that the files are written to, or are in already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        given = [str(options.cases.resolve())] if options.cases else []
        # Written by another process: a child's largest resident set is at least that of whoever starts it.
        if not (folder / "cases.json").exists():
            command = [sys.executable, str(HERE / "hostile_inputs.py"), str(folder), *given]
            subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)
        cases = json.loads((folder / "cases.json").read_text())
        worst_seconds, most_bytes, failed, count = 0.0, 0, 0, 0
        for name, words, codes in cases:
            if options.only in name:
                seconds, of_processors, used, wrong = attempt(words, codes, folder)
                figures = f"{seconds:5.1f} s ({of_processors:4.1f} s of processors) {used >> 20:5} MB"
                print(f"{figures}  {name}: {wrong or 'well'}", flush=True)
                worst_seconds, most_bytes = max(worst_seconds, seconds), max(most_bytes, used)
                failed += bool(wrong)
                count += 1
    print(f"{count} commands, {failed} of them wrong; at most {worst_seconds:.1f} s and {most_bytes >> 20} MB")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
