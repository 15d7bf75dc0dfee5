"""What a model answers while it is trained: what it would answer, told and kept, without a trace in the training."""

from pathlib import Path
from typing import Any

import pytest

import afina
from afina.core.events import Answers, Event, HeldOut, Sample, forget_after, parse, read_events, row
from afina.core.files import read_jsonl, sha256
from afina.data.mapping import Example
from afina.forecast.estimate import forecast_training
from afina.forecast.machines import named
from afina.forecast.workload import Workload
from afina.measure.outputs import EvaluationSet
from afina.models.load import Base
from afina.models.skeleton import read_skeleton
from afina.runs.samples import answers_of


def settings(data: Path, base: Path, out: Path, **train: Any) -> afina.RunSettings:
    return afina.RunSettings(
        base=str(base), out=out, precision="fp32", device="cpu", lora={"rank": 4},
        data={"path": data, "prompt": "{q}", "completion": "{a}", "held_out": 0.2},
        train={"rows": 320, "learning_rate": 2e-2, "batch_size": 8, "eval_steps": 20, **train},
    )  # fmt: skip


@pytest.fixture
def watched(colours: Path, tiny_folder: Path, tmp_path: Path) -> tuple[Path, list[Event]]:
    """A run with three samples, and what it told."""
    told: list[Event] = []
    afina.train(settings(colours, tiny_folder, tmp_path / "watched", samples=3), told.append)
    return tmp_path / "watched", told


def test_they_are_what_the_run_answers(watched: tuple[Path, list[Event]], colours: Path) -> None:
    """In the end, where the last weights are the best, those of predictions.jsonl, which a fresh model wrote."""
    run, told = watched
    found = [event for event in told if isinstance(event, Answers)]
    assert [each.step for each in found] == [event.step for event in told if isinstance(event, HeldOut)] == [0, 20, 40]
    assert next(e for e in reversed(told) if isinstance(e, HeldOut)).best
    answered = {each["prompt"]: each for each in read_jsonl(run / "predictions.jsonl")}
    for sample in found[-1].samples:
        assert sample.answer == answered[sample.prompt]["adapted"]
        assert [sample.expected] == answered[sample.prompt]["references"]
    for sample in found[0].samples:
        assert sample.answer == answered[sample.prompt]["base"]
    assert {sample.expected for sample in found[0].samples} == {"red", "blue"}
    assert len({sample.prompt for sample in found[0].samples}) == 3


def test_they_are_kept_and_leave_no_trace(watched: tuple[Path, list[Event]], colours: Path, tiny_folder: Path) -> None:
    run, told = watched
    kept = [event for event in read_events(run / "metrics.jsonl") if isinstance(event, Answers)]
    assert kept == [event for event in told if isinstance(event, Answers)]
    gone = forget_after(run / "metrics.jsonl", 20)
    assert [event.step for event in gone if isinstance(event, Answers)] == [40]
    assert [e.step for e in read_events(run / "metrics.jsonl") if isinstance(e, Answers)] == [0, 20]
    plain = run.parent / "plain"
    told.clear()
    afina.train(settings(colours, tiny_folder, plain), told.append)
    assert not [event for event in told if isinstance(event, Answers)]
    weights = [sha256(each / "adapter" / "adapter_model.safetensors") for each in (run, plain)]
    assert weights[0] == weights[1]


def test_long_texts_are_cut_and_rows_vary(tiny: Base) -> None:
    def example(number: int, answer: str) -> Example:
        asked = {"role": "user", "content": f"{number}{'x' * 700}"}
        return Example((asked,), answer, (answer,), "", f"rows:{number}")

    rows = [example(i, "red" if i < 5 else "blue") for i in range(6)]
    asked = EvaluationSet(rows, [], "classification", 4, "rows")
    answers = answers_of(tiny, asked, 3)
    assert answers is not None
    found = answers(7)
    assert [sample.prompt[0] for sample in found.samples] == ["0", "5", "1"]
    assert {len(sample.prompt) for sample in found.samples} == {600}
    assert parse(row(found)) == found == Answers(7, found.samples, found.seconds)
    assert isinstance(found.samples[0], Sample)
    assert answers_of(tiny, asked, 0) is None
    assert answers_of(tiny, EvaluationSet(rows, [], "text", 4, "rows"), 3) is None


def test_their_time_is_forecast() -> None:
    base, work = read_skeleton("starter", cache_dir=Path("none")), Workload([64] * 400, 0.5, 640, 40, 32, 32, 32, 32)
    plain, few, many = (
        forecast_training(base, afina.RunSettings(data={"path": "x"}, train={"samples": count}), work, named("laptop"))
        for count in (0, 3, 30)
    )
    assert plain.seconds < few.seconds < many.seconds
    assert (plain.evaluation, plain.epoch_seconds) == (many.evaluation, many.epoch_seconds)
