"""Choosing a base: candidates of the catalogue, trials on the user's rows, the ranking, and the command at the end."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import byte_tokenizer, save_tiny, tiny_module

from afina.core.errors import SettingsError
from afina.core.events import ignore
from afina.data.load import load_data
from afina.data.settings import DataSettings
from afina.jobs import choose as module
from afina.jobs.choose import ChooseSettings, choose
from afina.models.load import load_base
from afina.runs.worker import run_in_process
from afina.search.base_trial import BaseTrial, try_base
from afina.search.candidates import Candidate, Choice
from afina.search.resumable import with_test_split
from afina.settings import RunSettings
from afina.training.loss import row_losses
from afina.training.settings import TrainingSettings
from afina.ui.cli import main

LABELS = ("good", "bad")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"q": f"the thing number {i} is {LABELS[i % 2]}", "a": LABELS[i % 2]} for i in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """No benchmark of the machine, which is tested elsewhere; trials in this process (but for one test)."""
    this_machine = module.this_machine
    monkeypatch.setattr(module, "this_machine", lambda *arguments, **_: this_machine(*arguments, measure=False))
    monkeypatch.setattr(
        module, "run_in_process", lambda _, arguments, listener: try_base(**arguments, listener=listener)
    )


def settings(data: Path, folder: Path) -> RunSettings:
    return RunSettings(
        data=DataSettings(path=data, prompt="{q}", completion="{a}"),
        train=TrainingSettings(learning_rate=1e-2),
        out=folder / "choice",
        cache_dir=folder / "cache",
        precision="fp32",
        threads=1,
    )


def test_bases_are_tried_and_ranked(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """One base has had its word vectors scrambled beyond use: it must come last, whatever it is called."""
    broken = tmp_path / "a-broken"
    spoiled = tiny_module()
    spoiled.get_input_embeddings().weight.data *= 1e3  # its head, too, says nonsense with certainty
    spoiled.save_pretrained(broken)
    byte_tokenizer().save_pretrained(broken)
    news = []
    found = choose(ChooseSettings(run=settings(data, tmp_path), bases=[str(broken), str(tiny_folder)]), news.append)
    assert found.task == "classification"
    assert found.languages == ("en",)
    assert [each.base for each in found.tried] == [str(tiny_folder), str(broken)]
    best = found.tried[0].probe
    assert best is not None
    assert best.bits_before is not None
    assert best.bits_after < best.bits_before
    assert best.tokens_per_word > 3  # a token a byte
    assert sum(best.bits) / len(best.bits) == pytest.approx(best.bits_after)
    assert found.lead is not None
    assert found.lead["verdict"] == "better"
    assert found.guess == pytest.approx(1.0, abs=1e-3)  # two labels, each half of the time
    assert best.adapted is not None
    assert best.zero_shot is not None
    kept = json.loads((tmp_path / "choice" / "choice.json").read_text())
    assert kept["best"] == str(tiny_folder)
    again = choose(ChooseSettings(run=settings(data, tmp_path), bases=[str(broken), str(tiny_folder)]))
    assert again.tried[0].probe == best  # nothing was done again


def test_bits_are_those_of_the_held_out_answers(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    wanted = with_test_split(settings(data, tmp_path)).model_copy(update={"base": str(tiny_folder)})
    try_base(wanted.model_dump(mode="json"), str(tmp_path / "probe.json"), 0.05, ignore)
    found = json.loads((tmp_path / "probe.json").read_text())
    base = load_base(str(tiny_folder), precision="fp32", device="cpu")
    rows = load_data(wanted.data, base).held_out
    nats = torch.tensor([loss for loss, _ in row_losses(base, rows)])
    assert found["bits_before"] == pytest.approx((nats.mean() / torch.tensor(2.0).log()).item(), rel=1e-4)


def test_encoders_are_tried_beside_writers(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    encoder = save_tiny(tmp_path / "encoder", "bert")
    found = choose(ChooseSettings(run=settings(data, tmp_path), bases=[str(encoder), str(tiny_folder)]))
    probes = {each.base: each.probe for each in found.tried}
    told = probes[str(encoder)]
    assert told is not None
    assert told.zero_shot is None  # it names classes once it has learned them
    assert told.adapted is not None
    assert told.bits_after == pytest.approx(1.0, abs=0.9)  # two classes


@pytest.mark.parametrize(
    ("bits", "beats"), [([0.2, 0.4] * 20, True), ([0.5, 1.5] * 20, False), ([1.2, 1.4] * 20, False)]
)
def test_a_base_that_guesses_is_called_so(bits: list[float], beats: bool, tmp_path: Path) -> None:
    seen = BaseTrial(None, None, 0.5, 1.0, None, None, sum(bits) / len(bits), bits, 100, 1.0, None)
    tried = Candidate("a-base", 10, None, True, SimpleNamespace(), (), trial=seen)  # type: ignore[arg-type]
    found = Choice("classification", "accuracy", (), 0.1, [tried], [], tmp_path, classes=(0.75, 0.25))
    assert found.guess == pytest.approx(0.75 * 2 - 0.75 * math.log2(3) + 0.25 * 2)
    assert replace(found, classes=(0.5, 0.5)).beats_guessing is beats


def test_the_catalogue_is_searched(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.forecast.machines.free_bytes", lambda _: int(20e9))
    with pytest.raises(
        SettingsError, match=r"no base that fits is on this disk; of the catalogue .* would(.|\n)*models pull"
    ):
        choose(ChooseSettings(run=settings(data, tmp_path), licence="commercial"))


def test_what_cannot_be_tried(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "cache")
    asked = ["choose", str(data), "--prompt", "{q}", "--completion", "{a}", "--cache-dir", cache]
    assert main([*asked, "--bases", "no-such"]) == 2
    assert "no catalogue name" in capsys.readouterr().err
    assert main([*asked, "--bases", ","]) == 2
    assert "names no base" in capsys.readouterr().err
    assert main([*asked, "--license", "free"]) == 2
    assert "commercial" in capsys.readouterr().err
    free = tmp_path / "free.jsonl"
    free.write_text("".join(json.dumps({"q": f"say {i}", "a": f"this is the answer to {i}"}) + "\n" for i in range(60)))
    encoder = save_tiny(tmp_path / "encoder", "bert")
    assert main([asked[0], str(free), *asked[2:], "--bases", str(encoder)]) == 2
    assert "names classes only" in capsys.readouterr().err


@pytest.mark.usefixtures("forked_workers")
def test_the_command_at_the_end(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_in_process", run_in_process)
    cache = str(tmp_path / "cache")
    asked = ["choose", str(data), "--prompt", "{q}", "--completion", "{a}", "--cache-dir", cache,
             "--out", str(tmp_path / "choice"), "--bases", str(tiny_folder), "--threads", "1"]  # fmt: skip
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert f"afina train {data} " in shown
    assert f"--base {tiny_folder}" in shown
    assert " --prompt '{q}'" in shown
