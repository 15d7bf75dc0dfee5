"""What each tracker is told: by stand-ins that record calls, and by the real package where it is installed."""

import itertools
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from afina.core.config import build, fields
from afina.core.errors import SettingsError
from afina.core.events import Done, Event, HeldOut, MetricsFile, Notice, Step, forget_after, ignore
from afina.core.tracker import TRACKERS, Log, TrackedRun, Tracker
from afina.runs.folder import RunFolder
from afina.runs.tracking import Trackers
from afina.settings import RunSettings

CONFIG = {"seed": 0, "revision": None, "data": {"path": "d.jsonl", "limit": None}}
EVENTS: list[Event] = [
    Notice("a text that is no number"),
    HeldOut(0, {"loss": 3.0, "perplexity": 20.0}, True),
    Step(1, 2, 0.5, 2.5, 1e-3, 1.0, 100.0, 1.0, 1.0, 1.0),
    Step(2, 2, 1.0, 2.0, 1e-3, 1.0, 100.0, 1.0, 2.0, 0.0),
    HeldOut(2, {"loss": 1.5, "perplexity": 4.5}, True),
    Done(2, "completed", 2.0, 64, 32.0, 1.0),
]
RESULT: dict[str, Any] = {
    "base": {"accuracy": 0.25, "per_class": {}, "perplexity": None},
    "adapted": {"accuracy": 0.75},
}
Calls = list[tuple[str, Any]]


def track(name: str, run: Path, listener: Callable[[Event], None] = ignore) -> None:
    """A run, as `afina train` tells it."""
    run.mkdir(parents=True)
    tell(name, run, EVENTS, 0, listener)


def tell(
    name: str, run: Path, events: list[Event], first: int, listener: Callable[[Event], None] = ignore,
    again: list[Event] | None = None,
) -> None:  # fmt: skip
    """Tells of a run from step `first` on; it has a result where its training ended."""
    trackers = Trackers([name], listener)
    trackers.open(run, CONFIG, first, again or [])
    for event in events:
        trackers(event)
    if events and isinstance(events[-1], Done):
        trackers.result(RESULT)
    trackers.close()


def until(step: int) -> list[Event]:
    """What is heard up to a step, of a run that does not come to its end."""
    return [event for event in LONG if not isinstance(event, Done) and getattr(event, "step", 0) <= step]


def after(step: int) -> list[Event]:
    return [event for event in LONG if getattr(event, "step", step) > step or isinstance(event, Done)]


# Held-out rows are looked at before the first step and after every third; each has a loss of its own.
LONG: list[Event] = [
    HeldOut(0, {"loss": 9.0}, True),
    *(
        event
        for step in range(1, 10)
        for event in (
            Step(step, 9, step / 9, 10.0 - step, 1e-3, 1.0, 100.0, 1.0, 1.0, 1.0),
            *([HeldOut(step, {"loss": 9.0 - step}, True)] if step % 3 == 0 else []),
        )
    ),
    Done(9, "completed", 2.0, 64, 32.0, 1.0),
]
# Killed after which step, and resumed after which checkpoint (−1: there was none).
CUTS = [
    [(5, 3)], [(3, 3)], [(7, 0)], [(2, -1)], [(5, 3), (4, 3), (8, 6)], [(9, 9)], [(4, 4), (9, 6)],
]  # fmt: skip


def cut_and_resumed(name: str, run: Path, cuts: list[tuple[int, int]], listener: Callable[[Event], None]) -> None:
    """A run that is killed and resumed, with its metrics.jsonl; after the last time it comes to its end."""
    run.mkdir(parents=True)
    metrics = MetricsFile(run / "metrics.jsonl")

    def play(events: list[Event], begin: int) -> None:
        again = forget_after(metrics.path, begin)
        for event in events:
            metrics(event)
        tell(name, run, events, begin + 1, listener, again)

    begin = -1
    for killed, checkpoint in cuts:
        play([event for event in until(killed) if getattr(event, "step", 0) > begin], begin)
        begin = checkpoint
    play(after(begin), begin)


WHOLE = [(step, 10.0 - step) for step in range(1, 10)], [(step, 9.0 - step) for step in range(0, 10, 3)]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> Calls:
    """A module `name` in the place of a package; each of `functions` is written down when called."""
    calls: Calls = []
    module = ModuleType(name)

    def written_down(what: str, answer: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append((what, (arguments, named)))
            return answer

        return call

    for what, answer in functions.items():
        setattr(module, what, written_down(what, answer))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def check_numbers(logged: list[tuple[dict[str, float], int]]) -> None:
    """Losses by step, and the scores at the last one; nothing that is no number."""
    assert [(step, v["train/loss"]) for v, step in logged if "train/loss" in v] == [(1, 2.5), (2, 2.0)]
    assert [(step, v["held_out/loss"]) for v, step in logged if "held_out/loss" in v] == [(0, 3.0), (2, 1.5)]
    assert [(step, v) for v, step in logged][-2:] == [(2, {"base/accuracy": 0.25}), (2, {"adapted/accuracy": 0.75})]
    assert all(isinstance(value, int | float) for values, _ in logged for value in values.values())


MLFLOW = dict.fromkeys(("set_tracking_uri", "set_experiment", "start_run", "end_run", "log_params", "log_metrics"))
MLFLOW["search_runs"] = []


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    calls = stand_in(monkeypatch, "mlflow", **MLFLOW, is_tracking_uri_set=False)
    track("mlflow", tmp_path / "runs" / "one")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    told = dict(calls[:-2])
    assert told["set_tracking_uri"][0] == (f"sqlite:///{tmp_path.resolve() / 'runs' / 'mlflow.db'}",)
    assert told["log_params"][0] == ({"seed": "0", "data.path": "d.jsonl"},)
    check_numbers([(args[0], named["step"]) for what, (args, named) in calls if what == "log_metrics"])
    assert calls[-2:] == [("end_run", ((), {})), ("set_tracking_uri", ((None,), {}))]


def test_mlflow_where_the_user_said_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    calls = stand_in(monkeypatch, "mlflow", **MLFLOW, is_tracking_uri_set=True)
    track("mlflow", tmp_path / "run")
    assert "set_tracking_uri" not in dict(calls)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    opened = SimpleNamespace(
        log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append(({}, -1))
    )
    calls = stand_in(monkeypatch, "wandb", init=opened)
    track("wandb", tmp_path / "one")
    ((what, (_, named)),) = calls
    assert what == "init"
    assert named.pop("id") == json.loads((tmp_path / "one" / "tracking.json").read_text())["id"]
    assert named == {
        "project": "afina", "name": "one", "resume": "allow", "dir": str(tmp_path / "one"), "config": CONFIG,
    }  # fmt: skip
    assert logged.pop() == ({}, -1)
    check_numbers(logged)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "trackio", init=None, log=None, finish=None)
    track("trackio", tmp_path / "one")
    assert [what for what, _ in calls if what != "log"] == ["init", "finish"]
    check_numbers([(args[0], named["step"]) for what, (args, named) in calls if what == "log"])


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_one_that_fails_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    calls = stand_in(monkeypatch, "trackio", init=None, log=None, finish=None)
    attempts = []

    def fail(*_: Any, **__: Any) -> None:
        attempts.append(when)
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(sys.modules["trackio"], when, fail)
    news: list[Event] = []
    track("trackio", tmp_path / "run", news.append)
    assert len(attempts) == 1
    assert [event.warning for event in news if isinstance(event, Notice)] == [True]
    assert "the disk is full" in str(news)
    assert ("finish" in dict(calls)) == (when == "log")  # what was opened is closed


def test_a_broken_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setattr("afina.runs.tracking.import_module", broken)
    with pytest.raises(SettingsError, match=r"Descriptors.*\n.*pip install 'afina\[wandb\]'"):
        Trackers(["wandb"], ignore)


def test_a_tracker_from_elsewhere(tmp_path: Path) -> None:
    """One that is registered is offered, opened, told the numbers and closed, and nothing else knows of it."""
    calls: Calls = []

    def opened(run: TrackedRun, closing: ExitStack) -> Log:
        calls.append(("open", run.config))
        closing.callback(calls.append, ("closed", run.folder))
        return lambda values, step: calls.append(("log", (values, step)))

    with TRACKERS.added(Tracker("notebook", "json", opened)):
        assert "notebook" in next(each.choices for each in fields(RunSettings) if each.path == "track")
        assert build(RunSettings, {"data": {"path": "d.jsonl"}, "track": "notebook"}).track == ("notebook",)
        track("notebook", tmp_path / "one")
    assert (calls[0], calls[-1]) == (("open", CONFIG), ("closed", tmp_path / "one"))
    check_numbers([numbers for what, numbers in calls if what == "log"])
    with pytest.raises(SettingsError, match="there is no tracker 'notebook'"):
        build(RunSettings, {"data": {"path": "d.jsonl"}, "track": "notebook"})


@pytest.mark.parametrize("forgets", [True, False])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_a_run_that_is_resumed_is_the_same_to_a_tracker(
    cuts: list[tuple[int, int]], forgets: bool, tmp_path: Path
) -> None:
    """A stand-in that forgets what comes again, and one that is not told again, end with the curve of a run that was
    never cut off, and with one end."""
    kept: dict[str, dict[str, list[tuple[int, float]]]] = {}

    def opened(run: TrackedRun, closing: ExitStack) -> Log:
        values = kept.setdefault(run.id, {})
        for name, points in values.items():
            values[name] = [point for point in points if point[0] < run.first or not forgets]

        def log(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                values.setdefault(name, []).append((step, value))

        return log

    with TRACKERS.added(Tracker("notebook", "json", opened, forgets=forgets)):
        cut_and_resumed("notebook", tmp_path / "run", cuts, ignore)
    (values,) = kept.values()
    assert (values["train/loss"], values["held_out/loss"]) == WHOLE
    assert (values["run/tokens"], values["adapted/accuracy"]) == ([(9, 64)], [(9, 0.75)])


def test_a_new_run_in_the_folder_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids: list[str] = []

    def opened(run: TrackedRun, closing: ExitStack) -> Log:
        ids.append(run.id)
        return lambda values, step: None

    folder = RunFolder(tmp_path / "run")
    with TRACKERS.added(Tracker("notebook", "json", opened)):
        for _ in range(2):
            folder.start()
            tell("notebook", tmp_path / "run", [], 0)
            folder.commit()
        (tmp_path / "run" / "tracking.json").write_text("{")  # damaged
        tell("notebook", tmp_path / "run", [], 0)
    assert len(set(ids)) == 3
    folder.start()
    Trackers([], ignore).open(tmp_path / "run", CONFIG)
    assert not (tmp_path / "run" / "tracking.json").exists()  # where nothing is tracked


def test_tensorboard_is_told_what_to_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SimpleNamespace(add_text=lambda *_: None, add_scalar=lambda *_: None, close=lambda: None)
    calls = stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=writer)
    cut_and_resumed("tensorboard", tmp_path / "run", [(5, 3)], ignore)
    assert [named for _, (_, named) in calls] == [{"purge_step": 0}, {"purge_step": 4}]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_real_tensorboard_shows_no_step_twice(cuts: list[tuple[int, int]], tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    clock = itertools.count(1e9)  # files are read in the order of the seconds in which they were begun
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(clock)))
    news: list[Event] = []
    cut_and_resumed("tensorboard", tmp_path / "run", cuts, news.append)
    assert failures(news) == []
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    seen = tuple([(each.step, each.value) for each in found.Scalars(f"{name}/loss")] for name in ("train", "held_out"))
    assert seen == WHOLE
    assert [(each.step, each.value) for each in found.Scalars("run/tokens")] == [(9, 64)]
    assert len(found.Tensors("settings/text_summary")) == 1


@pytest.mark.filterwarnings("default")  # MLflow's own
@pytest.mark.parametrize("cuts", [CUTS[0], CUTS[4], CUTS[5]], ids=str)
def test_real_mlflow_has_no_step_twice(cuts: list[tuple[int, int]], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow import MlflowClient

    news: list[Event] = []
    cut_and_resumed("mlflow", tmp_path / "runs" / "one", cuts, news.append)
    assert failures(news) == []
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("afina").experiment_id])

    def points(name: str) -> list[tuple[int, float]]:
        return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]

    assert (points("train/loss"), points("held_out/loss"), points("run/tokens")) == (*WHOLE, [(9, 64.0)])
    assert run.info.status == "FINISHED"


def failures(news: list[Event]) -> list[str]:
    return [event.text for event in news if isinstance(event, Notice)]


def test_real_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    news: list[Event] = []
    track("tensorboard", tmp_path / "run", news.append)
    assert failures(news) == []
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(1, 2.5), (2, 2.0)]
    assert [(each.step, each.value) for each in found.Scalars("adapted/accuracy")] == [(2, 0.75)]


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_real_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow import MlflowClient

    news: list[Event] = []
    track("mlflow", tmp_path / "runs" / "one", news.append)
    assert failures(news) == []
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("afina").experiment_id])
    assert run.data.params == {"seed": "0", "data.path": "d.jsonl"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(1, 2.5), (2, 2.0)]
    assert run.data.metrics["adapted/accuracy"] == 0.75


@pytest.mark.filterwarnings("default")  # its own, and its processes'
def test_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    news: list[Event] = []
    track("wandb", tmp_path / "run", news.append)
    assert failures(news) == []
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"adapted/accuracy" in written.read_bytes()


def test_real_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    news: list[Event] = []
    track("trackio", tmp_path / "one", news.append)
    assert failures(news) == []
    (run,) = trackio.Api().runs("afina")
    assert run.name.startswith("one-")


def test_real_trackio_has_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    news: list[Event] = []
    cut_and_resumed("trackio", tmp_path / "one", CUTS[4], news.append)
    assert failures(news) == []
    name = f"one-{json.loads((tmp_path / 'one' / 'tracking.json').read_text())['id'][:6]}"
    (run,) = [run for run in trackio.Api().runs("afina") if run.name == name]
    logs = SQLiteStorage.get_logs("afina", run.name)
    seen = tuple([(e["step"], e[f"{n}/loss"]) for e in logs if f"{n}/loss" in e] for n in ("train", "held_out"))
    assert seen == WHOLE
