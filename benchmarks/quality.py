"""Settings of the training against the default, at equal rows: held-out loss and forgetting, over seeds and tasks.

    python benchmarks/quality.py DATASETS COMPARISON [TASK ...] [--settings NAME ...] [--out FILE]

DATASETS is a folder with the data sets named below. Per task and setting: the mean held-out loss in nats per token, its
difference to the default's with a 95 % interval over seeds (paired), the loss on general text above the base's, and the
seconds of the steps alone. Optimisers are compared at their best: each one's learning rate is searched first, alike for
all, as multiples of its rule, with a seed that is not among those that are reported; while the best is at the edge, one
more is tried beyond it.

A cell is one training; cells that stand in --out are not repeated, so that a long table can be made in several
sittings.
"""

import argparse
import functools
import json
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import common
from scipy.stats import t as student

Cell = dict[str, float]
# The first three have several answers to each prompt, so that rows can be grouped by it.
TASKS: dict[str, tuple[str, str, str]] = {
    "data to text": ("e2e/train.jsonl", "Describe: {mr}", "{text}"),
    "slots to text": ("restaurant8k_slots/train.jsonl", "A guest says: {slots}", "{utterance}"),
    "intent to text": ("banking77/train.csv", "A customer asks about {category}:", "{text}"),
    "sentiment": ("sentiment_pt/train.csv", "{text}", "{label}"),
    "text to intent": ("banking77/train.csv", "{text}", "{category}"),
}
# The first is the default. `rate_times`: the learning rate over the rule's. LoRA+ has B learn 16 times as fast as A:
# with a quarter of the rate the two learn as fast on average as without it. `rows_times`: the share of the rows that is
# trained on; steps of 4 rows of E2E take 1.3 times as long for each row as those of 8 (`train_speed.py --batch 4`).
COMPARISONS: dict[str, dict[str, dict[str, Any]]] = {
    "optimisers": {
        "adamw": {},
        "adamw, LoRA+": {"lora_plus_ratio": 16.0, "rate_times": 0.25},
        **{name: {"optimizer": name} for name in ("muon", "riemannian", "lora_pro", "lora_rite")},
    },
    "grouping": {"as drawn": {}, "rows of one prompt in one step": {"group_prompts": True}},
    "rate": {"the rule": {}, **{f"rule × {n}": {"rate_times": n} for n in (0.25, 0.5, 2.0, 4.0)}},
    "warmup": {"5 %": {}, "none": {"warmup": 0.0}, "10 %": {"warmup": 0.1}, "20 %": {"warmup": 0.2}},
    "batch": {
        "8 rows": {},
        **{f"{n} rows": {"batch_size": n} for n in (4, 16, 32)},
        "4 rows, in the same time": {"batch_size": 4, "rows_times": 1 / 1.3},
    },
}
SEARCHED = "optimisers"  # the comparison of which each setting has its own learning rate
RATES = (0.5, 1.0, 2.0)
SEARCH_SEED = 1000
HELD_OUT = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("comparison", choices=list(COMPARISONS))
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="beside the default; by default all")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="by default nothing is kept")
    options = parser.parse_args()
    default, *others = COMPARISONS[options.comparison]
    names = options.settings or others
    for given, known in ((options.tasks, list(TASKS)), (names, others)):
        if unknown := set(given) - set(known):
            parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    cells = Cells(options)
    print(f"{common.machine()}; {options.rows} rows, {options.seeds} seeds")
    for task in options.tasks or TASKS:
        report(task, [default, *names], cells)


class Cells:
    """The trainings of a comparison, made as they are asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._known: dict[str, Cell] = {}
        if options.out and options.out.exists():
            self._known = dict(json.loads(line) for line in options.out.read_text().splitlines())

    def best_rate(self, task: str, name: str) -> float:
        """The multiple of the rule's learning rate with the lowest loss; 1 where it is not searched."""
        if self.options.comparison != SEARCHED:
            return 1.0
        losses = {times: self.get(task, name, SEARCH_SEED, times)["loss"] for times in RATES}
        while True:
            best = min(losses, key=losses.__getitem__)
            beyond = best / 2 if best == min(losses) else best * 2 if best == max(losses) else None
            if beyond is None:
                return best
            losses[beyond] = self.get(task, name, SEARCH_SEED, beyond)["loss"]

    def get(self, task: str, name: str, seed: int, times: float) -> Cell:
        comparison, rows = self.options.comparison, self.options.rows
        searched = f", rate × {times:g}" if comparison == SEARCHED else ""
        key = f"{comparison} | {task} | {name}{searched} | {seed} | {rows}"
        if key not in self._known:
            settings = COMPARISONS[comparison][name]
            settings = settings | {"rate_times": times * settings.get("rate_times", 1.0)}
            most = round(rows * settings.get("rows_times", 1.0))
            self._known[key] = train(self.options.datasets, task, settings, seed, most)
            print(key, self._known[key], file=sys.stderr, flush=True)
            if self.options.out:
                with self.options.out.open("a") as file:
                    file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]


def train(datasets: Path, task: str, settings: dict[str, Any], seed: int, most: int) -> Cell:
    """One training; infinite losses where it diverges. Forgetting is not measured in a search."""
    from afina.core.device import keep_freed_memory
    from afina.core.errors import NonFiniteLoss
    from afina.core.events import Event, HeldOut
    from afina.lora import LoraConfig, inject
    from afina.models.load import load_base
    from afina.training import Trainer, TrainingSettings, make_plan

    keep_freed_memory()
    base = load_base("starter")
    rows, held_out = split(datasets, task, base, seed, most)
    inject(base.model.module, LoraConfig(), seed)
    given = {name: value for name, value in settings.items() if name not in ("rate_times", "rows_times")}
    training = TrainingSettings(**given, epochs=1, eval_steps=10_000, early_stopping=0)
    plan, _ = make_plan(training, common.plan_facts(base, rows), seed)
    plan = plan.model_copy(update={"learning_rate": settings.get("rate_times", 1.0) * plan.learning_rate})
    losses: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, HeldOut):
            losses.append(event.value)

    trainer = Trainer(
        base, rows, held_out, training, plan, seed, listener, lambda: None, None, rehearse=False, first_look=False
    )
    try:
        done = trainer.run()
    except NonFiniteLoss:
        return {"loss": math.inf, "forgotten": math.inf, "seconds": math.nan}
    cell = {"loss": losses[-1], "seconds": done.tokens / done.tokens_per_second}
    return cell if seed == SEARCH_SEED else cell | {"forgotten": general_loss(base) - general_loss_before()}


@functools.cache
def general_loss_before() -> float:
    from afina.models.load import load_base

    return general_loss(load_base("starter"))


def general_loss(base: Any) -> float:
    from afina.measure.general_text import general_rows
    from afina.training import mean_loss

    return mean_loss(base, [row for each in general_rows(base.tokenizer, 128).values() for row in each[::4]])


def split(datasets: Path, task: str, base: Any, seed: int, most: int) -> tuple[list[Any], list[Any]]:
    """Training rows of whole prompts, up to `most`, in an order of the seed's; and held-out rows, the same for all."""
    from afina.data.batch import numbered
    from afina.data.load import load_data
    from afina.data.settings import DataSettings

    file, prompt, completion = TASKS[task]
    data = load_data(
        DataSettings(path=datasets / file, prompt=prompt, completion=completion, held_out_rows=HELD_OUT), base
    )
    prompts: dict[int, list[Any]] = {}
    for number, row in zip(numbered(row.prompt for row in data.train), data.train, strict=True):
        prompts.setdefault(number, []).append(row)
    groups = list(prompts.values())
    random.Random(seed).shuffle(groups)
    rows = [row for group in groups for row in group[:8]][:most]
    return rows, list(data.held_out)


def report(task: str, names: list[str], cells: Cells) -> None:
    heads = f"{'':32} {'rate':>6} {'loss':>7} {'difference':>20} {'forgotten':>10} {'seconds':>8}"
    print(f"\n{task}\n{heads}", flush=True)
    default: list[float] = []
    for name in names:
        times = cells.best_rate(task, name)
        found = [cells.get(task, name, seed, times) for seed in range(cells.options.seeds)]
        loss, forgotten, seconds = (
            statistics.mean(cell[key] for cell in found) for key in ("loss", "forgotten", "seconds")
        )
        losses = [cell["loss"] for cell in found]
        against = interval([a - b for a, b in zip(losses, default, strict=True)]) if default else ""
        default = default or losses
        print(f"{name:32} {f'× {times:g}':>6} {loss:7.4f} {against:>20} {forgotten:10.3f} {seconds:8.0f}", flush=True)


def interval(differences: list[float]) -> str:
    mean, n = statistics.mean(differences), len(differences)
    half = student.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5 if n > 1 else math.inf
    return f"{mean - half:+.4f} to {mean + half:+.4f}"


if __name__ == "__main__":
    main()
