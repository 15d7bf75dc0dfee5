"""What comes from outside takes no more time and memory than it may, whatever it is."""

import contextlib
import json
import os
import re
import resource
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from afina.core import files
from afina.core.config import read_yaml
from afina.core.errors import BaseModelError, InputError, OutputError, SettingsError, brief, reading
from afina.core.events import read_events
from afina.core.files import check_writable, nested_deeply, read_json, read_jsonl, read_text, write_atomic, write_jsonl
from afina.core.limits.process import Exceeded, Failed, TooMuch, bounded, in_child
from afina.core.limits.yaml_text import parse_yaml
from afina.models.templates import read_template
from afina.runs.files import Prediction, read_lines

MB = 1 << 20


def endless() -> None:
    while True:
        pass


def doubling() -> None:
    text = "a"
    while True:
        text += text


def swallowing() -> None:
    while True:
        try:
            endless()
        except Exception:
            continue


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (endless, Exceeded),
        (swallowing, Exceeded),
        (lambda: re.match("(a+)+b", "a" * 40), Exceeded),
        (lambda: 10 ** (10**8), Exceeded),
        (doubling, MemoryError),
        (lambda: "a" * 10**11, MemoryError),
        (lambda: list(range(10**9)), MemoryError),
    ],
)
def test_work_ends_within_its_limits(work: Callable[[], object], error: type[BaseException]) -> None:
    begun = time.monotonic()
    with pytest.raises(error), bounded(0.2, 64 * MB):
        work()
    assert time.monotonic() - begun < 5


def test_limits_end_with_their_block() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ValueError, match="of its own"), bounded(9, 64 * MB):
        raise ValueError("of its own")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_limit_of_memory_is_put_back_by_the_last_of_several_threads() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    inside, go = threading.Event(), threading.Event()

    def other() -> None:
        with bounded(9, 64 * MB):
            inside.set()
            go.wait(9)

    thread = threading.Thread(target=other)
    with bounded(9, 64 * MB):
        thread.start()
        inside.wait(9)
    assert resource.getrlimit(resource.RLIMIT_DATA) != before  # the other one's block goes on
    go.set()
    thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    os.kill(os.getpid(), signal.SIGVTALRM)  # one that was on its way does nothing
    assert len(b"a" * (128 * MB)) == 128 * MB


def test_a_handler_of_ones_own_is_put_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGVTALRM, lambda number, frame: heard.append(number))
    try:
        with bounded(9, 64 * MB):
            sum(range(10**7))
        assert not heard
        os.kill(os.getpid(), signal.SIGVTALRM)
        assert heard == [signal.SIGVTALRM]
    finally:
        signal.signal(signal.SIGVTALRM, before)


def test_each_of_many_blocks_has_its_own_time() -> None:
    with bounded(float("inf"), 64 * MB):
        for _ in range(4):
            with bounded(0.5, 0):
                time.sleep(0.2)
        time.sleep(0.4)  # between them nothing is limited
        with pytest.raises(Exceeded), bounded(0.1, 0):
            endless()


def test_another_thread_is_limited_in_memory_and_disturbs_nobody() -> None:
    found: list[BaseException | None] = []

    def work() -> None:
        try:
            with bounded(0.1, 64 * MB):
                time.sleep(0.3)
                found.append(None)
                doubling()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    with bounded(9, 512 * MB):
        thread.join()
    assert found[0] is None
    assert isinstance(found[1], MemoryError)


def bomb(line: Callable[[str], str], first: str) -> str:
    """Ten lines, each nine of the one before."""
    names = "abcdefghij"
    return first + "".join(f"{new}: &{new} {line(old)}\n" for old, new in pairwise(names))


BOMBS = {
    "lists": bomb(lambda old: f"[{', '.join([f'*{old}'] * 9)}]", "a: &a [x, x]\n"),
    "mappings": bomb(lambda old: "{" + ", ".join(f"k{i}: *{old}" for i in range(9)) + "}", "a: &a {x: 1}\n"),
    "merges": bomb(lambda old: f"{{<<: [{', '.join([f'*{old}'] * 9)}]}}", "a: &a {x: 1}\n"),
    "itself": "a: &a [*a]\n",
    "itself, below": "a: &a {b: {c: [1, *a]}}\n",
    "deep": "a: " + "[" * 5000 + "]" * 5000 + "\n",
    "deep blocks": "".join(f"{' ' * i}a:\n" for i in range(600)),
    "long": "a: " + "x " * 400_000 + "\n",
    "many": "a: [" + "1, " * 25_000 + "1]\n",
    "a date that is none": "a: 2020-99-99\n",
    "a list as a name": "? [1, 2]\n: 3\n",
    "an unknown tag": "a: !!python/object:os.system x\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_stands_for_too_much_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BOMBS[name])
    with pytest.raises(SettingsError, match=r"a\.yaml(:\d+)? is not valid YAML") as error:
        read_yaml(tmp_path / "a.yaml")
    assert len(error.value.problems) == 1


def test_the_yaml_bomb_of_the_cases(hostile: Path) -> None:
    with pytest.raises(SettingsError, match="more than 20,000 values"):
        read_yaml(hostile / "bomb.yaml")


def test_aliases_and_merges_are_read() -> None:
    text = "a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, x: 9}\nc: [*a, *a]\n"
    a = {"x": 1, "y": [2, 3]}
    assert parse_yaml(text) == {"a": a, "b": {"x": 9, "y": [2, 3]}, "c": [a, a]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 400 + b"]" * 400, "nested more than 100 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested more than 100 deep"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b'"' + b"x" * 3000 + b'"', "has more than 0 MB, the most"),
    ],
)
def test_json_beyond_limits(content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "most" in words:
        monkeypatch.setattr(files, "JSON_BYTES", 2000)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 500


def test_nesting_is_counted() -> None:
    for depth in (1, 99, 100):
        assert not nested_deeply(json.loads("[" * depth + "]" * depth))
    assert nested_deeply(json.loads("[" * 101 + "]" * 101))
    assert not nested_deeply("text")


def test_lines_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\xff\n')
    with pytest.raises(InputError, match=r"cannot read .*a\.jsonl"):
        read_jsonl(tmp_path / "a.jsonl")


class PanicException(BaseException):
    """As the libraries in Rust name theirs."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("two\nlines"), "two lines"),
        (KeyError("name"), "KeyError: 'name'"),
        (AssertionError(), "AssertionError"),
        (RecursionError("maximum"), "nested too deeply"),
        (MemoryError(), "not enough memory"),
        (PanicException("index out of bounds"), "index out of bounds"),
        (ValueError("x" * 5000), "x" * 200),
    ],
)
def test_whatever_a_library_raises_is_one_message(raised: BaseException, said: str) -> None:
    with pytest.raises(BaseModelError) as error, reading("f.json cannot be read", BaseModelError, "download it"):
        raise raised
    assert str(error.value).split("\n") == [
        f"f.json cannot be read ({error.value.problems[0][23:-1]})",
        "  → download it",
    ]
    assert said in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), InputError("our own")])
def test_what_is_no_librarys_goes_through(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as error, reading("f.json", BaseModelError, ""):
        raise raised
    assert error.value is raised


def test_messages_are_brief() -> None:
    assert brief(ValueError("a\n  b")) == "a b"


def lists_compared() -> bool:
    """In Python's own code, which looks at no signal."""
    one: list = [1]
    other: list = [1]
    for _ in range(60):
        one, other = [one, one], [other, other]
    return one == other


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_a_child_gives_what_it_made(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> dict[str, list[str]]:
        os.write(1, b"said")
        os.write(2, b"said")
        return {"a": ["\ud800", "é" * 100_000]}

    assert in_child(work, 5, 64 * MB) == {"a": ["\ud800", "é" * 100_000]}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (endless, "1 s"), (lists_compared, "1 s"), (lambda: [0] * (1 << 30), "64 MB"), (os.abort, "64 MB"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "64 MB"), (lambda: "x" * (1 << 40), "64 MB"),
    ],
)  # fmt: skip
def test_a_child_that_takes_too_much(work: Callable[[], object], words: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_DATA)
    begun = time.monotonic()
    with pytest.raises(TooMuch, match=f"^{words}$"):
        in_child(work, 1, 64 * MB)
    assert time.monotonic() - begun < 30  # of a busy machine
    assert before == (resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_DATA))


def test_a_child_that_fails() -> None:
    with pytest.raises(Failed, match="no such thing"):
        in_child(raises(ValueError("no such\nthing")), 1, 64 * MB)
    with pytest.raises(Failed, match="wrong") as error:
        in_child(raises(InputError("wrong", "mend it")), 1, 64 * MB)
    assert error.value.remedy == "mend it"
    for odd in (KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(Failed):
            in_child(raises(odd), 1, 64 * MB)


def children() -> str:
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))


def test_no_child_is_left() -> None:
    before = children()
    for work in (os.abort, lambda: 1, raises(ValueError())):
        with contextlib.suppress(TooMuch, Failed):
            in_child(work, 1, 64 * MB)
    assert children() == before


@pytest.mark.parametrize(
    "number", ["1" + ":59" * 3000, "0x" + "f" * 9000, "9" * 9000, "0b" + "1" * 9000, "-" + "7" * 1001]
)
def test_numbers_too_long_to_be_shown_are_refused(number: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"seed: {number}\n")
    with pytest.raises(SettingsError, match="a number has"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("seed: " + "9" * 999)
    assert read_yaml(tmp_path / "a.yaml") == {"seed": int("9" * 999)}


READERS = [read_json, read_yaml, read_template]


def odd_file(kind: str, folder: Path) -> Path:
    path = folder / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(3 << 30)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pipe", "is not a regular file"),
        ("/dev/zero", "is not a regular file"), ("/dev/tty", "regular|No such device"),
        ("huge", "has more than [0-9]+ MB, the most that is read"), ("folder", "Is a directory"),
        ("/proc/self/mem", "Input/output error"), ("absent", "No such file"),
    ],
)  # fmt: skip
def test_no_more_is_read_of_a_file_than_its_kind_has(read: Callable, kind: str, words: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words):
        read(odd_file(kind, tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_what_a_file_claims_to_hold_is_not_relied_on(tmp_path: Path) -> None:
    endless = Path("/proc/self/maps")  # a regular file that claims no bytes
    with pytest.raises(InputError, match="has more than 0 MB"):
        read_text(endless, 10, InputError)
    assert read_text(endless, 1 << 24, InputError)
    (tmp_path / "a").write_text("éa")
    assert read_text(tmp_path / "a", 3, InputError) == "éa"
    with pytest.raises(SettingsError, match="has more than"):
        read_text(tmp_path / "a", 2, SettingsError)


def test_a_pipe_of_lines_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_jsonl(tmp_path / "a.json")


def test_a_file_of_lines_is_read_no_further_than_it_is_right(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "none"}\n' * 200_000)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is not an event"):
            read_events(path)
        with pytest.raises(InputError, match="does not hold what a run writes there"):
            read_lines(Prediction, path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    path.write_text('{"a": "' + "x" * (33 << 20))
    with pytest.raises(InputError, match="has a line of more than 33,554,432 characters"):
        read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n\xff')
    with pytest.raises(InputError, match="cannot read"):
        read_jsonl(path)
    write_jsonl(path, [{"a": "one\u2028two\x85three\rfour"}, {"b": 1}])  # which end lines, but not of JSON
    with path.open("a") as file:
        file.write('{"cut": ')
    assert read_jsonl(path) == [{"a": "one\u2028two\x85three\rfour"}, {"b": 1}]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_is_waited_for_at_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (check_writable, lambda path: write_atomic(path, "text"), lambda path: write_jsonl(path, [{}])):
        with pytest.raises(OutputError, match=f"cannot write {pipe}: it is a pipe from which nobody reads"):
            write(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_writable(pipe)
    with pytest.raises(BlockingIOError):  # which is not the end
        os.read(reader, 100)
    write_jsonl(pipe, [{"a": 1}])
    assert os.read(reader, 100) == b'{"a": 1}\n'
    os.close(reader)
    with pytest.raises(OutputError, match="nobody reads"):
        write_atomic(pipe, "text")
    assert pipe.is_fifo()
    check_writable(Path("/dev/null"))
    write_atomic(Path("/dev/null"), "text")
