"""What a command says with its exit code, whoever reads it; and an error that nobody expected."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from conftest import write_rows

from afina.core.errors import Interrupted, OutOfMemory, Unexpected
from afina.core.process import crash
from afina.jobs import JOBS
from afina.runs import worker
from afina.ui.cli import main
from afina.ui.commands import choose, compare, data, doctor, tune

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.mark.parametrize(
    ("methods", "code"),
    [
        ({"lora": {"failed": "x"}}, 1),
        ({"lora": {"failed": "x"}, "base": {"failed": "y"}, "full": {"failed": "z"}}, 1),
        ({"lora": {"failed": "x"}, "base": {"quality": 1}}, 0),
        ({"lora": {"quality": 1}}, 0),
    ],
)
def test_a_comparison_in_which_all_failed_is_a_failure(methods: dict, code: int) -> None:
    assert compare.VIEWS["compare"].exit_code(SimpleNamespace(methods=methods)) == code


def test_commands_that_find_something_say_so() -> None:
    assert data.VIEWS["data check"].exit_code(SimpleNamespace(ready=False)) == 1
    assert data.VIEWS["data check"].exit_code(SimpleNamespace(ready=True)) == 0
    assert doctor.VIEWS["doctor"].exit_code(SimpleNamespace(wrong=True)) == 1
    for view in (choose.VIEWS["choose"], tune.VIEWS["tune"]):  # which raise where nothing was found
        assert view.exit_code(None) == 0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_rows(tmp_path / "bad.jsonl", [{"q": "same", "a": ""}] * 12)
    write_rows(tmp_path / "good.jsonl", [{"q": f"{i} bottles of {i * i}", "a": f"{i % 3} of them"} for i in range(60)])
    shutil.copytree(RECORDED / "finished", tmp_path / "run")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("data check bad.jsonl --prompt {q} --completion {a}", 1),
        ("data check bad.jsonl --prompt {q} --completion {a} --json", 1),
        ("data check good.jsonl --prompt {q} --completion {a}", 0),
        ("data check none.jsonl --json", 2),
        ("doctor run", 1),
        ("doctor run --json", 1),
        ("models list", 0),
        ("models show nothing --json", 2),
        ("--help", 0),
        ("train --help", 0),
        ("--version", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("reader", ["left", "full disk"])
def test_the_code_is_that_of_what_was_found_though_nobody_reads_it(
    words: str, code: int, reader: str, place: Path
) -> None:
    """As in `afina data check … | head -1`; a disk that is full is the one thing worse than what was found."""
    if reader == "left":
        read_end, write_end = os.pipe()
        os.close(read_end)
    else:
        write_end = os.open("/dev/full", os.O_WRONLY)
    with open(write_end, "w") as out:
        done = forked.run(words.split(), place, cwd=place, stdout=out)
        out_of_space = reader == "full disk" and code != 2
        assert done.returncode == (2 if out_of_space else code), done.stderr
        if out_of_space:
            assert "cannot write standard output: no space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        with pytest.raises(OSError):  # noqa: PT011 - the test's own end of it is as it was
            os.write(write_end, b"x")


def test_the_whole_of_a_process_ends_so_too(place: Path) -> None:
    command = f"{sys.executable} -m afina data check bad.jsonl --prompt {{q}} --completion {{a}} | head -1; " + (
        'echo "${PIPESTATUS[0]}"'
    )
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "1", done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


class Broken(Exception):
    pass


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for traces, and `afina models list` broken."""
    job = JOBS["models list"].load()

    def fail(settings: object, listener: object) -> None:
        raise Broken("a [b]bug[/b]\nof \x1b[31mtwo lines")

    monkeypatch.setattr("afina.jobs.models.list.JOB", job._replace(function=fail))
    monkeypatch.setattr(crash.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_an_unexpected_error_is_one_line_and_a_file(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 1
    told = capsys.readouterr()
    (trace,) = broken.glob("afina-error-*.txt")
    what = "afina: unexpected Broken: a [b]bug[/b] of \\x1b[31mtwo lines"
    assert told.err == f"{what} (its trace is in {trace}): report it with that file\n"
    assert told.out == ""
    text = trace.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "in fail" in text
    assert trace.stat().st_mode & 0o777 == 0o600


def test_an_unexpected_error_is_an_object_of_json_too(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["problems"][0].startswith("unexpected Broken: a [b]bug[/b]")
    assert error["remedy"] == "report it with that file"


def test_a_trace_that_cannot_be_written(broken: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crash.tempfile, "mkstemp", full)
    assert main(["models", "list"]) == 1
    told = capsys.readouterr().err
    assert "its trace could not be written: [Errno 28]" in told
    assert told.splitlines()[-1].startswith("afina: unexpected Broken")


def test_a_trace_that_is_cut_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(error: BaseException) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crash.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(crash.traceback, "format_exception", full)
    assert "could not be written" in str(crash.explained(ValueError("odd")))
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_no_bug() -> None:
    assert isinstance(crash.explained(MemoryError()), OutOfMemory)
    assert crash.explained(MemoryError()).exit_code == 1


def test_an_unexpected_error_of_a_child_reaches_the_parent(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(Unexpected, match="unexpected TypeError") as raised:
        worker.run_in_process("rates", {"nothing": 1}, lambda event: None)
    (trace,) = tmp_path.glob("afina-error-*.txt")
    assert str(trace) in str(raised.value)
    assert "Traceback" in trace.read_text()


def test_a_child_that_is_stopped_while_it_starts_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """At once, while it imports, and while it imports the libraries: no trace of it is printed."""
    children = [worker.start("rates", {"nothing": 1}) for _ in range(3)]
    for child, delay in zip(children, (0, 0.1, 0.2), strict=True):
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
    for child in children:
        with child, pytest.raises(Interrupted, match="interrupted"):
            worker.finish(child, lambda event: None)
    assert capfd.readouterr() == ("", "")


def test_a_child_whose_parent_is_gone_ends_silently(capfd: pytest.CaptureFixture[str]) -> None:
    command = worker.python("-m", "afina.runs.worker", "rates")
    assert subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0
    assert capfd.readouterr() == ("", "")
