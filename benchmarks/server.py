"""What a server adds to generating: tokens a second of as many answers at one time, and memory over loading cycles.

    python benchmarks/server.py [--streams 32] [--rounds 3] [--cycles 200] [--json]

On the starter, answers of 64 tokens (no stop token ends one) to the tickets' messages. All ways take turns in each
round; ratios are medians over the rounds, of tokens a second beside `batcher`.

    batcher    Batcher.step in a loop, the texts decoded: what a program does in process
    engine     LocalService: an engine's thread, and readers in an event loop (must be 0.9 or more)
    http       the same over HTTP with events, on loopback; the client is wrk, written in C (apt-get install wrk),
               whose processor time is told (must be 0.9 or more); where wrk is not installed, a process of Python's
    first      seconds to the first token of one prompt when idle, beside reading it with the batcher

Then an adapter of rank 16 is loaded, asked and unloaded so many times; resident memory after the first tenth of the
cycles and at the end (must be within 10 MB).
"""

import argparse
import asyncio
import gc
import json
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RANK, machine, messages
from load_malformed import TEXT, request

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TOKENS = 64
WRK = shutil.which("wrk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(options.client, json.load(sys.stdin))
        return
    found = measured(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['machine']}; {found['precision']}; {options.streams} answers of {TOKENS} tokens at one time")
    for way, row in found["ways"].items():
        print(f"{way:>10} {row['tokens_per_second']:7.0f} tokens/s  {row['ratio']:.3f}")
    took = f"{found['client_seconds']:.2f} s of processor time in {found['http_seconds']:.2f} s"
    print(f"the client of http ({found['client']}) took {took}")
    print(f"first token after {1000 * found['first']:.0f} ms, {found['first_ratio']:.2f} of reading the prompt")
    print(f"{options.cycles} cycles: resident memory {found['cycles_mb']:+.1f} MB")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from adapters_made import made_on
    from serving_client import listening, serving

    from afina.core.device import keep_freed_memory
    from afina.models import load_base
    from afina.serving.engine import Limits

    keep_freed_memory()
    sys.setswitchinterval(0.0005)  # as `afina serve`
    base = load_base("starter", precision=options.precision)
    texts = messages(options.streams)
    prompts = [base.tokenizer.encode(text) for text in texts]
    limits = Limits(max_batch=options.streams, max_queue=256)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(base, [Path(folder)], limits) as server,
        listening(server, grace=0.1) as (port, _),
    ):
        service = server.service
        made_on(base, Path(folder) / "random", size=0.01, rank=RANK)
        ways: dict[str, list[float]] = {"batcher": [], "engine": [], "http": []}
        clients: list[tuple[float, float]] = []
        for _ in range(options.rounds + 1):  # the first one warms up
            ways["batcher"].append(timed(lambda: in_process(base, prompts)))
            ways["engine"].append(timed(lambda: asyncio.run(through_engine(service, prompts))))
            seconds, busy = over_http(port, base.facts.name, texts)
            ways["http"].append(seconds)
            clients.append((seconds, busy))
        first, reading = first_token(service, base, prompts[0])
        grown = asyncio.run(cycles(service, prompts[0], options.cycles))
    total = len(prompts) * TOKENS
    speeds = {way: [total / seconds for seconds in found[1:]] for way, found in ways.items()}
    return {
        "machine": machine(),
        "precision": str(base.dtype).removeprefix("torch."),
        "ways": {
            way: {
                "tokens_per_second": statistics.median(found),
                "ratio": statistics.median(a / b for a, b in zip(found, speeds["batcher"], strict=True)),
            }
            for way, found in speeds.items()
        },
        "client": "wrk" if WRK else "Python",
        "http_seconds": statistics.median(seconds for seconds, _ in clients[1:]),
        "client_seconds": statistics.median(busy for _, busy in clients[1:]),
        "first": first,
        "first_ratio": first / reading,
        "cycles_mb": grown / 1e6,
    }


def timed(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def in_process(base: Any, prompts: list[list[int]]) -> None:
    from afina.models.batcher import Batcher
    from afina.models.sampling import Sampling

    batcher = Batcher(base.model, base.tokenizer, len(prompts))
    for prompt in prompts:
        batcher.submit(prompt, TOKENS, Sampling(ignore_eos=True))
    while batcher.busy:
        for each in batcher.step():
            each.text.take()


async def through_engine(service: Any, prompts: list[list[int]], new: int = TOKENS) -> float:
    """Seconds to the first piece of the first answer."""
    from afina.models.sampling import Sampling
    from afina.serving.service import Wanted

    begun, first = time.perf_counter(), []

    async def read(prompt: list[int]) -> None:
        handle = service.open(service.base.facts.name)
        async for piece in await handle.generate(Wanted(prompt, new, Sampling(ignore_eos=True))):
            if piece.text:
                first.append(time.perf_counter() - begun)
        handle.close()

    await asyncio.gather(*map(read, prompts))
    return first[0]


def first_token(service: Any, base: Any, prompt: list[int]) -> tuple[float, float]:
    """Seconds to the first token of a prompt of 300 tokens that was not read before, and those of reading it."""
    import torch

    waits, reads = [], []
    for i in range(5):
        fresh = [100 + i, *(prompt * 50)[:299]]
        waits.append(asyncio.run(through_engine(service, [fresh], 1)))
        with torch.inference_mode():
            sequences = base.model.start(1, 301)
            sequences.add([fresh], [None])
            reads.append(timed(lambda own=sequences: own.read(10**6)))
    return statistics.median(waits), statistics.median(reads)


async def cycles(service: Any, prompt: list[int], count: int) -> float:
    """Bytes by which resident memory grew after the first tenth of so many cycles."""
    import psutil

    from afina.models.sampling import GREEDY
    from afina.serving.service import Wanted

    before = 0
    for i in range(count):
        await service.load("again", Path("random"))
        handle = service.open("again")
        async for _ in await handle.generate(Wanted(prompt, 2, GREEDY)):
            pass
        handle.close()
        await service.unload("again")
        if i + 1 in (count // 10, count):
            gc.collect()
            now = psutil.Process().memory_info().rss
            before = before or now
    return now - before


def over_http(port: int, model: str, texts: list[str]) -> tuple[float, float]:
    """Seconds until all answers are there, and the processor time of the client."""
    bodies = [
        {"model": model, "prompt": text, "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "temperature": 0}
        for text in texts
    ]
    if WRK:
        return over_wrk(port, bodies)
    command = [sys.executable, __file__, "--client", str(port)]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True, check=True)
    seconds, busy = map(float, done.stdout.split())
    return seconds, busy


def over_wrk(port: int, bodies: list[dict[str, Any]]) -> tuple[float, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(body) + "\n" for body in bodies)
        file.flush()
        script = Path(__file__).parent / "wrk.lua"
        where = f"http://127.0.0.1:{port}/v1/completions"
        command = [WRK, "-t1", f"-c{len(bodies)}", "-d300", "--timeout", "300", "-s", script, where, "--", file.name]
        before = processor_seconds(resource.RUSAGE_CHILDREN)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            found = next(filter(None, (re.match(r"all answers in ([\d.]+) s", line) for line in process.stdout)), None)
            process.send_signal(signal.SIGINT)
        used = processor_seconds(resource.RUSAGE_CHILDREN) - before
    if not found:
        raise SystemExit("wrk did not get its answers")
    return float(found[1]), used


def processor_seconds(of: int) -> float:
    """Of this process, or of its children that have ended."""
    used = resource.getrusage(of)
    return used.ru_utime + used.ru_stime


def client(port: int, bodies: list[dict[str, Any]]) -> None:
    """Sends all requests, reads all answers to their end, and looks at nothing in them."""
    import selectors

    begun, before = time.perf_counter(), processor_seconds(resource.RUSAGE_SELF)
    selector = selectors.DefaultSelector()
    for body in bodies:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request(TEXT, body))
        selector.register(connection, selectors.EVENT_READ, bytearray())
    left = len(bodies)
    while left:
        for key, _ in selector.select():
            part = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            assert b'"error"' not in part, part
            key.data[:] = key.data[-6:] + part  # the end may come in two parts
            if b"[DONE]" in key.data or not part:
                selector.unregister(key.fileobj)
                left -= 1
    print(time.perf_counter() - begun, processor_seconds(resource.RUSAGE_SELF) - before)


if __name__ == "__main__":
    main()
