"""A metric out of a user's file: what it scores, and what is said of a file that is not right."""

import sys
from pathlib import Path

import pytest

from afina.core.errors import InputError
from afina.measure.intervals import paired_difference
from afina.measure.metric import Metric, Predictions, RowStats
from afina.measure.own_metrics import own_metric

NULL_BYTES = "SyntaxError" if sys.version_info >= (3, 11, 4) else "ValueError"  # what compile raises
GOOD = """
from dataclasses import dataclass
import helper_of_the_metric

@dataclass
class Scale:
    top: float = 1.0

def overlap(answer, references):
    return Scale().top * max(len(set(answer.split()) & set(r.split())) / len(r.split()) for r in references)

def fails(answer, references):
    return 1 / (len(answer) - 3)

def words(answer, references):
    return "0.5"

def nan(answer, references):
    return float("nan")

def alone(answer):
    return 1
"""


def score(metric: Metric, answers: list[str], references: list[list[str]]) -> RowStats:
    return metric.stats(Predictions("generation", answers, references))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_the_metric.py").write_text("")
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


def test_the_mean_over_rows(file: Path, monkeypatch) -> None:
    references = [["a b", "c"], ["a b"], ["x"]]
    metric = own_metric(f"{file}:overlap")
    found = score(metric, ["c", "a", "y"], references)
    assert (metric.name, metric.lower_is_better) == ("overlap", False)
    assert found.score() == pytest.approx((1 + 0.5 + 0) / 3)
    worse = score(metric, ["", "", ""], references)
    assert paired_difference(worse, found).value == pytest.approx(0.5)
    monkeypatch.chdir(file.parent)
    assert score(own_metric("mine.py:overlap"), ["a b"], [["a b"]]).score() == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", "row 2, answer 'abc': ZeroDivisionError: division by zero (line 13)"),
        ("words", "it returned '0.5', expected a finite number"),
        ("nan", "row 1, answer 'ab': it returned nan"),
        ("alone", "takes 1 positional argument"),
    ],
)
def test_a_function_that_is_not_right(file: Path, name: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        score(own_metric(f"{file}:{name}"), ["ab", "abc"], [["x"], ["y"]])
    assert said in str(error.value)


def test_what_does_not_name_a_function(file: Path) -> None:
    for spec, said in {
        str(file): "FILE.py:FUNCTION",
        f"{file}:": "FILE.py:FUNCTION",
        ":f": "FILE.py:FUNCTION",
        f"{file}:a b": "FILE.py:FUNCTION",
        f"{file.parent}:f": "FILE.py:FUNCTION",
        f"{file.parent}/other.py:f": "there is no file",
        f"{file}:overlop": "Did you mean 'overlap'?",
        f"{file}:GOOD": "no function 'GOOD'",
    }.items():
        with pytest.raises(InputError) as error:
            own_metric(spec)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n\nimport no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' (line 3)"),
        ("def f(:\n    pass\n", "SyntaxError: invalid syntax (line 1)"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye (line 2)"),
        ("\0", f"{NULL_BYTES}: source code string cannot contain null bytes"),
    ],
)
def test_a_file_that_fails(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(InputError) as error:
        own_metric(f"{tmp_path}/bad.py:f")
    assert said in str(error.value)
