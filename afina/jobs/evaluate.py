"""`eval`: score an adapted model and its base on a file of examples; replaces the evaluation in RUN."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from afina.core.config import Result, read_yaml, setting
from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, DataError, SettingsError, counted
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.data.answers import AnswerStatistics
from afina.data.fitting import DEFAULT_MAX_LENGTH, Fitter
from afina.data.layouts import Kind
from afina.data.mapping import Example
from afina.data.rows import Notes, Rejections
from afina.data.settings import Encoded
from afina.jobs._opening import OpenSettings
from afina.measure.evaluation import Evaluation
from afina.measure.evaluator import evaluate_adapted
from afina.measure.judge import Judge
from afina.measure.metric import Predictions
from afina.measure.outputs import EvaluationSet
from afina.measure.own_metrics import read_metrics
from afina.runs.facts import is_merged
from afina.runs.folder import record
from afina.runs.opening import Adapted


class EvaluateSettings(OpenSettings):
    data: Path = setting(..., positional="DATA")
    """File of examples that were not trained on."""
    references: str | None = setting(None, metavar="COLUMN", min_length=1)
    """Column with the right answer, or a list of them; the completion's column may then be absent."""
    encoding: Encoded = setting(None, "--data.encoding", "--encoding", metavar="NAME")
    """Encoding of the rows' text; by default UTF-8, else that of the training file, or what the text looks like."""
    limit: int | None = setting(None, metavar="N", ge=1)
    """Only the first N rows."""
    metrics: tuple[str, ...] = setting((), "--metric", metavar="FILE.py:NAME", repeated=True)
    """A metric of your own: NAME(answer, references) gives a number for each row."""
    judge: str | None = setting(None, metavar="URL")
    """Let a model behind an OpenAI-compatible address compare the answers (it is sent the rows)."""
    judge_model: str | None = setting(None, metavar="NAME")
    """The judge's name there; its key is read from AFINA_JUDGE_KEY or OPENAI_API_KEY."""

    @model_validator(mode="after")
    def _judge(self) -> "EvaluateSettings":
        if bool(self.judge) != bool(self.judge_model):
            raise ValueError("--judge and --judge-model belong together: give an address and a model's name")
        return self


class EvaluateResult(Result):
    """Scores are by metric; what is undefined is None. The keys are those of `evaluation.json`."""

    base: dict[str, Any]
    """Scores of the base."""
    adapted: dict[str, Any]
    """Scores of the adapted model."""
    interval: dict[str, dict[str, Any]]
    """95 % intervals of the scores, by model and metric."""
    difference: dict[str, dict[str, Any]]
    """adapted − base: `value`, its 95 % interval (`low`, `high`), `verdict`."""
    trivial: dict[str, dict[str, Any]]
    """The main score of answers that need no model."""
    over_trivial: dict[str, Any]
    """adapted − the best of those."""
    general: dict[str, dict[str, Any]]
    """Loss on general text by language, before and after."""
    groups: dict[str, Any]
    findings: tuple[str, ...]
    signatures: dict[str, str]
    kind: str
    main_metric: str
    data: str
    rows: int
    predictions: tuple[dict[str, Any], ...] = Field((), exclude=True)
    """The answers row by row, as in `predictions.jsonl`."""

    @staticmethod
    def of(evaluation: Evaluation) -> "EvaluateResult":
        return EvaluateResult(**evaluation.json(), predictions=tuple(evaluation.predictions))


def evaluate(settings: EvaluateSettings, listener: Listener = ignore) -> EvaluateResult:
    """Scores the adapter in `run` and its base on the first `limit` rows of `data`, with the run's own templates.

    The result replaces `evaluation.json`, `predictions.jsonl` and the page in `run`, unless `base` is not the base that
    the adapter was trained on. Raises `InputError`.
    """
    run, data = settings.run, settings.data
    if is_merged(run):
        raise AdapterError(f"{run} is a merged model, without a base to compare it with", "give the run it came from")
    if (run / "config.yaml").exists():
        read_yaml(run / "config.yaml")  # the page needs it at the end; better to know now
    own = read_metrics(settings.metrics)
    judge = Judge(settings.judge, settings.judge_model) if settings.judge and settings.judge_model else None
    if judge:
        judge.check(listener)  # what is wrong with it shows before the models are loaded
    keep_freed_memory()
    adapted = settings.open(listener)
    other = adapted.facts.get("base", {}).get("sha256") not in (None, adapted.base.facts.sha256)
    if other:
        listener(Notice(f"on another base than the adapter's own: what is in {run} stays as it is", warning=True))
    examples, rejected, notes = adapted.read(
        data, settings.encoding, settings.references, listener=listener, needs_completion=settings.references is None
    )
    if not other and (run / "evaluation.json").exists():
        listener(Notice(f"the evaluation in {run} will be replaced by this one"))
    for line in notes.lines:
        listener(Notice(line))
    eval_set = _eval_set(adapted, examples[: settings.limit], rejected, notes, str(data), listener)
    if eval_set.kind == "text" and (settings.metrics or settings.judge):
        raise SettingsError("--metric and --judge score answers, and plain text has none", "leave them out")
    for metric in own:  # what is wrong with it shows before the models answer
        first = eval_set.examples[0]
        metric.compute(Predictions(eval_set.kind, [first.references[0]], [first.references]))
    result = evaluate_adapted(
        adapted.base,
        eval_set,
        listener,
        cache_dir=settings.cache_dir,
        own=own,
        judge=judge,
        mismatches=adapted.mismatches,
    )
    if not other:
        record(run, result)
    return EvaluateResult.of(result)


def _eval_set(
    adapted: Adapted, examples: Sequence[Example], rejected: Rejections, notes: Notes, source: str, listener: Listener
) -> EvaluationSet:
    """The rows that fit, and those whose class the model does not know. Raises `DataError` where there is none."""
    answered = [example.answered() for example in examples]
    asking = [e for e in answered if e.messages]
    if 0 < len(asking) < len(answered):
        listener(
            Notice(
                f"{counted(len(answered) - len(asking), 'row is')} plain text, and not scored beside questions",
                warning=True,
            )
        )
        answered = asking
    classes = adapted.base.tokenizer.classes
    strangers = [e for e in answered if adapted.base.task.needs_classes and e.completion not in classes]
    if strangers:  # they have no loss, and no right answer
        listener(
            Notice(
                f"{counted(len(strangers), 'row has')} a class that the model does not know, such as "
                f"{strangers[0].completion!r}: whatever it answers counts as wrong",
                warning=True,
            )
        )
        answered = [e for e in answered if e.completion in classes]
    is_text = not asking
    room = adapted.base.facts.context_length - (0 if is_text else adapted.max_new_tokens)
    fitter = Fitter(adapted.base.tokenizer, min(room, DEFAULT_MAX_LENGTH) if is_text else room, "cut")
    fitted = fitter.fit(answered)
    for line in [*fitter.notices(), *rejected.lines(), *fitter.rejected.lines()]:
        listener(Notice(line, warning=True))
    if not fitted:
        raise DataError([f"{source}: no row can be used", *fitter.rejected.lines()], "fix the file")
    rows = [row for row, _ in fitted]
    kept = [example for _, example in fitted] + strangers
    known: Kind | None = "text" if is_text else adapted.facts.get("kind")
    kind = known or AnswerStatistics(e.references[0] for e in kept).kind(notes.layout)
    return EvaluationSet(kept, rows, kind, adapted.max_new_tokens, source)


JOB = Job.of(evaluate)
