"""The batches of an epoch, and what the rules make of what was left open."""

from pathlib import Path

import pytest
import torch
from trainers import colour_data

from afina.data.batch import numbered, pack
from afina.data.load import Dataset
from afina.lora import LoraConfig, inject
from afina.models.footprint import activation_bytes
from afina.models.load import Base
from afina.training import TrainingSettings, make_plan
from afina.training.plan import Plan, PlanFacts


@pytest.fixture
def data(colours: Path, tiny: Base) -> Dataset:
    return colour_data(colours, tiny)


def test_batches_by_tokens(data) -> None:
    lengths = [len(row.input_ids) for row in data.train]

    def planned(**settings) -> Plan:
        return make_plan(TrainingSettings(**settings), PlanFacts(lengths, 5, 32), 0)[0]

    groups = planned(tokens_per_batch=200).batches(lengths, 0, 1)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in group) for group in groups]
    assert max(sums) <= 200
    assert min(sums[:-1]) > 200 - max(lengths)
    assert planned(tokens_per_batch=1).batches(lengths, 0, 0) == [
        [row] for group in planned().batches(lengths, 0, 0) for row in group
    ]


def test_rows_of_one_prompt_come_together() -> None:
    prompts = numbered([[i % 30, 7] for i in range(120)])
    plan = make_plan(TrainingSettings(), PlanFacts([10] * 120, 5, 32), 0)[0]
    together, drawn = plan.batches([10] * 120, 0, 0, prompts), plan.batches([10] * 120, 0, 0)
    assert sorted(row for step in together for row in step) == list(range(120))
    assert [len(step) for step in together] == [len(step) for step in drawn]
    assert {len({prompts[row] for row in step}) for step in together} == {2}  # four rows of each, eight a step
    assert min(len({prompts[row] for row in step}) for step in drawn) > 2
    assert plan.batches([10] * 120, 0, 1, prompts) != together
    assert [prompts[step[0]] for step in together] != sorted(prompts[step[0]] for step in together)


def test_the_plan_gives_its_reasons() -> None:
    steps, reasons = make_plan(TrainingSettings(), PlanFacts([10] * 1600, 5, 576), 0)
    assert (steps.epochs, steps.steps) == (1, 200)
    assert any("learning rate" in reason for reason in reasons)
    short, _ = make_plan(TrainingSettings(), PlanFacts([10] * 40, 5, 576), 0)
    assert short.epochs == 5
    assert short.learning_rate == pytest.approx(1.5 * steps.learning_rate, rel=0.05)
    words, why = make_plan(TrainingSettings(), PlanFacts([10] * 1600, 2, 576), 0)
    assert words.learning_rate == pytest.approx(steps.learning_rate / 2, rel=0.05)
    assert any("half of what suits answers of more than a word" in reason for reason in why)
    assert (
        make_plan(TrainingSettings(epochs=1, learning_rate=1e-3, eval_steps=5), PlanFacts([10] * 100, 5, 576), 0)[1]
        == []
    )


def test_activations_are_recomputed_where_memory_is_short() -> None:
    rows = [100] * 20 + [3000]
    enough, reasons = make_plan(
        TrainingSettings(), PlanFacts(rows, 5, 576, activation_bytes=1_000_000, free_bytes=6_000_000_000), 0
    )
    short, why = make_plan(
        TrainingSettings(), PlanFacts(rows, 5, 576, activation_bytes=1_000_000, free_bytes=4_000_000_000), 0
    )
    assert (enough.checkpoint_activations, short.checkpoint_activations) == (False, True)
    assert set(why) - set(reasons) == {
        "activations are recomputed in the backward pass, to save memory: "
        "a micro-batch would need 3.0 GB, 4.0 GB are free"
    }
    asked, _ = make_plan(
        TrainingSettings(checkpoint_activations=False),
        PlanFacts(rows, 5, 576, activation_bytes=1_000_000, free_bytes=0),
        0,
    )
    assert not asked.checkpoint_activations


def test_the_forecast_is_what_the_backward_pass_keeps(data, tiny: Base) -> None:
    inject(tiny.model.module, LoraConfig(rank=1, target_modules=("q_proj",)))
    packed = pack(data.train, torch.device("cpu"))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.dim() == 2 and len(tensor) >= len(packed.ids_T) and not isinstance(tensor, torch.nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tiny.model.summed_loss(packed)
    a_token = sum(kept.values()) / (-(-len(packed.ids_T) // 64) * 64)
    assert 0.6 < a_token / activation_bytes(tiny.model.module, tiny.dtype, longest=64) < 1.2
