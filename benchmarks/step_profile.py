"""Where the time of a training step goes: shares by torch's profiler, and the speed of the products with the weights.

    python benchmarks/step_profile.py [--rows FILE] [--batch N] [--instruction TOKENS] [--json]

Shares are of the time in which operations ran, whichever thread they were called from. Beside the speed of the products
stands what the same shapes reach where each is computed again at once, with most of what it reads in the cache.
"""

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common
import train_speed

# The first that begins the name of an operation, or of its backward pass, has its own time.
PARTS = {
    "matrix products with the frozen weights, head included": ("aten::mm", "aten::addmm"),
    "low-rank products": ("_JoinedFunction",),
    "attention": ("_Attention",),
    "gated activations, norms": ("_Gated", "_RmsNorm"),
    "loss": ("_CrossEntropy",),
    "AdamW and clipping": ("aten::_fused_adamw_", "aten::linalg_vector_norm", "aten::_foreach", "Optimizer."),
}
REST = "Python, autograd, copies"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="profiled steps, after two to warm up")
    options = parser.parse_args()
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        facts = common.prepare(options, options.batch * (train_speed.WARM_UP + options.steps), {"afina"})
        result = {"machine": common.machine(), "batch": options.batch, **profiled(options, facts["precision"])}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['machine']}; batch {options.batch}, {result['seconds']:.2f} s a step")
    for part, share in result["shares"].items():
        print(f"{part:56} {share:4.0%}")
    print(f"products: {result['gflops']:.0f} GFLOP/s in the step, {result['gflops_again']:.0f} again at once")


def profiled(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    step = train_speed.afina_step(options.precision)
    groups = train_speed.batches(options)
    for group in groups[: train_speed.WARM_UP]:
        step(group)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        begun = time.perf_counter()
        for group in groups[train_speed.WARM_UP :]:
            step(group)
        seconds = time.perf_counter() - begun
    times: Counter[str] = Counter()
    shapes: Counter[tuple[int, int, int]] = Counter()
    busy = 0.0
    for event in found.events() or ():
        part = next((part for part, names in PARTS.items() if event.name.startswith(names)), REST)
        times[part] += event.self_cpu_time_total
        if event.name == "aten::mm":
            (m, k), (_, n) = event.input_shapes[:2]
            shapes[m, k, n] += 1
            busy += event.self_cpu_time_total / 1e6
    flops = sum(2 * math.prod(shape) * count for shape, count in shapes.items())
    return {
        "seconds": seconds / options.steps,
        "shares": {part: times[part] / times.total() for part in (*PARTS, REST)},
        "gflops": flops / busy / 1e9,
        "gflops_again": flops / sum(again(*shape, precision) * count for shape, count in shapes.items()) / 1e9,
    }


def again(m: int, k: int, n: int, precision: str) -> float:
    """The least seconds of a product of (m, k) and (k, n) that was just computed."""
    import torch

    a, b, out = (torch.randn(*shape).to(getattr(torch, precision)) for shape in ((m, k), (k, n), (m, n)))
    best = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - begun)
    return best


if __name__ == "__main__":
    main()
