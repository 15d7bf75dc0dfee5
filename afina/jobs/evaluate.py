"""Base and adapted model on a file of examples."""

from dataclasses import replace
from pathlib import Path

from afina.core.config import read_yaml
from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, DataError
from afina.core.events import Listener, Notice, ignore
from afina.data.kinds import Answers
from afina.data.load import DEFAULT_MAX_LENGTH, Fitter, read_examples
from afina.jobs.runs import is_merged, open_run, record
from afina.measure.evaluation import Evaluation, evaluate_adapted
from afina.measure.report import write_report


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
) -> Evaluation:
    """Scores the adapter in `run` and its base on the first `limit` rows of `data`, with the run's own templates.

    `references` names a column with the right answer or a list of them; the completion's column may then be absent. `base` and
    `force` are `open_run`'s. The result replaces `evaluation.json`, `predictions.jsonl` and the page in `run`. Raises `InputError`.
    """
    run, data = Path(run), Path(data)
    if is_merged(run):
        raise AdapterError(f"{run} is a merged model, without a base to compare it with", "give the run it came from")
    if (run / "config.yaml").exists():
        read_yaml(run / "config.yaml")  # the page needs it at the end; better to know now
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
    answered = [
        replace(e, completion=e.completion if e.completion is not None else e.references[0]) for e in examples[:limit]
    ]
    asking = [e for e in answered if e.messages]
    if 0 < len(asking) < len(answered):
        listener(
            Notice(f"{len(answered) - len(asking)} rows of plain text are not scored beside questions", warning=True)
        )
        answered = asking
    classes = adapted.base.tokenizer.classes
    strangers = [e for e in answered if classes and e.completion not in classes]
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
    fitter = Fitter(adapted.base, min(room, DEFAULT_MAX_LENGTH) if is_text else room, "cut")
    fitted = fitter.fit(answered)
    for line in [*fitter.notices(), *rejected.lines(), *fitter.rejected.lines()]:
        listener(Notice(line, warning=True))
    if not fitted:
        raise DataError([f"{data}: no row can be used", *fitter.rejected.lines()], "mend the file")
    rows = [row for row, _ in fitted]
    kept = [example for _, example in fitted] + strangers
    kind = "text" if is_text else adapted.facts.get("kind") or Answers(e.references[0] for e in kept).kind(notes.layout)
    result = evaluate_adapted(adapted.base, kept, rows, kind, adapted.max_new_tokens, listener, str(data))
    if other:
        return result
    record(run, result)
    if (run / "config.yaml").exists():
        write_report(run)
    return result
