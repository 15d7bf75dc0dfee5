"""An input format from outside the package: one object, and all of Afina reads its files."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import evaluate

import afina
from afina.core.errors import DataError
from afina.data.files import File
from afina.data.formats import FORMATS, Format
from afina.data.read import read
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings
from afina.ui.cli import main


def read_cards(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    """Blocks of 'key: value' lines, empty lines between."""
    with file.text() as text:
        for number, block in enumerate(text.read().split("\n\n"), 1):
            pairs = [line.partition(": ") for line in block.strip().splitlines()]
            if all(separator for _, separator, _ in pairs):
                yield Record({key: value for key, _, value in pairs}, f"{file.name}, card {number}")
            else:
                yield Rejected(f"{file.name}, card {number}", "a line without a key")


CARDS = Format("cards", read_cards, (".cards",), signature=lambda start, suffix: start.startswith(b"#cards: "))


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    path = tmp_path / "colours.cards"
    blocks = [f"prompt: {'a' if i % 2 else 'b'}{i:02d}\ncompletion: {'red' if i % 2 else 'blue'}" for i in range(60)]
    path.write_text("\n\n".join([*blocks, "nothing"]))
    return path


def test_a_format_from_outside_is_trained_on_saved_and_reported(
    cards: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"type '\.cards' is not read"):
        afina.load_data(DataSettings(path=cards), afina.load_base(str(tiny_folder), device="cpu"))
    run = tmp_path / "run"
    with FORMATS.added(CARDS):
        assert main(["data", "check", str(cards), "--base", str(tiny_folder), "--json"]) == 0
        seen = json.loads(capsys.readouterr().out)
        assert (seen["rows_kept"], seen["rows_reported"]) == (60, 1)
        settings = afina.RunSettings(
            base=str(tiny_folder), out=run, precision="fp32", device="cpu", threads=1,
            data={"path": cards}, train={"epochs": 4},
        )  # fmt: skip
        result = afina.train(settings)
        again = evaluate(run, cards, device="cpu")
    assert result.verification.from_training < 1e-3
    assert again.main_metric == json.loads((run / "evaluation.json").read_text())["main_metric"]
    assert "card 61" in (run / "rejected.jsonl").read_text()
    assert "card " in (run / "predictions.jsonl").read_text()
    assert "<html" in result.report.read_text()


def test_its_files_are_told_by_suffix_and_by_first_bytes(tmp_path: Path, cards: Path) -> None:
    other = tmp_path / "misnamed.csv"
    other.write_text("#cards: 1\nprompt: x\ncompletion: y")
    with FORMATS.added(CARDS):
        in_folder = list(read(DataSettings(path=tmp_path), Notes()))
        (row,) = read(DataSettings(path=other), Notes())
    assert len(in_folder) == 62
    assert row == Record({"#cards": "1", "prompt": "x", "completion": "y"}, f"{other}, card 1")
    assert list(read(DataSettings(path=other), Notes())) != [row]
