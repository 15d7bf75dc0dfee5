"""What one model does on the rows of an evaluation: its answers, their speed, and its loss on the expected ones."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from pydantic import BaseModel

from afina.core.device import processor
from afina.core.errors import InputError, OutputError
from afina.core.events import Listener, Progress
from afina.core.files import read_json, write_json
from afina.data.layouts import Kind
from afina.data.mapping import Example, said_of
from afina.data.template import Row, prompt_ids
from afina.measure.general_text import general_rows
from afina.models.generation import generate
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX, Answer
from afina.training.loss import row_losses
from afina.version import __version__

PROMPTS_READ = 64  # rows whose loss on the prompt is measured
ALONE = 5  # prompts that are answered one at a time, to measure the latency
_CACHED = 200  # files that the cache keeps


@dataclass(frozen=True)
class EvaluationSet:
    """The rows to evaluate on: `examples`, and the same rendered with their answers.

    `source` says in words where they are from.
    """

    examples: Sequence[Example]
    rows: Sequence[Row]
    kind: Kind
    max_new_tokens: int
    source: str


@dataclass(frozen=True)
class ModelOutputs:
    """The answers, one per row, and the losses of what the model read.

    `nats` are the summed losses of the expected answers, each with its number of tokens; `prompt_nats` those of the
    prompts, and `general` those of the general texts, by language. `seconds` are for all
    answers in batches, `latency` for one alone; NaN where the answers are from the cache: another day's time is not set
    against today's. A classifier `names_classes` and writes no text.
    """

    answers: list[Answer]
    nats: list[tuple[float, int]]
    prompt_nats: list[tuple[float, int]]
    general: dict[str, list[tuple[float, int]]]
    seconds: float
    latency: float
    names_classes: bool

    @property
    def texts(self) -> list[str]:
        """What was answered, without a thought before it."""
        return [said_of({"content": answer.text}) for answer in self.answers]


def outputs_of(base: Base, eval_set: EvaluationSet, listener: Listener, name: str) -> ModelOutputs:
    """What the model, as it is now, does on `eval_set`: it generates greedily. `name` is for progress messages."""
    answers, seconds, latency = [], 0.0, 0.0
    if eval_set.kind != "text":
        prompts = [prompt_ids(base.tokenizer, example.messages, example.tools) for example in eval_set.examples]

        def progress(done: int, total: int) -> None:
            listener(Progress(f"answers of the {name} model", done, total))

        begun = time.perf_counter()
        answers = generate(base, prompts, eval_set.max_new_tokens, on_progress=progress)
        seconds = time.perf_counter() - begun
        latency = median(_latency(base, prompt, eval_set.max_new_tokens) for prompt in prompts[:ALONE])
    listener(Progress(f"losses of the {name} model", 0, 0))
    writes = base.task.continues_text
    general = general_rows(base.tokenizer, base.facts.context_length) if writes else {}
    prompt_rows = [_prompt(row) for row in eval_set.rows[:PROMPTS_READ]] if writes and eval_set.kind != "text" else []
    return ModelOutputs(
        answers=answers,
        nats=row_losses(base, eval_set.rows),
        prompt_nats=row_losses(base, prompt_rows),
        general={language: row_losses(base, texts) for language, texts in general.items()},
        seconds=seconds,
        latency=latency,
        names_classes=not base.task.writes_text,
    )


def _latency(base: Base, prompt: list[int], max_new_tokens: int) -> float:
    """Seconds that one answer takes by itself."""
    begun = time.perf_counter()
    generate(base, [prompt], max_new_tokens)
    return time.perf_counter() - begun


def _prompt(row: Row) -> Row:
    """The row with the labels on its prompt, and nowhere else."""
    labels = [
        token if label == IGNORE_INDEX else IGNORE_INDEX for token, label in zip(row.input_ids, row.labels, strict=True)
    ]
    return Row(row.input_ids, labels, row.location)


def cached_outputs(base: Base, eval_set: EvaluationSet, listener: Listener, name: str, cache: Path) -> ModelOutputs:
    """`outputs_of` a base without an adapter, from the cache if this machine has run it on the same rows before."""
    path = cache / "outcomes" / f"{_key(base, eval_set)}.json"
    with suppress(InputError, ValueError):  # absent, or damaged
        return _Kept.model_validate(read_json(path)).outputs(eval_set)
    new = outputs_of(base, eval_set, listener, name)
    with suppress(OutputError, OSError):  # a cache that cannot be written only costs time
        kept = {name: value for name, value in asdict(new).items() if name not in ("seconds", "latency")}
        write_json(path, kept | {"answers": [[a.text, a.tokens, a.stopped] for a in new.answers]})
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-_CACHED]:
            old.unlink(missing_ok=True)
    return new


class _Kept(BaseModel):
    """A file of the cache."""

    answers: list[tuple[str, int, bool]]
    nats: list[tuple[float, int]]
    prompt_nats: list[tuple[float, int]]
    general: dict[str, list[tuple[float, int]]]
    names_classes: bool

    def outputs(self, eval_set: EvaluationSet) -> ModelOutputs:
        """Raises `ValueError` where they are of other rows."""
        asked = 0 if eval_set.kind == "text" else len(eval_set.examples)
        if (len(self.answers), len(self.nats)) != (asked, len(eval_set.rows)):
            raise ValueError("the number of rows is another one")
        return ModelOutputs(
            answers=[Answer(*answer) for answer in self.answers],
            nats=self.nats,
            prompt_nats=self.prompt_nats,
            general=self.general,
            seconds=math.nan,
            latency=math.nan,
            names_classes=self.names_classes,
        )


def _key(base: Base, eval_set: EvaluationSet) -> str:
    """Equal where the same model runs on the same rows in the same way."""
    tokenizer, facts = base.tokenizer, base.facts
    pairs = zip(eval_set.examples, eval_set.rows, strict=False)
    parts = [
        __version__, processor(), facts.sha256, facts.path, str(base.dtype), base.engine, tokenizer.hash,
        tokenizer.template_hash(), sorted(tokenizer.stop_ids), tokenizer.classes, eval_set.max_new_tokens,
        [(example.messages, row.input_ids, row.labels) for example, row in pairs],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
