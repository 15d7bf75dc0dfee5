"""Run folders: made, described, opened again."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.config import build
from afina.core.errors import AdapterError, InputError, OutputError, writing
from afina.core.files import check_writable, read_json, write_atomic, write_json, write_jsonl
from afina.data.settings import DataSettings
from afina.lora.peft_files import load_adapter, read_config
from afina.measure.evaluation import Evaluation
from afina.models.load import Base, load_base

CONTENTS = (
    "adapter",
    "config.yaml",
    "metrics.jsonl",
    "forecast.json",
    "evaluation.json",
    "predictions.jsonl",
    "rejected.jsonl",
    "report.html",
    "checkpoints",
    "tensorboard",
    "wandb",
)
LOCK = ".lock"
_DEFAULT_NEW_TOKENS = 256  # for adapters that say nothing of the length of their answers


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raises `OutputError` unless a run may be written to `folder`: it is new, empty, or a run that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder} is a file, expected a folder", "choose another --out")
    above = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not above.is_dir():
        raise OutputError(f"--out {folder}: {above} is a file, not a folder", "choose another --out")
    if not folder.exists():
        check_writable(folder / "config.yaml")
    # A killed process leaves its lock behind, held by nobody.
    if not folder.exists() or all(path.name == LOCK for path in folder.iterdir()):
        return
    if not (folder / "config.yaml").exists():
        raise OutputError(f"--out {folder} holds files that are not a run's", "choose another --out")
    if not overwrite and not (folder / "evaluation.json").exists():
        raise OutputError(
            f"--out {folder} holds a run that was cut off",
            f"go on with it by `afina train --resume {folder}`, or replace it with --overwrite",
        )
    if not overwrite:
        raise OutputError(f"--out {folder} holds a run already", "choose another --out, or replace it with --overwrite")


class RunFolder:
    """A run folder in the making. Until the first adapter is saved, a former run in it can come back.

    Only files that a run writes are ever moved or removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._former = folder / ".former"
        self.kept = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training into the folder. Raises `OutputError` where one does already.

        The system lets go of the lock when a process dies, however it dies. Without such locks (Windows) nothing is held.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(
                    f"{self.folder} is being trained in by another process", "wait for it, or stop it"
                ) from error
            try:
                yield
            finally:
                (self.folder / LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # not empty: a run is in it
                    self.folder.rmdir()

    def begin(self) -> None:
        """Makes the folder; a former run in it is put aside."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            found = [self.folder / name for name in CONTENTS if (self.folder / name).exists()]
            if found:
                self._former.mkdir(exist_ok=True)
            for path in found:
                path.rename(self._former / path.name)

    def keep(self) -> None:
        """The new run has an adapter: the former one goes."""
        if not self.kept:
            shutil.rmtree(self._former, ignore_errors=True)
            self.kept = True

    def take_back(self) -> None:
        """The new run came to nothing: its files go, the former one's come back."""
        if self.kept or not self.folder.is_dir():
            return
        for name in CONTENTS:
            _remove(self.folder / name)
        if self._former.is_dir():
            for path in self._former.iterdir():
                path.rename(self.folder / path.name)
            self._former.rmdir()
        with suppress(OSError):  # not empty: somebody's files
            self.folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_tokenizer(base: Base, folder: Path) -> None:
    """The tokenizer and its chat template, beside the adapter."""
    with tempfile.TemporaryDirectory() as temporary:
        base.tokenizer.inner.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            write_atomic(folder / file.name, file.read_bytes())


def record(folder: Path, evaluation: Evaluation) -> None:
    """Writes an evaluation into the run folder, in place of the one before."""
    write_jsonl(folder / "predictions.jsonl", evaluation.predictions)
    write_json(folder / "evaluation.json", evaluation.json())


def is_complete(folder: Path) -> bool:
    """Whether the run in `folder` came to its end. (The evaluation is written before the page, and last of what cannot be made again.)"""
    return (folder / "evaluation.json").exists()


def check_new(out: Path) -> None:
    """Raises `OutputError` where the folder of a new adapter, model or data set holds something, or cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"--out {out} holds something already", "choose another --out")
    check_writable(out / "adapter_config.json")


def adapter_folder(run: Path) -> Path:
    """The adapter of a run folder, or `run` itself where it is an adapter's folder. Raises `AdapterError`."""
    for folder in (run / "adapter", run):
        if (folder / "adapter_config.json").is_file():
            return folder
    if not run.exists():
        raise AdapterError(f"run {run}: no such folder", "give the folder that `afina train` wrote (its --out)")
    raise AdapterError(f"run {run} holds no adapter", "give the folder that `afina train` wrote (its --out)")


def read_facts(folder: Path) -> dict[str, Any]:
    """`afina.json` of an adapter's folder; an empty dict where another program made the adapter."""
    path = folder / "afina.json"
    if not path.exists():
        return {}
    try:
        facts = read_json(path)
        needed = ("base", "load", "template_sha256", "data", "kind", "max_new_tokens", "precision")
        absent = [key for key in needed if key not in facts]
    except (InputError, TypeError) as error:
        raise AdapterError(str(error), "use the adapter's folder as `afina train` wrote it") from error
    if absent:
        raise AdapterError(f"{path} lacks {', '.join(absent)}", "use the adapter's folder as `afina train` wrote it")
    return dict(facts)


def facts_of(base: Base, name: str) -> dict[str, Any]:
    """`afina.json` of an adapter of `base`, which was asked for by `name`; how it is asked, as for one of which nobody said it."""
    local = base.facts.kind in ("folder", "gguf")
    return {
        "base": base.facts.card(),
        "load": {
            "name": base.facts.path if local else name,
            "revision": base.facts.revision if base.facts.hub_id else None,
        },
        "precision": "bf16" if "bfloat16" in str(base.dtype) else "fp32",
        "tokenizer_sha256": base.tokenizer.hash(),
        "template_sha256": base.tokenizer.template_hash(),
        "data": {},
        "classes": list(base.tokenizer.classes),
        "kind": "generation",
        "max_new_tokens": _DEFAULT_NEW_TOKENS,
    }


def read_template(path: Path | None) -> str | None:
    """The chat template in a file. Raises `InputError`."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise InputError(f"the chat template {path} is empty", "give a file with a Jinja template")
        return text
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"cannot read the chat template {path}: {reason}", "give a file with a Jinja template"
        ) from error


def mismatches(facts: dict[str, Any], base: Base, folder: Path) -> list[str]:
    """Where the adapter was made for other weights, words or another chat template than `base` has; in words."""
    if not facts:
        return []
    made_for, found = facts["base"], []
    if made_for["sha256"] != base.facts.sha256:
        found.append(
            f"adapter {folder} was made for the base {made_for['name']!r} (weights {made_for['sha256'][:12]}…), "
            f"this is {base.facts.name!r} (weights {base.facts.sha256[:12]}…)"
        )
    if facts.get("tokenizer_sha256", base.tokenizer.hash()) != base.tokenizer.hash():
        found.append(f"adapter {folder} was trained with another tokenizer than {base.facts.name!r} has now")
    if facts["template_sha256"] != base.tokenizer.template_hash():
        found.append(f"adapter {folder} was trained with another chat template than {base.facts.name!r} has now")
    return found


def check_base(facts: dict[str, Any], base: Base, folder: Path) -> None:
    """Raises `AdapterError` with the first of the `mismatches`."""
    for line in mismatches(facts, base, folder):
        raise AdapterError(line, "use the base it was made for, as it was; --force takes this one all the same")


@dataclass(frozen=True)
class Adapted:
    """A base with its adapter, how the adapter was trained to be asked, and where it was made for another base."""

    base: Base
    facts: dict[str, Any]
    mismatches: tuple[str, ...] = ()

    @property
    def max_new_tokens(self) -> int:
        return int(self.facts.get("max_new_tokens", _DEFAULT_NEW_TOKENS))

    def data_settings(self, path: Path, references: str | None = None) -> DataSettings:
        """How a file is read for this adapter: with the templates that it was trained with."""
        return build(DataSettings, {"path": path, "references": references, **self.facts.get("data", {})})


def open_run(
    run: Path, *, device: str | None = None, cache_dir: Path | None = None, base: str | None = None, force: bool = False,
    whole: bool = False,
) -> Adapted:  # fmt: skip
    """Loads the base that the adapter in `run` was made for, and the adapter.

    `base` names a copy of it elsewhere, or another one, which is taken with `force` only. `whole` loads it in all its bits even
    where it was quantised in training. Raises `AdapterError`, `BaseModelError`.
    """
    if is_merged(run):
        if base or force:
            raise AdapterError(f"{run} is a merged model, which has its base in it", "leave --base and --force out")
        facts = read_facts(run)
        return Adapted(_load(str(run), facts, device, cache_dir, None), facts)
    folder = adapter_folder(run)
    facts = read_facts(folder)
    read_config(folder)  # what is wrong with the adapter is said before the base is loaded
    load = facts.get("load") or {"name": read_json(folder / "adapter_config.json").get("base_model_name_or_path")}
    if base:
        load = {"name": base}
    if not load["name"]:
        raise AdapterError(f"adapter {folder} does not name its base", "give it with --base BASE")
    quantize = None if whole else facts.get("quantize")
    if quantize == "keep" and base and not base.endswith(".gguf"):
        quantize = None  # there are no blocks to keep
    template = read_template(folder / "chat_template.jinja") if facts.get("own_template") else None
    loaded = _load(load["name"], facts, device, cache_dir, quantize, load.get("revision"), template)
    if not force:
        check_base(facts, loaded, folder)
    load_adapter(loaded.model.module, folder)
    return Adapted(loaded, facts, tuple(mismatches(facts, loaded, folder)))


def is_merged(run: Path) -> bool:
    """Whether `run` is a model into which an adapter was folded (`afina adapters merge`)."""
    return (run / "afina.json").is_file() and (run / "config.json").is_file()


def _load(
    name: str,
    facts: dict[str, Any],
    device: str | None,
    cache_dir: Path | None,
    quantize: Any,
    revision: str | None = None,
    template: str | None = None,
) -> Base:
    """The base called `name`, as it was in training."""
    return load_base(
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
