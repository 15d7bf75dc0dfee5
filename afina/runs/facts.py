"""What an adapter records: the base it was trained on and how it is prompted; and whether a given base fits it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afina.core.device import precision_of
from afina.core.errors import AdapterError, InputError
from afina.core.files import write_atomic, write_json
from afina.core.text import command_line
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import PICKLED, WEIGHTS
from afina.models.load import Base
from afina.runs.files import AdapterFacts
from afina.runs.folder import FORMER, settle

FACTS = "afina.json"
ON_DISK = ("folder", "gguf")  # kinds of bases that are named by their path
DEFAULT_NEW_TOKENS = 256  # for adapters that do not record how long their answers are


def adapter_folder(run: Path) -> Path:
    """The adapter's folder in the run folder `run`, or `run` itself if it is one. Raises `AdapterError`."""
    settle(run)
    if (folder := adapter_in(run)) is not None:
        return folder
    if not run.exists():
        raise AdapterError(f"run {run}: no such folder", "give the folder that `afina train` wrote (its --out)")
    if (run / FORMER).is_dir():
        raise AdapterError(
            f"run {run} was cut off before its adapter was saved; the run that it was to replace is in {run / FORMER}",
            f"resume it with `{command_line('train', '--resume', run)}`, or give {run / FORMER}",
        )
    if (run / "config.yaml").is_file() and not (run / "evaluation.json").is_file():
        raise AdapterError(
            f"run {run} was cut off before its adapter was first saved",
            f"resume it with `{command_line('train', '--resume', run)}`",
        )
    if any((run / name).is_file() for name in (WEIGHTS, PICKLED)):
        raise AdapterError(f"{run} holds an adapter's weights, but no {CONFIG}", "copy it from where it was made")
    raise AdapterError(f"run {run} contains no adapter", "give the folder that `afina train` wrote (its --out)")


def adapter_in(run: Path) -> Path | None:
    """The adapter's folder in the folder `run`, or `run` itself if it is one; None where there is no adapter."""
    return next((folder for folder in (run / "adapter", run) if (folder / CONFIG).is_file()), None)


def model_name(run: Path) -> str:
    """The name of the model in the folder of a run, or of an adapter: the folder's, and of `adapter` in a run the
    run's."""
    return run.parent.name if run.name == "adapter" and run.parent.name else run.name


def is_merged(run: Path) -> bool:
    """Whether `run` is a model that an adapter was merged into (`afina adapters merge`)."""
    return (run / FACTS).is_file() and (run / "config.json").is_file()


def read_facts(folder: Path) -> dict[str, Any]:
    """`afina.json` of an adapter's folder; an empty dict for adapters of other programs. A base on this disk has its
    absolute path. Raises `AdapterError`."""
    path = folder / FACTS
    if not path.exists():
        return {}
    try:
        return _placed(AdapterFacts.read(path).content, lambda name: os.path.normpath(folder.absolute() / name))
    except InputError as error:
        raise AdapterError(str(error), "use the adapter's folder as `afina train` wrote it") from error


def asked_of(facts: dict[str, Any], prompt: str) -> tuple[dict[str, str], ...]:
    """The messages of a prompt: the user's turn, after the system message with which an adapter was trained."""
    system = facts.get("data", {}).get("system")
    start = ({"role": "system", "content": system},) if system else ()
    return (*start, {"role": "user", "content": prompt})


def write_facts(folder: Path, facts: dict[str, Any], place: Path | None = None) -> None:
    """Writes `afina.json` of an adapter that will lie in `place` (default: `folder`). A base on this disk is named from
    there: an absolute path may hold a person's name, and an adapter is given away."""
    start = (place or folder).absolute()
    write_json(folder / FACTS, _placed(facts, lambda name: os.path.relpath(name, start)))


def _placed(facts: dict[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    if facts["base"].get("kind") not in ON_DISK:
        return facts
    return facts | {"load": facts["load"] | {"name": place(facts["load"]["name"])}}


def load_name(base: Base, name: str) -> str:
    """The name by which `base`, requested as `name`, is found from any folder."""
    return base.facts.path if base.facts.kind in ON_DISK else name


def base_record(base: Base) -> dict[str, Any]:
    """What an adapter's facts, which are given away, say of its base: all but where it is."""
    return {name: value for name, value in base.facts.card().items() if name != "path"}


def facts_of(base: Base, name: str) -> dict[str, Any]:
    """The content of `afina.json` for an adapter of `base`, which was requested as `name`.

    What only a run knows (templates, kind of task, length of the answers) has the default that an adapter from
    elsewhere gets.
    """
    return {
        "base": base_record(base),
        "load": {
            "name": load_name(base, name),
            "revision": base.facts.revision if base.facts.hub_id else None,
        },
        "precision": precision_of(base.dtype),
        "tokenizer_sha256": base.tokenizer.hash,
        "template_sha256": base.tokenizer.template_hash(),
        "data": {},
        "task": base.task.name,
        "classes": list(base.tokenizer.classes),
        "kind": "generation",
        "max_new_tokens": DEFAULT_NEW_TOKENS,
    }


def save_tokenizer(base: Base, folder: Path) -> None:
    """Writes the tokenizer and its chat template beside the adapter."""
    with tempfile.TemporaryDirectory() as temporary:
        base.tokenizer.inner.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            write_atomic(folder / file.name, file.read_bytes())


def mismatches(facts: dict[str, Any], base: Base, folder: Path) -> list[str]:
    """How `base` differs from the one the adapter was trained on (weights, tokenizer, template), a sentence each."""
    if not facts:
        return []
    trained_on, differences = facts["base"], []
    if trained_on["sha256"] != base.facts.sha256:
        differences.append(
            f"adapter {folder} was trained on the base {trained_on['name']!r} (weights {trained_on['sha256'][:12]}…), "
            f"this is {base.facts.name!r} (weights {base.facts.sha256[:12]}…)"
        )
    if facts.get("tokenizer_sha256", base.tokenizer.hash) != base.tokenizer.hash:
        differences.append(f"adapter {folder} was trained with another tokenizer than {base.facts.name!r} has now")
    if facts["template_sha256"] != base.tokenizer.template_hash():
        differences.append(f"adapter {folder} was trained with another chat template than {base.facts.name!r} has now")
    return differences


def check_base(facts: dict[str, Any], base: Base, folder: Path) -> None:
    """Raises `AdapterError` with the first of the `mismatches`."""
    for line in mismatches(facts, base, folder):
        raise AdapterError(line, "use the base it was trained on, unchanged; --force uses this one anyway")
