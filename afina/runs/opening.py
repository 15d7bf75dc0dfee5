"""An adapter opened again, on the base that it was trained on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina.core.config import build, changed
from afina.core.device import cache_folder, fitting, pick_device, set_arithmetic
from afina.core.errors import AdapterError, BaseModelError
from afina.core.events import Listener, Notice, ignore
from afina.core.task import CAUSAL, TASKS, TaskName
from afina.data.mapping import Example, read_examples
from afina.data.parts import part_to_score
from afina.data.read import OpenFiles
from afina.data.rows import Notes, Rejections
from afina.data.settings import DataSettings
from afina.lora.peft_config import read_peft
from afina.lora.peft_files import load_adapter
from afina.models.load import Base, load_base
from afina.models.sources.source import home_of, is_local
from afina.models.templates import read_template
from afina.runs.facts import DEFAULT_NEW_TOKENS, ON_DISK, adapter_folder, check_base, is_merged, mismatches, read_facts
from afina.runs.files import Config


@dataclass(frozen=True)
class Adapted:
    """A base with its adapter.

    `facts` are those of `afina.json`, and `mismatches` how the base differs from the one that was trained on.
    """

    base: Base
    facts: dict[str, Any]
    mismatches: tuple[str, ...] = ()

    @property
    def max_new_tokens(self) -> int:
        return int(self.facts.get("max_new_tokens", DEFAULT_NEW_TOKENS))

    def read(
        self,
        path: Path,
        encoding: str | None,
        references: str | None = None,
        *,
        listener: Listener,
        needs_completion: bool,
    ) -> tuple[list[Example], Rejections, Notes]:
        """See `read_as_in_training`."""
        return read_as_in_training(
            self.facts, path, encoding, references, listener=listener, needs_completion=needs_completion
        )


def read_as_in_training(
    facts: dict[str, Any],
    path: Path,
    encoding: str | None,
    references: str | None = None,
    *,
    listener: Listener,
    needs_completion: bool,
) -> tuple[list[Example], Rejections, Notes]:
    """`read_examples` of the file `path`, with the prompt and completion templates of training that an adapter's
    `facts` name; its text, where it is not UTF-8, is in the `encoding` given, or else in that of the training file. Of
    a set with parts it reads the tests, or where these have no answers the validation."""
    training = dict(facts.get("data", {}))
    files = OpenFiles(training.pop("encoding", None), listener)
    data = build(DataSettings, {**training, "path": path, "references": references, "encoding": encoding})
    part, lines = part_to_score(data, needs_completion, files)
    found = read_examples(changed(data, {"path": part}), needs_completion=needs_completion, files=files)
    found[2].say(*lines)
    return found


def open_run(
    run: Path,
    *,
    device: str | None = None,
    cache_dir: Path | None = None,
    base: str | None = None,
    force: bool = False,
    exact: bool = False,
    listener: Listener = ignore,
) -> Adapted:
    """Loads the adapter in `run` and the base that it was trained on.

    `base` names a copy of that base, or another one, which is refused without `force`. With `exact` all is computed in
    fp32; a base that was quantised in training is quantised then too. Raises `AdapterError`, `BaseModelError`.
    """
    if is_merged(run):
        if base or force:
            raise AdapterError(f"{run} is a merged model, which includes its base", "leave out --base and --force")
        facts = read_facts(run)
        wanted = facts | ({"precision": "fp32"} if exact else {})
        return Adapted(_load(str(run), wanted, device, cache_dir, None), facts)
    folder = adapter_folder(run)
    loaded, facts = open_base(
        folder, device=device, cache_dir=cache_dir, base=base, exact=exact, listener=listener, own_template=True
    )
    if not force:
        check_base(facts, loaded, folder)
    load_adapter(loaded.model.module, folder, listener)
    return Adapted(loaded, facts, tuple(mismatches(facts, loaded, folder)))


def open_base(
    folder: Path,
    *,
    device: str | None = None,
    cache_dir: Path | None = None,
    base: str | None = None,
    exact: bool = False,
    own_template: bool = False,
    listener: Listener = ignore,
) -> tuple[Base, dict[str, Any]]:
    """The base that the adapter in `folder` was trained on, as it was in training, without the adapter, and what the
    adapter's facts are; with `own_template` with a chat template that was given in training. See `open_run`."""
    facts = read_facts(folder)
    raw = read_peft(folder)[0]  # problems with the adapter are reported before the base is loaded
    load = {"name": base} if base else _base_named(folder, facts) or {"name": raw.get("base_model_name_or_path")}
    quantize = facts.get("quantize")
    if quantize == "keep" and (exact or (base and not base.endswith(".gguf"))):
        quantize = None  # only a GGUF file has quantised blocks to keep; their numbers are the same in fp32
    given = own_template and facts.get("own_template")
    template = read_template(folder / "chat_template.jinja") if given else None
    wanted = facts or {"task": task_of(raw)}
    precision = {"precision": "fp32"} if exact else {}
    revision = load.get("revision")
    with base_named_by(
        folder, load["name"], revision, given=bool(base), cache_dir=cache_dir, listener=listener
    ) as name:
        return _load(name, wanted | precision, device, cache_dir, quantize, revision, template), facts


def _base_named(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """How the facts of the adapter in `folder` name its base. One on this disk is named from there, so that the adapter
    and its base may move together; where the run moved alone, its settings name it."""
    load: dict[str, Any] | None = facts.get("load")
    config = folder.parent / "config.yaml"
    if load and facts["base"].get("kind") in ON_DISK and not os.path.exists(load["name"]) and config.is_file():
        return load | {"name": Config.read(config).base}
    return load


@contextmanager
def base_named_by(
    adapter: Path, name: Any, revision: str | None, *, given: bool, cache_dir: Path | None, listener: Listener
) -> Iterator[str]:
    """Around the loading of the base called `name`, which the files of `adapter` name, or a user has `given`. One that
    they name and that has to be fetched is told to the listener before.

    Raises `AdapterError` that says how to name it, where they name none, or one that is not here.
    """
    remedy = "name it with --base BASE: a folder, a .gguf file, a name of `afina models list` or a hub id"
    if not name or not isinstance(name, str):
        raise AdapterError(f"adapter {adapter} does not name its base", remedy)
    if not given and not is_local(name, cache_folder(cache_dir), revision):
        listener(Notice(f"fetching the base {name!r}, which adapter {adapter} names, from {home_of(name)}"))
    try:
        yield name
    except BaseModelError as error:
        if given:
            raise
        raise AdapterError(
            [f"adapter {adapter} was made on the base {name!r}, which cannot be used here", *error.problems],
            f"{error.remedy}; or {remedy}" if error.remedy else remedy,
        ) from error


def task_of(raw: dict[str, Any]) -> TaskName:
    """The task that PEFT's configuration says an adapter is for."""
    return next((task.name for task in TASKS.values() if task.task_type == raw.get("task_type")), CAUSAL.name)


def _load(
    name: str,
    facts: dict[str, Any],
    device: str | None,
    cache_dir: Path | None,
    quantize: Any,
    revision: str | None = None,
    template: str | None = None,
) -> Base:
    """Loads the base called `name` as it was in training, but for the arithmetic of cards: products are not rounded to
    TF32, whatever was trained in this process before, so that a run answers everywhere alike."""
    on = pick_device(device)
    set_arithmetic(on, tf32=False, deterministic=False)
    with fitting(on, f"base {name!r}", "end other programs, or give --device cpu"):
        base = load_base(
            name,
            revision=revision,
            precision=facts.get("precision", "auto"),
            device=device,
            cache_dir=cache_dir,
            task=facts.get("task", "causal"),
            classes=facts.get("classes", ()),
            quantize=quantize,
            template=template,
        )
    return replace(base, dtype_reason="as in training") if facts.get("precision", "auto") != "auto" else base
