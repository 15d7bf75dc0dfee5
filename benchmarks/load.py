"""A server under load: thousands of requests of every kind at one time, of which many break off or are malformed.

    python benchmarks/load.py [--requests 10000] [--at-once 64] [--seconds 600] [--seed 0] [--json]

`afina serve` in a process of its own, with a tiny random model, three adapters, one that changes on the disk and one
that is loaded, replaced and unloaded meanwhile. A third of the requests is given up by its client (before the body is
whole, before the answer, or in the middle of it), a fifth is malformed; the others are chat and completions, with and
without a stream. Checked of each answer: it is complete (finish_reason, [DONE], usage), or an error in OpenAI's shape;
its fingerprint is of weights that were loaded; the same weights write the same to the same prompt, greedily. No status
is 500 or more, but 503 of a model that was unloaded. At the end nothing runs, waits or is held, and resident memory is
that after the first tenth. Then it is killed (-9) and started anew: the same answers. Exit code 1 where one fails.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import ENVIRONMENT
from load_malformed import CHAT, KINDS, NO_HTTP, TEXT, admin_kinds, request

KEY = "an-admins-key"
PINNED = ("first", "second", "third")
MEMORY = 64_000_000  # for keys, values and adapters
AFINA = (sys.executable, "-m", "afina", "serve", "--port", "0")
GROWN_MB = 10.0  # that resident memory may differ by
_WORDS = re.compile(rb'"(?:content|text)": ?"[^"]')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        found = measured(Path(folder), options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    sys.exit(1 if found["wrong"] else 0)


def show(found: dict[str, Any]) -> None:
    print(f"{found['machine']}; {found['precision']}; {found['requests']} requests in {found['seconds']:.0f} s")
    for name, count in sorted(found["counts"].items()):
        print(f"{count:7} {name}")
    for name in ("first token", "whole answer"):
        print(f"{name}: p50 {1000 * found[name][0]:.0f} ms, p95 {1000 * found[name][1]:.0f} ms")
    print(f"resident memory {found['resident_mb']:.0f} MB at the end, {found['grown_mb']:+.1f} since the first tenth")
    print(f"{found['repeated']} answers after kill -9 compared; wrong: {len(found['wrong'])}")
    for each in found["wrong"][:20]:
        print(f"  {each}")


def make(folder: Path) -> None:
    """A base and adapters: `runs` that the server starts with, and the folder out of which an admin loads."""
    from adapters_made import made_on
    from conftest import save_tiny

    from afina.models import load_base

    base = load_base(str(save_tiny(folder / "tiny-base")), precision="fp32", device="cpu")
    for seed, name in enumerate(PINNED):
        made_on(base, folder / "runs" / name, seed, facts={})
    inside = folder / "adapters"
    for seed, name in enumerate(("third", ".kept/a", ".kept/b", "nothing"), len(PINNED)):
        made_on(base, inside / name, seed, 0.0 if name == "nothing" else 0.5, facts={})
    point(folder, "a")
    (inside / "outside").symlink_to(folder / "runs" / "first")
    (inside / "damaged").mkdir()
    for file in (inside / "third").iterdir():
        content = file.read_bytes()
        (inside / "damaged" / file.name).write_bytes(content[: len(content) // 2])
    (folder / "admin.key").write_text(KEY)


def point(folder: Path, version: str) -> None:
    """Changes what `swapped` is, on the disk, in one moment."""
    new = folder / "adapters" / ".new"
    new.symlink_to(Path(".kept") / version)
    new.rename(folder / "adapters" / "swapped")


@dataclass
class Answered:
    """What came on one connection; `status` 0: nothing did."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    first: float = 0.0  # seconds to the first text
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def exchange(port: int, sent: bytes, leave_after: int | None = None) -> Answered:
    """`leave_after`: the connection is closed once so many bytes of the answer came, or after 20 ms."""
    begun, found, raw = time.perf_counter(), Answered(), bytearray()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        async with asyncio.timeout(300 if leave_after is None else 0.02):
            while part := await reader.read(1 << 16):
                raw += part
                if not found.first and _WORDS.search(raw):
                    found.first = time.perf_counter() - begun
                if leave_after is not None and len(raw) > leave_after:
                    break
    except (ConnectionError, TimeoutError):
        if leave_after is None and not raw:
            raise
    finally:
        writer.transport.abort() if leave_after is not None and leave_after % 2 else writer.close()
    found.seconds = time.perf_counter() - begun
    head, _, body = bytes(raw).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    found.headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:])}
    found.status = int(lines[0].split()[1]) if raw else 0
    found.body = _without_chunks(body) if "transfer-encoding" in found.headers else body
    return found


def _without_chunks(body: bytes) -> bytes:
    found, at = b"", 0
    while (end := body.find(b"\r\n", at)) > 0:
        size = int(body[at:end], 16)
        found += body[end + 2 : end + 2 + size]
        at = end + 4 + size
    return found


@dataclass
class Load:
    """Clients of the server at `port`, which serves what `make` wrote into `folder`; `base` is the base's name.

    `told` are the greedy answers by weights and question; `loaded` the fingerprints that a name had."""

    port: int
    folder: Path
    base: str
    seed: int = 0
    exact: bool = True  # it computes in fp32, where company changes no greedy token
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    told: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    asked: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # of pinned models, to be asked again
    loaded: dict[str, set[str]] = field(default_factory=dict)
    fingerprints: set[tuple[str, str]] = field(default_factory=set)
    times: list[tuple[float, float]] = field(default_factory=list)

    async def run(self, requests: int, at_once: int, seconds: float, on_tenth: Any = None) -> int:
        """How many were sent."""
        await self.look()
        rng = random.Random(self.seed)
        numbers, end = iter(range(requests)), time.monotonic() + seconds
        done = 0

        async def worker() -> None:
            nonlocal done
            for _ in numbers:
                if time.monotonic() > end:
                    return
                await self.one(random.Random(rng.random()))
                done += 1
                if on_tenth and done == max(1, requests // 10):
                    on_tenth()

        changing = asyncio.create_task(self.change())
        await asyncio.gather(*(worker() for _ in range(at_once)))
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)
        if not changing.cancelled() and changing.exception():
            self.wrong.append(f"loading and unloading: {changing.exception()!r}")
        self.check_fingerprints()
        return done

    async def one(self, rng: random.Random) -> None:
        kind = rng.random()
        try:
            if kind < 1 / 3:
                await self.give_up(rng)
            elif kind < 1 / 3 + 1 / 5:
                await self.malformed(rng)
            else:
                await self.ask(*self.question(rng))
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    def question(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """A path and a body: of a few, so that answers come again."""
        number = rng.randrange(12)
        text = f"message {number}: " + "the parcel never came. " * (number % 5)
        body: dict[str, Any] = {
            "model": rng.choice([self.base, *PINNED, "swapped", "changing"]), "max_tokens": (4, 16, 40)[number % 3],
            "temperature": 0, "ignore_eos": number % 2 == 0,
        }  # fmt: skip
        if rng.random() < 0.5:
            body["stream"], body["stream_options"] = True, {"include_usage": True}
        if rng.random() < 0.2:
            body |= {"temperature": 1.0, "n": 2}
        if number % 6 == 5:
            body["stop"] = ["e", "zz"]
        if rng.random() < 0.5:
            return CHAT, body | {"messages": [{"role": "user", "content": text}]}
        return TEXT, body | {"prompt": text}

    async def give_up(self, rng: random.Random) -> None:
        path, body = self.question(rng)
        sent, how = request(path, body | {"max_tokens": 300, "ignore_eos": True, "n": 1}), rng.randrange(3)
        if how == 0:
            await exchange(self.port, sent[: rng.randrange(10, len(sent))], rng.randrange(2))
        elif how == 1:
            await exchange(self.port, sent, rng.randrange(2))
        else:
            await exchange(self.port, sent, rng.randrange(400, 5000))
        self.counts[("given up before the body", "given up at once", "given up in the middle")[how]] += 1

    async def malformed(self, rng: random.Random) -> None:
        name, made, statuses = rng.choice([*KINDS, *admin_kinds(KEY)])
        found = await exchange(self.port, made(rng, self.base))
        self.counts["malformed: refused"] += 1
        if found.status not in statuses:
            self.wrong.append(f"{name}: {found.status} {found.body[:200]!r}")
        elif name not in NO_HTTP:
            self.check_error(name, found)

    def check_error(self, what: str, found: Answered) -> None:
        try:
            shape = found.json["error"].keys() == {"message", "type", "param", "code"} and len(found.json) == 1
        except (ValueError, KeyError, AttributeError):
            shape = False
        if not shape or b"Traceback" in found.body or str(self.folder).encode() in found.body:
            self.wrong.append(f"{what}: {found.status}, not in shape: {found.body[:200]!r}")

    async def ask(self, path: str, body: dict[str, Any]) -> None:
        found = await exchange(self.port, request(path, body))
        kind = f"{path} stream" if "stream" in body else path
        what = f"{body['model']} {kind}"
        self.counts[f"{kind}: {found.status}"] += 1
        if found.status != 200:
            self.check_error(what, found)
            gone = found.status in {"changing": (404, 503), "swapped": (503,)}.get(body["model"], ())
            if not gone and not (found.status == 429 and "retry-after" in found.headers):
                self.wrong.append(f"{what}: {found.status} {found.body[:200]!r}")
            return
        whole = _from_stream(found.body) if "stream" in body else _from_json(found.json)
        if isinstance(whole, str):
            self.counts[f"{kind}: ended with an error"] += 1
            if body["model"] != "changing" or '"unavailable_error"' not in whole:
                self.wrong.append(f"{what}: {whole[-300:]}")
            return
        self.times.append((found.first or found.seconds, found.seconds))
        self.check(what, path, body, whole)

    def check(self, what: str, path: str, body: dict[str, Any], whole: dict[str, Any]) -> None:
        usage, choices = whole["usage"], whole["choices"]
        ends = {reason for _, reason in choices.values()}
        if set(choices) != set(range(body.get("n", 1))) or not ends <= {"stop", "length"}:
            self.wrong.append(f"{what}: not complete: {choices}")
        generated, most = usage["completion_tokens"], body["max_tokens"] * len(choices)
        if usage["total_tokens"] != usage["prompt_tokens"] + generated or not 0 < generated <= most:
            self.wrong.append(f"{what}: usage {usage}")
        self.fingerprints.add((body["model"], whole["fingerprint"]))
        if body["temperature"]:
            return
        question = {name: body[name] for name in sorted(body) if name not in ("model", "stream", "stream_options")}
        key = f"{weights(whole['fingerprint'])} {path} {json.dumps(question)}"
        answer = choices[0], usage["prompt_tokens"], generated
        if self.told.setdefault(key, answer) != answer:
            self.counts["greedy answers that differ"] += 1
            if self.exact:
                self.wrong.append(f"{what}: {answer}, and before {self.told[key]}")
        if body["model"] in (self.base, *PINNED):
            self.asked[key] = path, body

    async def admin(self, method: str, path: str, body: Any = None) -> Answered:
        return await exchange(self.port, request(path, body, method, authorization=f"Bearer {KEY}"))

    async def metrics(self) -> dict[str, float]:
        lines = (await self.admin("GET", "/metrics")).body.decode().splitlines()
        parts = [line.rpartition(" ") for line in lines if line[0] != "#"]
        return {name: float(text) for name, _, text in parts}

    async def look(self) -> None:
        """Which weights are loaded now."""
        for each in (await self.admin("GET", "/v1/models")).json["data"]:
            self.loaded.setdefault(each["id"], set()).add(each["afina"]["fingerprint"])

    async def change(self) -> None:
        """Loads, replaces and unloads one name, and changes the files of another, until it is cancelled."""
        for turn in range(1 << 30):
            version = ".kept/a" if turn % 2 else ".kept/b"
            body = {"name": "changing", "path": version, "replace": True}
            found = await self.admin("POST", "/v1/adapters", body)
            self.counts[f"load: {found.status}"] += 1
            if found.status != 201:
                self.wrong.append(f"load: {found.status} {found.body[:200]!r}")
            else:
                self.loaded.setdefault("changing", set()).add(found.json["afina"]["fingerprint"])
            point(self.folder, version[-1])
            await asyncio.sleep(0.1)
            await self.look()
            if turn % 3 == 2:
                found = await self.admin("DELETE", f"/v1/adapters/changing?wait_s={turn % 2}")
                self.counts[f"unload: {found.status}"] += 1
                if found.status != 200:
                    self.wrong.append(f"unload: {found.status} {found.body[:200]!r}")

    def check_fingerprints(self) -> None:
        swapped = set(map(weights, self.loaded.get("changing", ())))  # what is on the disk under both names
        for name, found in self.fingerprints:
            if found not in self.loaded.get(name, ()) and not (name == "swapped" and weights(found) in swapped):
                self.wrong.append(f"{name}: an answer of {found}, which was never loaded")

    async def check_empty(self, most_bytes: int) -> None:
        """That nothing runs, waits or failed, and nothing is held but what is kept of prompts."""
        for _ in range(100):
            numbers = await self.metrics()
            held = {name: numbers[f"afina_requests_{name}"] for name in ("running", "waiting")}
            if not any(held.values()):
                break
            await asyncio.sleep(0.05)
        for name, count in (held | {"faults": numbers["afina_faults_total"]}).items():
            if count:
                self.wrong.append(f"at the end: {name} {count}")
        if numbers["afina_kv_bytes"] > most_bytes:
            self.wrong.append(f"at the end: {numbers['afina_kv_bytes']} bytes of keys and values")
        for name, count in numbers.items():
            if re.search(r'status="5\d\d"', name) and 'status="503"' not in name:
                self.wrong.append(f"{name} {count}")
        self.counts["cancelled, as the server counts"] = int(numbers["afina_requests_cancelled_total"])

    async def check_unloads(self) -> None:
        """That nobody holds an adapter any more, and that only those of the command line stay."""
        for each in (await self.admin("GET", "/v1/adapters")).json["data"]:
            found = (await self.admin("DELETE", f"/v1/adapters/{each['id']}?wait_s=0")).json
            stays = found.get("error", {}).get("code") == "adapter_in_use"
            if stays != (each["id"] in PINNED) or not (stays or found.get("drained")):
                self.wrong.append(f"at the end {each['id']} is held: {found}")
        loaded = (await self.metrics())["afina_adapters_loaded"]
        if loaded != len(PINNED):
            self.wrong.append(f"at the end {loaded:.0f} adapters are held")


def weights(fingerprint: str) -> str:
    """Without the generation."""
    return fingerprint.rpartition("-")[0]


def _from_json(answer: dict[str, Any]) -> dict[str, Any]:
    choices = {
        each["index"]: (each["message"]["content"] if "message" in each else each["text"], each["finish_reason"])
        for each in answer["choices"]
    }
    return {"usage": answer["usage"], "choices": choices, "fingerprint": answer["system_fingerprint"]}


def _from_stream(body: bytes) -> dict[str, Any] | str:
    """The answer; the whole as text where it ended with an error, or has no end."""
    frames = [line[6:] for line in body.decode().split("\n\n") if line.startswith("data: ")]
    if not frames or frames[-1] != "[DONE]":
        return body.decode()
    texts: Counter[int] = Counter()
    choices: dict[int, tuple[str, str | None]] = {}
    usage, prints = None, set()
    for frame in map(json.loads, frames[:-1]):
        usage = frame.get("usage") or usage
        prints.add(frame["system_fingerprint"])
        for each in frame["choices"]:
            texts[each["index"]] += 1
            text, reason = choices.get(each["index"], ("", None))
            new = each["delta"].get("content") if "delta" in each else each["text"]
            choices[each["index"]] = text + (new or ""), each["finish_reason"] or reason
    if len(prints) != 1 or usage is None:
        return body.decode()
    return {"usage": usage, "choices": choices, "fingerprint": prints.pop()}


class Server:
    """A server in a process of its own, by default Afina's, which says its address in the file `log` in `folder`."""

    def __init__(self, folder: Path, *arguments: str, command: Sequence[str] = AFINA, **environment: str) -> None:
        self.log = (folder / f"server.{time.monotonic_ns()}").open("w+")
        paths = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1]), "NO_COLOR": "1", **environment}
        self.process = subprocess.Popen([*command, *arguments], stdout=self.log, stderr=self.log, env=paths)
        end = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.said)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{self.said}")
            time.sleep(0.05)
        self.port = int(found[1])

    @property
    def said(self) -> str:
        return Path(self.log.name).read_text()

    @property
    def resident(self) -> int:
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.log.close()
        return code


def on_what_was_made(folder: Path) -> Server:
    runs = [str(folder / "runs" / name) for name in PINNED]
    inside, key = str(folder / "adapters"), str(folder / "admin.key")
    return Server(folder, *runs, "--adapters", inside, "--admin-key-file", key, "--memory", str(MEMORY))


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from common import machine

    server = on_what_was_made(folder)
    precision = re.findall(r"computes in (\S+)", server.said)[0]
    load = Load(server.port, folder, "tiny-base", options.seed, precision == "fp32")
    begun, tenth = time.perf_counter(), []
    done = asyncio.run(
        load.run(options.requests, options.at_once, options.seconds, lambda: tenth.append(server.resident))
    )
    seconds = time.perf_counter() - begun
    asyncio.run(load.check_empty(MEMORY))
    resident = server.resident
    grown = (resident - tenth[0]) / 1e6 if tenth else 0.0
    if grown > GROWN_MB:
        load.wrong.append(f"resident memory grew by {grown:.1f} MB")
    if "Traceback" in server.said or "a pass failed" in server.said:
        load.wrong.append(f"the server's log: {server.said[-2000:]}")
    asyncio.run(killed(load, server))

    again = on_what_was_made(folder)
    load.port = again.port
    before = len(load.wrong)
    asyncio.run(repeated(load))
    if len(load.wrong) == before:
        asyncio.run(load.check_unloads())
    if code := again.end(signal.SIGTERM):
        load.wrong.append(f"the server's exit code is {code}")
    firsts, wholes = zip(*load.times, strict=True)

    def quantiles(values: tuple[float, ...]) -> tuple[float, float]:
        cuts = statistics.quantiles(values, n=20)
        return cuts[9], cuts[18]

    return {
        "machine": machine(), "precision": precision, "requests": done, "seconds": seconds,
        "counts": load.counts, "first token": quantiles(firsts), "whole answer": quantiles(wholes),
        "grown_mb": grown, "resident_mb": resident / 1e6, "repeated": len(load.asked), "wrong": load.wrong,
    }  # fmt: skip


async def killed(load: Load, server: Server) -> None:
    """The server is killed while it answers."""
    body = {"model": "first", "prompt": "hello", "max_tokens": 400, "ignore_eos": True, "stream": True}
    running = [asyncio.create_task(exchange(server.port, request(TEXT, body))) for _ in range(8)]
    await asyncio.sleep(0.1)
    server.end(signal.SIGKILL)
    await asyncio.gather(*running, return_exceptions=True)


async def repeated(load: Load, most: int | None = None) -> None:
    """Asks anew what was asked, of models that stayed, one after another; the answers have to be those that were told
    before."""
    await load.look()
    for path, body in list(load.asked.values())[:most]:
        await load.ask(path, body)


if __name__ == "__main__":
    main()
