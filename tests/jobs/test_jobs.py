"""The main job, whole, on a tiny model: what a run folder holds, and that it can be used, repeated and continued."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from conftest import evaluate, generate, save_tiny, write_rows

import afina
from afina.core.config import build, json_object, read_yaml
from afina.core.errors import (
    AdapterError,
    Interrupted,
    NonFiniteLoss,
    OutputError,
    SettingsError,
    VerificationFailed,
)
from afina.core.events import HeldOut, Notice, Progress, Step
from afina.core.files import read_json, read_jsonl
from afina.lora import adapter_state, load_adapter

LEARN = {"epochs": 8, "learning_rate": 3e-2}


def settings(data: Path, base: Path, out: Path, **more) -> afina.RunSettings:
    return afina.RunSettings(
        **{
            "base": str(base),
            "out": out,
            "precision": "fp32",
            "device": "cpu",
            "data": {"path": data, "prompt": "{q}", "completion": "{a}", "held_out": 0.2},
            "train": LEARN,
            **more,
        }
    )


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """One trained run, its data file and its result."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "a": "red" if i % 2 else "blue"} for i in range(60)]
    data = write_rows(folder / "colours.jsonl", [*rows, {"q": "no answer", "a": ""}])
    events: list = []
    result = afina.train(settings(data, tiny_folder, folder / "run"), events.append)
    return folder / "run", data, result, events


def test_a_run_folder_is_complete(run) -> None:
    folder, _, result, events = run
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter",
        "config.yaml",
        "metrics.jsonl",
        "forecast.json",
        "evaluation.json",
        "predictions.jsonl",
        "rejected.jsonl",
        "report.html",
    }
    inside = {path.name for path in (folder / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "afina.json", "tokenizer.json", "README.md"} <= inside
    assert not any(name.startswith(".") for name in names | inside)
    assert read_jsonl(folder / "rejected.jsonl") == [{"where": "colours.jsonl:61", "reason": "the completion is empty"}]
    assert "afina" not in (folder / "adapter" / "adapter_config.json").read_text()
    assert any(isinstance(e, Notice) and e.warning and "1 row: the completion is empty" in e.text for e in events)
    assert result.adapter == folder / "adapter"


def test_it_was_verified_and_got_better(run) -> None:
    folder, _, result, _ = run
    assert result.verification.from_training <= 1e-4
    assert result.verification.from_base > 0
    found = read_json(folder / "evaluation.json")
    assert found["kind"] == "classification"
    assert found["adapted"]["loss"] < found["base"]["loss"]
    assert found["adapted"]["stop_rate"] >= found["base"]["stop_rate"]
    assert set(found["base"]) == set(found["adapted"])
    assert found["rows"] == 12 == len(read_jsonl(folder / "predictions.jsonl"))
    assert found["trivial"]["majority label"]["accuracy"] >= 0.5


def test_the_adapter_kept_is_the_best(run, tiny: afina.models.Base) -> None:
    folder, _, _, events = run
    load_adapter(tiny.model.module, folder / "adapter")
    best = min(e.value for e in events if isinstance(e, HeldOut) and e.step)
    assert read_json(folder / "evaluation.json")["adapted"]["loss"] == pytest.approx(best, rel=1e-4)
    assert any(value.abs().max() > 0 for value in adapter_state(tiny.model.module).values())


def test_the_page_needs_no_network(run) -> None:
    page = (run[0] / "report.html").read_text()
    for word in ("<svg", "held out", "accuracy", "learning_rate", "afina generate"):
        assert word in page
    assert "src=" not in page
    assert "url(http" not in page
    assert "<script" not in page


def test_the_page_escapes_what_models_write(run, tmp_path: Path) -> None:
    from afina.measure import write_report

    folder = shutil.copytree(run[0], tmp_path / "copy")
    row = {"prompt": "<script>alert(1)</script>", "references": ["<b>"], "base": "<i>", "adapted": "&"}
    (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    page = write_report(folder).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_the_recorded_configuration_repeats_the_run(run, tmp_path: Path) -> None:
    folder, _, _, _ = run
    again = build(
        afina.RunSettings, read_yaml(folder / "config.yaml") | {"out": str(tmp_path / "again"), "device": "cpu"}
    )
    afina.train(again)
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (folder / weights).read_bytes()


def test_evaluate_uses_the_runs_templates(run, tmp_path: Path) -> None:
    folder = shutil.copytree(run[0], tmp_path / "copy")
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i}", "refs": ["red" if i % 2 else "blue", "x"]} for i in range(100, 110)]
    result = evaluate(folder, write_rows(tmp_path / "t.jsonl", rows), references="refs", limit=6, device="cpu")
    assert result.rows == 6
    assert [p["prompt"] for p in result.predictions] == [row["q"] for row in rows[:6]]
    assert read_json(folder / "evaluation.json") == json.loads(json.dumps(json_object(result)))
    assert str(tmp_path / "t.jsonl") in (folder / "report.html").read_text()


def test_generate(run, tmp_path: Path) -> None:
    folder, data, _, _ = run
    (row,) = generate(folder, ["a77"], base_too=True, device="cpu")
    assert set(row) == {"prompt", "answer", "stopped", "base"}
    rows = generate(folder, data, device="cpu")
    assert len(rows) == 61  # the row without an answer has a prompt
    assert rows[0]["where"] == f"{data}:1"
    assert generate(folder / "adapter", ["a77"], device="cpu")[0]["answer"] == row["answer"]


def test_an_adapter_is_continued(run, tiny_folder: Path, tmp_path: Path) -> None:
    folder, data, _, _ = run
    events: list = []
    afina.train(
        settings(data, tiny_folder, tmp_path / "more", adapter=folder, train={"epochs": 1, "learning_rate": 1e-3}),
        events.append,
    )
    start = next(e for e in events if isinstance(e, HeldOut))
    assert start.value == pytest.approx(read_json(folder / "evaluation.json")["adapted"]["loss"], rel=1e-3)
    with pytest.raises(SettingsError, match="brings its own"):
        afina.train(settings(data, tiny_folder, tmp_path / "other", adapter=folder, lora={"rank": 3}))
    assert not (tmp_path / "other").exists()


def test_an_adapter_of_another_base_is_refused(run, tmp_path: Path) -> None:
    folder, data, _, _ = run
    other = save_tiny(tmp_path / "other-base", seed=1)
    with pytest.raises(AdapterError, match="was trained on the base"):
        afina.train(settings(data, other, tmp_path / "x", adapter=folder))
    copy = shutil.copytree(folder, tmp_path / "copy")
    facts = read_json(copy / "adapter" / "afina.json")
    facts["load"]["name"] = str(other)
    (copy / "adapter" / "afina.json").write_text(json.dumps(facts))
    with pytest.raises(AdapterError, match="was trained on the base"):
        generate(copy, ["x"], device="cpu")


def test_an_adapter_of_peft_alone_is_used(tiny_folder: Path, tmp_path: Path) -> None:
    from conftest import tiny_module
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_module(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    model.save_pretrained(tmp_path / "peft")
    (row,) = generate(tmp_path / "peft", ["Hi"], base_too=True, device="cpu")
    assert row["answer"] == row["base"]  # PEFT's B starts at zero


def test_an_adapter_holds_no_absolute_path(run, tiny_folder: Path, tmp_path: Path) -> None:
    """Its base is found from where it lies, or as its run's settings name it; and so after it was combined."""
    from afina.jobs.adapters.combine import CombineAdaptersSettings, combine

    trained = run[0]
    expected = generate(trained, ["b01"], device="cpu")[0]["answer"]
    combine(CombineAdaptersSettings(runs=[trained, trained], weights=[0.5, 0.5], out=tmp_path / "deep" / "sum"))
    for folder in (trained / "adapter", tmp_path / "deep" / "sum"):
        for file in folder.iterdir():
            assert not any(str(path).encode() in file.read_bytes() for path in (tiny_folder, trained.parent)), file
    assert generate(tmp_path / "deep" / "sum", ["b01"], device="cpu")[0]["answer"] == expected
    moved = Path(shutil.copytree(trained, tmp_path / "a" / "b" / "c"))
    assert generate(moved, ["b01"], device="cpu")[0]["answer"] == expected  # its settings name the base
    together = tmp_path / "together"
    shutil.copytree(tiny_folder, together / "base" / tiny_folder.name)
    lonely = Path(shutil.copytree(trained / "adapter", together / "mine" / "adapter"))
    facts = read_json(lonely / "afina.json")
    facts["load"]["name"] = f"../../base/{tiny_folder.name}"
    (lonely / "afina.json").write_text(json.dumps(facts))
    assert generate(lonely, ["b01"], device="cpu")[0]["answer"] == expected
    shutil.rmtree(together / "base")
    with pytest.raises(AdapterError, match="cannot be used here"):
        generate(lonely, ["b01"], device="cpu")


def test_a_run_is_not_overwritten_unasked(run, tiny_folder: Path, tmp_path: Path) -> None:
    _, data, _, _ = run
    folder = shutil.copytree(run[0], tmp_path / "copy")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds a run"):
        afina.train(settings(data, tiny_folder, folder))
    afina.train(settings(data, tiny_folder, folder, overwrite=True, train={"epochs": 1, "learning_rate": 0.1}))
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with pytest.raises(OutputError, match="not from a run"):
        afina.train(settings(data, tiny_folder, tmp_path / "photos", overwrite=True))


def test_a_run_that_comes_to_nothing_leaves_what_was_there(run, tiny_folder: Path, tmp_path: Path) -> None:
    _, data, _, _ = run
    folder = shutil.copytree(run[0], tmp_path / "copy")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hopeless = {"epochs": 1, "learning_rate": 1e30}
    for out, overwrite in ((folder, True), (tmp_path / "new", False)):
        with pytest.raises(NonFiniteLoss):
            afina.train(settings(data, tiny_folder, out, overwrite=overwrite, train=hopeless))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_ctrl_c_before_the_first_step_and_after_the_last(run, tiny_folder: Path, tmp_path: Path) -> None:
    def press(event) -> None:
        if getattr(event, "step", None) == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after step 1 "):
        afina.train(settings(run[1], tiny_folder, tmp_path / "x"), press)

    def late(event) -> None:
        if isinstance(event, Progress) and "loading the saved adapter" in event.stage:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"(?s)is complete, but not evaluated.*--resume"):
        afina.train(settings(run[1], tiny_folder, tmp_path / "y"), late)
    assert generate(tmp_path / "y", ["a1"], device="cpu")[0]["prompt"] == "a1"


def test_ctrl_c_leaves_a_usable_adapter(run, tiny_folder: Path, tmp_path: Path) -> None:
    def press(event) -> None:
        if isinstance(event, Step) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after step 3"):
        afina.train(settings(run[1], tiny_folder, tmp_path / "x", train={**LEARN, "eval_steps": 30}), press)
    assert generate(tmp_path / "x", ["a1"], device="cpu")[0]["answer"] is not None
    assert "interrupted" in (tmp_path / "x" / "report.html").read_text()


def test_a_saved_adapter_that_is_not_the_trained_one_is_found(
    run, tiny_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    from afina.runs import training as job

    def damaged(model, folder):
        config = load_adapter(model, folder)
        for value in adapter_state(model).values():
            value.mul_(0.0 if zero else 1.5)
        return config

    monkeypatch.setattr(job, "load_adapter", damaged)
    for zero in (False, True):
        with pytest.raises(VerificationFailed, match="does not give the trained"):
            afina.train(settings(run[1], tiny_folder, tmp_path / f"x{zero}"))


def test_an_adapter_that_changes_nothing_is_found(run, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="changes nothing"):
        afina.train(settings(run[1], tiny_folder, tmp_path / "x", train={"epochs": 1, "learning_rate": 1e-30}))


def test_merged_on_disk_is_a_model_of_its_own(run, tiny: afina.models.Base, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from afina.engine.ops import Segments
    from afina.lora import merge
    from afina.models.model import unshared
    from afina.models.through_transformers import as_transformers

    load_adapter(tiny.model.module, run[0] / "adapter")
    as_transformers(merge(tiny.model.module)).save_pretrained(tmp_path)
    ids = torch.arange(3, 30)
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids[None]).logits[0]
        assert torch.allclose(again, tiny.model.label_logits(unshared(ids, ids, Segments((0, 27)))), atol=1e-4)


def test_a_row_that_cannot_be_asked_does_not_stop_the_others(run, tmp_path: Path) -> None:
    folder, *_ = run
    events: list = []
    asked = [{"q": "a07"}, {"q": "forged <|im_end|>"}, {"q": "b06"}, {"q": "long " * 200}]
    found = afina.generate(
        afina.GenerateSettings(run=folder, data=write_rows(tmp_path / "ask.jsonl", asked)), events.append
    ).rows
    assert [row["where"][-1] for row in found] == ["1", "3"]
    assert any("the base takes" in str(event) for event in events)
    assert any("not answered" in str(event) and "control token" in str(event) for event in events)
