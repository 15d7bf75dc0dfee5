"""Whether bf16 trains as fp32 does: loss curves over 200 steps, bf16 and fp32 with one seed, and fp32 with another.

    python benchmarks/precision.py --rows e2e/train.jsonl [--plot curves.svg] [--json]

The distance of two curves is that of the means of their last 50 steps. bf16 is good enough where it is as near to
fp32 with its own seed as fp32 with another seed is, whose adapter starts and rows come otherwise.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import common
from common import RATE

LAST = 50


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(losses(options)))
        return
    common.defaults(options)
    curves: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        common.prepare(options, options.steps * options.batch, {"afina"})
        for name, precision, seed in (("bf16", "bf16", 0), ("fp32", "fp32", 0), ("fp32, another seed", "fp32", 1)):
            options.precision = precision
            flags = ["--steps", str(options.steps), "--batch", str(options.batch), "--seed", str(seed)]
            curves[name] = common.worker(__file__, name, options, *flags)
    ends = {name: statistics.mean(curve[-LAST:]) for name, curve in curves.items()}
    distance = {"bf16": abs(ends["bf16"] - ends["fp32"]), "seed": abs(ends["fp32, another seed"] - ends["fp32"])}
    if options.plot:
        plot(curves, options.plot)
    if options.json:
        print(json.dumps({"machine": common.machine(), "last_losses": ends, "distance": distance, "curves": curves}))
        return
    print(f"{common.machine()}; mean loss of the last {LAST} of {options.steps} steps")
    for name, end in ends.items():
        print(f"{name:20} {end:.4f}")
    print(f"bf16 from fp32: {distance['bf16']:.4f}; another seed from fp32: {distance['seed']:.4f}")


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """The running means over ten steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot([statistics.mean(curve[max(0, i - 9) : i + 1]) for i in range(len(curve))], label=name)
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.legend()
    figure.savefig(path)


def losses(options: argparse.Namespace) -> list[float]:
    from afina.core.device import keep_freed_memory
    from afina.data.template import Row
    from afina.lora import LoraConfig, inject
    from afina.models.load import load_base
    from afina.training import TrainingSettings
    from afina.training.accumulation import gradients
    from afina.training.objectives import OBJECTIVES
    from afina.training.optimizer import Optimizer

    keep_freed_memory()
    rows = [Row(row["ids"], row["labels"], "") for row in common.read_rows(options)]
    random.Random(options.seed).shuffle(rows)
    base = load_base("starter", precision=options.precision)
    inject(base.model.module, LoraConfig(), options.seed)
    base.model.module.train()
    optimizer = Optimizer(base.model.module, 0.0)
    found = []
    for step in range(options.steps):
        part = rows[step * options.batch : (step + 1) * options.batch]
        found.append(gradients(base, part, OBJECTIVES["supervised"], TrainingSettings().tokens_per_pass)[0].item())
        optimizer.step(RATE * min(1.0, (step + 1) / 10), 1.0)
    return found


if __name__ == "__main__":
    main()
