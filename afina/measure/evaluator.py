"""Evaluates two models on the same rows: scores, intervals, trivial baselines, forgetting, findings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afina.core.device import cache_folder
from afina.core.events import Listener, ignore
from afina.lora.injection import disabled
from afina.measure.evaluation import Evaluation, difference_json
from afina.measure.findings import adapter_findings
from afina.measure.general_text import paragraphs
from afina.measure.groups import by_length, worst
from afina.measure.intervals import interval, paired_difference
from afina.measure.judge import Judge, Judgement
from afina.measure.metric import Metric, Predictions, RowStats
from afina.measure.metrics import METRICS, main_metric, metrics_for
from afina.measure.metrics.likelihood import loss_per_token
from afina.measure.outputs import EvaluationSet, ModelOutputs, cached_outputs, outputs_of
from afina.measure.trivial_baselines import baseline_scores
from afina.models.load import Base

MODELS = ("base", "adapted")


def evaluate_adapted(
    base: Base,
    eval_set: EvaluationSet,
    listener: Listener = ignore,
    *,
    cache_dir: Path | None = None,
    own: Sequence[Metric] = (),
    judge: Judge | None = None,
    mismatches: Sequence[str] = (),
) -> Evaluation:
    """Runs the model with its adapter and without it on `eval_set`, greedily, and evaluates both.

    The base's outputs are cached. `own` are metrics beside those of the kind of data, `judge` compares the answers, and
    `mismatches` say how the base differs from the one that the adapter was trained on. Raises `InputError` where `own`
    or `judge` fail.
    """
    adapted = outputs_of(base, eval_set, listener, "adapted")
    with disabled(base.model.module):
        plain = cached_outputs(base, eval_set, listener, "base", cache_folder(cache_dir))
    judgement = None
    if judge:
        questions = [example.messages[-1]["content"] for example in eval_set.examples]
        references = [example.references for example in eval_set.examples]
        judgement = judge.compare(questions, references, plain.texts, adapted.texts, listener)
    evaluation = evaluate_outputs(eval_set, plain, adapted, own, judgement)
    return replace(evaluation, findings=[*mismatches, *adapter_findings(evaluation, eval_set, plain, adapted)])


def evaluate_outputs(
    eval_set: EvaluationSet,
    base: ModelOutputs,
    adapted: ModelOutputs,
    own: Sequence[Metric] = (),
    judgement: Judgement | None = None,
) -> Evaluation:
    """The evaluation of what two models put out; it has no findings, which are about adapters."""
    metrics = [*metrics_for(eval_set.kind, not base.names_classes), *own]
    predictions = [_predictions(eval_set, each) for each in (base, adapted)]
    if judgement:
        metrics.append(METRICS["judge"])
        shares = (judgement.base, judgement.adapted)
        predictions = [replace(each, preferred=share) for each, share in zip(predictions, shares, strict=True)]
    computed = {name: {m.name: m.compute(p) for m in metrics} for name, p in zip(MODELS, predictions, strict=True)}
    # Of the metrics that can be resampled; all of them are in `scores`.
    stats = {name: {n: v for n, v in c.items() if isinstance(v, RowStats)} for name, c in computed.items()}
    lower = {metric.name: metric.lower_is_better for metric in metrics}
    differences = {n: paired_difference(a, stats["adapted"][n], lower[n]) for n, a in stats["base"].items()}
    main = main_metric(eval_set.kind)
    baselines = baseline_scores(eval_set)
    best = max(baselines.values(), key=lambda each: -each.score() if main.lower_is_better else each.score())
    main_stats = {name: stats[name][main.name] for name in MODELS}
    rows = {name: each.rows() for name, each in main_stats.items()}
    return Evaluation(
        kind=eval_set.kind,
        data=eval_set.source,
        rows=len(eval_set.examples),
        scores={
            name: {n: v.score() if isinstance(v, RowStats) else v for n, v in c.items()} for name, c in computed.items()
        },
        intervals={name: {n: interval(each) for n, each in s.items()} for name, s in stats.items()},
        differences=differences,
        trivial={name: {main.name: each.score()} for name, each in baselines.items()},
        over_trivial=paired_difference(best, main_stats["adapted"], main.lower_is_better),
        general=_general(base, adapted),
        groups={"by_length": by_length(eval_set.rows, main_stats), "worst": worst(eval_set, rows, adapted)},
        findings=[],
        signatures={n: each.signature for n, each in stats["adapted"].items() if each.signature},
        predictions=_prediction_rows(eval_set, base, adapted, rows),
    )


def _predictions(eval_set: EvaluationSet, outputs: ModelOutputs) -> Predictions:
    return Predictions(
        kind=eval_set.kind,
        answers=outputs.texts,
        references=[example.references for example in eval_set.examples],
        expected=[example.written for example in eval_set.examples[: len(outputs.nats)]],
        losses=outputs.nats,
        stopped=[answer.stopped for answer in outputs.answers],
        tokens=sum(answer.tokens for answer in outputs.answers),
        seconds=outputs.seconds,
        latency=outputs.latency,
    )


def _general(base: ModelOutputs, adapted: ModelOutputs) -> dict[str, dict[str, Any]]:
    """The loss on general text by language, before and after."""
    lower = METRICS["loss"].lower_is_better
    losses = {}
    for language in base.general:
        before, after = (loss_per_token(each.general[language]) for each in (base, adapted))
        losses[language] = {
            "base": before.score(),
            "adapted": after.score(),
            "difference": difference_json(paired_difference(before, after, lower)),
            "paragraphs": len(paragraphs(language)),
        }
    return losses


def _prediction_rows(
    eval_set: EvaluationSet, base: ModelOutputs, adapted: ModelOutputs, scores: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """The lines of `predictions.jsonl`."""
    if eval_set.kind == "text":
        return []
    return [
        {
            "where": example.location,
            "prompt": example.messages[-1]["content"],
            "references": list(example.references),
            "base": base.answers[i].text,
            "adapted": adapted.answers[i].text,
            "base_stopped": base.answers[i].stopped,
            "adapted_stopped": adapted.answers[i].stopped,
            "base_score": scores["base"][i],
            "adapted_score": scores["adapted"][i],
        }
        for i, example in enumerate(eval_set.examples)
    ]
