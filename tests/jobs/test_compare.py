"""Methods side by side, and searches of settings: on a tiny model, in this process but for one."""

import json
import math
from importlib import import_module
from pathlib import Path

import pytest
from conftest import write_rows

import afina
from afina.core.config import build, changed, json_object, read_yaml
from afina.core.errors import BaseModelError, DataError, InputError, Interrupted, OutputError, RunFailed, SettingsError
from afina.core.events import Notice, ignore
from afina.core.files import read_json
from afina.jobs.tune import TuneResult
from afina.lora import LoraConfig
from afina.runs import worker
from afina.search.study import configured, defaults, open_study
from afina.search.time_plan import Pace
from afina.search.trial import TrialResult
from afina.search.tuning import Tuning
from afina.settings import RunSettings


def compare(run: RunSettings, methods: list[str], listener=ignore, **more) -> dict:
    return json_object(afina.compare(afina.CompareSettings(run=run, methods=methods, **more), listener))


def tune(run: RunSettings, **effort) -> TuneResult:
    return afina.tune(afina.TuneSettings(run=run, **effort))


def run_here(target: str, arguments: dict, listener) -> object:
    """`run_in_process` without another process."""
    module, _, name = worker.TARGETS[target].partition(":")
    return getattr(import_module(module), name)(**json.loads(json.dumps(arguments)), listener=listener)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order."""
    done: list[str] = []

    def run_in_process(target: str, arguments: dict, listener) -> object:
        done.append(target)
        return run_here(target, arguments, listener)

    monkeypatch.setattr("afina.jobs.compare.run_in_process", run_in_process)
    monkeypatch.setattr("afina.jobs.tune.run_in_process", run_in_process)
    return done


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> RunSettings:
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:03d}", "a": "red" if i % 2 else "blue"} for i in range(120)]
    return RunSettings(
        base=str(tiny_folder), out=tmp_path / "out", precision="fp32", device="cpu", threads=1,
        data={"path": write_rows(tmp_path / "rows.jsonl", rows), "prompt": "{q}", "completion": "{a}"},
        train={"epochs": 1},
    )  # fmt: skip


def test_methods_are_compared_on_the_same_rows(settings: RunSettings, in_process: list[str]) -> None:
    methods = ["base", "few-shot", "head", "last-k", "lora", "full"]
    settings = changed(settings, {"train.epochs": 8})  # enough for LoRA to learn the task on any processor
    found = compare(settings, methods)
    assert list(found["methods"]) == methods
    assert in_process == ["ask", "ask", *["rates", "train"] * 4]
    lora, full, base = (found["methods"][name] for name in ("lora", "full", "base"))
    assert lora["quality"] > 0.6 > base["quality"]
    assert lora["interval"][0] <= lora["quality"] <= lora["interval"][1]
    assert lora["trainable_parameters"] < full["trainable_parameters"]
    assert lora["size_mb"] < full["size_mb"]
    for entry in (lora, full):
        assert entry["peak_memory_gb"] >= entry["memory_above_imports_gb"] > 0
        assert {
            "seconds",
            "training_tokens_per_second",
            "answer_seconds",
            "forgetting",
            "learning_rate",
        } <= entry.keys()
    assert found["recommended"] in found["as_good_as_the_best"]
    assert any("full fine-tuning in quality" in line for line in found["words"])

    out = settings.out
    rows = {}
    for name in methods:
        with (out / name / "predictions.jsonl").open() as file:
            rows[name] = [json.loads(line)["where"] for line in file]
    assert len({tuple(each) for each in rows.values()}) == 1  # the very same rows
    runs = [read_yaml(out / name / "config.yaml") for name in ("lora", "full", "head")]
    assert len({(c["train"]["epochs"], c["seed"], c["data"]["seed"], c["data"]["test"]) for c in runs}) == 1
    for name in ("lora", "full"):
        tried = json.loads((out / f"{name}-rates.json").read_text())
        best = min((each for each in tried["tried"] if each["loss"] is not None), key=lambda each: each["loss"])
        assert tried["rate"] == best["rate"] == found["methods"][name]["learning_rate"]
        assert 3 <= len(tried["tried"]) <= 4
    page = (out / "comparison.html").read_text()
    assert found["words"][0] in page.replace("&#39;", "'")
    assert "<svg" in page
    assert "src=" not in page
    assert 'href="http' not in page

    in_process.clear()  # finished parts are not repeated
    assert compare(settings, methods) == found
    assert in_process == []
    with pytest.raises(OutputError, match=r"other settings \(train.epochs\)"):
        compare(changed(settings, {"train.epochs": 9}), methods)


def test_damaged_parts_are_made_again_and_the_others_kept(settings: RunSettings, in_process: list[str]) -> None:
    methods = ["base", "few-shot", "lora"]
    before = compare(settings, methods)
    assert settings.out is not None
    for file, rest in (("base/evaluation.json", "{"), ("lora/predictions.jsonl", ""), ("lora-rates.json", "{}")):
        (settings.out / file).write_text(rest)
    in_process.clear()
    news: list[object] = []
    after = compare(settings, methods, listener=news.append)
    assert in_process == ["ask", "rates", "train"]
    assert {n: m["quality"] for n, m in after["methods"].items()} == {
        n: m["quality"] for n, m in before["methods"].items()
    }
    damaged = [each.text for each in news if isinstance(each, Notice) and "is damaged" in each.text]
    assert len(damaged) == 2
    in_process.clear()
    compare(settings, methods)
    assert in_process == []


def test_a_mistake_does_not_keep_the_folder(settings: RunSettings, in_process: list[str]) -> None:
    wrong = changed(settings, {"data.prompt": "{nope}"})
    for work in (lambda s: compare(s, ["base"]), lambda s: tune(s, trials=1)):
        with pytest.raises(DataError, match="nope"):
            work(wrong)
        assert settings.out is not None
        assert not settings.out.exists()
    assert list(compare(settings, ["base"])["methods"]) == ["base"]
    with pytest.raises(SettingsError, match="there is no tracker"):
        compare(settings.model_copy(update={"track": ("nonsense",)}), ["base"])
    settings.out.with_name("file").touch()
    with pytest.raises(OutputError, match="is a file"):
        compare(changed(settings, {"out": settings.out.with_name("file")}), ["base"])


def test_few_rows_recommend_nothing(settings: RunSettings, in_process: list[str]) -> None:
    few = changed(settings, {"data.test_rows": 6})
    found = compare(few, ["base", "lora"])
    assert found["recommended"] is None
    words = " ".join(found["words"])
    assert "6 rows are too few to choose by" in words
    assert "A trivial baseline" in words


def test_few_shot_shows_training_rows_and_answers_each(
    settings: RunSettings, in_process: list[str], monkeypatch
) -> None:
    from afina.search import method_runs as methods

    seen = []
    ask = methods.outputs_of
    monkeypatch.setattr(methods, "outputs_of", lambda base, asked, *more: seen.append(asked) or ask(base, asked, *more))
    compare(settings, ["few-shot"])
    example = seen[0].examples[0]
    shown = [m["content"] for m in example.messages]
    assert [m["role"] for m in example.messages] == ["user", "assistant"] * 4 + ["user"]
    assert set(shown[1:8:2]) == {"red", "blue"}
    tested = {e.messages[-1]["content"] for e in seen[0].examples}
    assert not tested & set(shown[0:8:2])  # rows that are evaluated on are never shown


def test_minutes_and_seeds(settings: RunSettings, in_process: list[str]) -> None:
    settings = changed(settings, {"train.epochs": None})
    found = compare(settings, ["lora"], minutes=0.01, seeds=2)["methods"]["lora"]
    assert len(found["seeds"]) == 2
    assert in_process == ["rates", "train", "train"]
    first, second = (read_yaml(settings.out / name / "config.yaml") for name in ("lora", "lora-seed-1"))
    assert first["train"]["rows"] == second["train"]["rows"] != 102
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["data"]["seed"] == second["data"]["seed"] == 0


def test_a_method_that_fails_does_not_lose_the_others(settings: RunSettings, monkeypatch) -> None:
    def run_in_process(target: str, arguments: dict, listener) -> object:
        if arguments["settings"]["method"] == "full":
            raise RunFailed("out of memory")
        return run_here(target, arguments, listener)

    monkeypatch.setattr("afina.jobs.compare.run_in_process", run_in_process)
    found = compare(settings, ["base", "full"])
    assert found["methods"]["full"] == {"failed": "out of memory"}
    assert found["methods"]["base"]["quality"] == 0


@pytest.mark.parametrize(
    ("methods", "change", "said"),
    [
        (["lorra"], {}, "Did you mean 'lora'"),
        (["lora", "lora"], {}, "twice"),
        (["lora"], {"method": "full"}, "leave --method"),
        (["lora"], {"quantize": "nf4"}, "--quantize"),
    ],
)
def test_comparisons_that_make_no_sense(settings: RunSettings, methods, change, said) -> None:
    with pytest.raises(SettingsError, match=said):
        compare(settings.model_copy(update=change), methods)
    assert not settings.out.exists()


def test_a_process_of_its_own_hands_on_events_results_and_errors(
    settings: RunSettings, request: pytest.FixtureRequest
) -> None:
    events = []
    file = settings.out / "rates.json"
    worker.run_in_process("rates", {"settings": settings.model_dump(mode="json"), "file": str(file)}, events.append)
    assert json.loads(file.read_text())["rate"] > 0
    assert any(isinstance(event, Notice) and "held-out loss" in event.text for event in events)
    request.getfixturevalue("forked_workers")
    wrong = settings.model_dump(mode="json") | {"base": str(settings.out / "absent")}
    with pytest.raises(BaseModelError) as error:
        worker.run_in_process("rates", {"settings": wrong, "file": str(file)}, events.append)
    assert error.value.exit_code == 2


def test_a_search_and_what_it_leaves(settings: RunSettings, in_process: list[str], monkeypatch) -> None:
    found = tune(settings, trials=7)
    assert in_process == ["search", *["train"] * len(found.quality)]
    study = open_study(settings.out)
    assert len(study.trials) == 7
    first = study.trials[0].params
    assert first == defaults(found.probe["rule"])
    assert {t.params["rank"] for t in study.trials[:2]} == {16}  # the learning rate first
    assert len({t.params["rate"] for t in study.trials}) == 7
    assert min(t["loss"] for t in found.trials if t["state"] == "complete") == study.best_value
    config = build(RunSettings, read_yaml(Path(found.config)))
    assert config.train.learning_rate == getattr(found, found.winner)["rate"]
    words = " ".join(found.words)
    assert "defaults" in words
    assert (settings.out / "tuning.html").read_text().count("<svg") >= 2

    in_process.clear()  # nothing is done twice
    again = tune(settings, trials=7)
    assert again == found
    assert in_process == ["search"]
    assert len(open_study(settings.out).trials) == 7
    tune(settings, trials=9)  # a longer one goes on
    assert len(open_study(settings.out).trials) == 9
    for name in ("repeats.json", "probe.json", "defaults/evaluation.json"):
        (settings.out / name).write_text('{"')
    in_process.clear()
    mended = tune(settings, trials=9)
    assert in_process == ["search", "train"]
    assert mended.repeats["defaults"] == again.repeats["defaults"]
    (settings.out / "study.journal").write_text("no line of a journal\n")
    with pytest.raises(InputError, match=r"study\.journal is damaged"):
        tune(settings, trials=9)


def test_a_search_that_was_cut_off_goes_on(settings: RunSettings, in_process: list[str], monkeypatch) -> None:
    from afina.search import trial as trials

    run, count = trials.TrialRunner.run, 0

    def killed(self, *args, **more):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return run(self, *args, **more)

    monkeypatch.setattr(trials.TrialRunner, "run", killed)
    with pytest.raises(Interrupted, match="the same command resumes it"):
        tune(settings, trials=4)
    assert [t.state.name for t in open_study(settings.out).trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    found = tune(settings, trials=4)
    states = [t.state.name for t in open_study(settings.out).trials]
    assert len(states) == 5  # the one that was cut off is tried anew, those before it are not
    assert len(found.trials) == 4


def test_the_minutes_of_a_search_are_those_of_the_whole_command(
    settings: RunSettings, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a row of training takes a second: trials, repeats and a proof of fewer rows fit."""
    from afina.search import trial as trials

    now = [1000.0]

    class Clock:
        time = monotonic = staticmethod(lambda: now[0])

    trained = []

    def slow(self, settings, rows, evaluations=1, **more):
        now[0] += rows
        loss = 1 + abs(math.log((settings.train.learning_rate or 1e-3) / 2e-3)) + 9 * (settings.lora != LoraConfig())
        return TrialResult(loss, rows, rows, rows, rows, "completed", [(rows, loss)], [3.0, 2.0, 1.0, 2.0])

    def run_in_process(target: str, arguments: dict, listener) -> object:
        if target == "train":
            trained.append(arguments["settings"]["train"]["rows"])
            now[0] += trained[-1]
        return run_here(target, arguments, listener)

    for module in ("afina.search.study.time", "afina.jobs.tune.time"):
        monkeypatch.setattr(module, Clock)
    monkeypatch.setattr("afina.jobs.tune.run_in_process", run_in_process)
    monkeypatch.setattr(
        "afina.search.study.pace_of", lambda _, row, look, load: Pace(row=1.0, look=0.0, load=0.0, rest=0.0)
    )
    monkeypatch.setattr(trials.TrialRunner, "run", slow)
    settings = changed(settings, {"train.epochs": 4})
    found = tune(settings, minutes=40)  # a full training has some 370 rows
    assert now[0] - 1000 < 1.1 * 40 * 60
    assert len(found.trials) >= 8
    assert all(rows == found.probe["proof_rows"] for rows in trained[:1])
    for name in ("best", "defaults"):
        assert read_yaml(settings.out / f"{name}.yaml")["train"]["rows"] >= 180  # as it would be trained in full
    tune(settings, minutes=40)  # again, with nothing to do: what was decided stays
    assert read_json(settings.out / "proof.json")["rows"] == found.probe["proof_rows"]


def test_trials_leave_the_base_as_it_was(settings: RunSettings) -> None:
    from afina.core.events import ignore
    from afina.search.trial import TrialRunner
    from afina.training.loss import mean_loss

    runner = TrialRunner(settings, ignore)
    before = mean_loss(runner.base, runner.data.held_out)
    first = runner.run(settings, 40)
    full = changed(settings, {"method": "full"})
    runner.run(full, 40)
    assert mean_loss(runner.base, runner.data.held_out) == before
    assert runner.run(settings, 40).losses == first.losses


def test_the_test_split_is_never_seen_by_the_search(settings: RunSettings, in_process: list[str], monkeypatch) -> None:
    from afina.search import trial as trials
    from afina.training.objectives import OBJECTIVES
    from afina.training.objectives.supervised import Supervised

    seen: set[str] = set()

    class Watched(Supervised):
        name = "watched"

        def batch(self, base, units):
            seen.update(row.location for row in units)
            return super().batch(base, units)

        def sums(self, base, units):
            seen.update(row.location for row in units)
            return super().sums(base, units)

    runners = []
    init = trials.TrialRunner.__init__

    def kept(self, *args):
        init(self, *args)
        runners.append(self)

    monkeypatch.setattr(trials.TrialRunner, "__init__", kept)
    with OBJECTIVES.added(Watched()):
        tune(changed(settings, {"train.objective": "watched"}), trials=3)
    test = {row.location for row in runners[0].data.test}
    assert seen
    assert test
    assert not seen & test


def test_every_choice_reaches_the_settings(settings: RunSettings) -> None:
    plain = defaults(1e-3)
    same = configured(settings, plain, 100, 8)
    assert same.lora == settings.lora
    assert same.train.learning_rate == 1e-3
    for name, value in {"rank": 8, "targets": "mlp", "form": "dora", "batch": 2.0, "epochs": 0.5}.items():
        assert configured(settings, plain | {name: value}, 100, 8) != same


def test_luck_is_not_announced_as_a_winner() -> None:
    def tuning(best: list[float]) -> Tuning:
        plain = defaults(1e-3)
        repeats = {"defaults": [1.0, 1.1, 0.9], "best": best, "seconds": [1.0]}
        probe = {"low": 1e-4, "high": 1e-2, "seconds": 3.0, "full_rows": 100}
        return Tuning([], plain | {"rank": 8}, plain, {}, repeats, {}, probe, 10, Path("x"))

    assert tuning([0.5, 0.6, 0.4]).winner() == "best"
    assert tuning([0.9, 1.15, 0.9]).winner() == "defaults"
    assert tuning([]).winner() == "defaults"
    assert "keep" not in " ".join(tuning([0.5, 0.6, 0.4]).words())


@pytest.mark.parametrize(
    ("effort", "change", "said"),
    [
        ({}, {}, "--minutes M or --trials N"),
        ({"minutes": 1, "trials": 2}, {}, "exclude each other"),
        ({"trials": 2}, {"track": ("nonsense",)}, "there is no tracker"),
        ({"trials": 2}, {"method": "head"}, "new LoRA adapter"),
        ({"trials": 2}, {"lora": LoraConfig(rank=4)}, "--lora"),
    ],
)
def test_searches_that_make_no_sense(settings: RunSettings, effort, change, said) -> None:
    with pytest.raises(SettingsError, match=said):
        tune(settings.model_copy(update=change), **effort)
    assert not settings.out.exists()
