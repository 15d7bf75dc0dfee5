"""Forecasts: shapes against real models, published figures, what does not fit, and a training's own forecast."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_tiny, tiny_config

from afina.core.config import json_object
from afina.core.errors import BaseModelError, OutOfMemory, SettingsError
from afina.core.events import Notice
from afina.core.task import CAUSAL
from afina.data.settings import DataSettings
from afina.engine.blocks import quantise_linears
from afina.forecast import remedies
from afina.forecast.estimate import forecast_training
from afina.forecast.expected import NO_DATA, bases_that_fit
from afina.forecast.machines import named, this_machine
from afina.forecast.speed import Rates, Speed, Width
from afina.forecast.workload import ONE_ROW, Workload
from afina.jobs.fit import FitSettings, fit
from afina.jobs.train import train
from afina.lora.config import LoraConfig
from afina.models import footprint as sizes
from afina.models.load import Base, load_base
from afina.models.skeleton import build_skeleton, read_skeleton
from afina.settings import RunSettings
from afina.training.objectives import OBJECTIVES
from afina.training.objectives.supervised import Supervised
from afina.training.settings import TrainingSettings
from afina.ui.cli import main

ROWS = [{"q": f"what is {i} and {i}?", "a": f"it is {2 * i}"} for i in range(40)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def settings(data: Path = NO_DATA, **values) -> RunSettings:
    prompts = {} if data == NO_DATA else {"prompt": "{q}", "completion": "{a}"}
    return RunSettings(data=DataSettings(path=data, **prompts), **values)


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
def test_weights_are_those_of_the_loaded_model(quantize, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_config()
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    counted = sizes.weight_bytes(build_skeleton(config, CAUSAL), torch.float32, quantize)
    if quantize:
        quantise_linears(model, quantize, torch.float32)
        counted -= 2 * 64 * 128 * 4  # the scratch, which comes with the first product
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.dtype == torch.uint8)]
    held = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    assert counted == pytest.approx(sum(held.values()), rel=0.01)


def test_cache_is_that_of_the_decoder(tiny: Base) -> None:
    from afina.engine.kv_cache import Cache

    cache = Cache(tiny.model.module.arch.specs, 1, 10, torch.float32, torch.device("cpu"))
    held = sum(tensor.nbytes for layer in cache._layers for tensor in layer)
    assert sizes.cache_bytes(tiny.model.module, torch.float32) * 10 == held


def parts(base: str, method: str, length: int, batch: int = 1, recompute: bool = False, **lora):
    quantize = "nf4" if method == "qlora" else None
    train = TrainingSettings(batch_size=batch, tokens_per_pass=batch * length, checkpoint_activations=recompute)
    made = settings(
        base=base,
        method="lora" if method == "qlora" else method,
        quantize=quantize,
        train=train,
        lora=LoraConfig(**lora),
    )
    work = Workload([length] * 64, 1.0, length, 0, 0.0, 0, 0.0, 0)
    machine = replace(named("80gb"), fused=False)  # of programs whose operations are torch's
    return forecast_training(read_skeleton(base, cache_dir=Path("none")), made, work, machine)


def test_published_figures() -> None:
    """docs/published.md has them with their addresses. Ours are of our own loop: it keeps the best weights, and full
    fine-tuning the base."""
    some = {"target_modules": "q_proj,v_proj"}
    pairs = [
        (parts("llama-3.1-8b", "lora", 512, **some), 19.73),  # LitGPT, one row of up to 512 tokens
        (parts("mistral-7b-v0.3", "lora", 512, 2, **some), 20.66),  # the same, two
        (parts("llama-3.1-8b", "lora", 128, 2, recompute=True), 18.5),  # torchtune
        (parts("mistral-7b-v0.3", "qlora", 512, 2, **some), 14.29),  # LitGPT
        (parts("llama-3.1-70b", "lora", 512, recompute=True), 160),  # rule of LLaMA-Factory and of the hub's blog
        (parts("llama-3.1-70b", "qlora", 512, recompute=True), 48),
    ]
    for ours, published in pairs:
        assert ours.memory.training / 1e9 == pytest.approx(published, rel=0.16)
    for name, parameters in (("llama-3.1-8b", 8.03e9), ("llama-3.1-70b", 70.55e9)):
        full = parts(name, "full", 256, recompute=True).memory
        without = full.training - full.weights - 4 * parameters  # the base beside it, and the best weights so far
        assert without / parameters == pytest.approx(
            18, rel=0.03
        )  # bytes a parameter, as BAdam's and LLaMA-Factory's tables


def test_what_adds_up() -> None:
    found = parts("llama-3.1-8b", "lora", 512)
    memory = found.memory.json()
    names = ("weights", "copies", "adapter", "gradients", "optimizer", "activations", "logits", "overhead")
    assert memory["training"] == pytest.approx(sum(memory[name] for name in names))
    assert memory["total"] == max(
        memory["training"],
        memory["training"]
        + memory["cache"]
        - sum(memory[name] for name in ("gradients", "optimizer", "activations", "logits")),
    )
    longer, wider = parts("llama-3.1-8b", "lora", 1024), parts("llama-3.1-8b", "lora", 512, rank=64)
    assert longer.memory.activations > 1.9 * found.memory.activations
    assert longer.epoch_seconds > 1.6 * found.epoch_seconds  # a pass reads the weights once, whatever its length
    assert wider.memory.adapter == 4 * found.memory.adapter
    assert parts("llama-3.1-8b", "lora", 512, recompute=True).memory.activations < found.memory.activations / 5


def test_widths_are_interpolated() -> None:
    def width(x: float) -> Width:
        return Width(
            forward=Rates(a_pass=x, a_token=x),
            adapted=Rates(a_pass=x, a_token=x),
            lora=Rates(a_pass=x, a_token=x),
            full=Rates(a_pass=x, a_token=x),
            few=x,
        )

    speed = Speed(
        widths={256: width(4.0), 1024: width(1.0)}, attention=(0, 0), head=(0, 0, 0), adam=0, unpack=0, write=0
    )
    assert speed.at(512).few == pytest.approx(2.0)
    assert speed.at(64).few == 4.0
    assert speed.at(9999).few == 1.0


def test_this_machine_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afina.forecast import benchmark as speed
    from afina.forecast import machines

    small = replace(speed._ON_PROCESSOR, layers={64: 1}, middle=64, words=512, numbers=1 << 16)
    for name, value in {"_ON_PROCESSOR": small, "_FILE": 1 << 16, "_ROUNDS": 5}.items():
        monkeypatch.setattr(speed, name, value)
    (cache / "speed.json").unlink(missing_ok=True)
    place, dtype = torch.device("cpu"), torch.float32
    found = speed.measured(place, dtype, cache)
    rates = found.widths[64]
    assert all(each.seconds(1e6, 100) > 0 for each in (rates.forward, rates.adapted, rates.lora, rates.full))
    assert found.adam > 0
    assert speed.known(place, dtype, cache) == found
    said: list[str] = []

    def listener(event: object) -> None:
        said.append(str(event))

    calm = found.model_copy(update={"others": 0.0})
    monkeypatch.setattr(speed, "_measure", lambda *_: calm)
    busy = found.model_copy(update={"others": 1.7})
    monkeypatch.setattr(machines, "known", lambda *_: busy)
    monkeypatch.setattr(machines, "is_calm", lambda: False)
    assert machines.this_machine(cache, "cpu", "fp32", listener=listener).speed == busy
    assert "1.7 processors" in said[-1]
    monkeypatch.setattr(machines, "is_calm", lambda: True)
    assert machines.this_machine(cache, "cpu", "fp32", listener=listener).speed.widths == calm.widths
    assert "measuring" in said[1]
    (cache / "speed.json").write_text("{")
    assert speed.known(place, dtype, cache) is None


def test_fit_command(data: Path, tiny_folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["fit", str(tiny_folder), str(data), "--prompt", "{q}", "--completion", "{a}", "--cache-dir", str(cache)]
    assert main([*asked, "--device", "24gb", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["methods"]) == {"lora", "qlora", "full", "head"}
    assert found["work"]["rows"] == 36
    for each in found["methods"].values():
        if "error" not in each:
            assert each["fits"]
            assert each["memory_gb"]["total"] > 0
            assert each["seconds"] > 0
    assert "whole blocks" in found["methods"]["qlora"].get("error", "whole blocks")
    assert main([*asked, "--device", "24gb", "--method", "lora"]) == 0
    shown = capsys.readouterr().out
    assert "LoRA" in shown
    assert "full fine-tuning" not in shown
    assert f"afina train {data}" in shown
    assert main([*asked, "--device", "24gb", "--method", "lora", "--quantize", "int8"]) == 0
    assert "--quantize int8" in capsys.readouterr().out.partition("Train it:")[2]
    assert main([*asked, "--method", "loro"]) == 2
    assert "'lora'" in capsys.readouterr().err
    assert main([*asked, "--device", "25gb"]) == 2
    assert "it takes cpu, cuda, cuda:N, mps, 24gb" in (said := " ".join(capsys.readouterr().err.split()))
    assert "Did you mean '24gb'" in said
    assert main([*asked, "--device", "cpu:7"]) == 2
    assert "Did you mean 'cpu'" in capsys.readouterr().err
    assert main(["fit", "llama-3.1-8"]) == 2
    assert "llama-3.1-8b" in capsys.readouterr().err


def test_a_base_that_is_not_here(data: Path, cache: Path) -> None:
    found = fit(FitSettings(base="llama-3.1-70b", machine="24gb", run=settings(data, cache_dir=cache)))
    assert not found.here
    assert "not here" in found.work["known"]
    assert found.work["longest"] > 5
    lora, qlora = found.methods["lora"], found.methods["qlora"]
    assert not lora["fits"]
    assert lora["memory_gb"]["weights"] == pytest.approx(141, rel=0.01)
    assert lora["download_gb"] == pytest.approx(140, rel=0.02)
    assert qlora["memory_gb"]["weights"] < 0.35 * lora["memory_gb"]["weights"]
    assert not qlora["fits"]
    assert [each["base"] for each in lora["bases"]]
    assert all(each["memory_gb"] * 1e9 <= found.free_bytes[found.machine] for each in lora["bases"])
    json.dumps(json_object(found))


def test_remedies_fit() -> None:
    base, wanted = read_skeleton("llama-3.1-8b", cache_dir=Path("none")), settings(base="llama-3.1-8b")
    work = Workload([2048] * 50, 0.5, 2048, 4, 1024, 1024, 1024, 1024)
    found = remedies.remedies(base, wanted, work, named("24gb"))
    assert found
    assert all(each.memory.total <= each.available for _, each in found)
    assert any("nf4" in text for text, _ in found)
    together = remedies.remedies(base, wanted, work, named("laptop"))
    assert all(each.fits for _, each in together)


def test_models_that_fit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afina.models.sources.catalogue import known_models

    names = ("starter", "minilm", "qwen2.5-0.5b", "llama-3.1-8b", "llama-3.1-70b")
    monkeypatch.setattr("afina.forecast.machines.free_bytes", lambda _: int(3e9))
    found = bases_that_fit([known_models()[name] for name in names if name in known_models()], cache)
    assert {"starter", "minilm"} <= set(found)
    assert "llama-3.1-8b" not in found


def test_training_is_refused_before_anything_is_written(
    data: Path, tiny_folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afina.forecast.machines.free_bytes", lambda _: -int(1e12))
    wanted = settings(data, base=str(tiny_folder), out=tmp_path / "run", cache_dir=cache)
    with pytest.raises(SettingsError, match=r"needs about .* GB of memory(.|\n)*--allow-swap"):
        train(wanted)
    assert not (tmp_path / "run").exists()


def test_forecast_and_measured(data: Path, tiny_folder: Path, tmp_path: Path, cache: Path) -> None:
    events = []
    wanted = settings(
        data, base=str(tiny_folder), out=tmp_path / "run", cache_dir=cache, train=TrainingSettings(rows=16)
    )
    train(wanted, events.append)
    found = json.loads((tmp_path / "run" / "forecast.json").read_text())
    assert found["forecast"]["steps"] == found["measured"]["steps"] == 2
    assert found["forecast"]["memory_gb"]["training"] > 0
    assert found["measured"]["memory_gb"] > 0
    texts = [event.text for event in events if isinstance(event, Notice)]
    assert any(text.startswith("rehearsed the largest micro-batch") for text in texts)
    assert any(text.startswith("forecast and measured: memory") for text in texts)


def test_a_micro_batch_that_does_not_fit_is_said_before_the_first_step(
    data: Path, tiny_folder: Path, tmp_path: Path, cache: Path
) -> None:
    class Full(Supervised):
        name = "full"

        def loss(self, base, units):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with OBJECTIVES.added(Full()):
        train_settings = TrainingSettings(objective="full")
        wanted = settings(data, base=str(tiny_folder), out=tmp_path / "run", cache_dir=cache, train=train_settings)
        with pytest.raises(OutOfMemory, match=r"largest micro-batch \(\d+ tokens, with .*rows.jsonl:\d+"):
            train(wanted)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weights_are_no_views_of_their_file(tiny_folder: Path) -> None:
    base = load_base(str(tiny_folder), precision="fp32", device="cpu")
    assert base.model.module is not None
    assert str(tiny_folder) not in Path("/proc/self/maps").read_text()


def test_one_row_is_the_least(tiny_folder: Path, cache: Path) -> None:
    base = read_skeleton(str(tiny_folder), cache_dir=cache)
    place = this_machine(cache, "cpu", "fp32", measure=False)
    least = forecast_training(base, settings(base=str(tiny_folder)), ONE_ROW, place)
    more = forecast_training(
        base, settings(base=str(tiny_folder)), Workload([500] * 20, 0.5, 500, 4, 250, 250, 250, 250), place
    )
    assert least.memory.total < more.memory.total
    assert least.seconds < more.seconds


def test_outline_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no catalogue name"):
        read_skeleton("no-such", cache_dir=tmp_path)
    with pytest.raises(BaseModelError, match="no catalogue name"):
        read_skeleton("x" * 5_000, cache_dir=tmp_path)


def test_a_base_with_damaged_weights_is_not_recommended(
    data: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_tiny(tmp_path / "base") / "model.safetensors"
    asked = ["fit", str(file.parent), str(data), "--prompt", "{q}", "--completion", "{a}", "--device", "24gb"]
    file.write_bytes(file.read_bytes()[:100])
    assert main([*asked, "--cache-dir", str(cache)]) == 2
    assert "model.safetensors: the weights cannot be loaded" in capsys.readouterr().err
    file.unlink()
    assert main([*asked, "--cache-dir", str(cache)]) == 0
    assert "has no weights" in capsys.readouterr().err
