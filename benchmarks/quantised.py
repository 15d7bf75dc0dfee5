"""Bases in few bits: what they weigh, how well and how fast an adapter trains on them.

    python benchmarks/quantised.py --rows e2e/train.jsonl [--steps 200] [--json]

For each way to keep the starter's weights: bytes of all frozen weights at their highest, scratch included; bytes a
parameter of the linear layers; the mean training loss of the last 50 steps, beside the same training on the same
numbers in bf16; tokens a second in training, and of one text in generation; and how far the base's logits are from
those of the 16-bit base.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from common import RATE

LAST, NEW = 50, 48
# What stands in memory, and the same numbers in bf16 beside it.
KINDS = {
    "bf16": None,
    "keep": "bf16",
    "nf4": "nf4 in bf16",
    "nf4 in bf16": None,
    "int8": "int8 in bf16",
    "int8 in bf16": None,
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        common.prepare(options, options.steps * options.batch, {"afina"})
        flags = ["--steps", str(options.steps), "--batch", str(options.batch)]
        found = {name: common.worker(__file__, name, options, *flags) for name in KINDS}
    if options.json:
        print(json.dumps({"machine": common.machine(), **found}))
        return
    size = found["keep"]["file_bytes"]
    print(f"{common.machine()}; {options.steps} steps of {options.batch} rows; the file has {size / 1e6:.1f} MB")
    print(
        f"{'weights':13} {'MB':>6} {'of file':>8} {'bytes/par':>10} "
        f"{'loss':>8} {'in bf16':>9} {'tok/s':>7} {'new/s':>7} {'logits':>8}"
    )
    for name, one in found.items():
        twin = found.get(KINDS[name] or "")
        against = f"{one['loss'] / twin['loss'] - 1:+.2%}" if twin else ""
        print(
            f"{name:13} {one['weight_bytes'] / 1e6:6.1f} {one['weight_bytes'] / size:8.2f} "
            f"{one['linear_bytes']:10.3f} {one['loss']:8.4f} "
            f"{against:>9} {one['tokens_per_second']:7.0f} {one['new_per_second']:7.1f} {one['distance']:8.4f}"
        )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from afina.core.device import keep_freed_memory
    from afina.data.batch import pack
    from afina.data.template import Row
    from afina.engine import blocks
    from afina.lora import LoraConfig, inject
    from afina.lora.merging import dequantise
    from afina.models.generation import generate
    from afina.models.load import load_base
    from afina.training import TrainingSettings
    from afina.training.accumulation import gradients
    from afina.training.objectives import OBJECTIVES
    from afina.training.optimizer import Optimizer

    keep_freed_memory()
    rows = [Row(row["ids"], row["labels"], "") for row in common.read_rows(options)]
    kind = options.worker.removesuffix(" in bf16")
    base = load_base("starter", precision=options.precision, quantize=None if kind == "bf16" else kind)
    module: Any = base.model.module
    if options.worker.endswith(" in bf16"):
        dequantise(module)
    plain = load_base("starter", precision=options.precision)
    with torch.no_grad():
        packed = pack(rows[:8], torch.device("cpu"))
        own, whole = (each.model.label_logits(packed).float() for each in (base, plain))
    del plain
    layers = [layer for layer in module.decoder_layers().modules() if isinstance(layer, torch.nn.Linear)]
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    kept = sum(layer.blocks.data.numel() if hasattr(layer, "blocks") else layer.weight.nbytes for layer in layers)
    inject(module, LoraConfig(), 0)
    endless = replace(base, tokenizer=replace(base.tokenizer, stop_ids=frozenset()))
    speeds = []
    for _ in range(4):
        started = time.perf_counter()
        generate(endless, [rows[0].input_ids[:32]], NEW)
        speeds.append(NEW / (time.perf_counter() - started))
    module.train()
    optimizer = Optimizer(module, 0.0)
    losses, seconds, tokens, peak = [], [], [], 0
    for step in range(options.steps):
        part = rows[step * options.batch : (step + 1) * options.batch]
        started = time.perf_counter()
        loss, _ = gradients(base, part, OBJECTIVES["supervised"], TrainingSettings().tokens_per_pass)
        losses.append(loss.item())
        optimizer.step(RATE * min(1.0, (step + 1) / 10), 1.0)
        seconds.append(time.perf_counter() - started)
        tokens.append(sum(len(row.input_ids) for row in part))
        peak = max(peak, blocks.weight_bytes(module))
    return {
        "weight_bytes": peak,
        "linear_bytes": kept / numbers,
        "file_bytes": Path(base.facts.path).stat().st_size,
        "loss": statistics.mean(losses[-LAST:]),
        "tokens_per_second": statistics.median(t / s for t, s in zip(tokens[3:], seconds[3:], strict=True)),
        "new_per_second": max(speeds),
        "distance": float((own - whole).norm() / whole.norm()),
    }


if __name__ == "__main__":
    main()
