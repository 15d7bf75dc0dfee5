"""Models that run through transformers: their passes are timed with a few layers. Operations stand for seconds here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from afina.core.errors import BaseModelError
from afina.core.task import task_named
from afina.data.settings import DataSettings
from afina.engine.ops import Segments
from afina.forecast import through_transformers
from afina.forecast.benchmark import reading_pass, training_pass
from afina.forecast.machines import this_machine
from afina.forecast.seconds import ALIKE, Seconds
from afina.forecast.workload import MicroBatches, Workload, case_of
from afina.lora.injection import inject
from afina.models.load import wrapped
from afina.models.model import IGNORE_INDEX, unshared
from afina.models.skeleton import Skeleton, build_skeleton
from afina.settings import RunSettings

ROWS, LENGTH, LAYERS = 6, 48, 8
ONE_PASS = MicroBatches(1, ROWS * LENGTH, ROWS * LENGTH**2 / 2, 0, ROWS * LENGTH, False)


def operations(function: Callable[[], Any], device: torch.device) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def large(kind: str) -> Any:
    """Wide enough that the layers weigh more than the head."""
    config = tiny_config(kind)
    sizes = {"bert": {"hidden_size": 128, "intermediate_size": 256}, "t5": {"d_model": 128, "d_ff": 256, "d_kv": 32}}
    for name, value in sizes[kind].items():
        setattr(config, name, value)
    config.num_hidden_layers = LAYERS
    if kind == "t5":
        config.num_decoder_layers = LAYERS
    return config


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("kind", "name"), [("bert", "classify"), ("t5", "seq2seq")])
def test_what_few_layers_take_tells_what_all_take(
    kind: str, name: Any, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(through_transformers, "seconds_of", operations)
    task, config = task_named(name), large(kind)
    module = build_skeleton(config, task, 2 if task.needs_classes else 0)
    base = Skeleton(kind, module, task, 512, 0, True)
    machine = replace(this_machine(tmp_path, "cpu", "fp32", measure=False), device=torch.device("cpu"))
    settings = RunSettings(data=DataSettings(path=tmp_path), method=method)
    answered = 1 if task.needs_classes else LENGTH // 2
    workload = Workload([LENGTH] * ROWS, answered / LENGTH, 0, 0, 0.0, 0, 0.0, 0)
    case = case_of(base, settings, workload, machine)

    own = Seconds(case, False, ALIKE)
    found = through_transformers.slower(case, ONE_PASS)
    whole = wrapped(getattr(transformers, task.auto_class).from_config(config), task, 0)
    inject(whole.module.requires_grad_(False), case.adapter)
    ids = torch.randint(2, 259, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, slice(0, 1) if task.needs_classes else slice(LENGTH - answered, LENGTH)] = 1
    packed = unshared(ids.flatten(), labels.flatten(), Segments(tuple(range(0, ROWS * LENGTH + 1, LENGTH))))
    trained, read = (operations(each(whole, packed), machine.device) for each in (training_pass, reading_pass))
    assert found.training * own.training(ONE_PASS) == pytest.approx(trained, rel=0.1)
    assert found.reading * own.reading(ONE_PASS.tokens, 1, ONE_PASS.square, 0) == pytest.approx(read, rel=0.1)


def test_nothing_is_timed_where_that_is_not_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Callable[[], Any]) -> float:
        raise AssertionError("it was timed")

    monkeypatch.setattr(through_transformers, "seconds_of", refuse)
    task = task_named("classify")
    base = Skeleton("bert", build_skeleton(large("bert"), task, 2), task, 512, 0, True)
    workload = Workload([LENGTH] * ROWS, 1 / LENGTH, 0, 0, 0.0, 0, 0.0, 0)
    machine = this_machine(tmp_path, "cpu", "fp32", measure=False)
    case = case_of(base, RunSettings(data=DataSettings(path=tmp_path)), workload, machine)
    assert through_transformers.slower(case, ONE_PASS).training > 1
    timed = replace(case, machine=replace(machine, device=torch.device("cpu"), available=100_000))
    assert through_transformers.slower(timed, ONE_PASS).training > 1  # three layers are larger than what is free

    def fails(function: Callable[[], Any]) -> float:
        raise AttributeError("there is no such thing")

    monkeypatch.setattr(through_transformers, "seconds_of", fails)
    with pytest.raises(BaseModelError, match="describes no model that runs"):
        through_transformers.slower(replace(timed, machine=replace(timed.machine, available=1 << 40)), ONE_PASS)
