"""`runs forms`: in which forms a run can leave for other programs, and how large each is, or what stands against it."""

from pathlib import Path

from afina.core.config import Result, Settings, build, changed, merge, read_yaml, setting
from afina.core.device import cache_folder
from afina.core.errors import BaseModelError, InputError
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.core.task import TaskName
from afina.core.text import command_line
from afina.jobs.export import subject_of
from afina.lora.peft_config import read_config
from afina.models.sources.source import is_local
from afina.runs.facts import adapter_folder
from afina.serving.exporters import EXPORTERS, Form, forms_of
from afina.settings import RunSettings


class FormsOfRunSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder that `afina train` wrote."""
    base: str | None = None
    """The base, where it is not where it was in training."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept; by default where they were in training."""


class FormExpected(Result):
    bytes: int
    """About how much it will take on the disk, with the files that it needs."""
    problems: tuple[str, ...]
    """What stands against it, each with the way out."""


class FormsOfRunResult(Result):
    run: str
    task: TaskName
    prompt: str | None
    """The template by which questions were asked in training."""
    forms: dict[str, FormExpected]
    """By form, as `afina export --to` takes it."""
    hub_base: str | None
    """The base on the hub, as a card there names it; None where it did not come from there."""


def forms(settings: FormsOfRunSettings, listener: Listener = ignore) -> FormsOfRunResult:
    """Reads the run's settings and its base's configuration, no weights. Raises `InputError` where it holds no adapter
    or its base is not on this disk."""
    run = settings.run
    adapter, config = adapter_folder(run), run / "config.yaml"
    if not config.is_file():
        raise InputError(f"{run} has no config.yaml: it is not a run of `afina train`", "give a run's folder")
    given = {"base": settings.base, "revision": None} if settings.base else {}
    asked = build(RunSettings, merge(read_yaml(config), {"out": run, **given}))
    if settings.cache_dir:
        asked = changed(asked, {"cache_dir": settings.cache_dir})
    if not is_local(asked.base, cache_folder(asked.cache_dir), asked.revision):
        fetch = f"fetch it with `{command_line('models', 'pull', asked.base)}`"
        raise BaseModelError(f"the base {asked.base!r} of {run} is not on this disk", f"{fetch}, or name a copy (base)")
    subject = subject_of(asked, read_config(adapter))
    found = {}
    for exporter in EXPORTERS:
        for argument in exporter.choices:
            form = Form(exporter, argument)
            parts = forms_of([str(form)])
            problems = [problem for part in parts for problem in part.exporter.problems(part, subject)]
            size = sum(part.exporter.bytes_expected(part, subject) for part in parts)
            found[str(form)] = FormExpected(bytes=size, problems=tuple(problems))
    hub = subject.hub_base
    return FormsOfRunResult(
        run=str(run),
        task=subject.task.name,
        prompt=asked.data.prompt,
        forms=found,
        hub_base="@".join(part for part in hub if part) if hub else None,
    )


JOB = Job.of(forms)
