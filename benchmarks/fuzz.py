"""Opens files that nobody planned, of every kind that is read: a third are valid ones with one value or byte changed, a
third are damaged in several places, a third hold what was never meant.

    python benchmarks/fuzz.py [--count 10000] [--seed 0] [--kind NAME]

Each case is opened by what reads its kind. It ends well or with one of Afina's errors for wrong input; within 10 s,
with no more than 2 GB beyond what the process had, and without a signal; and rows in = kept + reported.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz_kinds import ODD, Kind, all_kinds

from afina.core.errors import InputError

SECONDS, BYTES, AT_ONCE = 10.0, 2 << 30, 50


def changed(content: bytes, draw: random.Random) -> bytes:
    """One value or one byte of a valid file is another one."""
    try:
        lines = content.decode().splitlines(keepends=True)
        at = 0 if len(lines) > 1 and lines[0].strip() in ("{", "[") else draw.randrange(len(lines))
        whole = lines[0].strip() in ("{", "[")
        tree = json.loads(content if whole else lines[at])
    except (ValueError, IndexError):
        tree = None
    if isinstance(tree, dict | list) and tree and draw.random() < 0.7:
        node: Any = tree
        while True:
            key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not (isinstance(node[key], dict | list) and node[key]) or draw.random() < 0.2:
                break
            node = node[key]
        if isinstance(node, dict) and draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(ODD)
        text = json.dumps(tree).encode()
        return text if whole else "".join(lines[:at]).encode() + text + b"\n" + "".join(lines[at + 1 :]).encode()
    found = bytearray(content)
    if found:
        found[draw.randrange(len(found) if draw.random() < 0.5 else min(len(found), 3000))] = draw.randrange(256)
    return bytes(found)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A valid file that was cut, repeated, zeroed or overwritten in several places."""
    for _ in range(draw.randrange(1, 5)):
        size = len(content)
        a, b = sorted((draw.randrange(size + 1), draw.randrange(size + 1)))
        b = min(b, a + draw.choice([1, 4, 8, 100, size]))
        content = draw.choice([
            content[:a], content[a:], content[:a] + content[b:], content[:b] + content[a:],
            content[:a] + bytes(b - a) + content[b:], content[:a] + b"\xff" * (b - a) + content[b:],
            content[:a] + draw.randbytes(min(b - a, 64)) + content[a + min(b - a, 64) :],
        ])  # fmt: skip
    return content


def case(kind: Kind, number: int, seed: int) -> bytes:
    """The content of the target in the case of that number."""
    draw = random.Random(f"{kind.name} {number} {seed}")
    valid = (kind.folder / kind.target).read_bytes()
    if number % 3 == 2:
        return kind.invent(draw)
    return (changed, damaged)[number % 3](valid, draw)


def attempt(kind: Kind, content: bytes, place: Path) -> str:
    """How opening the case ends: 'read', 'refused', or what went wrong. Only the target is new in `place`."""
    if not place.is_dir():
        shutil.copytree(kind.folder, place)
    (place / kind.target).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    try:
        kind.read(place)
        end = "read"
    except InputError as error:
        end = (
            "refused" if str(error).strip() and len(str(error)) < 3000 else f"a message of {len(str(error))} characters"
        )
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        end = "".join(traceback.format_exception(error)[-4:])
    seconds = time.monotonic() - begun
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if seconds > SECONDS or grown > BYTES:
        end = f"{seconds:.1f} s and {grown >> 20} MB"
    return end


def run(chosen: list[Kind], numbers: range, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """How many cases ended in which way; and those that went wrong. Cases run in children, some at once."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    todo = [(kind, number) for number in numbers for kind in (chosen[number % len(chosen)],)]
    while todo:
        part, todo = todo[:AT_ONCE], todo[AT_ONCE:]
        done = _child(part, seed, folder)
        for (kind, number), end in zip(part, done, strict=False):
            ends[end if end in ("read", "refused") else "wrong"] += 1
            if end not in ("read", "refused"):
                wrong.append(f"{kind.name} {number}: {end}")
        todo = part[len(done) :] + todo
    return ends, wrong


def _child(part: list[tuple[Kind, int]], seed: int, folder: Path) -> list[str]:
    """The ends of the first cases of a part, the last of which may have ended the child."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            for kind, number in part:
                end = attempt(kind, case(kind, number, seed), folder / f"{os.getpid()} {kind.name}")
                os.write(write, (json.dumps(end) + "\n").encode())
        finally:
            os._exit(0)
    os.close(write)
    text, killed = b"", False
    while select.select([read], [], [], 2 * SECONDS)[0]:
        piece = os.read(read, 1 << 16)
        if not piece:
            break
        text += piece
    else:
        killed = True
        os.kill(child, signal.SIGKILL)
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = [json.loads(line) for line in text.decode().splitlines()]
    for kind in {each.name for each, _ in part}:
        shutil.rmtree(folder / f"{child} {kind}", ignore_errors=True)
    if len(done) < len(part):
        done.append(f"not done after {2 * SECONDS:.0f} s" if killed else f"ended by signal {-status}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only this kind")
    parser.add_argument(
        "--sanitise", action="store_true", help="with the kernels of `make sanitise`, and its environment"
    )
    options = parser.parse_args()
    if options.sanitise:
        from conftest import sanitise

        sanitise()
    with tempfile.TemporaryDirectory() as folder:
        found = all_kinds(Path(folder))
        chosen = [kind for kind in found if options.kind in (None, kind.name)]
        if not chosen:
            parser.error(f"--kind takes {', '.join(kind.name for kind in found)}")
        begun = time.monotonic()
        ends, wrong = run(chosen, range(options.count), options.seed, Path(folder))
    for each in wrong:
        print(each)
    shown = ", ".join(f"{count:,} {end}" for end, count in ends.items())
    print(f"{options.count:,} files of {len(chosen)} kinds: {shown}; {time.monotonic() - begun:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
