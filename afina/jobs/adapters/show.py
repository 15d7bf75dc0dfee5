"""`adapters show`: the base, size and settings of an adapter."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from afina.core.config import Result, Settings, setting
from afina.core.errors import AdapterError
from afina.core.events import Listener, Notice, ignore
from afina.core.files import read_json
from afina.core.job import Job
from afina.lora.peft_config import CONFIG, read_config
from afina.lora.peft_files import WEIGHTS, read_weights
from afina.runs.facts import adapter_folder, read_facts


class ShowAdapterSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder of a run or of an adapter."""


class AdapterFacts(Result):
    """What is known of an adapter; beside these fields, all those of its `LoraConfig`."""

    model_config = ConfigDict(extra="allow")

    path: str
    base: str | None
    base_sha256: str | None
    kind: str | None
    """The kind of task it was trained for."""
    quantize: str | None
    """How its base was quantised in training."""
    parameters: int
    size_mb: float


def show(settings: ShowAdapterSettings, listener: Listener = ignore) -> AdapterFacts:
    """Reads an adapter's files. Raises `AdapterError`."""
    folder = adapter_folder(settings.run)
    config, facts = read_config(folder), read_facts(folder)
    base, named = facts.get("base", {}), read_json(folder / CONFIG).get("base_model_name_or_path")
    own = {name: value for name, value in read_weights(folder).items() if ".base_layer." not in name}
    return AdapterFacts(
        path=str(folder),
        base=base.get("name") or (named if isinstance(named, str) else None),
        base_sha256=base.get("sha256"),
        kind=facts.get("kind"),
        quantize=facts.get("quantize"),
        parameters=sum(value.numel() for value in own.values()),
        size_mb=round((folder / WEIGHTS).stat().st_size / 1e6, 2),
        **config.model_dump(mode="json"),
    )


def check_one_base(adapters: Sequence[AdapterFacts], listener: Listener) -> None:
    """Raises `AdapterError` where adapters are known to be of different bases, by the hash of their weights; warns
    where only the names that they give differ."""
    if len({each.base_sha256 for each in adapters} - {None}) > 1:
        raise AdapterError(f"the adapters are for different bases: {_bases(adapters)}", "give adapters of one base")
    if len({each.base for each in adapters} - {None}) > 1 and None in {each.base_sha256 for each in adapters}:
        text = f"the adapters name different bases, taken for the same: {_bases(adapters)}"
        listener(Notice(text, warning=True))


def _bases(adapters: Sequence[AdapterFacts]) -> str:
    """'a: X (weights 0123456789ab…), b: Y'."""
    return ", ".join(f"{each.path}: {each.base or 'unnamed'}{_weights(each)}" for each in adapters)


def _weights(adapter: AdapterFacts) -> str:
    return f" (weights {adapter.base_sha256[:12]}…)" if adapter.base_sha256 else ""


JOB = Job.of(show)
