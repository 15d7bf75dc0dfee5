"""Errors as a program sees them: attributes, one object on standard output, and the same across processes."""

import json

import pytest

from afina.core import errors
from afina.core.errors import AfinaError, RunFailed, SettingsError, Unexpected
from afina.runs import worker
from afina.ui.cli import main


def test_every_error_keeps_problems_and_remedy() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AfinaError)]
    assert RunFailed in kinds
    for kind in [each for each in kinds if each is not Unexpected]:
        error = kind(["a", "b"], "do c")
        assert (error.problems, error.remedy) == (["a", "b"], "do c")
        assert str(error) == "2 problems:\n  a\n  b\n  → do c"
        assert (kind("a").problems, kind("a").remedy, str(kind("a"))) == (["a"], "", "a")


def test_json_output_holds_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "startr", "--json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found) == {"error"}
    assert "Did you mean 'starter'" in found["error"]["problems"][0]
    assert set(found["error"]) == {"problems", "remedy"}
    assert captured.err.startswith(f"afina: {found['error']['problems'][0]}")
    assert main(["models", "show", "startr"]) == 2
    assert capsys.readouterr().out == ""


def test_errors_keep_their_parts_between_processes() -> None:
    arguments = {"settings": {"data": {"path": "x.jsonl"}, "lora": {"rank": 0}, "seed": -1}, "file": "none"}
    with pytest.raises(SettingsError) as raised:
        worker.run_in_process("rates", arguments, lambda event: None)
    assert len(raised.value.problems) == 2
    assert "--lora.rank is 0" in str(raised.value)
