"""An objective from outside the package: training, the held-out measure, the saved adapter and the report."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import afina
from afina.core.errors import SettingsError
from afina.core.events import HeldOut, read_events
from afina.core.files import read_jsonl
from afina.core.layers import evaluation_mode
from afina.data.batch import pack
from afina.data.load import load_data
from afina.data.settings import DataSettings
from afina.data.template import Row
from afina.lora import LoraConfig, inject, load_adapter
from afina.models.load import Base, load_base
from afina.models.model import Packed
from afina.training.accumulation import gradients
from afina.training.loss import device_of
from afina.training.objectives import OBJECTIVES
from afina.training.objectives.supervised import Supervised


class Smoothed(Supervised):
    """Cross-entropy with smoothed labels, in which every row weighs the same, watched by the share of right tokens."""

    name = "smoothed"
    measure = "token_accuracy"
    lower_is_better = False

    def weight(self, unit: Row) -> float:
        return 1.0

    def batch(self, base: Base, units: Sequence[Row]) -> list[Packed]:
        return [pack([row], device_of(base)) for row in units]

    def loss(self, base: Base, batch: list[Packed]) -> Tensor:
        total = torch.zeros(())
        for packed in batch:
            labels_N = packed.labels_N
            total = total + F.cross_entropy(base.model.label_logits(packed).float(), labels_N, label_smoothing=0.1)
        return total

    def sums(self, base: Base, units: Sequence[Row]) -> Sequence[float]:
        with torch.no_grad(), evaluation_mode(base.model.module):
            packed = [pack([row], device_of(base)) for row in units]
            right = sum(int((base.model.label_logits(each).argmax(-1) == each.labels_N).sum()) for each in packed)
        return right, sum(each.labelled for each in packed)

    def numbers(self, sums: Sequence[float]) -> dict[str, float]:
        right, tokens = sums
        return {"token_accuracy": right / tokens, "right_tokens": right}


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("objective")
    data = folder / "colours.jsonl"
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "a": "red" if i % 2 else "blue"} for i in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": str(tiny_folder),
        "out": folder / "run",
        "precision": "fp32",
        "device": "cpu",
        "data": {"path": data, "prompt": "{q}", "completion": "{a}", "held_out": 0.2},
        "train": {"epochs": 6, "learning_rate": 3e-2, "eval_steps": 6, "early_stopping": 0, "objective": "smoothed"},
    }


def test_an_objective_that_is_not_there(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"there is no objective 'smoothed'.*supervised"):
        afina.RunSettings(**settings)
    with OBJECTIVES.added(Smoothed()), pytest.raises(SettingsError, match="already"):
        OBJECTIVES.add(Smoothed())


def test_trained_saved_reloaded_and_reported(settings: dict, tiny_folder: Path) -> None:
    with OBJECTIVES.added(Smoothed()):
        result = afina.train(afina.RunSettings(**settings))
    lines = [row for row in read_jsonl(result.folder / "metrics.jsonl") if row["event"] == "heldout"]
    assert all(
        list(row) == ["event", "step", "token_accuracy", "right_tokens", "best", "measure", "lower_is_better"]
        and (row["measure"], row["lower_is_better"]) == ("token_accuracy", False)
        for row in lines
    )
    found = [event for event in read_events(result.folder / "metrics.jsonl") if isinstance(event, HeldOut)]
    best = max(event.value for event in found[1:])
    assert best > found[0].value
    assert [event.value for event in found if event.best] == sorted({e.value for e in found if e.best})
    assert max(event.value for event in found if event.best) == best
    base = load_base(str(tiny_folder), precision="fp32", device="cpu")
    load_adapter(base.model.module, result.adapter)
    held_out = load_data(DataSettings(**settings["data"]), base).held_out
    assert Smoothed().numbers(Smoothed().sums(base, held_out))["token_accuracy"] == best
    assert "token_accuracy (higher is better)" in result.report.read_text()
    assert "objective: smoothed" in (result.folder / "config.yaml").read_text()


def test_a_row_weighs_the_same_however_long_its_answer(settings: dict, tiny: Base) -> None:
    """The gradients follow the objective's weights, not the labelled tokens."""
    inject(tiny.model.module, LoraConfig(rank=4))
    rows = [Row([5, 6, 7], [-100, 6, 7], "a:1"), Row([8, 9, 10, 11, 12], [-100, 9, 10, 11, 12], "a:2")]
    alone = [gradients(tiny, [row], Smoothed(), 100)[0].item() for row in rows]
    together, tokens = gradients(tiny, rows, Smoothed(), 1)
    assert together.item() == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert tokens == 8
