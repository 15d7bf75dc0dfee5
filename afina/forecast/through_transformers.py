"""How much longer a model takes through transformers than Afina's decoder would, by a benchmark of a few of its layers.

Such models differ in what they compute, so their speed does not follow from their sizes.
"""

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from afina.core.errors import BaseModelError, reading
from afina.core.task import Task
from afina.engine.ops import Segments
from afina.forecast.benchmark import reading_pass, seconds_of, training_pass
from afina.forecast.seconds import ALIKE, Seconds, Slower
from afina.forecast.workload import Case, MicroBatches, numbers_trained
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.models.footprint import element_size
from afina.models.load import wrapped
from afina.models.model import IGNORE_INDEX, unshared
from afina.training.baselines import RATE_AS_FULL, baseline

_TYPICAL = Slower(1.5, 1.5)  # where nothing can be timed
_LAYERS = 1, 3  # of each list of layers: what the second takes more than the first is what layers take
_TOKENS = 2048  # of a timed pass, where its rows are shorter
_ROUNDS = 2


def slower(case: Case, batches: MicroBatches) -> Slower:
    """By how much the passes of `case` take longer than those of Afina's decoder."""
    base, machine = case.base, case.machine
    if base.is_decoder:
        return ALIKE
    if machine.device is None or not _repeated(base.module):
        return _TYPICAL
    largest = _cut(base.module, max(_LAYERS))
    if element_size(machine.dtype) * sum(each.numel() for each in largest.parameters()) > machine.available:
        return _TYPICAL
    length = max(2, round(2 * batches.square / batches.tokens))
    rows = max(1, min(batches.tokens // batches.count, _TOKENS) // length)
    answered = 1 if base.task.needs_classes else min(length - 1, max(1, round(length * case.workload.labelled)))
    method = "full" if case.settings.method in RATE_AS_FULL else "lora"
    one_pass = MicroBatches(1, rows * length, rows * length**2 / 2, rows * answered, rows * length, False)
    settings = case.settings.model_copy(update={"method": method, "quantize": None})
    ours = []
    for layers in _LAYERS:
        module = _cut(base.module, layers)
        adapter = _adapter(module, method)
        few = replace(
            case, base=replace(base, module=module), settings=settings, adapter=adapter,
            trained=numbers_trained(module, adapter),
        )  # fmt: skip
        seconds = Seconds(few, False, ALIKE)
        ours.append((seconds.training(one_pass), seconds.reading(rows * length, 1, one_pass.square, rows * answered)))
    what = f"base {base.name}: its configuration describes no model that runs"
    with reading(what, BaseModelError, "choose another base"):
        theirs = _timed(base.module, base.task, machine.device, machine.dtype, method, rows, length, answered)
    in_training, in_reading = ((d - c) / (b - a) for a, b, c, d in zip(*ours, *theirs, strict=True))
    return Slower(in_training if case.trained.depth else in_reading, in_reading)


def _adapter(module: nn.Module, method: str) -> LoraConfig:
    return baseline(module, "full", 0) if method == "full" else LoraConfig()


@lru_cache(64)
def _timed(  # noqa: PLR0913 - what a timing depends on
    module: Any, task: Task, device: torch.device, dtype: torch.dtype, method: str, rows: int, length: int,
    answered: int,
) -> list[tuple[float, float]]:  # fmt: skip
    """The seconds of a training pass and of a reading one, with each of `_LAYERS`: rows of `length` tokens of which
    the last `answered` have a label.
    """
    ids = torch.randint(2, module.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORE_INDEX)
    if task.needs_classes:
        labels[:, 0] = 0
    else:
        labels[:, -answered:] = ids[:, -answered:]
    segments = Segments(tuple(range(0, rows * length + 1, length)))
    packed = unshared(ids.flatten().to(device), labels.flatten().to(device), segments)
    found: dict[tuple[int, bool], list[float]] = {}
    models = {layers: _filled(_cut(module, layers), task, device, dtype) for layers in _LAYERS}
    with torch.random.fork_rng(devices=[]):  # of dropout
        for model in models.values():
            inject(model.module, _adapter(model.module, method))
        for _ in range(_ROUNDS):
            for layers, model in models.items():
                found.setdefault((layers, True), []).append(seconds_of(training_pass(model, packed), device))
                found.setdefault((layers, False), []).append(seconds_of(reading_pass(model, packed), device))
    return [(min(found[layers, True]), min(found[layers, False])) for layers in _LAYERS]


def _filled(module: Any, task: Task, device: torch.device, dtype: torch.dtype) -> Any:
    """Ready to compute, with weights that mean nothing."""
    module = copy.deepcopy(module).to(dtype).to_empty(device=device).requires_grad_(False)
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            value.fill_(0.01) if value.is_floating_point() else value.zero_()
    return wrapped(module, task, 0)


def _repeated(module: nn.Module) -> list[nn.ModuleList]:
    """The lists of equal layers."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    return [each for each in lists if len(each) > max(_LAYERS) and len({type(layer) for layer in each}) == 1]


@lru_cache(16)
def _cut(module: Any, layers: int) -> Any:
    """`module` with so many of each list of layers."""
    few = copy.deepcopy(module)
    for each in _repeated(few):
        del each[layers:]
    few.config.num_hidden_layers = layers
    return few
