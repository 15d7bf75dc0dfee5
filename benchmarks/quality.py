"""Settings of the training against the default, at equal rows: held-out loss and forgetting, over seeds and tasks.

    python benchmarks/quality.py DATASETS COMPARISON [TASK ...] [--rows 480] [--seeds 3] [--out FILE]

DATASETS is a folder with the data sets named below. A cell is one training; cells that stand in --out are not repeated,
so that a long table can be made in several sittings. Per task and setting: the mean held-out loss in nats per token,
its difference to the default's with a 95 % interval over seeds (paired), the loss on general text above the base's, and
the seconds of the steps alone.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import common
from scipy.stats import t as student

# Several answers to each prompt, so that rows can be grouped by it. `rate_times`: the learning rate over the rule's.
TASKS: dict[str, tuple[str, str, str]] = {
    "data to text": ("e2e/train.jsonl", "Describe: {mr}", "{text}"),
    "slots to text": ("restaurant8k_slots/train.jsonl", "A guest says: {slots}", "{utterance}"),
    "intent to text": ("banking77/train.csv", "A customer asks about {category}:", "{text}"),
}
COMPARISONS: dict[str, dict[str, dict[str, Any]]] = {
    "grouping": {"as drawn": {}, "rows of one prompt in one step": {"group_prompts": True}},
    "optimisers": {
        "adamw": {},
        **{f"adamw, rate × {n}": {"rate_times": n} for n in (0.5, 2.0)},
        **{f"riemannian, rate × {n}": {"optimizer": "riemannian", "rate_times": n} for n in (0.25, 0.5, 1.0, 2.0)},
    },
    "batch": {"8 rows": {}, "4 rows": {"batch_size": 4}, "16 rows": {"batch_size": 16}},
}
HELD_OUT = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("comparison", choices=list(COMPARISONS))
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="by default nothing is kept")
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    known: dict[str, dict[str, float]] = {}
    if options.out and options.out.exists():
        known = dict(json.loads(line) for line in options.out.read_text().splitlines())
    print(f"{common.machine()}; {options.rows} rows, {options.seeds} seeds")
    for task in options.tasks or TASKS:
        for seed in range(options.seeds):
            for variant, settings in COMPARISONS[options.comparison].items():
                key = f"{options.comparison} | {task} | {variant} | {seed} | {options.rows}"
                if key not in known:
                    known[key] = train(options.datasets, task, settings, seed, options.rows)
                    if options.out:
                        with options.out.open("a") as file:
                            file.write(json.dumps([key, known[key]]) + "\n")
        report(task, options, known)


def train(datasets: Path, task: str, settings: dict[str, Any], seed: int, most: int) -> dict[str, float]:
    from afina.core.device import keep_freed_memory
    from afina.core.events import ignore
    from afina.lora import LoraConfig, inject
    from afina.measure.general_text import general_rows
    from afina.models.load import load_base
    from afina.training import Trainer, TrainingSettings, make_plan, mean_loss
    from afina.training.plan import PlanFacts

    keep_freed_memory()
    base = load_base("starter")
    rows, held_out = split(datasets, task, base, seed, most)
    general = [row for each in general_rows(base.tokenizer, 128).values() for row in each[::4]]
    before = mean_loss(base, general)
    inject(base.model.module, LoraConfig(), seed)
    given = {name: value for name, value in settings.items() if name != "rate_times"}
    training = TrainingSettings(**given, epochs=1, eval_steps=10_000, early_stopping=0)
    plan, _ = make_plan(training, PlanFacts([len(row.input_ids) for row in rows], base.facts.hidden_size), seed)
    plan = plan.model_copy(update={"learning_rate": settings.get("rate_times", 1.0) * plan.learning_rate})
    trainer = Trainer(
        base, rows, held_out, training, plan, seed, ignore, lambda: None, None, rehearse=False, first_look=False
    )
    begun = time.perf_counter()
    done = trainer.run()
    return {
        "loss": mean_loss(base, held_out),
        "forgotten": mean_loss(base, general) - before,
        "seconds": done.tokens / done.tokens_per_second,
        "with_evaluation": time.perf_counter() - begun,
    }


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


def report(task: str, options: argparse.Namespace, known: dict[str, dict[str, float]]) -> None:
    def cells(variant: str, name: str) -> list[float]:
        keys = [f"{options.comparison} | {task} | {variant} | {s} | {options.rows}" for s in range(options.seeds)]
        return [known[key][name] for key in keys]

    default, *_ = COMPARISONS[options.comparison]
    print(f"\n{task}\n{'':32} {'loss':>7} {'difference':>20} {'forgotten':>10} {'seconds':>8}")
    for variant in COMPARISONS[options.comparison]:
        losses = cells(variant, "loss")
        against = ""
        if variant != default:
            differences = [a - b for a, b in zip(losses, cells(default, "loss"), strict=True)]
            mean, n = statistics.mean(differences), len(differences)
            half = student.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5 if n > 1 else float("inf")
            against = f"{mean - half:+.4f} to {mean + half:+.4f}"
        forgotten, seconds = (statistics.mean(cells(variant, name)) for name in ("forgotten", "seconds"))
        print(f"{variant:32} {statistics.mean(losses):7.4f} {against:>20} {forgotten:10.3f} {seconds:8.0f}", flush=True)


if __name__ == "__main__":
    main()
