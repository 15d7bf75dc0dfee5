"""What a training has to do: its rows, the micro-batches that they make, and the case that is forecast."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from afina.data.batch import Shares, numbered
from afina.data.load import Dataset
from afina.data.template import Row
from afina.engine import forest
from afina.engine.ops import Segments, padded
from afina.forecast.machines import Machine
from afina.lora.config import LoraConfig
from afina.lora.counting import Trained, trained
from afina.models.causal import DecoderModel
from afina.models.footprint import activation_bytes
from afina.models.skeleton import Skeleton
from afina.settings import RunSettings, adapter_config
from afina.training.baselines import baseline
from afina.training.plan import Plan

CHARACTERS = 3.7  # per token
_SAMPLED = 2_000  # optimiser steps of an epoch that are counted; the rest are like them
_SAMPLED_ROWS = 200  # those whose rows are read, for what they share


@dataclass(frozen=True)
class Workload:
    """The rows that a run reads, in tokens.

    `lengths` are those of the training rows, of whose tokens the share `labelled` has a loss. The held-out rows have
    `held_out` tokens. `asked` rows are answered after training, with prompts of `prompt` tokens on average and
    `longest` at most, and answers of `answer` tokens on average and `most_new` at most. `counted` says how all this
    is known. `rows` are the training rows themselves, where they are here: what they share is not computed again.
    """

    lengths: Sequence[int]
    labelled: float
    held_out: int
    asked: int
    prompt: float
    longest: int
    answer: float
    most_new: int
    counted: str = "counted"
    rows: Sequence[Row] = ()

    @property
    def tokens(self) -> int:
        return int(sum(self.lengths))


ONE_ROW = Workload([64], 1.0, 0, 0, 0.0, 0, 0.0, 0)  # the least that a training can have to do


def room_for(longest: float) -> int:
    """The limit of new tokens where the longest answer has `longest`: some more."""
    return math.ceil(1.25 * longest) + 8


def workload_of(data: Dataset, most_new: int) -> Workload:
    asked = data.test
    learned = sum(row.labelled for row in asked)
    read = sum(len(row.input_ids) for row in asked) - learned
    return Workload(
        lengths=data.train.lengths,  # type: ignore[arg-type]
        labelled=data.train.labelled / max(1, data.train.tokens),
        held_out=sum(len(row.input_ids) for row in data.held_out),
        asked=len(asked),
        prompt=read / max(1, len(asked)),
        longest=max((len(row.input_ids) - row.labelled for row in asked), default=0),
        answer=learned / max(1, len(asked)),
        most_new=most_new,
        rows=data.train,
    )


@dataclass(frozen=True)
class Case:
    """What is forecast: a base trained with `settings` on the rows of `workload`, on a machine. `trained` are the
    numbers of `adapter` in it; `kept` are the bytes per token that a backward pass through the whole base needs.
    """

    base: Skeleton
    settings: RunSettings
    workload: Workload
    machine: Machine
    adapter: LoraConfig
    trained: Trained
    kept: int


def case_of(base: Skeleton, settings: RunSettings, workload: Workload, machine: Machine) -> Case:
    """Raises `AdapterError` and `SettingsError` as training does."""
    named = None
    if settings.method != "lora":
        named = baseline(base.module, settings.method, settings.last_layers, base.heads)
    config = adapter_config(settings, base.heads, named)
    kept = activation_bytes(base.module, machine.dtype, int(max(workload.lengths)), machine.fused)
    return Case(base, settings, workload, machine, config, numbers_trained(base.module, config), kept)


def numbers_trained(module: Any, config: LoraConfig) -> Trained:
    """`trained`, cached: a forecast is made for many settings with the same configuration."""
    return _trained(module, config.model_dump_json())


@lru_cache(256)
def _trained(module: Any, config: str) -> Trained:
    return trained(module, LoraConfig.model_validate_json(config))


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of an epoch: their `count`, their `tokens` (padded as they are computed), the pairs of a query
    and a key (Σ length² / 2), positions with a loss, and the tokens of the largest. `summed`: an optimiser step sums
    the gradients of several. `computed`: the share of the rows' tokens that is computed; the rest is shared. `paths`:
    the most tokens in the paths of a forest's segments, for which cards gather keys and values.
    """

    count: int
    tokens: int
    square: float
    labelled: float
    largest: int
    summed: bool
    computed: float = 1.0
    paths: int = 0


def micro_batches_of(case: Case, plan: Plan) -> MicroBatches:
    """The micro-batches of an epoch, by the first steps of one."""
    train, workload = case.settings.train, case.workload
    prompts = numbered(row.prompt for row in workload.rows) if train.group_prompts and workload.rows else None
    groups = plan.batches(workload.lengths, case.settings.seed, 0, prompts)
    shares = _shares(case)
    sampled = groups[: _SAMPLED if shares is None else _SAMPLED_ROWS]
    count = tokens = unpadded = own_tokens = largest = paths = 0
    square = 0.0
    for numbers in sampled:
        rows: Sequence[Sequence[int]] = [range(int(workload.lengths[i])) for i in numbers]
        kinds = None
        if shares is not None:
            rows = [workload.rows[i].input_ids for i in numbers]
            kinds = shares([len(row) for row in rows])
        for group, _ in forest.groups(rows, kinds, train.tokens_per_pass, train.micro_batch_size):
            own = [rows[i] for i in group]
            found = Segments(tuple(accumulate(map(len, own), initial=0)))
            if kinds is not None:
                found = forest.plant(own, [kinds[i] for i in group]).segments
                paths = max(paths, found.paths.bounds[-1] if found.paths is not found else 0)
            computed = found.bounds[-1]
            with_padding = padded(computed) if case.base.is_decoder else max(map(len, own)) * len(own)
            count, tokens, largest = count + 1, tokens + with_padding, max(largest, with_padding)
            unpadded, own_tokens = unpadded + computed, own_tokens + sum(map(len, own))
            square += sum(n * (n / 2 + start) for n, start in zip(found.lengths, found.starts, strict=True))
    longest = int(max(workload.lengths))  # a step that was not looked at may have it
    largest = max(largest, padded(longest) if case.base.is_decoder else longest)
    scale = len(groups) / len(sampled)
    return MicroBatches(
        count=round(scale * count),
        tokens=round(scale * tokens),
        square=scale * square,
        labelled=scale * own_tokens * workload.labelled,
        largest=largest,
        summed=count > len(sampled),
        computed=unpadded / max(1, own_tokens),
        paths=paths,
    )


def _shares(case: Case) -> Shares | None:
    """`Model.shares` in training, where the rows are here to be looked at."""
    if not (case.workload.rows and case.base.is_decoder and case.settings.train.share):
        return None
    return None if case.adapter.dropout else DecoderModel(case.base.module).shares
