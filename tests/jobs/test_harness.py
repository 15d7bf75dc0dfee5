"""lm_eval's tasks on a tiny run; without lm_eval, what is said."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import merge_adapter

from afina.core.errors import InputError, SettingsError
from afina.core.events import Notice
from afina.core.files import write_json
from afina.jobs.harness import HarnessSettings, _load, _side_by_side, harness
from afina.lora import LoraConfig, inject, save_adapter
from afina.lora.injection import lora_layers
from afina.models.load import Base
from afina.runs.facts import facts_of, save_tokenizer

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, validation: {data}}}}}
test_split: test
fewshot_split: validation
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: [" red", " blue"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: brier_score}}]
"""


@pytest.fixture
def lm_eval():
    pytest.importorskip("lm_eval.tasks", reason="lm_eval is an extra: pip install 'afina[lm-eval]'")
    return sys.modules["lm_eval"]


@pytest.fixture
def run(tiny: Base, tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter with random numbers, of the embedding too, whose head is untied when it is merged."""
    module = tiny.model.module
    config = LoraConfig(rank=4, target_modules=("q_proj", "down_proj", "embed_tokens"))
    inject(module, config)
    for _, layer in lora_layers(module):
        for factor in layer.parameters():
            if factor.requires_grad:
                torch.nn.init.normal_(factor, std=0.3, generator=torch.Generator().manual_seed(0))
    save_adapter(module, config, tmp_path / "run")
    write_json(tmp_path / "run" / "afina.json", facts_of(tiny, str(tiny_folder)))
    save_tokenizer(tiny, tmp_path / "run")
    return tmp_path / "run"


def task(folder: Path, name: str = "colours") -> str:
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "answer": 1 - i % 2} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / "rows.jsonl"))
    return str(folder / f"{name}.yaml")


def test_without_lm_eval(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SettingsError, match=r"afina\[lm-eval\]"):
        harness(HarnessSettings(run=tmp_path, tasks=["arc_easy"]))


def test_metrics_side_by_side() -> None:
    base = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 0, "em_stderr,strict": "N/A"}
    found = _side_by_side(base, {**base, "acc,none": 0.75})
    assert found == {
        "acc": {"base": 0.5, "base_stderr": 0.1, "adapted": 0.75, "adapted_stderr": 0.1},
        "em,strict": {"base": 0.0, "base_stderr": None, "adapted": 0.0, "adapted_stderr": None},
    }


@pytest.mark.filterwarnings("ignore")  # lm_eval's own, and its data library's
def test_scores_are_those_of_the_saved_models(
    lm_eval, run: Path, tiny_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    yaml, events = task(tmp_path), []
    result = harness(HarnessSettings(run=run, tasks=[yaml], limit=12, device="cpu"), events.append)
    assert result.rows == {"colours": 12}
    assert [event.text.split(" model")[0] for event in events if isinstance(event, Notice)] == [
        "lm_eval: the adapted",
        "lm_eval: the base",
    ]
    merge_adapter(run, tmp_path / "merged", device="cpu")
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    for name, folder in (("base", tiny_folder), ("adapted", tmp_path / "merged")):
        arguments = {"pretrained": str(folder), "dtype": "float32", "device": "cpu"}
        theirs = lm_eval.simple_evaluate(
            "hf", model_args=arguments, tasks=[yaml], limit=12, task_manager=manager, bootstrap_iters=0
        )["results"]["colours"]
        for metric in ("acc", "brier_score"):
            assert result.tasks["colours"][metric][name] == pytest.approx(theirs[f"{metric},none"], abs=1e-4)
    scores = result.tasks["colours"]["brier_score"]
    assert scores["base"] != pytest.approx(scores["adapted"], abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_tasks_that_cannot_be_run(lm_eval, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    yaml = task(tmp_path)
    unsafe = Path(task(tmp_path, "unsafe"))
    unsafe.write_text(unsafe.read_text() + "unsafe_code: true\n")
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(tmp_path))
    assert [each.task_name for each in _load(manager, ["col*", "colours", yaml])] == ["colours"]
    for name, said in (("colour", "Did you mean 'colours'"), ("unsafe", "runs code that a model wrote")):
        with pytest.raises(SettingsError, match=said):
            _load(manager, [name])
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="task colours cannot be loaded"):
        _load(manager, ["colours"])
