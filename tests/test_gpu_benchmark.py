"""The benchmark of graphics cards, as far as a processor can run it: its checks of what is right."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu

    return gpu


def ends_with(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *flags])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    return int(end.value.code or 0)


def test_what_is_right_on_the_processor_is_found_right(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processor as a device, by torch alone, against its own kernels."""
    code = ends_with(gpu, monkeypatch, "--part", "right", "--device", "cpu", "--tiny")
    said = capsys.readouterr().out
    assert code == 0, said
    checks = [line for line in said.splitlines() if line.startswith("  ok  ")]
    for what in (
        "llama 3: gradients",
        "gemma2: logits",
        "gpt2: greedy",
        "10 formats",
        "keep, Q5_K",
        "nf4: gradients",
        "curves",
        "bf16: gradients of a forest",
        "fp16: losses of 12 steps",
        "after resuming",
        "steps of a forest",
    ):
        assert any(what in line for line in checks), (what, said)
    assert len(checks) >= 5 * 10 + 15


def test_what_is_wrong_is_counted(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens of another model, and a part that raises."""
    config = gpu._wide()
    monkeypatch.setattr(gpu, "_families", lambda: {"one": config})
    for name in ("_formats", "_in_blocks", "_kept", "_seeds", "_in_bf16", "_resumed"):
        monkeypatch.setattr(gpu, name, lambda *_: None)
    real, seeds = gpu.filled, iter(range(99))
    monkeypatch.setattr(gpu, "filled", lambda module: real(module, next(seeds)))

    def raising(part: object) -> None:
        raise RuntimeError("no card")

    monkeypatch.setattr(gpu, "_waits", raising)
    assert ends_with(gpu, monkeypatch, "--part", "right", "--device", "cpu", "--tiny") == 1
    said = capsys.readouterr().out
    assert "FAIL one: logits" in said
    assert "FAIL fp16: losses of 12 steps" in said
    assert "FAIL waits: RuntimeError: no card" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(gpu, monkeypatch, "--part", "speed") == 2
    assert "--device cpu --tiny" in capsys.readouterr().err
    assert ends_with(gpu, monkeypatch, "--part", "spead") == 2
