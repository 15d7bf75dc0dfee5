"""Two outcomes on the same rows, a base's and another's: scores, intervals, what a trivial answer would get, what stands out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afina.core.device import cache_folder
from afina.core.events import Listener, ignore
from afina.data.layouts import Kind
from afina.lora.injection import disabled
from afina.measure.diagnosis import findings
from afina.measure.general import paragraphs
from afina.measure.groups import by_length, worst
from afina.measure.intervals import Difference, interval, paired_difference
from afina.measure.metrics.scores import Metric, mean, ratio
from afina.measure.metrics.table import MAIN, confusion, metrics, per_class, per_field, trivial_answers
from afina.measure.metrics.texts import bits_per_byte, byte_frequencies, distinct, loss_per_token
from afina.measure.outcomes import Outcome, Questions, outcome, remembered
from afina.models.load import Base
from afina.training.loss import perplexity

Pairs = list[tuple[Metric, Metric]]  # of the base and of the adapted model
Extra = Callable[[Questions, Outcome, Outcome], Pairs]


@dataclass(frozen=True)
class Evaluation:
    """`scores` by model (base, adapted) and metric; `differences` adapted − base by metric; `predictions` row by row."""

    kind: Kind
    data: str
    rows: int
    scores: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, Difference]
    trivial: dict[str, dict[str, float]]
    over_trivial: Difference
    general: dict[str, dict[str, Any]]
    groups: dict[str, Any]
    findings: list[str]
    signatures: dict[str, str]
    predictions: list[dict[str, Any]]

    @property
    def main(self) -> str:
        return MAIN[self.kind]

    def json(self) -> dict[str, Any]:
        """The object of `evaluation.json` and of `--json`; what is undefined is null."""
        found = {
            **self.scores,
            "interval": self.intervals,
            "difference": {name: difference_json(d) for name, d in self.differences.items()},
            "trivial": self.trivial,
            "over_trivial": difference_json(self.over_trivial),
            "general": self.general,
            "groups": self.groups,
            "findings": self.findings,
            "signatures": self.signatures,
            "kind": self.kind,
            "main_metric": self.main,
            "data": self.data,
            "rows": self.rows,
        }
        return dict(_defined(found))


def difference_json(difference: Difference) -> dict[str, Any]:
    return asdict(difference) | {"verdict": difference.verdict}


def _defined(value: Any) -> Any:
    """The value with None for every number that is none (JSON has no NaN)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _defined(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(each) for each in value]
    return value


def evaluate_adapted(
    base: Base,
    asked: Questions,
    listener: Listener = ignore,
    *,
    cache_dir: Path | None = None,
    extra: Extra | None = None,
    mismatches: Sequence[str] = (),
) -> Evaluation:
    """Lets the model with its adapter and without it answer, greedily, and evaluates both; the base's outcome is kept in the cache."""
    adapted = outcome(base, asked, listener, "adapted")
    with disabled(base.model.module):
        plain = remembered(base, asked, listener, "base", cache_folder(cache_dir))
    return evaluate_outcomes(asked, plain, adapted, extra(asked, plain, adapted) if extra else (), mismatches)


def evaluate_outcomes(
    asked: Questions,
    base: Outcome,
    adapted: Outcome,
    extra: Sequence[tuple[Metric, Metric]] = (),
    mismatches: Sequence[str] = (),
) -> Evaluation:
    """The evaluation of two outcomes. `extra` are metrics beside those of the kind; `mismatches` say where adapter and base do not fit."""
    references = [example.references for example in asked.examples]
    found = {
        name: [*_metrics(asked, each, references), *(pair[which] for pair in extra)]
        for which, (name, each) in enumerate((("base", base), ("adapted", adapted)))
    }
    differences = {a.name: paired_difference(a, b) for a, b in zip(found["base"], found["adapted"], strict=True)}
    trivial = _trivial(asked, references)
    best = max(trivial.values(), key=lambda metric: -metric.score() if metric.lower_is_better else metric.score())
    main = {name: next(m for m in metrics_ if m.name == MAIN[asked.kind]) for name, metrics_ in found.items()}
    over_trivial = paired_difference(best, main["adapted"])
    general = _general(base, adapted)
    scores = {
        name: {m.name: m.score() for m in found[name]} | _details(asked, each, references)
        for name, each in (("base", base), ("adapted", adapted))
    }
    rows = {name: metric.rows() for name, metric in main.items()}
    return Evaluation(
        kind=asked.kind,
        data=asked.source,
        rows=len(asked.examples),
        scores=scores,
        intervals={name: {m.name: interval(m) for m in metrics_} for name, metrics_ in found.items()},
        differences=differences,
        trivial={name: {metric.name: metric.score()} for name, metric in trivial.items()},
        over_trivial=over_trivial,
        general=general,
        groups={"by_length": by_length(asked.rows, main), "worst": worst(asked, rows, adapted)},
        findings=[
            *mismatches,
            *findings(asked, base, adapted, scores, differences[MAIN[asked.kind]], over_trivial, general),
        ],
        signatures={m.name: m.signature for m in found["adapted"] if m.signature},
        predictions=_predictions(asked, base, adapted, rows),
    )


def _metrics(asked: Questions, of: Outcome, references: list[tuple[str, ...]]) -> list[Metric]:
    loss = loss_per_token([nats for nats, _ in of.nats], [tokens for _, tokens in of.nats])
    texts = [example.completion or "" for example in asked.examples[: len(of.nats)]]
    bits = bits_per_byte([nats for nats, _ in of.nats], texts)
    if asked.kind == "text":
        return [bits, loss]
    found = metrics(asked.kind, of.texts, references)
    if of.names_classes:
        return [*found, loss]
    stopped = mean("stop_rate", [float(answer.stopped) for answer in of.answers])
    empty = mean("empty_rate", [float(not answer.text) for answer in of.answers])
    return [*found, loss, bits, stopped, Metric("empty_rate", empty.stats, empty.value, lower_is_better=True)]


def _details(asked: Questions, of: Outcome, references: list[tuple[str, ...]]) -> dict[str, Any]:
    """Scores that have no interval."""
    nats, tokens = (sum(each) for each in zip(*of.nats, strict=True)) if of.nats else (math.nan, 0)
    found: dict[str, Any] = {} if of.names_classes else {"perplexity": perplexity(ratio(nats, tokens))}
    if asked.kind == "text":
        return found
    if asked.kind == "classification":
        found |= {"per_class": per_class(of.texts, references), "confusion": confusion(of.texts, references)}
    elif asked.kind == "structured":
        found["per_field"] = per_field(of.texts, references)
    else:
        found |= {"distinct_1": distinct(of.texts, 1), "distinct_2": distinct(of.texts, 2)}
    if not of.names_classes:
        found["truncated_rate"] = sum(not answer.stopped for answer in of.answers) / len(of.answers)
        found["tokens_per_second"] = ratio(sum(answer.tokens for answer in of.answers), of.seconds)
    return found | {"answers_per_second": ratio(len(of.answers), of.seconds), "latency": of.latency}


def _trivial(asked: Questions, references: list[tuple[str, ...]]) -> dict[str, Metric]:
    """The main metric of answers that need no model."""
    if asked.kind == "text":
        return {"byte frequencies": byte_frequencies([example.completion or "" for example in asked.examples])}
    answers = trivial_answers(asked.kind, [example.source for example in asked.examples], references)
    name = MAIN[asked.kind]
    return {
        what: next(m for m in metrics(asked.kind, texts, references, only=name) if m.name == name)
        for what, texts in answers.items()
    }


def _general(base: Outcome, adapted: Outcome) -> dict[str, dict[str, Any]]:
    """The loss on general text by language, before and after."""
    found = {}
    for language in base.general:
        before, after = (
            loss_per_token([nats for nats, _ in pairs], [tokens for _, tokens in pairs])
            for pairs in (base.general[language], adapted.general[language])
        )
        found[language] = {
            "base": before.score(),
            "adapted": after.score(),
            "difference": difference_json(paired_difference(before, after)),
            "paragraphs": len(paragraphs(language)),
        }
    return found


def _predictions(
    asked: Questions, base: Outcome, adapted: Outcome, rows: dict[str, list[float]]
) -> list[dict[str, Any]]:
    return [
        {
            "where": example.location,
            "prompt": example.messages[-1]["content"],
            "references": list(example.references),
            "base": base.answers[i].text,
            "adapted": adapted.answers[i].text,
            "base_stopped": base.answers[i].stopped,
            "adapted_stopped": adapted.answers[i].stopped,
            "base_score": rows["base"][i],
            "adapted_score": rows["adapted"][i],
        }
        for i, example in enumerate(asked.examples)
        if asked.kind != "text"
    ]
