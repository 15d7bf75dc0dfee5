"""What stands between settings and a training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_rows

from afina.core.device.cards import Unusable
from afina.core.errors import InputError, OutOfMemory
from afina.core.events import Event, Notice, ignore
from afina.models.causal import DecoderModel
from afina.runs import assemble as module
from afina.runs.assemble import assemble
from afina.runs.opening import open_run
from afina.settings import RunSettings


def test_an_init_that_looks_at_data_sees_every_token_of_every_row(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"q": f"the same instruction for all of them, {i:02d}", "a": "red"} for i in range(20)]
    settings = RunSettings(
        base=str(tiny_folder), precision="fp32", device="cpu", lora={"init": "eva", "rank": 2},
        data={"path": write_rows(tmp_path / "rows.jsonl", rows), "prompt": "{q}", "completion": "{a}"},
    )  # fmt: skip
    read: list[int] = []
    loss = DecoderModel.summed_loss
    monkeypatch.setattr(DecoderModel, "summed_loss", lambda *a: read.append(len(a[1].ids_T)) or loss(*a))
    assembled = assemble(settings, ignore)
    assembled.adapt(settings)
    assert sum(read) == assembled.data.train.tokens
    assert assembled.base.model.sharing


def test_arithmetic_is_set_and_an_unused_card_is_said_before_the_base_is_loaded(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is not there ends each run after it."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "set_arithmetic", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(module, "unused_card", lambda: Unusable("the driver is old", "update it"))
    data, texts = {"path": colours, "prompt": "{q}", "completion": "{a}"}, list[list[str]]()
    for settings in ({"device": "cpu"}, {"tf32": True}, {"train": {"deterministic": True}}):
        events: list[Event] = []
        with pytest.raises(InputError):
            assemble(RunSettings(base=str(tmp_path / "none"), data=data, **settings), events.append)
        texts.append([e.text for e in events if isinstance(e, Notice)])
    cpu = torch.device("cpu")
    assert found == [(cpu, False, False), (cpu, True, False), (cpu, False, True)]
    assert ["the driver is old: update it; or give --device cpu" in said for said in texts] == [False, True, True]
    assert [any("changes nothing here" in text for text in said) for said in texts] == [False, False, True]


def test_a_base_that_does_not_fit_is_said_with_the_device(
    tmp_path: Path, tiny_folder: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for place in ("assemble", "opening"):
        monkeypatch.setattr(f"afina.runs.{place}.load_base", full)
    data, run = {"path": colours, "prompt": "{q}", "completion": "{a}"}, Path(__file__).parents[1] / "recorded/finished"
    with pytest.raises(OutOfMemory, match=r"base '.*' does not fit into memory"):
        assemble(RunSettings(base=str(tiny_folder), device="cpu", data=data), ignore)
    with pytest.raises(OutOfMemory, match=r"base '.*' does not fit into memory"):
        open_run(run, device="cpu", base=str(tiny_folder))
