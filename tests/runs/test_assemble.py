"""What stands between settings and a training."""

from pathlib import Path

import pytest
from conftest import write_rows

from afina.core.events import ignore
from afina.models.causal import DecoderModel
from afina.runs.assemble import assemble
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
