"""Forecasts for cards that are not here, by their published figures, against tokens a second that others measured."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from afina.core.errors import SettingsError
from afina.data.settings import DataSettings
from afina.data.template import Row
from afina.forecast import benchmark, machines
from afina.forecast.cards import CARDS, MACHINES
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.expected import NO_DATA
from afina.forecast.machines import named, this_machine
from afina.forecast.memory import held, with_micro_batches
from afina.forecast.workload import Workload, case_of, micro_batches_of
from afina.lora.config import LoraConfig
from afina.models.skeleton import read_skeleton
from afina.settings import RunSettings
from afina.training.settings import TrainingSettings


def foreseen(
    base: str, card: str, length: int, rows: int, rank: int = 16, recompute: bool = False, quantize: str | None = None
) -> Forecast:
    """Every linear layer adapted, every token labelled, in steps of 32 rows and passes of `rows` rows."""
    train = TrainingSettings(batch_size=32, tokens_per_pass=rows * length, checkpoint_activations=recompute)
    settings = RunSettings(
        base=base, data=DataSettings(path=NO_DATA), train=train, lora=LoraConfig(rank=rank), quantize=quantize
    )
    work = Workload([length] * 64, 1.0, length, 0, 0.0, 0, 0.0, 0)
    return forecast_training(read_skeleton(base, cache_dir=Path("none")), settings, work, named(card))


def tokens_per_second(*of, **more) -> float:
    return 64 * of[2] / foreseen(*of, **more).epoch_seconds


LLAMA_8B, LLAMA_3B, QWEN = "llama-3.1-8b", "llama-3.2-3b", "qwen2.5-7b"
TWICE = {"rank": 8, "recompute": True}
# Tokens a second, as published.
PUBLISHED = {
    # NVIDIA-NeMo/Automodel, docs/performance-summary.md; examples/llm_benchmark: rank 16, all projections, bf16,
    # rows of 4,096 tokens, two a pass, 32 a step, mock data.
    "NeMo, Llama 3.1 8B": ((LLAMA_8B, "h100", 4096, 2), {}, 12_473),
    "NeMo, Qwen2.5 7B": ((QWEN, "h100", 4096, 2), {}, 14_110),
    # CentML/lorafusion, benchmarks_paper, figure 1: rank 16, articles of XSum (some 500 tokens), eight a pass; with
    # Liger's kernels, and with their own.
    "LoRAFusion's baseline": ((LLAMA_8B, "h100", 512, 8), {}, 12_354),
    "LoRAFusion": ((LLAMA_8B, "h100", 512, 8), {}, 14_875),
    # meta-pytorch/torchtune, README: rank 8, packed rows of 2,048 or 4,096 tokens, two a pass, compiled, activations
    # computed twice.
    "torchtune, QLoRA on a 4090": ((LLAMA_8B, "rtx4090", 2048, 2), {**TWICE, "quantize": "nf4"}, 2413),
    "torchtune, LoRA on an A100": ((LLAMA_3B, "a100", 4096, 2), TWICE, 8210),
    "torchtune, QLoRA on an A100": ((LLAMA_3B, "a100", 4096, 2), {**TWICE, "quantize": "nf4"}, 8035),
}


@pytest.mark.parametrize("whose", PUBLISHED)
def test_seconds_are_those_that_others_measured(whose: str) -> None:
    case, more, published = PUBLISHED[whose]
    assert tokens_per_second(*case, **more) == pytest.approx(published, rel=0.25)


def test_a_figure_beyond_what_the_card_can_is_not_forecast() -> None:
    """torchtune's 3,083 tokens a second of LoRA on a 4090, where its QLoRA and its full fine-tuning on the same card
    are in line with the others: with activations computed twice that is nine tenths of the card's peak."""
    layers, head, attention = 6.98e9, 0.525e9, 32 * 2 * 2048 * 4096
    operations = 6 * layers + 4 * head + (2 + 2.5) * attention
    assert 3083 * operations > 0.85 * CARDS["rtx4090"].operations
    found = tokens_per_second(LLAMA_8B, "rtx4090", 2048, 2, **TWICE)
    assert 0.55 * 3083 < found < 0.75 * 3083


def test_cards_differ_as_their_figures_do() -> None:
    speeds = {card: tokens_per_second(LLAMA_8B, card, 2048, 2) for card in CARDS}
    order = "b200 h200 h100 h100-pcie a100 l40s a100-40 rtx5090 rtx4090 v100 l4 rtx3090 t4"
    assert " ".join(sorted(speeds, key=lambda card: -speeds[card])) == order
    memory = {card: foreseen("llama-3.2-1b", card, 512, 2).memory.weights for card in ("t4", "l4")}
    assert memory["t4"] == memory["l4"]  # both in 16 bits
    assert named("T4").dtype == torch.float16
    assert named("H100").name == "H100 SXM, 80 GB"
    assert set(MACHINES) == {"24gb", "80gb", "laptop"}
    with pytest.raises(SettingsError, match=r"'h101' is no device or machine\. Did you mean 'h100'(.|\n)*rtx4090"):
        named("h101")


def test_small_passes_take_as_long_as_their_kernels_are_launched() -> None:
    small = foreseen("starter", "h100", 64, 1)
    launched = 64 * 2 * 30 * named("h100").speed.launch
    assert small.epoch_seconds == pytest.approx(launched, rel=0.2)
    large = foreseen("starter", "h100", 2048, 32)
    assert large.epoch_seconds < 64 * 32 * small.epoch_seconds / 10


def test_the_longest_row_is_counted_wherever_it_stands() -> None:
    """Of many rows that may share only the first steps are looked at."""
    rows = [Row([n % 200 for n in range(k, k + 20)], [-100] * 10 + [1] * 10, "") for k in range(4000)]
    rows[2345] = Row([7] * 3000, [-100] * 10 + [1] * 2990, "")
    work = Workload([len(row.input_ids) for row in rows], 0.5, 0, 0, 0.0, 0, 0.0, 0, rows=rows)
    base, card = read_skeleton(LLAMA_8B, cache_dir=Path("none")), named("l4")
    settings = RunSettings(base=LLAMA_8B, data=DataSettings(path=NO_DATA), train=TrainingSettings(epochs=1))
    case = case_of(base, settings, work, card)
    assert micro_batches_of(case, forecast_training(base, settings, work, card).plan).largest >= 3000


def test_keys_and_values_that_a_card_gathers_for_a_forest_are_counted() -> None:
    base, card = read_skeleton(LLAMA_8B, cache_dir=Path("none")), named("l4")
    rows = [Row([*range(500), 600 + n, *range(40)], [-100] * 501 + [*range(40)], f"{n}") for n in range(2)]
    work = Workload([len(row.input_ids) for row in rows], 0.1, 0, 0, 0.0, 0, 0.0, 0, rows=rows)
    settings = RunSettings(base=LLAMA_8B, data=DataSettings(path=NO_DATA))
    case = case_of(base, settings, work, card)
    found = micro_batches_of(case, forecast_training(base, settings, work, card).plan)
    assert found.paths == 500 + 541 + 541
    more, less = (with_micro_batches(held(case), case, each, False) for each in (found, replace(found, paths=0)))
    assert more.activations - less.activations == pytest.approx(32 * found.paths * 2 * 8 * 128 * 2, abs=1)
    again, none = (with_micro_batches(held(case), case, each, True) for each in (found, replace(found, paths=0)))
    assert again.activations - none.activations == pytest.approx(found.paths * 2 * 8 * 128 * 2, abs=1)


def test_a_card_is_timed_until_it_is_done(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every timing begins and ends with the card idle; what it has of its own is measured too."""
    waits: list[torch.device] = []
    small = replace(
        benchmark._ON_CARD, layers={64: 1, 128: 1}, middle=128, words=256, short=256, long=1024, row=32, numbers=1 << 16
    )
    for name, value in {"_ON_CARD": small, "_FILE": 1 << 16, "_ROUNDS": 1}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "_is_card", lambda _: True)
    monkeypatch.setattr(benchmark, "wait_for", waits.append)
    device = torch.device("cpu")
    assert benchmark._sizes(device).tokens(64) == (512, 2048)  # narrower layers, longer passes
    monkeypatch.setattr(benchmark, "free_bytes", lambda _: 2 * 1024 * benchmark._PER_TOKEN - 1)
    assert benchmark._sizes(device).long == 1024  # not below what can be timed
    found = benchmark.measured(device, torch.float32, cache)
    assert len(waits) >= 2 * 20
    assert found.launch > 0
    assert found.widths[64].few == found.widths[128].few > 0
    assert found.others == 0
    assert benchmark.known(device, torch.float32, cache) == found


def test_a_device_of_this_machine_is_called_by_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda:1")
    monkeypatch.setattr(machines, "pick_device", lambda _: card)
    monkeypatch.setattr(machines, "pick_dtype", lambda *_: (torch.bfloat16, ""))
    monkeypatch.setattr(machines, "free_bytes", {card: 15}.get)
    loaded = SimpleNamespace(allocated=4)  # the base, perhaps: what a forecast counts may take its place
    monkeypatch.setattr(machines, "device_memory", {card: loaded}.get)
    for module in (machines, benchmark):
        monkeypatch.setattr(module, "device_name", lambda _: "A card")
    for own, fused in ((machines.ops.TORCH, False), (object(), True)):
        monkeypatch.setattr(machines.ops, "chosen", lambda *_, own=own: own)
        found = this_machine(cache, "cuda:1", measure=False)
        assert (found.name, found.available, found.fused, found.heap) == ("cuda:1, A card", 19, fused, False)
        assert found.libraries == 0  # what they hold is not free any more
