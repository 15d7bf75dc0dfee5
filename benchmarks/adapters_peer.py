"""Requests that alternate over eight adapters, beside llama.cpp's server: tokens a second of both, in turns.

    python benchmarks/adapters_peer.py [--adapters 8] [--at-once 32] [--tokens 64] [--rounds 3] [--threads N] [--json]

Both are servers in processes of their own, on loopback, on the starter's GGUF file, with as many threads, and get the
same token ids of the tickets' messages. The adapters are made by PEFT (rank 16, random numbers); Afina reads PEFT's
files, llama.cpp GGUF files that `afina.serving.gguf.write_adapter` wrote of them, and each request names its own
(`model`; `lora: [{id, scale}]`). Greedy, and no answer ends before it is as long as asked. llama.cpp, by xllamacpp in
an environment of its own, has a slot for each request; its wheel is built without AVX-512.

    alternating  the requests take the adapters in turn (must be 3 times llama.cpp's tokens/s)
    one          all ask for the same adapter
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import machine
from generate_speed import LLAMA, llama_server, prompts

BEGINNING = 20  # letters of which answers are compared


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.worker:
        llama(json.loads(options.worker))
        return
    if not LLAMA.exists():
        raise SystemExit(f"llama.cpp is not installed: make {LLAMA.parent.parent.name}/ready")
    common.defaults(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shared = Path(folder)
        found = measured(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['machine']}; Afina in {found['precision']}, {options.threads} threads each")
    print(f"{options.at_once} requests at one time, {options.adapters} adapters, {options.tokens} tokens an answer")
    print(f"{'':>12} {'afina':>8} {'llama.cpp':>10} {'ratio':>7}   tokens/s, medians of {options.rounds} rounds")
    for kind, row in found["kinds"].items():
        print(f"{kind:>12} {row['afina']:8.0f} {row['llama']:10.0f} {row['ratio']:7.2f}")
    print(f"first {BEGINNING} letters of the answers equal: {found['equal']} of {options.at_once}")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from load import Server

    options.precision = common.prepare(options, options.at_once, {"peft"})["precision"]
    asked_of_both = prompts(options, options.at_once)
    names = adapters(options)
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    runs = [str(options.shared / name) for name in names]
    ours = Server(options.shared, *runs, "--base", "starter", "--max-batch", str(options.at_once), **threads)
    asked = {
        "model": (options.shared / "gguf.txt").read_text(), "loras": [f"{run}.gguf" for run in runs],
        "threads": options.threads, "slots": options.at_once, "room": max(map(len, asked_of_both)) + options.tokens + 8,
    }  # fmt: skip
    worker = (str(LLAMA), __file__, "--worker", json.dumps(asked))
    theirs = Server(options.shared, command=worker)
    kinds = {"alternating": [i % len(names) for i in range(len(asked_of_both))], "one": [0] * len(asked_of_both)}
    speeds: dict[str, dict[str, list[float]]] = {kind: {"afina": [], "llama": []} for kind in kinds}
    equal = 0
    for turn in range(options.rounds + 1):  # the first one warms up
        for at, (kind, order) in enumerate(kinds.items()):
            texts, new = {}, [[100 + len(kinds) * turn + at, *ids] for ids in asked_of_both]  # which nobody has read
            for peer, server, body in (("afina", ours, our_body), ("llama", theirs, their_body)):
                pairs = zip(new, order, strict=True)
                bodies = [body(ids, number, names, options.tokens if turn else 4) for ids, number in pairs]
                begun = time.perf_counter()
                texts[peer] = asyncio.run(answers(server.port, bodies))
                if turn:
                    speeds[kind][peer].append(len(asked_of_both) * options.tokens / (time.perf_counter() - begun))
            if kind == "alternating":
                both = zip(texts["afina"], texts["llama"], strict=True)
                equal = sum(a[:BEGINNING] == b[:BEGINNING] for a, b in both)
    for server in (ours, theirs):
        server.end(signal.SIGTERM)
    rows = {}
    for kind, found in speeds.items():
        ratios = [a / b for a, b in zip(found["afina"], found["llama"], strict=True)]
        rows[kind] = {peer: statistics.median(each) for peer, each in found.items()}
        rows[kind]["ratio"] = statistics.median(ratios)
    return {"machine": machine(), "precision": options.precision, "kinds": rows, "equal": equal}


def adapters(options: argparse.Namespace) -> list[str]:
    """Random ones in PEFT's format, and beside each its GGUF file."""
    import torch

    from afina.models import load_base
    from afina.serving.gguf import GgufFacts, write_adapter

    model = common.peft_model(options, torch.float32)
    base = load_base("starter", precision="fp32")
    names = [f"adapter{i}" for i in range(options.adapters)]
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        for path, parameter in model.named_parameters():
            if "lora_" in path:
                parameter.data = 0.01 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(options.shared / name)
        write_adapter(base, options.shared / name, options.shared / f"{name}.gguf", GgufFacts(name), "F16")
    return names


def our_body(ids: list[int], number: int, names: list[str], tokens: int) -> dict[str, Any]:
    return {"model": names[number], "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def their_body(ids: list[int], number: int, names: list[str], tokens: int) -> dict[str, Any]:
    return {
        "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        "lora": [{"id": number, "scale": 1.0}],
    }  # fmt: skip


async def answers(port: int, bodies: list[dict[str, Any]]) -> list[str]:
    """The texts, of requests that are sent at one time."""
    from load import TEXT, exchange, request

    found = await asyncio.gather(*(exchange(port, request(TEXT, body)) for body in bodies))
    for each, body in zip(found, bodies, strict=True):
        if each.status != 200 or each.json["usage"]["completion_tokens"] != body["max_tokens"]:
            raise SystemExit(f"{each.status}: {each.body[:500]!r}")
    return [each.json["choices"][0]["text"] for each in found]


def llama(asked: dict[str, Any]) -> None:
    """llama.cpp's server, until it is told to end."""
    server = llama_server(**asked)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
