"""LoRA against full fine-tuning in Afina's own engine: memory, speed, size of a checkpoint, and latency after merging.

    python benchmarks/full_tuning.py [--rows FILE] [--json]

Full fine-tuning trains every weight, with fp32 masters and moments.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import ALPHA, RANK, RATE, peak_gb

BATCH, WARM_UP, STEPS, NEW = 8, 2, 5, 48


def main() -> None:
    options = common.parser(__doc__).parse_args()
    if options.worker:
        print(json.dumps(run(options)))
        return
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        common.prepare(options, BATCH * (WARM_UP + STEPS), {"afina"})
        result: dict[str, Any] = {"machine": common.machine()}
        for name in ("lora", "full"):
            result[name] = common.worker(__file__, name, options)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(result["machine"])
    print(f"{'':38} {'LoRA':>9} {'full':>9}")
    for key, title in TITLES.items():
        cells = (f"{result[name][key]:9.2f}" if key in result[name] else f"{'':9}" for name in ("lora", "full"))
        print(f"{title:38} {' '.join(cells)}")


TITLES = {
    "tokens_per_second": "training, tokens/s",
    "peak_gb": "peak resident memory, GB",
    "above_imports_gb": "above the process after imports, GB",
    "checkpoint_mb": "checkpoint, MB",
    "weights_mb": "trained weights alone, MB",
    "unmerged_ms": "a new token with the adapter, ms",
    "merged_ms": "a new token after merging, ms",
    "base_ms": "a new token of the base, ms",
}


def run(options: argparse.Namespace) -> dict[str, float]:
    from afina.core.device import keep_freed_memory, memory_gb
    from afina.data.template import Row
    from afina.lora import LoraConfig, disabled, inject, merge
    from afina.models.load import load_base
    from afina.training import TrainingSettings
    from afina.training.accumulation import gradients
    from afina.training.checkpoint import State, write
    from afina.training.objectives import OBJECTIVES
    from afina.training.optimizer import Optimizer

    keep_freed_memory()
    imported = memory_gb()
    base = load_base("starter", precision=options.precision)
    module = base.model.module
    if options.worker == "lora":
        inject(module, LoraConfig(rank=RANK, alpha=ALPHA))
    else:
        module.requires_grad_(True)
    module.train()
    optimizer = Optimizer(module, 0.0)
    rows = [Row(row["ids"], row["labels"], "") for row in common.read_rows(options)]
    tokens, begun = 0, 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            tokens, begun = 0, time.perf_counter()
        tokens += gradients(
            base, rows[step * BATCH : (step + 1) * BATCH], OBJECTIVES["supervised"], TrainingSettings().tokens_per_pass
        )[1]
        optimizer.step(RATE if options.worker == "lora" else RATE / 10, 1.0)
    found = {"tokens_per_second": tokens / (time.perf_counter() - begun), "peak_gb": peak_gb()}
    found["above_imports_gb"] = found["peak_gb"] - imported
    weights = optimizer.weights()
    write(options.shared, State(step=1, weights=weights, moments=optimizer.moments()), "")
    found["checkpoint_mb"] = max(path.stat().st_size for path in options.shared.glob("step-*")) / 1e6
    found["weights_mb"] = sum(value.numel() * 4 for value in weights.values()) / 1e6
    if options.worker == "lora":
        found["unmerged_ms"] = token_ms(base)
        with disabled(module):
            found["base_ms"] = token_ms(base)
        base.model.module = merge(module)
        found["merged_ms"] = token_ms(base)
    return found


def token_ms(base: Any) -> float:
    """Milliseconds a new token of one answer, the prompt's reading aside."""
    import torch

    base.model.module.eval()
    with torch.inference_mode():
        sequences = base.model.start(1, 128)
        sequences.add([list(range(5, 45))], [None])
        token = sequences.read(40)[1].argmax(-1)
        for i in range(NEW + 4):
            if i == 4:
                begun = time.perf_counter()
            token = sequences.decode(token).argmax(-1)
    return (time.perf_counter() - begun) / NEW * 1000


if __name__ == "__main__":
    main()
