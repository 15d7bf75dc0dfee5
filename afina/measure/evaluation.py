"""Base against adapted on the same rows: answers, scores, intervals, and what a trivial answer would get."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from afina.base.generation import generate
from afina.base.load import Base
from afina.base.model import Answer
from afina.core.events import Listener, Progress
from afina.data.layouts import Kind
from afina.data.mapping import Example
from afina.data.template import Row, prompt_ids
from afina.lora.injection import disabled
from afina.measure.intervals import Difference, paired_difference
from afina.measure.metrics import (
    MAIN,
    Metric,
    bits_per_byte,
    byte_frequencies,
    metrics,
    per_class,
    per_field,
    trivial_answers,
)
from afina.training.loss import mean_loss, perplexity, row_losses

NAMES = ("base", "adapted")


@dataclass(frozen=True)
class Evaluation:
    """`scores` by model (base, adapted) and metric; `differences` adapted − base by metric; `predictions` row by row."""

    kind: Kind
    data: str
    rows: int
    scores: dict[str, dict[str, Any]]
    differences: dict[str, Difference]
    trivial: dict[str, dict[str, float]]
    over_trivial: Difference
    predictions: list[dict[str, Any]]

    @property
    def main(self) -> str:
        return MAIN[self.kind]

    def json(self) -> dict[str, Any]:
        """The object of `evaluation.json` and of `--json`."""
        return {
            **self.scores,
            "difference": {name: asdict(d) | {"verdict": d.verdict} for name, d in self.differences.items()},
            "trivial": self.trivial,
            "over_trivial": asdict(self.over_trivial) | {"verdict": self.over_trivial.verdict},
            "kind": self.kind,
            "main_metric": self.main,
            "data": self.data,
            "rows": self.rows,
        }


def evaluate_adapted(
    base: Base,
    examples: Sequence[Example],
    rows: Sequence[Row],
    kind: Kind,
    max_new_tokens: int,
    listener: Listener,
    data: str,
) -> Evaluation:
    """Both models answer every example greedily and are scored; `rows` are the same examples rendered with an answer.

    `base` carries the adapter, which is switched off for the base's turn.
    """
    if kind == "text":
        return _evaluate_text(base, examples, rows, data)
    prompts = [prompt_ids(base.tokenizer, example.messages) for example in examples]
    references = [example.references for example in examples]

    def progress(name: str) -> Callable[[int, int], None]:
        return lambda done, total: listener(Progress(f"answers of the {name} model", done, total))

    adapted = generate(base, prompts, max_new_tokens, on_progress=progress("adapted"))
    adapted_loss = mean_loss(base, rows)
    with disabled(base.model.module):
        plain = generate(base, prompts, max_new_tokens, on_progress=progress("base"))
        base_loss = mean_loss(base, rows)
    found = {
        "base": metrics(kind, [a.text for a in plain], references),
        "adapted": metrics(kind, [a.text for a in adapted], references),
    }
    scores = {
        name: _scores(kind, found[name], answers, references, loss)
        | ({} if base.tokenizer.classes else _written(answers, loss))
        for name, answers, loss in zip(NAMES, (plain, adapted), (base_loss, adapted_loss), strict=True)
    }
    trivial = {
        name: metrics(kind, answers, references)
        for name, answers in trivial_answers(kind, [e.source for e in examples], references).items()
    }
    best = max((_main(kind, found_) for found_ in trivial.values()), key=Metric.score)
    return Evaluation(
        kind=kind,
        data=data,
        rows=len(examples),
        scores=scores,
        differences={a.name: paired_difference(a, b) for a, b in zip(found["base"], found["adapted"], strict=True)},
        trivial={name: {m.name: m.score() for m in found_} for name, found_ in trivial.items()},
        over_trivial=paired_difference(best, _main(kind, found["adapted"])),
        predictions=[
            {
                "where": example.where,
                "prompt": example.messages[-1]["content"],
                "references": list(example.references),
                "base": a.text,
                "adapted": b.text,
                "base_stopped": a.stopped,
                "adapted_stopped": b.stopped,
            }
            for example, a, b in zip(examples, plain, adapted, strict=True)
        ],
    )


def _evaluate_text(base: Base, examples: Sequence[Example], rows: Sequence[Row], data: str) -> Evaluation:
    """How well each model tells plain text, which has no answers to compare."""
    texts = [example.completion or "" for example in examples]
    adapted = row_losses(base, rows)
    with disabled(base.model.module):
        plain = row_losses(base, rows)
    tokens = sum(row.labelled for row in rows)
    before, after = bits_per_byte(plain, texts), bits_per_byte(adapted, texts)
    trivial = byte_frequencies(texts)
    return Evaluation(
        kind="text",
        data=data,
        rows=len(rows),
        scores={
            name: {
                found.name: found.score(),
                "loss": sum(nats) / tokens,
                "perplexity": perplexity(sum(nats) / tokens),
            }
            for name, found, nats in zip(NAMES, (before, after), (plain, adapted), strict=True)
        },
        differences={after.name: paired_difference(before, after)},
        trivial={"byte frequencies": {trivial.name: trivial.score()}},
        over_trivial=paired_difference(trivial, after),
        predictions=[],
    )


def _main(kind: Kind, found: list[Metric]) -> Metric:
    return next(metric for metric in found if metric.name == MAIN[kind])


def _scores(
    kind: Kind, found: list[Metric], answers: list[Answer], references: Sequence[Sequence[str]], loss: float
) -> dict[str, Any]:
    texts = [answer.text for answer in answers]
    scores: dict[str, Any] = {metric.name: metric.score() for metric in found}
    if kind == "classification":
        scores["per_class"] = per_class(texts, references)
    if kind == "structured":
        scores["per_field"] = per_field(texts, references)
    return scores | {"loss": loss}


def _written(answers: list[Answer], loss: float) -> dict[str, float]:
    """What is said of models that write text, and not of classifiers."""
    return {
        "perplexity": perplexity(loss),
        "stop_rate": sum(answer.stopped for answer in answers) / len(answers),
        "empty_rate": sum(not answer.text for answer in answers) / len(answers),
    }
