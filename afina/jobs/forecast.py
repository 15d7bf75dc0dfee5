"""What a training will need, from shapes and lengths alone: memory by part, seconds, disk.

T tokens of a pass, P parameters of the repeated layers, V words.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from afina.base import forecast as model_bytes
from afina.base import ops
from afina.base.generation import BATCH
from afina.base.model import READ_AT_ONCE
from afina.base.outline import Outline, heads_beside
from afina.data.load import Dataset
from afina.jobs.machines import Place
from afina.jobs.settings import RunSettings
from afina.jobs.speed import Width
from afina.lora.config import LoraConfig
from afina.lora.counting import Trained, trained
from afina.measure.general import LANGUAGES, paragraphs
from afina.measure.outcome import ALONE
from afina.measure.verification import PROBE_TOKENS
from afina.training.baselines import RATE_AS_FULL, baseline
from afina.training.loss import TOKENS
from afina.training.settings import CLASSIFIER_BATCH_SIZE, Model, Plan, batches, plan

GB = 1e9
_LOOKED_AT = 2_000  # optimiser steps of a pass whose rows are looked at; the rest are like them
_MASTERS, _MOMENTS, _BEST = 4, 8, 4  # bytes a trained number
_A_WORD = 1_300  # bytes that a tokenizer takes for each of its words
# Small blocks that are freed between passes leave holes, which the next ones, of other lengths, fill in part only; and the matrix
# library keeps some MB.
_HOLES, _KEPT = 0.9, 50_000_000
CHARACTERS = 3.7  # of a token
_THROUGH_TRANSFORMERS = 1.5  # times the seconds of our decoder


@dataclass(frozen=True)
class Work:
    """The rows that a run reads. `lengths` of those trained on, in tokens; `labelled` is the share of their tokens that are learned;
    `held_out` are tokens; `asked` rows are answered in the end, of `prompt` tokens on average and
    `longest` at most, with `answer` tokens on average and `most_new` at most. `counted` says how that is known."""

    lengths: Sequence[int]
    labelled: float
    held_out: int
    asked: int
    prompt: float
    longest: int
    answer: float
    most_new: int
    counted: str = "counted"

    @property
    def tokens(self) -> int:
        return int(sum(self.lengths))


ONE_ROW = Work([64], 1.0, 0, 0, 0.0, 0, 0.0, 0)  # the least that there is to do


def room_for(longest: float) -> int:
    """Tokens that an answer may have where the longest has so many: some more."""
    return math.ceil(1.25 * longest) + 8


def work_of(data: Dataset, most_new: int) -> Work:
    asked = data.test
    learned = sum(row.labelled for row in asked)
    read = sum(len(row.input_ids) for row in asked) - learned
    return Work(
        lengths=data.train.lengths,  # type: ignore[arg-type]
        labelled=data.train.labelled / max(1, data.train.tokens),
        held_out=sum(len(row.input_ids) for row in data.held_out),
        asked=len(asked),
        prompt=read / max(1, len(asked)),
        longest=max((len(row.input_ids) - row.labelled for row in asked), default=0),
        answer=learned / max(1, len(asked)),
        most_new=most_new,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of each part, at the moment when most is held; `cache` is of the answers in the end, when nothing else of training is
    there. `copies` of weights that are trained whole lie beside the frozen ones; their gradients take the place of activations, and are named where they are more."""

    weights: int
    copies: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    cache: int
    overhead: int

    @property
    def training(self) -> int:
        return self.answering - self.cache + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def answering(self) -> int:
        return self.weights + self.copies + self.adapter + self.cache + self.overhead

    @property
    def total(self) -> int:
        return max(self.training, self.answering)

    def json(self) -> dict[str, float]:
        sums = {"total": self.total, "training": self.training, "answering": self.answering}
        return {k: v / GB for k, v in sums.items()} | {k: v / GB for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Forecast:
    """What a training with these settings needs at a place; `seconds` of the training, `evaluation` those of the answers after it.
    `disk` bytes are written (checkpoints included), of which `kept` stay."""

    settings: RunSettings
    memory: Memory
    available: int
    seconds: float
    epoch_seconds: float
    evaluation: float
    download: int
    disk: int
    kept: int
    plan: Plan
    trained: int

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    def json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "memory_gb": self.memory.json(),
            "available_gb": self.available / GB,
            "seconds": self.seconds,
            "epoch_seconds": self.epoch_seconds,
            "evaluation_seconds": self.evaluation,
            "download_gb": self.download / GB,
            "disk_gb": self.disk / GB,
            "kept_gb": self.kept / GB,
            "epochs": self.plan.epochs,
            "steps": self.plan.steps,
            "checkpoint_activations": self.plan.checkpoint_activations,
            "trainable_parameters": self.trained,
        }


@dataclass(frozen=True)
class _Passes:
    """What an epoch's passes are: how many, their `tokens` (filled up to whole products), Σ length² / 2, `labelled` positions, and the
    tokens of the largest. `summed`: gradients of several make a step."""

    count: int
    tokens: int
    square: float
    labelled: float
    largest: int
    summed: bool


def forecast(base: Outline, settings: RunSettings, work: Work, place: Place) -> Forecast:
    """Raises `AdapterError` and `SettingsError` as training does."""
    train = settings.train
    classifier = base.task == "classify"
    if classifier and train.batch_size is None:
        train = train.model_copy(update={"batch_size": CLASSIFIER_BATCH_SIZE})
        settings = settings.model_copy(update={"train": train})
    module, dtype = base.module, place.dtype
    heads = heads_beside(module) if classifier else ()
    if settings.method == "lora":
        config = settings.lora.saving(heads)
    else:
        config = baseline(module, settings.method, settings.last_layers, heads)
    found = _trained(module, config.model_dump_json())
    kept = model_bytes.activation_bytes(module, dtype, place.fused)
    fixed = _fixed(base, settings, found, place)
    model = Model(
        int(base.config.hidden_size),
        round(kept * found.depth),
        max(0, place.available - fixed.training),
        classifier,
        settings.method in RATE_AS_FULL,
    )
    made, _ = plan(train, work.lengths, model, settings.seed)
    passes = _passes(settings, work, base.is_decoder)
    memory = _memory(base, settings, work, place, found, passes, made.checkpoint_activations)
    seconds = _Seconds(base, settings, place, found, made.checkpoint_activations)
    trained_on = seconds.training(passes)
    epoch = trained_on + seconds.steps(made.steps_per_epoch)
    rehearsal = trained_on * passes.largest / passes.tokens
    looks = 1 + -(-made.steps // made.eval_steps)  # and as many saves: after each but the first, and in the end
    saved = found.numbers * 4
    state = saved + found.numbers * (_MASTERS + _MOMENTS) + saved
    written = (looks - 1 + made.steps // train.checkpoint_steps) * state + looks * saved
    watching = looks * (seconds.look(work) + seconds.probe(work))
    total = rehearsal + epoch * made.epochs + watching + written * place.speed.write
    return Forecast(
        settings=settings,
        memory=memory,
        available=place.available,
        seconds=total,
        epoch_seconds=epoch,
        evaluation=seconds.answers(work),
        download=0 if base.here else base.file_bytes,
        disk=2 * state + saved,
        kept=saved,
        plan=made,
        trained=found.numbers,
    )


def _passes(settings: RunSettings, work: Work, rounded: bool) -> _Passes:
    """An epoch's passes, by the first of it."""
    train = settings.train
    groups = batches(train, work.lengths, settings.seed, 0)
    some = groups[:_LOOKED_AT]
    count = tokens = largest = 0
    square = 0.0
    whole = 0
    for numbers in some:
        for lengths in _packed(
            sorted(int(work.lengths[i]) for i in numbers), train.tokens_per_pass, train.micro_batch_size
        ):
            own = sum(lengths)
            whole += own
            filled = -(-own // ops.ROUND) * ops.ROUND if rounded else max(lengths) * len(lengths)
            count, tokens, largest = count + 1, tokens + filled, max(largest, filled)
            square += sum(n * n for n in lengths) / 2
    scale = len(groups) / len(some)
    return _Passes(
        round(scale * count),
        round(scale * tokens),
        scale * square,
        scale * whole * work.labelled,
        largest,
        count > len(some),
    )


def _packed(lengths: list[int], most: int, rows: int | None) -> list[list[int]]:
    """As `data.batch.packs` groups rows of these lengths."""
    groups: list[list[int]] = []
    for length in lengths:
        if not groups or sum(groups[-1]) + length > most or len(groups[-1]) == rows:
            groups.append([])
        groups[-1].append(length)
    return groups


def _fixed(base: Outline, settings: RunSettings, found: Trained, place: Place) -> Memory:
    """What does not depend on the rows."""
    size = model_bytes.element_size(place.dtype)
    masters = _MASTERS if size < 4 else 0
    weights = model_bytes.weight_bytes(base.module, place.dtype, settings.quantize)
    if settings.quantize == "keep":
        weights = base.file_bytes
    return Memory(
        weights=weights,
        copies=found.copies * size,
        adapter=(found.adapter + found.fixed) * (4 + size),
        gradients=found.adapter * 4,
        optimizer=found.adapter * (_MOMENTS + _BEST) + found.copies * (_MOMENTS + _BEST + masters),
        activations=0,
        logits=0,
        cache=0,
        overhead=place.libraries + _A_WORD * int(getattr(base.config, "vocab_size", 0)),
    )


def _memory(
    base: Outline, settings: RunSettings, work: Work, place: Place, found: Trained, passes: _Passes, recompute: bool
) -> Memory:
    fixed = _fixed(base, settings, found, place)
    module, dtype = base.module, place.dtype
    size = model_bytes.element_size(dtype)
    layers = int(base.config.num_hidden_layers)
    whole = model_bytes.activation_bytes(module, dtype, place.fused)
    a_token = whole * found.depth
    if recompute:
        a_token = model_bytes.layer_input_bytes(module, dtype) + a_token / max(1, layers)
    share = a_token / whole
    passing = model_bytes.passing_bytes(module, dtype)
    activations = passes.largest * max(a_token + passing / 2, passing)
    labelled = round(passes.largest * work.labelled)
    every_word = model_bytes.words(module)
    logits = model_bytes.logit_bytes(module, dtype, max(1, labelled))
    if settings.method in ("full", "head") and base.task == "causal":
        # The head's gradient in fp32, and in its own format.
        logits += (4 + size) * every_word * int(base.config.hidden_size)
    # Activations go while gradients come, but those of an earlier pass of the step are there already. When the optimiser steps, all
    # gradients of copies are there in fp32, and the head's in its own format too.
    in_fp32 = found.copies * 4 + min(found.copies, every_word * int(base.config.hidden_size)) * size
    earlier = found.copies * size if passes.summed else 0
    moving = max(
        activations + logits + earlier,
        in_fp32,
        min(TOKENS, work.held_out) * passing + PROBE_TOKENS * every_word * (size + 4),
    )
    probed = PROBE_TOKENS * every_word * 4  # logits of the best weights, for the check after training
    slots = min(BATCH, work.asked)
    room = work.longest + work.most_new
    reading = min(READ_AT_ONCE, slots * work.longest) * passing + slots * every_word * (size + 4)
    cache = slots * room * model_bytes.cache_bytes(module, dtype) + reading if base.task != "classify" else reading
    holes = _HOLES * share * model_bytes.heap_bytes(module, dtype, passes.largest) if place.fused else 0
    gradients: float = moving if moving == in_fp32 else min(earlier, moving)
    of_logits = min(logits, moving - gradients)
    return replace(
        fixed,
        gradients=round(fixed.gradients + gradients),
        activations=round(moving - gradients - of_logits),
        logits=round(of_logits + probed),
        cache=round(cache),
        overhead=round(fixed.overhead + holes + _KEPT),
    )


class _Seconds:
    """The seconds of a base's passes at a place."""

    def __init__(self, base: Outline, settings: RunSettings, place: Place, found: Trained, recompute: bool) -> None:
        self.base, self.settings, self.place, self.found, self.recompute = base, settings, place, found, recompute
        self.speed = place.speed
        config: Any = base.config
        self.hidden, self.layers = int(config.hidden_size), int(config.num_hidden_layers)
        self.words = model_bytes.words(base.module)
        self.parameters = _layer_parameters(base.module)
        heads = int(getattr(config, "num_attention_heads", 1))
        self.channels = self.layers * heads * int(getattr(config, "head_dim", 0) or self.hidden // heads)
        self.width: Width = self.speed.at(self.hidden)
        self.slower = 1.0 if base.is_decoder else _THROUGH_TRANSFORMERS
        quantised = model_bytes.quantised_layers(base.module, settings.quantize) if settings.quantize else []
        self.unpack = sum(layer.weight.numel() for layer in quantised) * self.speed.unpack

    def training(self, passes: _Passes) -> float:
        """An epoch's passes."""
        width, speed, found = self.width, self.speed, self.found
        usual = _trained(self.base.module, LoraConfig().model_dump_json()).adapter
        # The benchmark's adapters are of rank 16, on all layers: others cost more or less beside the frozen product.
        lora = self.parameters + 1.5 * (found.adapter - usual if self.settings.method == "lora" else -usual)
        read = passes.count * width.forward.a_pass + passes.tokens * width.forward.a_token
        forward = self.parameters * read
        through = passes.count * width.lora.a_pass + passes.tokens * width.lora.a_token
        whole = passes.count * width.full.a_pass + passes.tokens * width.full.a_token
        seconds: float = forward + found.depth * max(0.0, lora * through - forward)
        if self.settings.method in RATE_AS_FULL:
            seconds += found.depth * self.parameters * max(0.0, whole - through)
        if self.recompute:
            seconds += found.depth * forward
        attention = speed.attention[0] + found.depth * (speed.attention[1] - speed.attention[0])
        seconds += attention * passes.square * self.channels
        kind = 2 if self.settings.method in ("full", "head") else 1 if found.depth else 0
        labelled = max(passes.labelled, passes.count * ops.ROUND / 2) if self.base.is_decoder else passes.labelled
        seconds += labelled * self.words * self.hidden * speed.head[kind]
        seconds += passes.count * (1 + found.depth) * (self.unpack + self.layers * speed.launch)
        return seconds * self.slower

    def steps(self, count: int) -> float:
        return count * self.found.numbers * self.speed.adam

    def reading(self, tokens: float, passes: float, square: float, labelled: float) -> float:
        """Passes that keep nothing."""
        rates = self.width.adapted if self.settings.method == "lora" else self.width.forward
        layers = self.parameters * (passes * rates.a_pass + tokens * rates.a_token)
        attention = self.speed.attention[0] * square * self.channels
        head = labelled * self.words * self.hidden * self.speed.head[0]
        seconds: float = layers + attention + head + passes * (self.unpack + self.layers * self.speed.launch)
        return seconds * self.slower

    def look(self, work: Work) -> float:
        """The loss of the held-out rows."""
        mean = work.tokens / max(1, len(work.lengths))
        return self.reading(
            work.held_out, -(-work.held_out // TOKENS), work.held_out * mean / 2, work.held_out * work.labelled
        )

    def probe(self, work: Work) -> float:
        """Logits for the check after training."""
        tokens = min(PROBE_TOKENS / work.labelled, work.held_out)
        return self.reading(tokens, min(1, work.held_out), 0, tokens * work.labelled)

    def answers(self, work: Work) -> float:
        """Of the base and the adapted model, after training."""
        prompts = work.asked * work.prompt
        read = self.reading(prompts, -(-work.asked // BATCH), prompts * work.prompt / 2, work.asked)
        if self.base.task == "classify":
            return 2 * read
        general = sum(len(text) for name in LANGUAGES for text in paragraphs(name)) / CHARACTERS
        read += self.reading(general, -(-general // TOKENS), 0, general)
        step = self.parameters * self.width.few + BATCH * self.words * self.hidden * self.speed.head[0] + self.unpack
        steps: float = (work.asked / BATCH + ALONE) * (min(work.most_new, 2 * work.answer) + work.answer)
        return float(2 * read + steps * step * self.slower)


@lru_cache(256)
def _trained(module: Any, config: str) -> Trained:
    """`trained`, by the configuration as JSON: a forecast is made for many settings with the same one."""
    return trained(module, LoraConfig.model_validate_json(config))


def _layer_parameters(module: Any) -> int:
    """Of the repeated layers: all but the words, the positions and the head."""
    words = module.get_input_embeddings().weight
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    left_out = {id(words)} | ({id(head.weight)} if head is not None else set())
    return sum(p.numel() for p in module.parameters() if id(p) not in left_out)
