"""Seconds of training until Afina's held-out loss reaches what TRL reaches after one epoch of 1,600 rows.

    python benchmarks/time_to_loss.py --rows e2e/train.jsonl [--json]

Both train on the same rows in the same order (`--order`), 8 at a time, each at its usual learning rate for LoRA: TRL
with 2e-4 as its documentation has it, Afina by its rule. The next 160 rows are held out; a prompt with several answers
may stand on both sides, for both programs alike. Evaluations are not counted in either time.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import RATE, Rows, padded, read_rows

BATCH, HELD_OUT = 8, 160


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--train", type=int, default=1600, help="rows of the epoch")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({"trl": run_trl, "afina": run_afina}[options.worker](options)))
        return
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        common.prepare(options, options.train + HELD_OUT, {"trl"})
        trl = common.worker(__file__, "trl", options)
        afina = common.worker(__file__, "afina", options, "--until", str(trl["loss"]))
    result = {"machine": common.machine(), "trl": trl, "afina": afina, "ratio": afina["seconds"] / trl["seconds"]}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(result["machine"])
    print(f"TRL:   {trl['seconds']:6.0f} s for {trl['rows']} rows, held-out loss {trl['loss']:.4f}")
    print(f"Afina: {afina['seconds']:6.0f} s for {afina['rows']} rows, held-out loss {afina['loss']:.4f}")
    print(f"Afina needs {result['ratio']:.0%} of TRL's time")


def run_trl(options: argparse.Namespace) -> dict[str, float]:
    import torch
    import train_speed

    rows = read_rows(options)
    train, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    trainer, times = train_speed.trl_trainer(options, train, BATCH)
    begun = time.perf_counter()
    trainer.train()
    seconds = times[-1] - begun
    model = trainer.model.eval()
    total, labelled = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.precision != "fp32"):
        for at in range(0, HELD_OUT, BATCH):
            batch = padded(held_out[at : at + BATCH])
            count = int((batch["labels"][:, 1:] != -100).sum())
            total += model(**batch).loss.item() * count
            labelled += count
    return {"seconds": seconds, "loss": total / labelled, "rows": len(train), "learning_rate": RATE}


def run_afina(options: argparse.Namespace) -> dict[str, Any]:
    from afina.core.device import keep_freed_memory
    from afina.data.template import Row
    from afina.lora import LoraConfig, inject
    from afina.models.load import load_base
    from afina.training import TrainingSettings, make_plan, mean_loss
    from afina.training.accumulation import gradients
    from afina.training.objectives import OBJECTIVES
    from afina.training.optimizer import Optimizer
    from afina.training.schedule import learning_rate

    keep_freed_memory()
    rows: Rows = read_rows(options)
    train, held_out = ([Row(r["ids"], r["labels"], "") for r in part] for part in (rows[:-HELD_OUT], rows[-HELD_OUT:]))
    base = load_base("starter", precision=options.precision)
    inject(base.model.module, LoraConfig())
    settings = TrainingSettings(batch_size=BATCH, epochs=1)
    steps, _ = make_plan(settings, common.plan_facts(base, train), 0)
    optimizer = Optimizer(base.model.module, settings.weight_decay)
    seconds, loss = 0.0, float("inf")
    for step in range(steps.steps):
        begun = time.perf_counter()
        base.model.module.train()
        gradients(base, train[step * BATCH : (step + 1) * BATCH], OBJECTIVES["supervised"], settings.tokens_per_pass)
        optimizer.step(learning_rate(step, steps, settings), settings.max_grad_norm)
        seconds += time.perf_counter() - begun
        if (step + 1) % 4 == 0 or step + 1 == steps.steps:
            loss = mean_loss(base, held_out)
            if loss <= options.until:
                break
    reached = {"seconds": seconds, "loss": loss, "rows": (step + 1) * BATCH, "learning_rate": steps.learning_rate}
    if loss > options.until:
        raise SystemExit(f"one epoch of Afina ends at {loss:.4f}, not at TRL's {options.until:.4f}")
    return reached


if __name__ == "__main__":
    main()
