"""Changes one file of a folder that a job wrote, and runs the job that reads it again: runs that are evaluated, used or
resumed; comparisons, searches and choices of a base that are resumed.

    python benchmarks/fuzz_folders.py [--count 300] [--seed 0] [--only NAME]

Each ends well or with one of Afina's errors. A tiny random model, in one process.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import own_cache, save_tiny, write_rows
from fuzz import changed, damaged

import afina
from afina.core.errors import AfinaError, Interrupted
from afina.core.events import Event, Step
from afina.jobs.choose import ChooseSettings, choose
from afina.runs import worker
from afina.settings import RunSettings

SECONDS = 30.0
PAGES = (".html", ".svg")
Job = Callable[[Path], Any]


def run_here(target: str, arguments: dict[str, Any], listener: Any) -> Any:
    """`run_in_process` without another process."""
    module, _, name = worker.TARGETS[target].partition(":")
    return getattr(import_module(module), name)(**json.loads(json.dumps(arguments)), listener=listener)


class Folders:
    """The folders, each with what made it and the jobs that read it again."""

    def __init__(self, folder: Path) -> None:
        rows = [{"q": f"{'ab'[i % 2]}{i:03d}", "a": ["red", "blue"][i % 2]} for i in range(120)]
        self.base, self.few = save_tiny(folder / "base"), write_rows(folder / "few.jsonl", rows[:6])
        self.rows = write_rows(folder / "rows.jsonl", rows)
        for module in ("compare", "tune", "choose"):
            import_module(f"afina.jobs.{module}").run_in_process = run_here  # type: ignore[attr-defined]
        resume = {"resume": lambda out: afina.resume(afina.ResumeSettings(run=out))}
        uses: dict[str, Job] = {
            "eval": lambda out: afina.evaluate(afina.EvaluateSettings(run=out, data=self.few)),
            "generate": lambda out: afina.generate(afina.GenerateSettings(run=out, prompts=["a1"])),
        }
        self.all: dict[str, tuple[Job, dict[str, Job]]] = {
            "run": (lambda out: afina.train(self.settings(out)), uses | resume),
            "cut": (self.cut, resume),
        }
        searches: dict[str, Job] = {
            "compare": lambda out: afina.compare(
                afina.CompareSettings(run=self.settings(out), methods=["lora", "few-shot"])
            ),
            "tune": lambda out: afina.tune(afina.TuneSettings(run=self.settings(out), trials=2)),
            "choose": lambda out: choose(ChooseSettings(run=self.settings(out), bases=[str(self.base)])),
        }
        self.all |= {name: (job, {"again": job}) for name, job in searches.items()}

    def settings(self, out: Path) -> RunSettings:
        return RunSettings(
            base=str(self.base), out=out, precision="fp32", device="cpu", threads=1,
            data={"path": self.rows, "prompt": "{q}", "completion": "{a}"}, train={"epochs": 1, "checkpoint_steps": 2},
        )  # fmt: skip

    def cut(self, out: Path) -> None:
        def listen(event: Event) -> None:
            if isinstance(event, Step) and event.step == 5:
                raise KeyboardInterrupt

        try:
            afina.train(self.settings(out), listen)
        except (KeyboardInterrupt, Interrupted):
            return


def ended(job: Callable[[], Any]) -> str:
    """'done', 'refused', or what went wrong."""
    begun = time.monotonic()
    try:
        job()
        end = "done"
    except AfinaError:
        end = "refused"
    except Exception as error:
        end = "".join(traceback.format_exception(error)[-3:])
    seconds = time.monotonic() - begun
    return end if seconds < SECONDS else f"{end} after {seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="run, cut, compare, tune or choose")
    options = parser.parse_args()
    draw, ends, wrong = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        os.environ["AFINA_CACHE"] = str(own_cache(folder / "cache"))
        folders = Folders(folder)
        chosen = {name: each for name, each in folders.all.items() if name.startswith(options.only)}
        for name, (make, _) in chosen.items():
            make(folder / "made" / name)
        for number in range(options.count):
            name = draw.choice(list(chosen))
            whole, place = folder / "made" / name, folder / "now" / name
            shutil.rmtree(folder / "now", ignore_errors=True)
            shutil.copytree(whole, place)
            files = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix not in PAGES)
            file = draw.choice(files)
            file.write_bytes(draw.choice((changed, damaged))(file.read_bytes(), draw))
            word, job = draw.choice(list(chosen[name][1].items()))
            end = ended(partial(job, place))
            ends[end if end in ("done", "refused") else "wrong"] += 1
            if end not in ("done", "refused"):
                wrong += 1
                print(f"{number}, {word} with {file.relative_to(folder / 'now')} changed: {end}", flush=True)
    print(f"{options.count} files: " + ", ".join(f"{count} {end}" for end, count in ends.items()))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
