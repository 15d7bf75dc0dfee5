"""Settings are resolved once, by a pure function: the same in every place, and again what they are."""

from pathlib import Path
from typing import Any

import pytest

import afina
from afina.core.config import build, changed, fields, merge, read_yaml
from afina.core.errors import SettingsError
from afina.core.task import CAUSAL, CLASSIFY
from afina.data.layouts import Layout
from afina.forecast.estimate import forecast_training
from afina.forecast.machines import named
from afina.forecast.workload import Workload
from afina.lora.config import LoraConfig
from afina.models.skeleton import read_skeleton
from afina.runs.assemble import assemble
from afina.settings import Facts, RunSettings, resolve

FACTS = Facts(
    task=CAUSAL,
    lengths=[20, 30, 40] * 100,
    labelled=10,
    hidden_size=576,
    activation_bytes=1_000_000,
    free_bytes=4_000_000_000,
    precision="bf16",
    precision_reason="it is faster",
    threads=3,
    base="/models/tiny",
    revision="abc",
    heads=("score",),
    kind="classification",
    layout=Layout("a file of texts with labels", prompt="{text}", completion="{label}"),
    files={"data.path": Path("/data/rows.jsonl")},
)
BASELINE = LoraConfig(target_modules=(), modules_to_save=("lm_head",))
OPEN = RunSettings(data={"path": "rows.jsonl"})
GIVEN: dict[str, Any] = {  # a value for each setting that can be left open
    "train.epochs": 2.5,
    "train.batch_size": 7,
    "train.learning_rate": 3e-3,
    "train.eval_steps": 11,
    "train.checkpoint_activations": True,
    "quantize": "nf4",
    "threads": 2,
}


def test_the_same_goes_in_and_the_same_comes_out() -> None:
    before = OPEN.model_dump()
    first = resolve(OPEN, FACTS)
    assert resolve(OPEN, FACTS) == first
    assert OPEN.model_dump() == before


def test_nothing_is_left_open() -> None:
    found = resolve(OPEN, FACTS)
    settings = found.settings
    assert None not in (getattr(settings.train, name) for name in found.plan.settings())
    assert (settings.base, settings.revision, settings.precision, settings.threads) == (
        "/models/tiny",
        "abc",
        "bf16",
        3,
    )
    assert (settings.data.kind, settings.data.prompt, settings.data.completion) == (
        "classification",
        "{text}",
        "{label}",
    )
    assert settings.lora.modules_to_save == ("score",)
    assert settings.train.batch_size == CAUSAL.batch_size
    assert found.reasons[0] == "bf16 for the base: it is faster"
    assert found.config()["data"]["path"] == "/data/rows.jsonl"


def test_what_was_resolved_resolves_to_itself() -> None:
    for asked, facts in ((OPEN, FACTS), (changed(OPEN, {"method": "head"}), _with(trained=BASELINE, heads=()))):
        first = resolve(asked, facts)
        again = resolve(build(RunSettings, first.config()), facts)
        assert again.settings == changed(first.settings, {"data.path": Path("/data/rows.jsonl")})
        assert (again.plan, again.adapter, again.base, again.compute) == (
            first.plan, first.adapter, first.base, first.compute,
        )  # fmt: skip
        assert again.reasons == first.reasons[:1]  # nothing was left to choose


@pytest.mark.parametrize("name", GIVEN)
def test_what_was_given_is_kept(name: str) -> None:
    value = GIVEN[name]
    found = resolve(changed(OPEN, {name: value}), FACTS)
    assert _at(found.settings, name) == value
    assert _at(resolve(OPEN, FACTS).settings, name) != value


@pytest.mark.parametrize(
    ("one", "other"),
    [("train.rows", "train.epochs"), ("train.tokens_per_batch", "train.batch_size"), ("data.test_path", "data.test")],
)
def test_of_a_setting_and_what_it_replaces_one_is_given(one: str, other: str) -> None:
    values: dict[str, Any] = {one: 90, other: 3} if one != "data.test_path" else {one: Path("t.jsonl"), other: 0.2}
    with pytest.raises(SettingsError, match=f"{one if 'train' in one else 'test-data'} is .* is given too"):
        changed(OPEN, values)
    for first, second in ((one, other), (other, one)):  # what is said last stays, as a flag does over a file
        found = changed(changed(OPEN, {first: values[first]}), {second: values[second]})
        assert _at(found, second) == values[second]
        assert _at(found, first) == _at(OPEN, first)


@pytest.mark.parametrize("values", [{"train.rows": 300}, {"train.tokens_per_batch": 90}])
def test_what_a_run_records_can_be_given_again(values: dict[str, Any]) -> None:
    first = resolve(changed(OPEN, values), FACTS)
    again = build(RunSettings, first.config())
    assert resolve(again, FACTS).plan == first.plan
    assert resolve(changed(again, {"train.rows": 9000}), FACTS).plan.steps > first.plan.steps


def test_every_setting_is_passed_on() -> None:
    """But for those that the facts decide, a setting comes out as it went in."""
    decided = {"base", "revision", "precision"}
    values: dict[str, Any] = {"data.text": "line", "data.learn": "last", "train.schedule": "cosine", "lora.bias": "all"}
    for field in fields(RunSettings):
        default = field.default
        if isinstance(default, bool):
            values[field.path] = not default
        elif isinstance(default, int | float):
            values.setdefault(field.path, default + 1 if isinstance(default, int) else default / 2 + 0.25)
    for path in {"force", "last_layers", "lora.eva_rho"}:
        del values[path]  # read beside another setting only
    values["lora.rank"] = 18
    values["train.warmup"] = 0.5
    for path, value in values.items():
        if path not in decided:
            assert _at(resolve(changed(OPEN, {path: value}), FACTS).settings, path) == value, path


@pytest.mark.parametrize(
    "change",
    [
        {"train.epochs": 9},
        {"train.rows": 3000},
        {"train.batch_size": 3},
        {"train.tokens_per_batch": 100},
        {"train.learning_rate": 1e-3},
        {"train.eval_steps": 2},
        {"train.checkpoint_activations": True},
        {"train.tokens_per_pass": 1_000_000},
        {"method": "full"},
    ],
)
def test_settings_of_the_plan_change_it(change: dict[str, Any]) -> None:
    facts = _with(trained=BASELINE) if "method" in change else FACTS
    assert resolve(changed(OPEN, change), facts).plan != resolve(OPEN, FACTS).plan


@pytest.mark.parametrize(
    ("fact", "value"),
    [("task", CLASSIFY), ("lengths", [20] * 50), ("hidden_size", 1024), ("activation_bytes", 10**9), ("free_bytes", 1)],
)
def test_facts_of_the_plan_change_it(fact: str, value: Any) -> None:
    assert resolve(OPEN, _with(**{fact: value})).plan != resolve(OPEN, FACTS).plan


def test_the_default_batch_is_the_tasks() -> None:
    assert resolve(OPEN, _with(task=CLASSIFY)).plan.batch_size == CLASSIFY.batch_size


def test_an_adapter_that_is_trained_further_brings_its_settings(tmp_path: Path) -> None:
    stored = LoraConfig(rank=4)
    settings = changed(OPEN, {"adapter": tmp_path})
    found = resolve(settings, _with(trained=stored, quantize="int8"))
    assert (found.adapter, found.base.quantize) == (stored, "int8")
    with pytest.raises(SettingsError, match="brings its own LoRA settings"):
        resolve(changed(settings, {"lora.rank": 8}), _with(trained=stored))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_resolves_to_its_own_plan(method: str, colours: Path, tiny_folder: Path, tmp_path: Path) -> None:
    settings = RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "run",
        method=method,
        precision="fp32",
        device="cpu",
        data={"path": colours, "prompt": "{q}", "completion": "{a}"},
        train={"rows": 16},
    )
    assembled = assemble(settings, lambda _: None)
    planned = assembled.resolve(settings)
    afina.train(settings)
    config = read_yaml(tmp_path / "run" / "config.yaml")
    assert config == planned.config()
    recorded = build(RunSettings, merge(config, {"out": tmp_path / "again"}))
    again = assembled.resolve(recorded)
    assert (again.plan, again.adapter) == (planned.plan, planned.adapter)
    assert again.config() == config


def test_the_forecast_has_the_runs_plan(colours: Path, tiny_folder: Path, tmp_path: Path) -> None:
    settings = RunSettings(
        base=str(tiny_folder),
        precision="fp32",
        device="cpu",
        data={"path": colours, "prompt": "{q}", "completion": "{a}"},
    )
    assembled = assemble(settings, lambda _: None)
    rows = assembled.data.train
    workload = Workload(list(rows.lengths), 0.5, 100, 4, 10, 10, 10, 10)
    skeleton = read_skeleton(str(tiny_folder), cache_dir=tmp_path)
    assert forecast_training(skeleton, settings, workload, named("80gb")).plan == assembled.resolve(settings).plan


def _with(**values: Any) -> Facts:
    return Facts(**{**FACTS.__dict__, **values})


def _at(settings: RunSettings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value
