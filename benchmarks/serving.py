"""Several adapters in one batch: tokens a second of rows of one adapter, of eight, and of the bare base.

    python benchmarks/serving.py [--adapters 8] [--rounds 5] [--json]

In process, on the starter, decoding steps of 32 rows that are in the cache already, and reading their prompts. All
kinds of batches take turns in each round; ratios are medians over the rounds, of tokens a second beside the base's.

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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ALPHA, RANK, TARGETS, machine

ROWS, STEPS, WARM = 32, 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = measured(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['machine']}; {found['precision']}; {ROWS} rows, {options.adapters} adapters of rank {RANK}")
    print(f"{'':>10} {'decoding':>9} {'of base':>8} {'prompts':>9} {'of base':>8}   tokens/s")
    for kind, row in found["batches"].items():
        print(
            f"{kind:>10} {row['decoding']:9.0f} {row['decoding_ratio']:8.3f} {row['prompts']:9.0f} "
            f"{row['prompts_ratio']:8.3f}"
        )
    print(f"several beside one: {found['several_beside_one']:.3f} decoding")


@dataclass(frozen=True, eq=False)
class Adapter:
    key: str
    factors: Any


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from afina.core.device import keep_freed_memory
    from afina.models import load_base

    keep_freed_memory()
    base = load_base("starter", precision=options.precision)
    model = base.model
    model.module.eval()
    adapters = [adapter(model.module, i) for i in range(options.adapters)]
    batches = {
        "base": (model, [None] * ROWS),
        "loaded": (model, [None] * ROWS),
        "in place": (in_place(model), [None] * ROWS),
        "one": (model, adapters[:1] * ROWS),
        "several": (model, [adapters[i % len(adapters)] for i in range(ROWS)]),
        "half": (model, [adapters[i // 2 % len(adapters)] if i % 2 else None for i in range(ROWS)]),
    }
    lines = (Path(__file__).parents[1] / "afina/examples/tickets_train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [base.tokenizer.encode(json.loads(line)["message"]) for line in lines[:ROWS]]
    speeds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in batches}
    for _ in range(options.rounds + 1):  # the first one warms up
        for kind, (on, updates) in batches.items():
            for each in adapters if kind != "base" else ():
                model.prepare(each)
            speeds[kind].append(timed(on, prompts, updates))
    rounds = {kind: found[1:] for kind, found in speeds.items()}

    def ratio(a: str, b: str, which: int) -> float:
        return statistics.median(x[which] / y[which] for x, y in zip(rounds[a], rounds[b], strict=True))

    return {
        "machine": machine(),
        "precision": str(model.module.dtype).removeprefix("torch."),
        "batches": {
            kind: {
                "prompts": statistics.median(p for p, _ in found),
                "prompts_ratio": ratio(kind, "base", 0),
                "decoding": statistics.median(d for _, d in found),
                "decoding_ratio": ratio(kind, "base", 1),
            }
            for kind, found in rounds.items()
        },
        "several_beside_one": ratio("several", "one", 1),
    }


def adapter(module: Any, seed: int) -> Adapter:
    """Random factors for the layers that adapters have by default."""
    import torch

    from afina.core.updates import Factors

    generator = torch.Generator().manual_seed(seed)
    return Adapter(str(seed), {
        path: Factors(
            0.01 * torch.randn(RANK, place.inputs, generator=generator),
            0.01 * torch.randn(place.end - place.begin, RANK, generator=generator), ALPHA / RANK,
        )
        for path, place in module.places().items() if path.rpartition(".")[2] in TARGETS
    })  # fmt: skip


def in_place(model: Any) -> Any:
    from afina.lora import LoraConfig, inject

    other = copy.deepcopy(model)
    inject(other.module, LoraConfig(rank=RANK, alpha=ALPHA))
    other.module.eval()
    return other


def timed(model: Any, prompts: list[list[int]], updates: list[Any]) -> tuple[float, float]:
    """Tokens a second of reading the prompts and of decoding."""
    import torch

    with torch.inference_mode():
        sequences = model.start(len(prompts), max(map(len, prompts)) + STEPS + WARM + 1)
        sequences.add(prompts, updates)
        begun = time.perf_counter()
        whole, logits = sequences.read(10**6)
        assert len(whole) == len(prompts)
        reading = time.perf_counter() - begun
        for i in range(WARM + STEPS):
            if i == WARM:
                begun = time.perf_counter()
            logits = sequences.decode(logits.argmax(-1))
        decoding = time.perf_counter() - begun
    return sum(map(len, prompts)) / reading, STEPS * len(prompts) / decoding


if __name__ == "__main__":
    main()
