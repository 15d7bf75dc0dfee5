"""A look at one base on a user's own rows, in a process of its own: what it can do as it is, and after a short adaptation."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from afina.core.config import build
from afina.core.errors import DataError
from afina.core.events import Listener, Notice, Progress
from afina.core.files import write_json
from afina.data.template import prompt_ids
from afina.measure.metric import Predictions
from afina.measure.metrics import main_metric
from afina.measure.outputs import EvaluationSet
from afina.models.generation import generate
from afina.search.few_shot import after_examples
from afina.search.trial import Bench
from afina.settings import RunSettings
from afina.training.loss import row_losses

ASKED = 48  # rows that a base answers, each time that it is asked


@dataclass(frozen=True)
class Probe:
    """What was seen of a base. `zero_shot`, `few_shot` and `adapted` are its main scores (None where it cannot be asked so);
    `bits_before` and `bits_after` what an expected answer costs it on average, in bits: the measure that all bases share, whatever their
    tokens; `bits` are those after, row by row. `bits_per_byte` is of the answers before; `tokens_per_word` of questions and answers."""

    zero_shot: float | None
    few_shot: float | None
    adapted: float | None
    tokens_per_word: float
    bits_per_byte: float | None
    bits_before: float | None
    bits_after: float
    bits: list[float]
    rows: int
    seconds: float
    revision: str | None


def probe(settings: dict[str, Any], file: str, share: float, listener: Listener) -> None:
    """Asks the base, adapts it on `share` of the rows that a whole training would see, and asks again; `file` gets the `Probe`."""
    bench = Bench(build(RunSettings, settings), listener)
    whole, base = bench.whole, bench.base
    every = whole.asked()
    asked = replace(every, examples=every.examples[:ASKED], rows=every.rows[:ASKED])
    names = not base.task.writes_text
    zero = few = None
    if not names and asked.kind != "text":
        zero = _score(bench, asked, "base", listener)
        try:
            few = _score(bench, after_examples(whole, asked, listener), "few-shot", listener)
        except DataError as error:  # rows too long for it
            listener(Notice(str(error).splitlines()[0]))
    before = None if names else _bits(bench)
    found: dict[str, Any] = {}

    def judge() -> None:
        found["bits"] = _bits(bench)
        if asked.kind != "text":
            found["score"] = _score(bench, asked, "adapted", listener)

    rows = max(bench.plan(bench.settings).batch_size, round(share * bench.full_rows(bench.settings)))
    trial = bench.run(bench.settings, rows, listener=listener, then=judge)
    texts = [(e.source, e.completion or "") for e in asked.examples]
    words = sum(len(f"{a} {b}".split()) for a, b in texts)
    tokens = sum(len(base.tokenizer.encode(f"{a} {b}")) for a, b in texts)
    size = sum(len((e.completion or "").encode()) for e in asked.examples)
    answers = sum(nats for nats, _ in row_losses(base, asked.rows)) if not names else None
    made = Probe(
        zero_shot=zero,
        few_shot=few,
        adapted=found.get("score"),
        tokens_per_word=tokens / max(1, words),
        bits_per_byte=None if answers is None else answers / math.log(2) / max(1, size),
        bits_before=None if before is None else mean(before),
        bits_after=mean(found["bits"]),
        bits=found["bits"],
        rows=trial.rows,
        seconds=trial.seconds,
        revision=base.facts.revision if base.facts.hub_id else None,
    )
    write_json(Path(file), made.__dict__)


def _bits(bench: Bench) -> list[float]:
    """What the expected answer of each held-out row costs the model as it is now."""
    return [nats / math.log(2) for nats, _ in row_losses(bench.base, bench.held_out)]


def _score(bench: Bench, asked: EvaluationSet, what: str, listener: Listener) -> float:
    """The main score of the answers of the model as it is now."""
    base = bench.base
    prompts = [prompt_ids(base.tokenizer, example.messages) for example in asked.examples]

    def progress(done: int, total: int) -> None:
        listener(Progress(f"answers of the {what} model", done, total))

    answers = [each.text for each in generate(base, prompts, asked.max_new_tokens, on_progress=progress)]
    references = [example.references for example in asked.examples]
    return main_metric(asked.kind).stats(Predictions(asked.kind, answers, references)).score()
