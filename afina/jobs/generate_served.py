"""`generate --url`: let a server answer."""

from pathlib import Path

from pydantic import model_validator

from afina.core.config import Settings, setting
from afina.core.errors import SettingsError
from afina.core.events import Listener, ignore
from afina.core.files import check_writable, write_jsonl
from afina.core.job import Job
from afina.jobs.generate import GenerateResult
from afina.runs.facts import adapter_folder, asked_of, model_name, read_facts
from afina.serving.client import Client


class GenerateServedSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder that `afina train` wrote, or an adapter's folder; with --url its name on the server, or the base's. Where
    the folder is here, too, the run's own system message and length of answers are used."""
    prompts: tuple[str, ...] = setting((), positional="PROMPT")
    """The user's turn, word for word."""
    url: str = setting(..., metavar="URL")
    """Ask a server (`afina serve`) at this address instead; its key is read from AFINA_API_KEY."""
    out: Path | None = setting(None, metavar="FILE")
    """Write the answers to a JSONL file."""
    base_too: bool = False
    """The base's answer beside the adapted model's."""

    @model_validator(mode="after")
    def _has_prompts(self) -> "GenerateServedSettings":
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("PROMPT is empty: give a question")
        return self


def generate_served(settings: GenerateServedSettings, listener: Listener = ignore) -> GenerateResult:
    """Greedy answers of a server to `prompts`, each with the fingerprint of the weights. Raises `InputError`."""
    if settings.out:
        check_writable(settings.out)
    client = Client(settings.url)
    name = model_name(settings.run)
    facts = read_facts(adapter_folder(settings.run)) if settings.run.is_dir() else {}
    most = {"max_tokens": facts["max_new_tokens"]} if facts else {}
    questions = [{"messages": asked_of(facts, prompt)} | most for prompt in settings.prompts]
    rows = [
        {"prompt": prompt, "answer": reply.text, "stopped": reply.stopped, "fingerprint": reply.fingerprint}
        for prompt, reply in zip(settings.prompts, client.chat(name, questions, listener), strict=True)
    ]
    if settings.base_too:
        parent = next((each.parent for each in client.models() if each.id == name), None)
        if parent is None:
            raise SettingsError(f"{name!r} is the base itself", "leave --base-too out, or name an adapter")
        for row, reply in zip(rows, client.chat(parent, questions, listener), strict=True):
            row["base"] = reply.text
    if settings.out:
        write_jsonl(settings.out, rows)
    return GenerateResult(rows=tuple(rows))


JOB = Job.of(generate_served)
