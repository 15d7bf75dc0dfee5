"""`export`: write an adapted model for other programs (GGUF, Ollama, safetensors, the hub), and compare."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch

from afina.core.config import LISTED, Result, setting
from afina.core.device import cache_folder, keep_freed_memory
from afina.core.errors import AdapterError, AfinaError, OutputError, RunFailed, SettingsError, writing
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.core.process.locks import alone
from afina.core.process.temporary import new_folder, replacing_folder
from afina.core.text import command_line
from afina.jobs._opening import OpenSettings
from afina.lora.config import LoraConfig
from afina.lora.peft_config import read_config
from afina.models.load import Base, describe, load_tokenizer, wrapped
from afina.models.skeleton import build_skeleton, read_skeleton
from afina.models.templates import read_template
from afina.runs.facts import adapter_folder, is_merged
from afina.runs.folder import check_new
from afina.runs.opening import Adapted
from afina.serving.comparison import rows_of
from afina.serving.export import RECORD, check_form, guide, record, reference_of, write_forms
from afina.serving.exporters import Making, Subject, check_forms, forms_of
from afina.settings import RunSettings
from afina.training.loss import device_of

IN_RUN = "export"  # the folder in a run into which `train --export` writes


class ExportSettings(OpenSettings):
    to: Annotated[tuple[str, ...], LISTED] = setting(..., metavar="FORM,FORM")
    """Forms, such as gguf:Q4_K_M,gguf:Q8_0,gguf-lora,safetensors,ollama,hub:owner/name."""
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    overwrite: bool = False
    """Replace the export that is in the folder already."""
    name: str | None = setting(None, min_length=1, max_length=100)
    """What the files are called after; by default the run's folder."""
    rows: int = setting(32, metavar="N", ge=1)
    """On how many held-out rows each file is compared with the adapted model."""
    base_model: str | None = setting(None, metavar="OWNER/NAME@COMMIT")
    """With hub: the base on the hub, for the card, where the run does not say it."""
    public: bool = False
    """With hub: make the repository public."""
    dry_run: bool = False
    """With hub: upload nothing, only list the files and their bytes."""


class ExportResult(Result):
    folder: Path
    """Where everything is: the files, EXPORT.md (how other programs run them), export.json."""
    forms: dict[str, dict[str, Any]]
    """By form its files, notes, and differences from the adapted model, as in export.json."""
    files: dict[str, dict[str, Any]]
    """`bytes` and `sha256` of each."""
    metric: str
    """The score in the differences."""
    score: float | None
    """The adapted model's."""
    published: dict[str, dict[str, Any]]
    """What was uploaded, or would be."""


def export(settings: ExportSettings, listener: Listener = ignore) -> ExportResult:
    """Writes the adapted model of `run` in every form of `to` into `out`, reads each back, and compares it with the
    adapted model; what is uploaded is uploaded last.

    Raises `InputError` before anything is written, and `VerificationFailed` where a file is not what was trained; then
    nothing is left in `out`.
    """
    run, out = settings.run, settings.out
    forms = forms_of(settings.to)
    uploads = any(form.exporter.name == "hub" for form in forms)
    if (settings.public or settings.dry_run or settings.base_model) and not uploads:
        raise SettingsError("--public, --dry-run and --base-model are read with hub:OWNER/NAME only", "leave them out")
    if is_merged(run):
        raise AdapterError(f"{run} is merged already: there is no adapter in it", "give the run it came from")
    adapter = adapter_folder(run)
    if settings.name and (Path(settings.name).name != settings.name or not settings.name.strip(".")):
        raise SettingsError(f"--name {settings.name}: it is a path, not a name", "give a name, such as tickets-1.0")
    _check_out(out, settings.overwrite)
    keep_freed_memory()
    with _folder(out, settings.overwrite) as folder:
        adapted = settings.open(listener, exact=True)
        check_forms(forms, subject := _subject(settings, adapted, adapter), out)
        run = adapter.parent if (adapter.parent / "config.yaml").is_file() else run
        rows = rows_of(run, adapted, settings.rows, listener)
        device = str(device_of(adapted.base))
        making = Making(subject, adapted, run, adapter, folder, out, device, lambda: settings.open(exact=True))
        del adapted  # which `making` lets go when it is written
        reference = reference_of(making, rows, listener)
        samples = write_forms(making, forms, listener)
        found = {form: check_form(form, making, reference, samples[form], listener) for form in forms}
        compared = {form: each for form, each in found.items() if each}
        about = guide(making)
        recorded = record(making, reference, compared, about)
    published = {}
    for form in forms:
        if (done := form.exporter.publish(form, making, about, listener)) is not None:
            published[str(form)] = done
    return ExportResult(
        folder=out,
        forms=recorded["forms"],
        files=recorded["files"],
        metric=recorded["metric"],
        score=recorded["score"],
        published=published,
    )


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises `OutputError` unless `out` is new, or an export that may be overwritten."""
    if not (out / RECORD).is_file():
        check_new(out)
    elif not overwrite:
        raise OutputError(
            f"--out {out} already holds an export", "choose another --out, or replace it with --overwrite"
        )


@contextmanager
def _folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder whose files are in `out` when the block ends well. `out` is there and locked meanwhile:
    another export into it is refused before it does anything. Raises `OutputError`."""
    if overwrite and (out / RECORD).is_file():
        with alone(out, wait=False) as free:
            if not free:
                raise OutputError(f"another process is writing into {out}", "wait for it, or stop it")
            with replacing_folder(out) as folder:
                yield folder
        return
    made = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(out) as folder:
            yield folder
    except BaseException:
        if made:
            with suppress(OSError):  # another process writes into it, or it is gone
                out.rmdir()
        raise


def _file_name(settings: ExportSettings, adapter: Path) -> str:
    """What the files are called after: letters, digits, dots and dashes alone, which all programs take."""
    folder = settings.run.resolve()
    if folder.name == "adapter" and folder == adapter.resolve():
        folder = folder.parent
    named = settings.name or folder.name
    return re.sub(r"[^\w.-]+", "-", named, flags=re.ASCII).strip("-.") or "model"


def _subject(settings: ExportSettings, adapted: Adapted, adapter: Path) -> Subject:
    base = adapted.base
    config = copy.deepcopy(base.model.module.config)  # which making a module may change
    skeleton = build_skeleton(config, base.task, len(base.tokenizer.classes))
    return Subject(
        name=_file_name(settings, adapter),
        base=replace(base, model=wrapped(skeleton, base.task, base.tokenizer.pad_id)),
        lora=read_config(adapter),
        system=adapted.facts.get("data", {}).get("system"),
        kind=adapted.facts.get("kind"),
        base_model=settings.base_model,
        public=settings.public,
        dry_run=settings.dry_run,
    )


def check_before(settings: RunSettings) -> None:
    """Checks `train --export` before the training, as far as that can be known then; the base is fetched for it. Raises
    `SettingsError` and `BaseModelError`."""
    forms = forms_of(settings.export)
    lora = read_config(adapter_folder(settings.adapter)) if settings.adapter else settings.lora
    check_forms(forms, subject_of(settings, lora if settings.method == "lora" else None), settings.folder)


def subject_of(settings: RunSettings, lora: LoraConfig | None) -> Subject:
    """What a run with these settings exports, by what its base's files say without their weights; the base is fetched
    where it is not on this disk. Raises `BaseModelError`."""
    cache = cache_folder(settings.cache_dir)
    skeleton = read_skeleton(settings.base, revision=settings.revision, cache_dir=cache, task=settings.task)
    tokenizer, _ = load_tokenizer(
        settings.base, skeleton.task, revision=settings.revision, cache_dir=settings.cache_dir,
        template=read_template(settings.template),
    )  # fmt: skip
    facts = describe(settings.base, revision=settings.revision, cache_dir=settings.cache_dir)
    model = wrapped(skeleton.module, skeleton.task, tokenizer.pad_id)
    engine = "Afina's decoder" if skeleton.is_decoder else "through transformers"
    return Subject(
        name=settings.folder.name,
        base=Base(model, tokenizer, facts, torch.float32, "", engine),
        lora=lora,
        system=settings.data.system,
    )


def export_run(folder: Path, settings: RunSettings, listener: Listener) -> ExportResult:
    """Exports a run that was just trained into its own folder. Raises `RunFailed` that says how to try again."""
    out, to = folder / IN_RUN, settings.export
    try:
        asked = ExportSettings(
            run=folder, to=to, out=out, overwrite=True, device=settings.device, cache_dir=settings.cache_dir
        )
        return export(asked, listener)
    except AfinaError as error:
        again = command_line("export", folder, "--to", ",".join(to), "--out", out)
        problems = [f"the run in {folder} is complete, but was not exported", *error.problems]
        raise RunFailed(problems, f"{error.remedy}; then `{again}`" if error.remedy else f"`{again}`") from error


JOB = Job.of(export)
