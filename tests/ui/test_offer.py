"""What a person on a terminal is offered for a file whose columns do not say what is asked."""

import json
import os
import pty
import random
import shlex
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import write_rows

from afina.ui.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    r = random.Random(0)
    words = ["river", "stone", "cloud", "table", "window", "garden", "letter", "engine"]
    rows = [
        {
            "n": i,
            "said": " ".join(r.choices(words, k=9)) + (" great" if i % 2 else " awful"),
            "how": ("bad", "good")[i % 2],
        }
        for i in range(60)
    ]
    return write_rows(tmp_path / "my rows.jsonl", rows)


@pytest.fixture
def show(path: Path, tiny_folder: Path) -> list[str]:
    return ["data", "show", str(path), "--base", str(tiny_folder)]


def expected(typed: list[str]) -> str:
    return f"{shlex.join(['afina', *typed])} --prompt '{{said}}' --completion '{{how}}'"


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: list[str], key: bytes) -> tuple[int, str]:
    """The exit code, and what a terminal shows, where `key` is pressed once it is asked for."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def press() -> None:
        asked = False
        with suppress(OSError):  # what a pseudo-terminal says at its end, on Linux
            while read := os.read(ours, 65536):
                shown.extend(read)
                if not asked and b"other key for no: " in shown:
                    os.write(ours, key)
                    asked = True

    thread = threading.Thread(target=press)
    thread.start()
    with monkeypatch.context() as patch:
        streams = {}
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            streams[name] = os.fdopen(os.dup(theirs), mode)
            patch.setattr(sys, name, streams[name])
        os.close(theirs)
        patch.setenv("COLUMNS", "300")
        code = main(typed)
        for stream in streams.values():
            stream.close()
    thread.join(timeout=60)
    os.close(ours)
    return code, shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("key", [b"\r", b"\n", b"y"])
def test_one_key_takes_the_suggestion(monkeypatch: pytest.MonkeyPatch, show: list[str], key: bytes) -> None:
    code, shown = at_a_terminal(monkeypatch, show, key)
    assert code == 0
    before, _, after = shown.partition("any other key")
    assert "Likeliest: classification, 'said' → 'how'" in before
    assert f"→ {expected(show)}\n" in before
    assert "learned" in after


@pytest.mark.parametrize("key", [b"n", b"\x04", b"\x1b"])
def test_another_key_stops_with_the_command(monkeypatch: pytest.MonkeyPatch, show: list[str], key: bytes) -> None:
    code, shown = at_a_terminal(monkeypatch, show, key)
    assert code == 2
    assert "nothing was done" in shown
    assert shown.rstrip().endswith(f"→ {expected(show)}")


def test_without_a_terminal_the_command_is_printed(show: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*show, "--row", "3"]) == 2
    said = capsys.readouterr().err
    assert said.rstrip().endswith(f"→ {expected([*show, '--row', '3'])}")
    assert said.count("Likeliest") == 1
    assert main([*show, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    suggestion = {"task": "classification", "prompt": "{said}", "completion": "{how}", "kind": "classification"}
    assert error["suggestion"] == suggestion


def test_where_values_say_nothing_only_the_shape_is_shown(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"n": i, "m": i * 7} for i in range(30)])
    assert main(["data", "show", str(path), "--base", str(tiny_folder)]) == 2
    said = capsys.readouterr().err
    assert f"afina data show {path} --base {tiny_folder} --prompt '{{COLUMN}}' --completion '{{COLUMN}}'" in said
    assert "'n'  numbers, such as '0'" in said
