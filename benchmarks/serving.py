"""Several adapters in one batch: tokens a second of rows of one adapter, of eight, and of the bare base.

    python benchmarks/serving.py [--adapters 8] [--rounds 5] [--json]

In process, on the starter, decoding steps of 32 rows. All kinds of batches take turns, a few steps each in a round;
ratios are medians over the rounds, of tokens a second beside the base's. Prompts are read once for each kind.

    base       rows of the base, no adapter loaded
    loaded     the same, while adapters are loaded (must be 0.97 of the base or more)
    in place   all rows have the one adapter that is injected into the model
    one        all rows bring the same adapter
    several    each row brings one of the adapters in turn (must be 0.85 of `one` or more)
    half       every second row brings one of the adapters, the others are of the base
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import ALPHA, RANK, TARGETS, machine, messages

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ROWS, STEPS = 32, 4  # steps of a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = measured(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['machine']}; {found['precision']}; {ROWS} rows, {options.adapters} adapters of rank {RANK}")
    print(f"{'':>10} {'decoding':>9} {'of base':>8} {'prompts':>9}   tokens/s")
    for kind, row in found["batches"].items():
        print(f"{kind:>10} {row['decoding']:9.0f} {row['decoding_ratio']:8.3f} {row['prompts']:9.0f}")
    print(f"several beside one: {found['several_beside_one']:.3f} decoding")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from adapters_made import row_adapter

    from afina.core.device import keep_freed_memory
    from afina.models import load_base

    keep_freed_memory()
    base = load_base("starter", precision=options.precision)
    model = base.model
    model.module.eval()
    paths = [path for path in model.module.places() if path.rpartition(".")[2] in TARGETS]
    adapters = [
        row_adapter(model.module, str(i), RANK, ALPHA / RANK, size=0.01, paths=paths) for i in range(options.adapters)
    ]
    batches = {
        "base": (model, [None] * ROWS),
        "loaded": (model, [None] * ROWS),
        "in place": (in_place(model), [None] * ROWS),
        "one": (model, adapters[:1] * ROWS),
        "several": (model, [adapters[i % len(adapters)] for i in range(ROWS)]),
        "half": (model, [adapters[i // 2 % len(adapters)] if i % 2 else None for i in range(ROWS)]),
    }
    prompts = [base.tokenizer.encode(text) for text in messages(ROWS)]
    room = max(map(len, prompts)) + STEPS * (options.rounds + 2)
    timed(Batch(model, prompts, [None] * ROWS, room))  # the first pass of a process takes longer
    started: dict[str, Batch] = {}
    for kind, (on, updates) in batches.items():
        for each in adapters if kind != "base" else ():
            model.prepare(each)
        started[kind] = Batch(on, prompts, updates, room)
    rounds: dict[str, list[float]] = {kind: [] for kind in batches}
    for _ in range(options.rounds + 1):  # the first one records
        for kind, batch in started.items():
            rounds[kind].append(timed(batch))

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(rounds[a][1:], rounds[b][1:], strict=True))

    return {
        "machine": machine(),
        "precision": str(model.module.dtype).removeprefix("torch."),
        "batches": {
            kind: {
                "prompts": batch.prompts,
                "decoding": statistics.median(rounds[kind][1:]),
                "decoding_ratio": ratio(kind, "base"),
            }
            for kind, batch in started.items()
        },
        "several_beside_one": ratio("several", "one"),
    }


class Batch:
    """Sequences whose prompts are read; `prompts` in tokens a second."""

    def __init__(self, model: Any, prompts: list[list[int]], updates: list[Any], room: int) -> None:
        import torch

        with torch.inference_mode():
            self.sequences = model.start(len(prompts), room)
            self.sequences.add(prompts, updates)
            begun = time.perf_counter()
            whole, logits = self.sequences.read(10**6)
            assert len(whole) == len(prompts)
            self.prompts = sum(map(len, prompts)) / (time.perf_counter() - begun)
            self.next = logits.argmax(-1)


def timed(batch: Batch) -> float:
    """Tokens a second of some decoding steps."""
    import torch

    with torch.inference_mode():
        begun = time.perf_counter()
        for _ in range(STEPS):
            batch.next = batch.sequences.decode(batch.next).argmax(-1)
        return STEPS * len(batch.next) / (time.perf_counter() - begun)


def in_place(model: Any) -> Any:
    from afina.lora import LoraConfig, inject

    other = copy.deepcopy(model)
    inject(other.module, LoraConfig(rank=RANK, alpha=ALPHA))
    other.module.eval()
    return other


if __name__ == "__main__":
    main()
