"""An adapter opened again, on the base that it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.config import build
from afina.core.errors import AdapterError, InputError
from afina.core.files import read_json
from afina.data.settings import DataSettings
from afina.lora.peft_files import load_adapter, read_config
from afina.models.load import Base, load_base
from afina.runs.facts import DEFAULT_NEW_TOKENS, adapter_folder, check_base, is_merged, mismatches, read_facts


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

    def data_settings(self, path: Path, references: str | None = None) -> DataSettings:
        """The settings to read the file `path` with: the prompt and completion templates are those of training."""
        return build(DataSettings, {"path": path, "references": references, **self.facts.get("data", {})})


def open_run(
    run: Path,
    *,
    device: str | None = None,
    cache_dir: Path | None = None,
    base: str | None = None,
    force: bool = False,
    dequantise: bool = False,
) -> Adapted:
    """Loads the adapter in `run` and the base that it was trained on.

    `base` names a copy of that base, or another one, which is refused without `force`. With `dequantise` a base that
    was quantised in training is loaded in full precision. Raises `AdapterError`, `BaseModelError`.
    """
    if is_merged(run):
        if base or force:
            raise AdapterError(f"{run} is a merged model, which includes its base", "leave out --base and --force")
        facts = read_facts(run)
        return Adapted(_load(str(run), facts, device, cache_dir, None), facts)
    folder = adapter_folder(run)
    facts = read_facts(folder)
    read_config(folder)  # problems with the adapter are reported before the base is loaded
    load = facts.get("load") or {"name": read_json(folder / "adapter_config.json").get("base_model_name_or_path")}
    if base:
        load = {"name": base}
    if not load["name"]:
        raise AdapterError(f"adapter {folder} does not name its base", "name it with --base BASE")
    quantize = None if dequantise else facts.get("quantize")
    if quantize == "keep" and base and not base.endswith(".gguf"):
        quantize = None  # only a GGUF file has quantised blocks to keep
    template = read_template(folder / "chat_template.jinja") if facts.get("own_template") else None
    loaded = _load(load["name"], facts, device, cache_dir, quantize, load.get("revision"), template)
    if not force:
        check_base(facts, loaded, folder)
    load_adapter(loaded.model.module, folder)
    return Adapted(loaded, facts, tuple(mismatches(facts, loaded, folder)))


def _load(
    name: str,
    facts: dict[str, Any],
    device: str | None,
    cache_dir: Path | None,
    quantize: Any,
    revision: str | None = None,
    template: str | None = None,
) -> Base:
    """Loads the base called `name` as it was in training."""
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
