"""What a person on a terminal is offered for a file whose columns do not say what is asked."""

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_rows

from afina.ui.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    r = random.Random(0)
    words = "river stone cloud table window garden letter engine".split()
    rows = [
        {"n": i, "said": " ".join(r.choices(words, k=9)) + (" great" if i % 2 else " awful"), "how": ("bad", "good")[i % 2]}
        for i in range(60)
    ]
    return write_rows(tmp_path / "my rows.jsonl", rows)


def command_for(path: Path, *more: str) -> str:
    return f"afina data show '{path}'{''.join(f' {each}' for each in more)} --prompt '{{said}}' --completion '{{how}}' --kind"


def at_a_terminal(path: Path, key: bytes) -> tuple[int, str]:
    """The exit code of `afina data show`, and what a terminal shows, where `key` is pressed when it asks."""
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "afina", "data", "show", str(path)]
    child = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "300"})
    os.close(theirs)
    shown, asked = b"", False
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # what a pseudo-terminal says at its end, on Linux
            break
        if not read:
            break
        shown += read
        if not asked and b"any other key" in shown and shown.rstrip().endswith(b":"):
            os.write(ours, key)
            asked = True
    os.close(ours)
    assert asked, shown
    return child.wait(timeout=60), shown.decode().replace("\r\n", "\n")


def test_one_key_takes_the_suggestion(path: Path) -> None:
    code, shown = at_a_terminal(path, b"\r")
    assert code == 0
    before, _, after = shown.partition("any other key")
    assert "Likeliest: classification, 'said' → 'how'" in before
    assert command_for(path) in before
    assert "great" in after


def test_another_key_stops_with_the_command(path: Path) -> None:
    code, shown = at_a_terminal(path, b"n")
    assert code == 2
    assert "nothing was done" in shown
    assert shown.rstrip().endswith(f"{command_for(path)} classification")


def test_without_a_terminal_the_command_is_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(path), "--rows", "3"]) == 2
    said = capsys.readouterr().err
    assert said.rstrip().endswith(f"→ {command_for(path, '--rows', '3')} classification")
    assert said.count("Likeliest") == 1
    assert main(["data", "show", str(path), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    expected = {"task": "classification", "prompt": "{said}", "completion": "{how}", "kind": "classification"}
    assert error["suggestion"] == expected


def test_where_values_say_nothing_only_the_shape_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"n": i, "m": i * 7} for i in range(30)])
    assert main(["data", "show", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"afina data show {path} --prompt '{{COLUMN}}' --completion '{{COLUMN}}'" in said
    assert "'n'  numbers, such as '0'" in said
