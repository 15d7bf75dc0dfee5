"""Whether an exported file is the model that was trained: both compared on rows that were not trained on.

A file that is wrong is told from one that quantisation changed by its weights, sampled all over every tensor, and by
the ids that its tokenizer gives. What quantisation costs is measured: logits, the distribution of the next token, the
answers' first tokens, the score of the task.

N positions that are compared, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from afina.core.config import build, read_yaml
from afina.core.errors import AdapterError, InputError, VerificationFailed, counted
from afina.core.events import Listener, Notice, Progress
from afina.core.files import read_jsonl
from afina.core.layers import evaluation_mode
from afina.data.batch import pack, passes
from afina.data.load import render_splits
from afina.data.mapping import Example, Unusable, said_of
from afina.data.parts import parted
from afina.data.splits import read_splits
from afina.data.template import Row, prompt_ids, render, text_ids
from afina.lora.injection import disabled, lora_layers
from afina.lora.variants.lora import LoraLinear
from afina.measure.general_text import general_rows
from afina.measure.intervals import Difference, interval, paired_difference
from afina.measure.metric import Predictions, RowStats
from afina.measure.metrics import main_metric
from afina.measure.outputs import EvaluationSet
from afina.models.generation import generate
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX
from afina.runs.facts import asked_of
from afina.runs.opening import Adapted
from afina.settings import RunSettings
from afina.training.loss import TOKENS, device_of, row_losses

_BYTES = 64 << 20  # of the logits that are kept
_POSITIONS = 1024  # at most
_SAMPLED = 4096  # numbers of each tensor


def rows_of(run: Path, adapted: Adapted, most: int, listener: Listener) -> EvaluationSet:
    """At most so many of the run's held-out rows (of its test split, where it has one); where their file is gone, its
    predictions' prompts; where it has none, general text."""
    base, kind = adapted.base, adapted.facts.get("kind", "generation")
    try:
        settings = build(RunSettings, read_yaml(run / "config.yaml"))
        splits = read_splits(parted(settings.data), settings.data_seed).resolved()
        data = render_splits(splits, base.tokenizer, base.facts.context_length, settings.cache_dir)
        found = EvaluationSet(data.examples, data.evaluated, kind, adapted.max_new_tokens, "held-out rows")
    except InputError:
        found = _predicted(run, adapted)
    if not found.rows:
        listener(Notice("the run has no held-out rows any more: compared on general text"))
        texts = general_rows(base.tokenizer, base.facts.context_length) if base.task.continues_text else {}
        rows = [row for each in texts.values() for row in each]
        examples = [Example((), base.tokenizer.decode(row.input_ids), (), "", row.location) for row in rows]
        found = EvaluationSet(examples, rows, "text", 1, "general text")
    if not found.rows:
        raise AdapterError(f"{run} has no row to compare an export on", "give the run's folder, with its predictions")
    return replace(found, examples=found.examples[:most], rows=found.rows[:most])


def _predicted(run: Path, adapted: Adapted) -> EvaluationSet:
    tokenizer, path = adapted.base.tokenizer, run / "predictions.jsonl"
    examples, rows = list[Example](), list[Row]()
    for line in read_jsonl(path) if path.is_file() else ():
        references = tuple(line["references"])
        messages = asked_of(adapted.facts, line["prompt"])
        example = Example(messages, references[0] if references else "", references, line["prompt"], line["where"])
        try:
            (row,) = render(tokenizer, example)
        except (Unusable, ValueError):
            continue
        examples.append(example)
        rows.append(row)
    kind = adapted.facts.get("kind", "generation")
    return EvaluationSet(examples, rows, kind, adapted.max_new_tokens, "prompts of predictions.jsonl")


@dataclass(frozen=True)
class Measured:
    """What a model does on the rows. `logits_NV` in fp32, `first_N` which of them are of an answer's first token;
    `score` are the main score's sums by row."""

    logits_NV: Tensor
    first_N: Tensor
    score: RowStats


@dataclass(frozen=True)
class Comparison:
    """How far a file is from the adapted model: the `largest` and the `mean` difference of logits, `largest_logit` for
    their scale; `kl`, the mean of KL(adapted ‖ file) per token, in nats; `first_tokens`, the share of rows whose
    answers begin with the same token; the `score` of the file with its 95 % interval, and its `difference` from the
    adapted model's."""

    largest: float
    mean: float
    largest_logit: float
    kl: float
    first_tokens: float
    score: float
    interval: tuple[float, float]
    difference: Difference

    @property
    def relative(self) -> float:
        return self.largest / self.largest_logit


def measure(base: Base, eval_set: EvaluationSet, listener: Listener, name: str) -> Measured:
    """What the model, as it is now, does on the rows: it answers greedily. `name` is for progress messages."""
    rows = eval_set.rows
    answers = []
    if eval_set.kind != "text":
        prompts = [prompt_ids(base.tokenizer, each.messages, each.tools) for each in eval_set.examples]

        def progress(done: int, total: int) -> None:
            listener(Progress(f"answers of {name}", done, total))

        answers = generate(base, prompts, eval_set.max_new_tokens, on_progress=progress)
    predictions = Predictions(
        kind=eval_set.kind,
        answers=[said_of({"content": answer.text}) for answer in answers],
        references=[example.references for example in eval_set.examples],
        expected=[example.written for example in eval_set.examples],
        losses=row_losses(base, rows),
        stopped=[answer.stopped for answer in answers],
    )
    return Measured(*_logits(base, rows), main_metric(eval_set.kind).stats(predictions))


@torch.no_grad()
def _logits(base: Base, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits (N, V) at the first labels of each row, as many as fit into `_BYTES`, and which are a row's first (N)."""
    most = min(_POSITIONS, _BYTES // (4 * base.facts.vocabulary)) // len(rows)
    short = [_begun(row, max(1, most)) for row in rows]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with evaluation_mode(base.model.module):
        for group, _ in passes(short, TOKENS):
            packed = pack([short[i] for i in group], device_of(base), vocabulary=base.facts.vocabulary)
            logits_NV = base.model.label_logits(packed).float().cpu()
            for i, at in zip(group, packed.rows, strict=True):
                found[i] = logits_NV[at]
    first = [number == 0 for each in found for number in range(len(each))]
    return torch.cat(found), torch.tensor(first)


def _begun(row: Row, most: int) -> Row:
    """The row up to its label number `most`."""
    at = [i for i, label in enumerate(row.labels) if label != IGNORE_INDEX][:most]
    end = at[-1] + 1 if len(at) < row.labelled else len(row.labels)
    return Row(row.input_ids[:end], row.labels[:end], row.location)


def compare(adapted: Measured, found: Measured, lower_is_better: bool) -> Comparison:
    """`found` of a file against the `adapted` model's."""
    expected_NV, given_NV = adapted.logits_NV, found.logits_NV
    difference = (given_NV - expected_NV).abs()
    log_p, log_q = expected_NV.log_softmax(1), given_NV.log_softmax(1)
    same = (expected_NV.argmax(1) == given_NV.argmax(1))[adapted.first_N]
    return Comparison(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        largest_logit=float(expected_NV.abs().max()),
        kl=float((log_p.exp() * (log_p - log_q)).sum(1).mean().clamp(min=0)),  # of equal ones rounding leaves less
        first_tokens=float(same.float().mean()),
        score=found.score.score(),
        interval=interval(found.score),
        difference=paired_difference(adapted.score, found.score, lower_is_better),
    )


def effect_of(base: Base, eval_set: EvaluationSet, adapted: Measured) -> float:
    """KL(adapted ‖ base) per token, in nats: what the adapter does. Raises `AdapterError` where it changes nothing."""
    with disabled(base.model.module):
        plain_NV, _ = _logits(base, eval_set.rows)
    if torch.equal(plain_NV, adapted.logits_NV):
        raise AdapterError(
            "the adapter changes nothing: its logits equal the base's on "
            f"{counted(len(eval_set.rows), 'row')}, so that an export would be a copy of the base",
            "train longer, or with a higher --train.learning_rate",
        )
    log_p, log_q = adapted.logits_NV.log_softmax(1), plain_NV.log_softmax(1)
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


Samples = dict[str, tuple[tuple[int, ...], Tensor]]


def sampled(tensors: Iterable[tuple[str, Tensor]]) -> Samples:
    """The shape of each tensor, and numbers from all over it, in fp32."""
    found: Samples = {}
    for name, tensor in tensors:
        count = tensor.numel()
        drawn = torch.randint(max(count, 1), (_SAMPLED,), generator=torch.Generator().manual_seed(count))
        at = torch.arange(count) if count <= _SAMPLED else drawn
        found[name] = tuple(tensor.shape), tensor.reshape(-1)[at.to(tensor.device)].float().cpu()
    return found


def weights_of(module: nn.Module) -> Samples:
    """Samples of all weights of a model."""
    return sampled(module.state_dict().items())


def updates_of(module: nn.Module) -> Samples:
    """Samples of what an adapter adds to each linear layer, s·BA."""
    layers = ((path, layer) for path, layer in lora_layers(module) if isinstance(layer, LoraLinear))
    return sampled((path, layer.delta()) for path, layer in layers)


def check_samples(expected: Samples, found: Samples, allowed: float, what: str) -> None:
    """Raises `VerificationFailed` where a tensor of a file that was read is another one than was written: of another
    shape, or differing by more than `allowed` of its size (root of the sum of squares)."""
    wrong = list[str]()
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            wrong.append(f"{name} is {'missing' if name in expected else 'not of the model'}")
            continue
        (shape, values), (other_shape, other) = expected[name], found[name]
        if shape != other_shape:
            wrong.append(f"{name} has shape {other_shape}, not {shape}")
        elif not (difference := float((values - other).norm())) <= allowed * float(values.norm()):
            wrong.append(f"{name} differs by {difference / max(float(values.norm()), 1e-30):.2g} of its size")
    if wrong:
        problems = [f"{what}, read back, is not the model that was written", *sorted(wrong)[:4]]
        raise VerificationFailed(problems, "nothing was kept; please report it, with the base's config.json")


def check_tokenizer(expected: Base, found: Base, eval_set: EvaluationSet, what: str) -> None:
    """Raises `VerificationFailed` where a file's tokenizer, or its chat template, gives other ids for a row."""
    encode: Callable[[Base, int], list[int]]
    if eval_set.kind == "text":
        texts = [expected.tokenizer.decode(row.input_ids) for row in eval_set.rows]
        count, encode = len(texts), lambda base, i: text_ids(base.tokenizer, texts[i])
    else:
        examples = eval_set.examples
        count, encode = (
            len(examples),
            lambda base, i: prompt_ids(base.tokenizer, examples[i].messages, examples[i].tools),
        )
    for i in range(count):
        one, other = encode(expected, i), encode(found, i)
        if one != other:
            at = next(
                (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
            )
            raise VerificationFailed(
                f"{what}: its tokenizer or template reads row {i + 1} otherwise, from token {at + 1} on",
                "nothing was kept; export safetensors instead, and report it with the base's tokenizer",
            )
