"""`adapters convert`: rewrite an adapter of mlx-lm, LitGPT, loralib, or PEFT's .bin in PEFT's format.

What the formats differ in, and how each is told, is in `_formats`, a file each.
"""

from pathlib import Path
from typing import Annotated

from torch import Tensor

from afina.core.config import LISTED, Settings, setting
from afina.core.errors import AdapterError
from afina.core.events import Listener, Notice, ignore
from afina.core.files import check_fetched
from afina.core.job import Job
from afina.core.process.temporary import new_folder
from afina.jobs.adapters._files import WrittenAdapter
from afina.jobs.adapters._formats import FORMATS, ForeignFormat
from afina.jobs.adapters._unpickled import unpickled
from afina.lora.peft_files import checked, save_adapter, tensors_in
from afina.models.load import load_base
from afina.runs.facts import facts_of, save_tokenizer, write_facts
from afina.runs.folder import check_new
from afina.runs.opening import base_named_by, open_run
from afina.serving.proof import check_same, logits, sample


class ConvertAdapterSettings(Settings):
    source: Path = setting(..., positional="FILE")
    """The adapter's file, or the folder that holds it."""
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    base: str | None = None
    """What the adapter was trained on, where its files do not say it."""
    alpha: float | None = setting(None, metavar="A", gt=0)
    """loralib's lora_alpha, which its files do not hold."""
    parts: Annotated[tuple[bool, ...], LISTED] = setting((), metavar="1,0,1")
    """loralib's enable_lora, for fused layers."""
    revision: str | None = setting(None, metavar="REV")
    """Branch, tag or commit of a hub base."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


def convert(settings: ConvertAdapterSettings, listener: Listener = ignore) -> WrittenAdapter:
    """Writes the adapter in `source` to `out`, in PEFT's format, reads it back on a fresh base, and compares.

    Raises `AdapterError` where something in the file is not understood or fits no layer of the base: nothing is dropped
    silently.
    """
    out = settings.out
    check_new(out)
    path = _file(settings.source)
    state = _tensors(path)
    found = _format_of(path, state)
    if not found.unscaled and (settings.alpha is not None or settings.parts):
        raise AdapterError(
            f"{path} says its scale itself", "leave --alpha and --parts out: they are for loralib's files"
        )
    adapter = found.read(state, path, settings.alpha, settings.parts)
    listener(Notice(f"{path} is read as {found.name}'s"))
    base = settings.base or adapter.base
    with base_named_by(
        settings.source,
        base,
        settings.revision,
        given=bool(settings.base),
        cache_dir=settings.cache_dir,
        listener=listener,
    ) as name:
        loaded = load_base(
            name, revision=settings.revision, precision="fp32", cache_dir=settings.cache_dir, task=adapter.task
        )
    config = adapter.put_in(loaded.model.module)
    facts = facts_of(loaded, name)
    rows = sample(loaded)
    expected = logits(loaded, rows)
    with new_folder(out) as folder:
        save_adapter(loaded.model.module, config, folder, loaded.facts.public_name, loaded.task.task_type)
        save_tokenizer(loaded, folder)
        write_facts(folder, facts, out)
        del loaded  # before the other base comes
        read = open_run(folder, base=name, cache_dir=settings.cache_dir, exact=True).base
        check_same(expected, logits(read, rows), "the converted adapter, written and read back, is another")
    return WrittenAdapter(adapter=out)


def _file(source: Path) -> Path:
    if not source.exists():
        raise AdapterError(f"{source}: no such file or folder", "check the path")
    if not source.is_dir():
        return source
    known = {name: form.name for form in FORMATS for name in form.files}
    for name in known:
        if (source / name).is_file():
            return source / name
    names = ", ".join(f"{name} ({form})" for name, form in known.items())
    raise AdapterError(f"{source} holds none of {names}", "give the file itself where it has another name")


def _format_of(path: Path, names: dict[str, Tensor]) -> ForeignFormat:
    for each in FORMATS:
        if each.claims(path, names):
            return each
    raise AdapterError(f"{path} contains no adapter of {', '.join(FORMATS.names())}", "give the adapter's own file")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: of safetensors, or of torch.save, read without running anything that it holds.

    Raises `AdapterError`.
    """
    check_fetched([path], AdapterError)
    return checked(path, tensors_in(path) if path.suffix == ".safetensors" else unpickled(path))


JOB = Job.of(convert)
