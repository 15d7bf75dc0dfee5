"""What a form of export says of itself, and what it is given."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from afina.core.events import Listener
from afina.core.task import Task
from afina.data.layouts import Kind
from afina.lora.config import LoraConfig
from afina.models.load import Base, Facts
from afina.runs.opening import Adapted

COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Form:
    """A form as it is asked for, such as gguf:Q8_0."""

    exporter: "Exporter"
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.exporter.name}:{self.argument}" if self.argument else self.exporter.name


class HubBase(NamedTuple):
    """A base on the hub; its commit, where that is known."""

    hub_id: str
    commit: str | None


@dataclass(frozen=True)
class Subject:
    """What is exported, as far as it is known before a training.

    `name` is what the files are called after. `base` has no weights: its module is on the meta device. `lora` are the
    adapter's settings, None where weights of the base itself were trained. `system` is the system message of the run's
    template, `kind` that of its data. `base_model` is the base's id on the hub, with a commit, as the user names it
    (OWNER/NAME or OWNER/NAME@COMMIT); `public` and `dry_run` are of uploads.
    """

    name: str
    base: Base
    lora: LoraConfig | None
    system: str | None = None
    kind: Kind | None = None
    base_model: str | None = None
    public: bool = False
    dry_run: bool = False

    @property
    def task(self) -> Task:
        return self.base.task

    @property
    def facts(self) -> Facts:
        """Those of the base."""
        return self.base.facts

    @property
    def hub_base(self) -> HubBase | None:
        """The base on the hub: what the user named, or where it came from; None where neither says it."""
        if self.base_model:
            hub_id, _, commit = self.base_model.partition("@")
            return HubBase(hub_id, commit or None)
        hub_id, revision = self.facts.hub_id or "", self.facts.revision or ""
        return HubBase(hub_id, revision if COMMIT.fullmatch(revision) else None) if hub_id else None

    @property
    def base_name(self) -> str:
        """What the base is called where others read it."""
        return self.hub_base.hub_id if self.hub_base else self.facts.public_name


@dataclass(frozen=True)
class Written:
    """What a form wrote: `files` by their names in the folder, the one that is read first, and `notes` of what is
    unusual about them.

    `weights` is by how much of its size a tensor that is read back may differ from the merged model's (of an adapter
    alone, what it adds to a layer from the adapter's). `logits` is how far the logits may be from the adapted model's,
    of the largest, beyond which the file is wrong; None where quantisation may move them."""

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    weights: float = 0.0
    logits: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Making:
    """An export on its way: the base with its adapter, which is `merged` in place, in fp32, once a form needs that;
    `adapter` is the adapter's own folder, in the folder `run`. `folder` is written to, and becomes `place`. `reopen`
    gives a fresh base with the adapter, in fp32, on the same `device`."""

    subject: Subject
    adapted: Adapted
    run: Path
    adapter: Path
    folder: Path
    place: Path
    device: str
    reopen: Callable[[], Adapted]
    written: dict[Form, Written] = field(default_factory=dict)

    def release(self) -> None:
        """Lets the merged model go, before its files are read."""
        self.adapted = replace(self.adapted, base=self.subject.base)


class Exporter(Protocol):
    """`argument` is what may stand after the name and a colon, as help shows it ("": nothing). `merges`: it writes the
    merged model. `uses_others`: it uses what other forms wrote, and comes after them."""

    name: str
    argument: str = ""
    merges: bool = False
    uses_others: bool = False

    @property
    def usage(self) -> str:
        """How it is typed."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def choices(self) -> tuple[str, ...]:
        """The arguments among which one chooses; none where it is any name."""
        return () if self.argument else ("",)

    def misread(self, argument: str) -> str:
        """What is wrong with the argument by itself; "" where nothing is."""
        return "" if not argument or self.argument else "it takes nothing after the name"

    def needs(self, forms: Sequence[Form]) -> Iterator[tuple[str, str]]:
        """Names and arguments of further forms that it needs, where none of `forms` does."""
        yield from ()

    def problems(self, form: Form, subject: Subject) -> Iterator[str]:
        """What stands against it, each with the way out; asked before a training too."""
        yield from ()

    def bytes_expected(self, form: Form, subject: Subject) -> int:
        """About how much it will take on the disk."""
        return 0

    def write(self, form: Form, making: Making) -> Written:
        """Writes its files into the folder. Raises `AdapterError`, `OutputError`, `SettingsError`."""
        raise NotImplementedError

    def read(self, written: Written, making: Making) -> Base | None:
        """The model in its files, computing in fp32; None where it wrote none of its own."""
        return None

    def instructions(self, form: Form, written: Written, subject: Subject) -> Iterator[str]:
        """How other programs run it, as lines of Markdown."""
        yield from ()

    def publish(self, form: Form, making: Making, about: Sequence[str], listener: Listener) -> dict[str, Any] | None:
        """What is done once all files are verified and in their place; `about` are the lines of EXPORT.md. What it
        did, for the result; None where it does nothing."""
        return None
