"""What each tracker is told: by stand-ins that record calls, and by the real package where it is installed."""

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
from afina.core.events import Done, Event, HeldOut, Notice, Step, ignore
from afina.core.tracker import TRACKERS, Log, Tracker
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
    trackers = Trackers([name], listener)
    run.mkdir(parents=True)
    trackers.open(run, CONFIG)
    for event in EVENTS:
        trackers(event)
    trackers.result(RESULT)
    trackers.close()


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


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    functions = ("set_tracking_uri", "set_experiment", "start_run", "end_run", "log_params", "log_metrics")
    calls = stand_in(monkeypatch, "mlflow", **dict.fromkeys(functions), is_tracking_uri_set=False)
    track("mlflow", tmp_path / "runs" / "one")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    told = dict(calls[:-2])
    assert told["set_tracking_uri"][0] == (f"sqlite:///{tmp_path.resolve() / 'runs' / 'mlflow.db'}",)
    assert told["log_params"][0] == ({"seed": "0", "data.path": "d.jsonl"},)
    check_numbers([(args[0], named["step"]) for what, (args, named) in calls if what == "log_metrics"])
    assert calls[-2:] == [("end_run", ((), {})), ("set_tracking_uri", ((None,), {}))]


def test_mlflow_where_the_user_said_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    functions = ("set_tracking_uri", "set_experiment", "start_run", "end_run", "log_params", "log_metrics")
    calls = stand_in(monkeypatch, "mlflow", **dict.fromkeys(functions), is_tracking_uri_set=True)
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
    assert calls == [
        ("init", ((), {"project": "afina", "name": "one", "dir": str(tmp_path / "one"), "config": CONFIG}))
    ]
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

    def opened(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
        calls.append(("open", config))
        closing.callback(calls.append, ("closed", run))
        return lambda values, step: calls.append(("log", (values, step)))

    with TRACKERS.added(Tracker("notebook", "json", opened)):
        assert "notebook" in next(each.choices for each in fields(RunSettings) if each.path == "track")
        assert build(RunSettings, {"data": {"path": "d.jsonl"}, "track": "notebook"}).track == ("notebook",)
        track("notebook", tmp_path / "one")
    assert (calls[0], calls[-1]) == (("open", CONFIG), ("closed", tmp_path / "one"))
    check_numbers([numbers for what, numbers in calls if what == "log"])
    with pytest.raises(SettingsError, match="there is no tracker 'notebook'"):
        build(RunSettings, {"data": {"path": "d.jsonl"}, "track": "notebook"})


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
    assert run.name == "one"
