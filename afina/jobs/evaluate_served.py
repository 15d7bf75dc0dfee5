"""`eval --url`: score what a server answers, and whether the run's own weights wrote it."""

from pathlib import Path
from typing import Any

from afina.core.config import Result, Settings, setting
from afina.core.errors import AdapterError, DataError, VerificationFailed, counted
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.data.layouts import Kind
from afina.data.mapping import Example, said_of
from afina.data.settings import Encoded
from afina.measure.evaluation import defined, difference_json
from afina.measure.intervals import interval, paired_difference
from afina.measure.metric import Group, Predictions, RowStats
from afina.measure.metrics import main_metric, metrics_for
from afina.runs.facts import adapter_folder, model_name, read_facts
from afina.runs.opening import read_as_in_training
from afina.serving.adapters import content_hash
from afina.serving.client import Client, Reply


class EvaluateServedSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder that `afina train` wrote, or an adapter's folder: how rows are asked, and which weights are to answer."""
    data: Path = setting(..., positional="DATA")
    """File of examples that were not trained on."""
    url: str = setting(..., metavar="URL")
    """Score what a server (`afina serve`) at this address answers instead; its key is read from AFINA_API_KEY."""
    model: str | None = setting(None, metavar="NAME")
    """The model's name there; by default the run's folder's."""
    references: str | None = setting(None, metavar="COLUMN", min_length=1)
    """Column with the right answer, or a list of them; the completion's column may then be absent."""
    encoding: Encoded = setting(None, "--data.encoding", "--encoding", metavar="NAME")
    """Encoding of the rows' text; by default UTF-8, else that of the training file, or what the text looks like."""
    limit: int | None = setting(None, metavar="N", ge=1)
    """Only the first N rows."""


class EvaluateServedResult(Result):
    """Scores are by metric; the keys are those of `evaluation.json`. What needs probabilities is not among them."""

    base: dict[str, Any]
    """Scores of the server's base; empty where it serves none."""
    adapted: dict[str, Any]
    interval: dict[str, dict[str, Any]]
    difference: dict[str, dict[str, Any]]
    main_metric: str
    kind: str
    rows: int
    model: str
    fingerprint: str
    """Which weights answered, as the server says in each answer; compared with the run's."""


def evaluate_served(settings: EvaluateServedSettings, listener: Listener = ignore) -> EvaluateServedResult:
    """Asks the rows of `data` as in training, and scores the answers.

    Raises `InputError`, and `VerificationFailed` where an answer's fingerprint is not that of the run's weights on its
    base.
    """
    folder = adapter_folder(settings.run)
    facts = read_facts(folder)
    if not facts:
        raise AdapterError(f"{folder} does not say how its rows are asked", "give a run of `afina train`")
    if facts["kind"] == "text":
        raise AdapterError(f"{settings.run} was trained on plain text, of which no answer is scored", "leave --url out")
    examples, rejected, notes = read_as_in_training(
        facts, settings.data, settings.encoding, settings.references, listener=listener,
        needs_completion=settings.references is None,
    )  # fmt: skip
    for line in [*notes.lines, *rejected.lines()]:
        listener(Notice(line))
    examples = [each.answered() for each in examples[: settings.limit] if each.messages]
    if not examples:
        raise DataError(f"{settings.data}: no row can be asked", "fix the file")
    client = Client(settings.url)
    name = settings.model or model_name(folder.resolve())
    questions = [_question(each, int(facts["max_new_tokens"])) for each in examples]
    replies = client.chat(name, questions, listener)
    fingerprint = check_fingerprints(replies, facts["base"]["sha256"], content_hash(folder), settings.run)
    kind: Kind = facts["kind"]
    parents = {each.id: each.parent for each in client.models()}
    parent = parents.get(name)
    plain = client.chat(parent, questions, listener, "answers of the base") if parent and parent in parents else None
    adapted = _scores(kind, examples, replies)
    base = _scores(kind, examples, plain) if plain else {}
    lower = {metric.name: metric.lower_is_better for metric in metrics_for(kind)}
    stats = {n: v for n, v in adapted.items() if isinstance(v, RowStats)}
    found = {
        "base": _shown(base),
        "adapted": _shown(adapted),
        "interval": {
            who: {n: interval(v) for n, v in scores.items() if isinstance(v, RowStats)}
            for who, scores in (("base", base), ("adapted", adapted))
        },
        "difference": {n: difference_json(paired_difference(base[n], v, lower[n])) for n, v in stats.items() if base},
    }
    return EvaluateServedResult(
        **defined(found),
        main_metric=main_metric(kind).name,
        kind=kind,
        rows=len(examples),
        model=name,
        fingerprint=fingerprint,
    )


def check_fingerprints(replies: list[Reply], base_hash: str, adapter_hash: str, run: Path) -> str:
    """The fingerprint of all the replies. Raises `VerificationFailed` where some are of other weights."""
    found = sorted({reply.fingerprint for reply in replies})
    begin = f"afina-{base_hash[:8]}-{adapter_hash[:8]}-"
    if wrong := [each for each in found if not each.startswith(begin)]:
        count = sum(reply.fingerprint in wrong for reply in replies)
        raise VerificationFailed(
            f"{counted(count, 'answer was', 'answers were')} written by {wrong[0] or 'weights without a name'}, and "
            f"{run} is {begin}…",
            "ask the model that this run is on the server (--model NAME), or load the run there again",
        )
    return found[-1]


def _question(example: Example, max_tokens: int) -> dict[str, Any]:
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"messages": [dict(each) for each in example.messages], "max_tokens": max_tokens} | tools


def _scores(kind: Kind, examples: list[Example], replies: list[Reply]) -> dict[str, Any]:
    predictions = Predictions(
        kind=kind,
        answers=[said_of({"content": reply.text}) for reply in replies],
        references=[example.references for example in examples],
        stopped=[reply.stopped for reply in replies],
    )
    metrics = [each for each in metrics_for(kind) if each.group not in (Group.LIKELIHOOD, Group.SPEED)]
    return {each.name: each.compute(predictions) for each in metrics}


def _shown(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: v.score() if isinstance(v, RowStats) else v for name, v in scores.items()}


JOB = Job.of(evaluate_served)
