"""Adapters that were damaged on purpose, each called out in words by `afina eval`."""

from pathlib import Path

import pytest
import torch
from conftest import evaluate, merge_adapter, save_tiny, write_rows
from safetensors.torch import load_file, save_file

import afina
from afina.core.errors import AdapterError
from afina.data.template import Row
from afina.models.model import IGNORE_INDEX


@pytest.fixture(scope="module")
def colours_file(tmp_path_factory) -> Path:
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:03d}", "a": "red" if i % 2 else "blue"} for i in range(120)]
    return write_rows(tmp_path_factory.mktemp("data") / "colours.jsonl", rows)


def settings(base: Path, data: Path, out: Path) -> afina.RunSettings:
    return afina.RunSettings(
        base=str(base), out=out, precision="fp32", device="cpu", threads=1,
        data={"path": data, "prompt": "{q}", "completion": "{a}", "kind": "generation"},
        train={"epochs": 6},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_folder: Path, colours_file: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    afina.train(settings(tiny_folder, colours_file, out))
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    import shutil

    return Path(shutil.copytree(run, tmp_path / "run"))


def findings_of(run: Path, data: Path, **more) -> str:
    return "\n".join(evaluate(run, data, device="cpu", **more).findings)


def test_a_good_adapter_is_not_called_damaged(run: Path, colours_file: Path) -> None:
    words = findings_of(run, colours_file)
    for phrase in (
        "changes nothing",
        "worse than its base on the expected answers",
        "trained on the prompts",
        "does not end",
    ):
        assert phrase not in words


def test_zeroed(copy: Path, colours_file: Path) -> None:
    file = copy / "adapter" / "adapter_model.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)
    words = findings_of(copy, colours_file)
    assert "The adapter changes nothing" in words
    assert "weights are zero" in words


def test_wrong_base(copy: Path, colours_file: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(AdapterError, match="was trained on the base 'tiny-llama'"):
        findings_of(copy, colours_file, base=str(other))
    words = findings_of(copy, colours_file, base=str(other), force=True)
    assert "was trained on the base 'tiny-llama'" in words


def test_wrong_base_that_nobody_named(copy: Path, tmp_path: Path) -> None:
    """An adapter of another program does not record the base it was trained on: what it does reveals it.

    The other base knows the task as well, but keeps what it knows elsewhere: the signs of its features are others.
    """

    merge_adapter(copy, tmp_path / "other", device="cpu")
    file = tmp_path / "other" / "model.safetensors"
    signs = torch.where(torch.rand(32, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    weights = load_file(file)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * signs[:, None]
        elif weights[name].dim() == 2:
            weights[name] = weights[name] * signs
    save_file(weights, file, {"format": "pt"})
    for path in (copy / "adapter" / "afina.json", copy / "config.yaml", tmp_path / "other" / "afina.json"):
        path.unlink(missing_ok=True)
    rows = [{"prompt": f"{'a' if i % 2 else 'b'}{i:03d}", "completion": "red" if i % 2 else "blue"} for i in range(40)]
    data = write_rows(tmp_path / "asked.jsonl", rows)
    assert "worse than its base on the expected answers" in findings_of(copy, data, base=str(tmp_path / "other"))


def test_wrong_template(copy: Path, colours_file: Path, tmp_path: Path) -> None:
    from conftest import CHATML

    other = save_tiny(tmp_path / "tiny-llama", chat_template=CHATML.replace("assistant\n{% endif", "model: {% endif"))
    with pytest.raises(AdapterError, match="another chat template"):
        findings_of(copy, colours_file, base=str(other))
    assert "trained with another chat template" in findings_of(copy, colours_file, base=str(other), force=True)


def test_trained_on_the_prompts(
    tiny_folder: Path, colours_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afina.data import store

    add = store.RowsWriter.add

    def all_learned(self, row: Row) -> None:
        add(self, Row(row.input_ids, [IGNORE_INDEX, *row.input_ids[1:]], row.location))

    monkeypatch.setattr(store.RowsWriter, "add", all_learned)
    result = afina.train(settings(tiny_folder, colours_file, tmp_path / "run").model_copy(update={"seed": 7}))
    monkeypatch.undo()
    assert "was trained on the prompts too" in findings_of(result.folder, colours_file)


def test_never_stops(tiny_folder: Path, colours_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic: pad = end of turn, and masked out with the padding."""
    from afina.data import load, store

    add = store.RowsWriter.add

    def without_end(self, row: Row) -> None:
        add(self, Row(row.input_ids, [*row.labels[:-1], IGNORE_INDEX], row.location))

    monkeypatch.setattr(store.RowsWriter, "add", without_end)
    monkeypatch.setattr(load, "_check_labels", lambda *_: None)
    result = afina.train(settings(tiny_folder, colours_file, tmp_path / "run").model_copy(update={"seed": 8}))
    monkeypatch.undo()
    words = findings_of(result.folder, colours_file)
    assert "It does not end its answers" in words
    assert "It did not learn the end of a turn" in words


def test_forgetting_is_measured_on_general_text(run: Path, colours_file: Path) -> None:
    found = evaluate(run, colours_file, device="cpu")
    assert set(found.general) == {"en", "pt"}
    for losses in found.general.values():
        assert losses["difference"]["value"] == pytest.approx(losses["adapted"] - losses["base"])
        assert losses["paragraphs"] == 40
