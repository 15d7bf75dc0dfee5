"""A base tried on a user's own rows, in a process of its own: what it does as it is, and after a short adaptation."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from afina.core.config import build
from afina.core.errors import DataError, InputError
from afina.core.events import Listener, Notice, Progress
from afina.core.files import read_json, write_json
from afina.data.template import prompt_ids
from afina.measure.metric import Predictions
from afina.measure.metrics import main_metric
from afina.measure.outputs import EvaluationSet
from afina.models.generation import generate
from afina.runs.files import unexpected
from afina.search.few_shot import after_examples
from afina.search.trial import TrialRunner
from afina.settings import RunSettings
from afina.training.loss import row_losses

ASKED = 48  # rows of each evaluation


@dataclass(frozen=True)
class BaseTrial:
    """What was measured of a base on the user's rows.

    `zero_shot`, `few_shot` and `adapted` are its main scores; None where it cannot be evaluated so. `bits_before` and
    `bits_after` the adaptation are the mean loss of an expected answer, in bits per answer: comparable between bases,
    whatever their tokens. `bits` are those after, row by row. `bits_per_byte` is of the answers, before;
    `tokens_per_word` of prompts and answers.
    """

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

    @staticmethod
    def read(path: Path) -> "BaseTrial":
        """What `try_base` wrote. Raises `InputError` where it is something else."""
        try:
            found: BaseTrial = TypeAdapter(BaseTrial).validate_python(read_json(path))
        except ValidationError as error:
            raise unexpected(path, error) from error
        if not found.bits:
            raise InputError(f"{path} has no bits of any row")
        return found


def try_base(settings: dict[str, Any], file: str, share: float, listener: Listener) -> None:
    """Evaluates the base, adapts it on `share` of the rows of a full training, and evaluates it again.

    `file` gets the `BaseTrial`."""
    runner = TrialRunner(build(RunSettings, settings), listener)
    assembled, base = runner.assembled, runner.base
    rows_to_ask = assembled.asked()
    asked = replace(rows_to_ask, examples=rows_to_ask.examples[:ASKED], rows=rows_to_ask.rows[:ASKED])
    writes, has_prompts = base.task.writes_text, asked.kind != "text"
    zero_shot = few_shot = adapted = None
    if writes and has_prompts:
        zero_shot = _score(runner, asked, "base", listener)
        try:
            few_shot = _score(runner, after_examples(assembled, asked, listener), "few-shot", listener)
        except DataError as error:  # rows too long for it
            listener(Notice(str(error).splitlines()[0]))
    before = _bits(runner) if writes else None
    bits: list[float] = []

    def evaluate_adapted() -> None:
        nonlocal adapted
        bits.extend(_bits(runner))
        if has_prompts:
            adapted = _score(runner, asked, "adapted", listener)

    rows = max(runner.plan(runner.settings).batch_size, round(share * runner.full_rows(runner.settings)))
    trial = runner.run(runner.settings, rows, then=evaluate_adapted)
    tokens_per_word, bits_per_byte = _per_word_and_byte(runner, asked)
    found = BaseTrial(
        zero_shot=zero_shot,
        few_shot=few_shot,
        adapted=adapted,
        tokens_per_word=tokens_per_word,
        bits_per_byte=bits_per_byte,
        bits_before=None if before is None else mean(before),
        bits_after=mean(bits),
        bits=bits,
        rows=trial.rows,
        seconds=trial.seconds,
        revision=base.facts.revision if base.facts.hub_id else None,
    )
    write_json(Path(file), found.__dict__)


def _per_word_and_byte(runner: TrialRunner, asked: EvaluationSet) -> tuple[float, float | None]:
    """Tokens per word of prompts and answers, and bits per byte of the answers, for the base as it is."""
    base = runner.base
    texts = [f"{example.source} {example.completion or ''}" for example in asked.examples]
    words = sum(len(text.split()) for text in texts)
    tokens = sum(len(base.tokenizer.encode(text)) for text in texts)
    if not base.task.writes_text:
        return tokens / max(1, words), None
    size = sum(len((example.completion or "").encode()) for example in asked.examples)
    nats = sum(each for each, _ in row_losses(base, asked.rows))
    return tokens / max(1, words), nats / math.log(2) / max(1, size)


def _bits(runner: TrialRunner) -> list[float]:
    """The loss of the expected answer of each held-out row, in bits, for the model as it is now."""
    return [nats / math.log(2) for nats, _ in row_losses(runner.base, runner.held_out)]


def _score(runner: TrialRunner, asked: EvaluationSet, what: str, listener: Listener) -> float:
    """The main score of the model as it is now."""
    base = runner.base
    prompts = [prompt_ids(base.tokenizer, example.messages, example.tools) for example in asked.examples]

    def progress(done: int, total: int) -> None:
        listener(Progress(f"answers of the {what} model", done, total))

    answers = [each.text for each in generate(base, prompts, asked.max_new_tokens, on_progress=progress)]
    references = [example.references for example in asked.examples]
    return main_metric(asked.kind).stats(Predictions(asked.kind, answers, references)).score()
