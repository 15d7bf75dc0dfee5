"""Generation speed with an unmerged adapter against PEFT's `generate`, and whether greedy tokens are transformers' own.

    python benchmarks/generate_speed.py [--rows FILE --prompt T] [--batches 1,8,32] [--json]

48 new tokens an answer, greedy, never stopping early; each measurement in a process of its own, several rounds,
medians. `keep` is Afina on the GGUF file's own 4-bit blocks, and llama.cpp, by xllamacpp in an environment of its own,
reads the same file with as many threads, without an adapter, one text at a time; its wheel is built without AVX-512.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from common import ALPHA, RANK, machine, peak_gb

NEW = 48
LLAMA = Path(__file__).parents[1] / ".venv-xllamacpp/bin/python"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checked", type=int, default=50, help="prompts whose tokens are compared, in fp32")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        rows = max([*map(int, options.batches.split(",")), options.checked])
        precision = common.prepare(options, rows, {"peft"})["precision"]
        flags = ["--batches", options.batches, "--checked", str(options.checked)]
        peers = ["afina", "keep", "peft", *(["llama"] if LLAMA.exists() else [])]
        found: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
        for _ in range(options.rounds):
            for peer, rounds in found.items():
                python = LLAMA if peer == "llama" else Path(sys.executable)
                rounds.append(common.worker(__file__, peer, options, *flags, python=python))
        same = common.worker(__file__, "check", options, *flags) if options.checked else None
    medians = {p: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} for p, rounds in found.items()}
    if options.json:
        print(json.dumps({"machine": machine(), "precision": precision, **medians, "greedy": same}, indent=1))
        return
    print(f"{machine()}; Afina in {precision}; {NEW} new tokens, tokens/s")
    print(f"{'batch':>6} {'afina':>8} {'keep':>8} {'peft':>8} {'llama.cpp':>10} {'over peft':>10}")
    for size in options.batches.split(","):
        speeds = {peer: found.get(size) for peer, found in medians.items()}
        shown = f"{speeds['llama']:10.0f}" if speeds.get("llama") else f"{'-':>10}"
        a, keep, b = speeds["afina"], speeds["keep"], speeds["peft"]
        print(f"{size:>6} {a:8.0f} {keep:8.0f} {b:8.0f} {shown} {a / b:9.1f}x")
    if "llama" not in medians:
        print(f"llama.cpp: not installed ({LLAMA.parent.parent.name})")
    if same:
        print(f"greedy tokens as transformers', fp32: {same['equal']} of {same['prompts']} prompts")


def prompts(options: argparse.Namespace, count: int) -> list[list[int]]:
    rows = common.read_rows(options)[:count]
    return [row["ids"][: next(i for i, label in enumerate(row["labels"]) if label != -100)] for row in rows]


def run_afina(options: argparse.Namespace, quantize: Any = None) -> dict[str, float]:
    from afina.core.device import keep_freed_memory
    from afina.lora import LoraConfig, inject
    from afina.models import generate, load_base

    keep_freed_memory()
    base = load_base("starter", precision=options.precision, quantize=quantize)
    inject(base.model.module, LoraConfig(rank=RANK, alpha=ALPHA))
    base = replace(base, tokenizer=replace(base.tokenizer, stop_ids=frozenset()))

    def run(batch: list[list[int]]) -> int:
        return sum(answer.tokens for answer in generate(base, batch, NEW, batch_size=len(batch)))

    return timed(run, options)


def run_keep(options: argparse.Namespace) -> dict[str, float]:
    return run_afina(options, "keep")


def llama_server(model: str, threads: int, slots: int, room: int, loras: Sequence[str] = ()) -> Any:
    """llama.cpp's, at a port that is free, with so many tokens for each slot."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port = model, 0
    parameters.n_parallel, parameters.n_ctx = slots, slots * room
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in loras]
    return xllamacpp.Server(parameters)


def run_llama(options: argparse.Namespace) -> dict[str, float]:
    """Of one text, its prompt read anew each time, as Afina's is."""
    server = llama_server((options.shared / "gguf.txt").read_text(), os.cpu_count() or 1, slots=1, room=512)
    asked = {"prompt": prompts(options, 1)[0], "n_predict": NEW, "temperature": 0, "ignore_eos": True}
    speeds = []
    for _ in range(2):
        begun = time.perf_counter()
        server.handle_completions(asked | {"cache_prompt": False})
        speeds.append(NEW / (time.perf_counter() - begun))
    return {"1": speeds[-1]}


def run_peft(options: argparse.Namespace) -> dict[str, float]:
    import torch

    fastest: dict[str, float] = {}
    for dtype in (torch.bfloat16, torch.float32):  # whichever is faster for it here
        if options.precision == "fp32" and dtype == torch.bfloat16:
            continue
        model = common.peft_model(options, dtype).eval()

        def run(batch: list[list[int]], model: Any = model) -> int:
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )
            return (out.shape[1] - width) * len(batch)

        with torch.inference_mode():
            for size, speed in timed(run, options).items():
                fastest[size] = max(speed, fastest.get(size, 0.0))
    return fastest


def timed(run: Any, options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second for each size of batch, the second time."""
    found = {}
    for size in options.batches.split(","):
        batch = prompts(options, int(size))
        run(batch)
        begun = time.perf_counter()
        found[size] = run(batch) / (time.perf_counter() - begun)
    return found | {"peak_gb": peak_gb()}


def check(options: argparse.Namespace) -> dict[str, int]:
    """How many of the prompts get the tokens that transformers gives, both in fp32, and in one batch each."""
    import torch
    from transformers import AutoModelForCausalLM

    from afina.models import load_base
    from afina.models.generation import generate

    base = load_base("starter", precision="fp32")
    model = AutoModelForCausalLM.from_pretrained(options.shared / "model", dtype=torch.float32).eval()
    model.load_state_dict(base.model.module.state_dict(), strict=False)
    asked = prompts(options, options.checked)
    ours = generate(base, asked, NEW)
    equal = 0
    for prompt, answer in zip(asked, ours, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
            eos_token_id=sorted(base.tokenizer.stop_ids),
        )  # fmt: skip
        new = out[0, len(prompt) :].tolist()
        new = [token for token in new if token not in base.tokenizer.stop_ids]
        equal += answer.text == base.tokenizer.decode(new).strip() and answer.tokens == len(new)
    return {"prompts": len(asked), "equal": equal}


WORKERS = {"afina": run_afina, "keep": run_keep, "llama": run_llama, "peft": run_peft, "check": check}

if __name__ == "__main__":
    main()
