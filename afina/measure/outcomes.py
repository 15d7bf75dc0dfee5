"""What one model does on the rows of an evaluation: its answers, how well it tells the right ones, and how fast it is."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from afina.core.device import processor
from afina.core.errors import InputError, OutputError
from afina.core.events import Listener, Progress
from afina.core.files import read_json, write_json
from afina.data.layouts import Kind
from afina.data.mapping import Example
from afina.data.template import Row, prompt_ids
from afina.measure.general import general_rows
from afina.models.generation import generate
from afina.models.load import Base
from afina.models.model import IGNORED, Answer
from afina.training.loss import row_losses
from afina.version import __version__

PROMPTS_READ = 64  # rows whose prompts' own loss is measured
ALONE = 5  # questions that are asked one by one, to see how long a single one takes
_REMEMBERED = 200  # files of the cache


@dataclass(frozen=True)
class Questions:
    """What is asked: `examples`, and the same rendered with their answers. `source` says in words where they are from."""

    examples: Sequence[Example]
    rows: Sequence[Row]
    kind: Kind
    max_new_tokens: int
    source: str


@dataclass(frozen=True)
class Outcome:
    """`nats` are the summed losses of the answers that were expected, each with its tokens; `prompt_nats` of the prompts themselves;
    `general` of the general texts, by language. `seconds` are of all answers, `latency` of one asked alone. A classifier
    `names_classes`, and writes nothing."""

    answers: list[Answer]
    nats: list[tuple[float, int]]
    prompt_nats: list[tuple[float, int]]
    general: dict[str, list[tuple[float, int]]]
    seconds: float
    latency: float
    names_classes: bool

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


def outcome(base: Base, asked: Questions, listener: Listener, name: str) -> Outcome:
    """The outcome of the model as it is now; `name` is for the news."""
    answers, seconds, latency = [], 0.0, 0.0
    if asked.kind != "text":
        prompts = [prompt_ids(base.tokenizer, example.messages) for example in asked.examples]

        def progress(done: int, total: int) -> None:
            listener(Progress(f"answers of the {name} model", done, total))

        begun = time.perf_counter()
        answers = generate(base, prompts, asked.max_new_tokens, on_progress=progress)
        seconds = time.perf_counter() - begun
        latency = median(_alone(base, prompt, asked.max_new_tokens) for prompt in prompts[:ALONE])
    writes = base.task.continues_text
    general = general_rows(base.tokenizer, base.facts.context_length) if writes else {}
    prompts_alone = [_prompt(row) for row in asked.rows[:PROMPTS_READ]] if writes and asked.kind != "text" else []
    return Outcome(
        answers=answers,
        nats=row_losses(base, asked.rows),
        prompt_nats=row_losses(base, prompts_alone),
        general={language: row_losses(base, rows) for language, rows in general.items()},
        seconds=seconds,
        latency=latency,
        names_classes=not base.task.writes_text,
    )


def _alone(base: Base, prompt: list[int], max_new_tokens: int) -> float:
    """Seconds that one answer takes."""
    begun = time.perf_counter()
    generate(base, [prompt], max_new_tokens)
    return time.perf_counter() - begun


def _prompt(row: Row) -> Row:
    """The row with its prompt labelled, and nothing else."""
    labels = [token if label == IGNORED else IGNORED for token, label in zip(row.input_ids, row.labels, strict=True)]
    return Row(row.input_ids, labels, row.location)


def remembered(base: Base, asked: Questions, listener: Listener, name: str, cache: Path) -> Outcome:
    """`outcome` of a base without adapter, from the cache where it was asked the same before on this machine."""
    path = cache / "outcomes" / f"{_key(base, asked)}.json"
    with suppress(InputError, KeyError, TypeError):
        found = read_json(path)
        return Outcome(
            answers=[Answer(*answer) for answer in found["answers"]],
            nats=[(n, t) for n, t in found["nats"]],
            prompt_nats=[(n, t) for n, t in found["prompt_nats"]],
            general={name: [(n, t) for n, t in pairs] for name, pairs in found["general"].items()},
            seconds=found["seconds"],
            latency=found["latency"],
            names_classes=found["names_classes"],
        )
    new = outcome(base, asked, listener, name)
    with suppress(OutputError, OSError):  # a cache that cannot be written costs time, no more
        write_json(path, asdict(new) | {"answers": [[a.text, a.tokens, a.stopped] for a in new.answers]})
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-_REMEMBERED]:
            old.unlink(missing_ok=True)
    return new


def _key(base: Base, asked: Questions) -> str:
    """Equal where the same model is asked the same in the same way."""
    decides = [
        __version__, processor(), base.facts.sha256, base.facts.path, str(base.dtype), base.engine, base.tokenizer.hash(),
        base.tokenizer.template_hash(), sorted(base.tokenizer.stop_ids), base.tokenizer.classes, asked.max_new_tokens,
        [(example.messages, row.input_ids, row.labels) for example, row in zip(asked.examples, asked.rows, strict=False)],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
