"""Answers of an adapted model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afina.core.device import keep_freed_memory
from afina.core.errors import AdapterError, DataError
from afina.core.events import Listener, Notice, Progress, ignore
from afina.data.mapping import Unusable, read_examples
from afina.data.template import prompt_ids, text_ids
from afina.lora.injection import disabled
from afina.models.generation import generate as generate_tokens
from afina.runs.facts import is_merged
from afina.runs.opening import open_run


def generate(  # noqa: PLR0913 - each by its name
    run: Path | str,
    prompts: Sequence[str] | Path,
    *,
    base_too: bool = False,
    listener: Listener = ignore,
    device: str | None = None,
    cache_dir: Path | None = None,
    base: str | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Greedy answers to `prompts`: literal user turns, or a file whose rows go through the run's prompt template.

    `base` and `force` are `open_run`'s.

    Returns a dict a row with `prompt`, `answer`, `stopped` (false where the answer was cut at the run's limit of tokens) and,
    with `base_too`, `base`, the answer without adapter; rows of a file have `where` too. Raises `InputError`.
    """
    keep_freed_memory()
    if isinstance(prompts, str):
        prompts = [prompts]
    adapted = open_run(Path(run), device=device, cache_dir=cache_dir, base=base, force=force)
    model = adapted.base
    rows: list[dict[str, Any]]
    if isinstance(prompts, Path):
        examples, rejected, notes = read_examples(adapted.data_settings(prompts), needs_completion=False)
        for line in notes.lines:
            listener(Notice(line))
        for line in rejected.lines():
            listener(Notice(f"not answered: {line}", warning=True))
        conversations = [list(example.messages) for example in examples]
        rows = [
            {"where": e.location, "prompt": e.messages[-1]["content"] if e.messages else e.source} for e in examples
        ]
    else:
        system = adapted.facts.get("data", {}).get("system")
        start = [{"role": "system", "content": system}] if system else []
        conversations = [[*start, {"role": "user", "content": prompt}] for prompt in prompts]
        rows = [{"prompt": prompt} for prompt in prompts]
    # A classifier writes nothing, so that all of the context is the prompt's.
    room = model.facts.context_length - (adapted.max_new_tokens if model.task.writes_text else 0)
    is_text = adapted.facts.get("kind") == "text"
    asked = []  # (row, token ids)
    for row, messages in zip(rows, conversations, strict=True):
        try:
            tokens = text_ids(model.tokenizer, row["prompt"]) if is_text else prompt_ids(model.tokenizer, messages)
            if len(tokens) > room:
                raise Unusable(f"it has {len(tokens)} tokens, the base takes {room} beside an answer")
        except Unusable as reason:
            if "where" not in row:
                raise DataError(f"a prompt cannot be asked: {reason}", "change or shorten it") from reason
            listener(Notice(f"not answered: {row['where']}: {reason}", warning=True))
            continue
        asked.append((row, tokens))
    if not asked:
        raise DataError("no row can be asked", "mend the file")
    rows, ids = [row for row, _ in asked], [ids for _, ids in asked]

    def progress(done: int, total: int) -> None:
        listener(Progress("answers", done, total))

    for row, answer in zip(
        rows, generate_tokens(model, ids, adapted.max_new_tokens, on_progress=progress), strict=True
    ):
        row |= {"answer": answer.text, "stopped": answer.stopped}
    if base_too and is_merged(Path(run)):
        raise AdapterError(f"{run} is a merged model, without its base", "leave --base-too out")
    if base_too:
        with disabled(model.model.module):
            plain = generate_tokens(model, ids, adapted.max_new_tokens, on_progress=progress)
        for row, answer in zip(rows, plain, strict=True):
            row["base"] = answer.text
    return rows
