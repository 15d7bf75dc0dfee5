"""Base and adapted model on a file of examples."""

from collections.abc import Sequence
from pathlib import Path

from afina.core.config import read_yaml
from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, DataError, SettingsError
from afina.core.events import Listener, Notice, ignore
from afina.data.answers import AnswerStatistics
from afina.data.fitting import DEFAULT_MAX_LENGTH, Fitter
from afina.data.mapping import read_examples
from afina.measure.evaluation import Evaluation
from afina.measure.evaluator import evaluate_adapted
from afina.measure.judge import Judge
from afina.measure.metric import Predictions
from afina.measure.outputs import EvaluationSet
from afina.measure.own_metrics import read_metrics
from afina.measure.pages.card import write_card
from afina.measure.pages.report import write_report
from afina.runs.facts import is_merged
from afina.runs.folder import record
from afina.runs.opening import open_run


def evaluate(  # noqa: PLR0913 - each by its name
    run: Path | str,
    data: Path | str,
    *,
    references: str | None = None,
    limit: int | None = None,
    listener: Listener = ignore,
    device: str | None = None,
    cache_dir: Path | None = None,
    base: str | None = None,
    force: bool = False,
    metrics: Sequence[str] = (),
    judge: tuple[str, str] | None = None,
) -> Evaluation:
    """Scores the adapter in `run` and its base on the first `limit` rows of `data`, with the run's own templates.

    `references` names a column with the right answer or a list of them; the completion's column may then be absent. `base` and
    `force` are `open_run`'s. `metrics` are metrics of your own, each as FILE.py:FUNCTION; `judge` is the address and the name of a
    model that compares the answers. The result replaces `evaluation.json`, `predictions.jsonl` and the page in `run`. Raises `InputError`.
    """
    run, data = Path(run), Path(data)
    if is_merged(run):
        raise AdapterError(f"{run} is a merged model, without a base to compare it with", "give the run it came from")
    if (run / "config.yaml").exists():
        read_yaml(run / "config.yaml")  # the page needs it at the end; better to know now
    own = read_metrics(metrics)
    referee = Judge(*judge) if judge else None
    keep_freed_memory()
    adapted = open_run(run, device=device, cache_dir=cache_dir, base=base, force=force)
    other = adapted.facts.get("base", {}).get("sha256") not in (None, adapted.base.facts.sha256)
    if other:
        listener(Notice(f"on another base than the adapter's own: what is in {run} stays as it is", warning=True))
    settings = adapted.data_settings(data, references)
    examples, rejected, notes = read_examples(settings, needs_completion=references is None)
    if not other and (run / "evaluation.json").exists():
        listener(Notice(f"the evaluation in {run} will be replaced by this one"))
    for line in notes.lines:
        listener(Notice(line))
    answered = [example.answered() for example in examples[:limit]]
    asking = [e for e in answered if e.messages]
    if 0 < len(asking) < len(answered):
        listener(
            Notice(f"{len(answered) - len(asking)} rows of plain text are not scored beside questions", warning=True)
        )
        answered = asking
    classes = adapted.base.tokenizer.classes
    strangers = [e for e in answered if adapted.base.task.needs_classes and e.completion not in classes]
    if strangers:  # they have no loss, and no right answer
        listener(
            Notice(
                f"{len(strangers)} rows have a class that the model does not know, such as {strangers[0].completion!r}: "
                "whatever it answers counts as wrong",
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
        raise DataError([f"{data}: no row can be used", *fitter.rejected.lines()], "mend the file")
    rows = [row for row, _ in fitted]
    kept = [example for _, example in fitted] + strangers
    kind = (
        "text"
        if is_text
        else adapted.facts.get("kind") or AnswerStatistics(e.references[0] for e in kept).kind(notes.layout)
    )
    eval_set = EvaluationSet(kept, rows, kind, adapted.max_new_tokens, str(data))
    if is_text and (metrics or judge):
        raise SettingsError("--metric and --judge score answers, and plain text has none", "leave them out")
    for metric in own:  # what is wrong with it shows before the models answer
        metric.compute(Predictions(kind, [kept[0].references[0]], [kept[0].references]))
    result = evaluate_adapted(
        adapted.base, eval_set, listener, cache_dir=cache_dir, own=own, judge=referee, mismatches=adapted.mismatches
    )
    if other:
        return result
    record(run, result)
    if (run / "config.yaml").exists():
        write_card(run)
        write_report(run)
    return result
