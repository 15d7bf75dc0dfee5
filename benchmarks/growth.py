"""How costs grow: seconds a token with the length of the rows, and memory with the number of rows of data.

python benchmarks/growth.py [--lengths 64,256,1024,4096] [--data 1000,10000,100000,1000000] [--json]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import common


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048,4096")
    parser.add_argument("--data", default="1000,10000,100000,1000000")
    options = parser.parse_args()
    if options.worker:
        kind, _, value = options.worker.partition(":")
        print(json.dumps({"length": train_rows, "data": read_data}[kind](options, int(value))))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        lengths = {n: common.worker(__file__, f"length:{n}", options) for n in options.lengths.split(",") if n}
        data = {n: common.worker(__file__, f"data:{n}", options) for n in options.data.split(",") if n}
    result = {"machine": common.machine(), "tokens_a_row": lengths, "rows_of_data": data}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(result["machine"])
    print("tokens a row   ms a token   peak GB")
    for n, found in lengths.items():
        print(f"{n:>12} {found['ms_a_token']:12.2f} {found['peak_gb']:9.2f}")
    print("rows of data   seconds to read and render   GB above the start")
    for n, found in data.items():
        print(f"{int(n):>12,} {found['seconds']:28.1f} {found['gb']:20.2f}")


def train_rows(options: argparse.Namespace, length: int) -> dict[str, float]:
    """A training step over at least 4,096 random tokens in rows of one length, a third of them learned."""
    import torch

    from afina.core.device import keep_freed_memory
    from afina.data.template import Row
    from afina.lora import LoraConfig, inject
    from afina.models.load import load_base
    from afina.training import TrainingSettings
    from afina.training.accumulation import gradients
    from afina.training.objectives import OBJECTIVES

    keep_freed_memory()
    base = load_base("starter", precision=options.precision)
    inject(base.model.module, LoraConfig())
    base.model.module.train()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(max(1, 4096 // length)):
        ids = torch.randint(5, 40000, (length,), generator=generator).tolist()
        rows.append(Row(ids, [-100] * (length - length // 3) + ids[length - length // 3 :], ""))
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        gradients(base, rows, OBJECTIVES["supervised"], TrainingSettings().tokens_per_pass)
        seconds.append(time.perf_counter() - begun)
    return {"ms_a_token": 1000 * min(seconds) / (length * len(rows)), "peak_gb": common.peak_gb()}


def read_data(options: argparse.Namespace, count: int) -> dict[str, float]:
    """What reading, checking and tokenising `count` short rows takes."""
    from afina.core.device import memory_gb
    from afina.data.load import load_data
    from afina.data.settings import DataSettings
    from afina.models.load import load_base

    base = load_base("starter", precision=options.precision)
    path = options.shared / f"{count}.jsonl"
    with path.open("w") as file:
        for i in range(count):
            row = {"prompt": f"Order {i}: where is parcel {i * 7919 % count}?", "completion": f"In depot {i % 97}."}
            file.write(json.dumps(row) + "\n")
    before, begun = memory_gb(), time.perf_counter()
    data = load_data(DataSettings(path=path), base, cache_dir=options.shared)
    assert len(data.train) > 0.8 * count
    return {"seconds": time.perf_counter() - begun, "gb": memory_gb() - before}


if __name__ == "__main__":
    main()
