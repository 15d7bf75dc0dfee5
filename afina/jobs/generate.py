"""`generate`: let an adapted model answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from afina.core.config import Result, setting
from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, DataError, OutputError, counted
from afina.core.events import Listener, Notice, Progress, ignore
from afina.core.files import check_writable, write_jsonl
from afina.core.job import Job
from afina.data.conversation import Remarks
from afina.data.mapping import Example, Unusable
from afina.data.settings import Encoded
from afina.data.template import prompt_ids, text_ids
from afina.jobs._opening import OpenSettings
from afina.lora.injection import disabled
from afina.models.generation import generate as generate_tokens
from afina.runs.facts import asked_of, is_merged
from afina.runs.opening import Adapted


class GenerateSettings(OpenSettings):
    prompts: tuple[str, ...] = setting((), positional="PROMPT")
    """The user's turn, word for word."""
    data: Path | None = setting(None, metavar="FILE")
    """Answer every row of a file, through the run's prompt template."""
    encoding: Encoded = setting(None, "--data.encoding", "--encoding", metavar="NAME")
    """Encoding of the rows' text; by default UTF-8, else that of the training file, or what the text looks like."""
    out: Path | None = setting(None, metavar="FILE")
    """Write the answers to a JSONL file."""
    overwrite: bool = False
    """Replace the file given with --out."""
    base_too: bool = False
    """The base's answer beside the adapted model's."""

    @model_validator(mode="after")
    def _prompts_or_data(self) -> "GenerateSettings":
        if bool(self.prompts) == bool(self.data):
            raise ValueError("afina generate takes either PROMPT or --data FILE: give one of them")
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("PROMPT is empty: give a question")
        return self


class GenerateResult(Result):
    rows: tuple[dict[str, Any], ...]
    """`prompt`, `answer` and `stopped` (false where the answer was cut at the run's token limit) of each; with
    `base_too`, `base`, the answer without the adapter; rows of a file have `where` too."""


def generate(settings: GenerateSettings, listener: Listener = ignore) -> GenerateResult:
    """Greedy answers to `prompts`, or to the rows of a file. Raises `InputError`."""
    if settings.out:
        _check_out(settings.out, settings)
    if settings.base_too and is_merged(settings.run):
        raise AdapterError(f"{settings.run} is a merged model, without its base", "leave --base-too out")
    keep_freed_memory()
    adapted = settings.open(listener)
    model = adapted.base
    rows, ids = _asked(adapted, *_questions(adapted, settings, listener), listener)

    def answers() -> Any:
        return generate_tokens(
            model, ids, adapted.max_new_tokens, on_progress=lambda *at: listener(Progress("answers", *at))
        )

    for row, answer in zip(rows, answers(), strict=True):
        row |= {"answer": answer.text, "stopped": answer.stopped}
    if settings.base_too:
        with disabled(model.model.module):
            plain = answers()
        for row, answer in zip(rows, plain, strict=True):
            row["base"] = answer.text
    if settings.out:
        write_jsonl(settings.out, rows)
    return GenerateResult(rows=tuple(rows))


def _check_out(out: Path, settings: GenerateSettings) -> None:
    """Raises `OutputError` where the answers could not be written, or would replace a file unasked."""
    check_writable(out)
    if settings.data and out.exists() and settings.data.exists() and out.samefile(settings.data):
        raise OutputError(f"--out {out} is the file of --data itself", "choose another --out")
    if out.is_file() and not settings.overwrite:
        raise OutputError(f"--out {out} exists already", "choose another --out, or replace it with --overwrite")


Rows = list[dict[str, Any]]


def _questions(adapted: Adapted, settings: GenerateSettings, listener: Listener) -> tuple[Rows, list[Example]]:
    """What is asked: the rows of the result so far, and the example of each."""
    if settings.data is None:
        asked = [asked_of(adapted.facts, prompt) for prompt in settings.prompts]
        return [{"prompt": prompt} for prompt in settings.prompts], [Example(each, None, (), "", "") for each in asked]
    examples, rejected, notes = adapted.read(
        settings.data, settings.encoding, listener=listener, needs_completion=False
    )
    for line in notes.lines:
        listener(Notice(line))
    for line in rejected.lines():
        listener(Notice(f"not answered: {line}", warning=True))
    rows = [{"where": e.location, "prompt": e.messages[-1]["content"] if e.messages else e.source} for e in examples]
    return rows, examples


def _asked(
    adapted: Adapted, rows: Rows, examples: Sequence[Example], listener: Listener
) -> tuple[Rows, list[list[int]]]:
    """The rows that fit, and their token ids. Raises `DataError` where a prompt does not, or no row does."""
    model = adapted.base
    # A classifier writes nothing, so that all of the context is the prompt's.
    room = model.facts.context_length - (adapted.max_new_tokens if model.task.writes_text else 0)
    is_text = adapted.facts.get("kind") == "text"
    found: list[tuple[dict[str, Any], list[int]]] = []
    remarks = Remarks()
    for row, example in zip(rows, examples, strict=True):
        try:
            ids = (
                text_ids(model.tokenizer, row["prompt"])
                if is_text
                else prompt_ids(model.tokenizer, example.messages, example.tools, remarks)
            )
            if len(ids) > room:
                raise Unusable(f"it has {counted(len(ids), 'token')}, the base takes {room} beside an answer")
        except Unusable as reason:
            if "where" not in row:
                raise DataError(f"a prompt cannot be asked: {reason}", "change or shorten it") from reason
            listener(Notice(f"not answered: {row['where']}: {reason}", warning=True))
            continue
        found.append((row, ids))
    if not found:
        raise DataError("no row can be asked", "fix the file")
    for line in remarks.lines():
        listener(Notice(line))
    return [row for row, _ in found], [ids for _, ids in found]


JOB = Job.of(generate)
