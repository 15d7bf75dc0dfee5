"""Which adapter is meant by which name, in which generation, and how long it stays.

All of it is of the event loop's thread. Nothing here is "active": a request holds the generation that it was opened in.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afina.core.errors import AdapterError, InputError, near
from afina.core.files import leads_out
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.models.tokenizer import Tokenizer
from afina.runs.facts import FACTS, adapter_in
from afina.serving.adapters import TEMPLATE, Adapter, Card
from afina.serving.service import Conflict, NoMemory, ServiceFault, UnknownModel

_NAME = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_PATH = re.compile(r"(?<![\w/<.])/(?:[^\s'\":;,()]+/)*([^\s'\":;,()/]*)")
_TOLD = 4  # weights that do not fit, in an answer
Stamp = tuple[tuple[int, int], ...]  # by which a change of files is seen: nanoseconds and bytes


@dataclass(eq=False)
class Served:
    """One generation of a name. `stamp` is that of the files that it was read from; `adapter` is None until its first
    request, and again while its memory is needed for others; `users` are the handles that are open; `cancels` ends each
    answer that is written."""

    name: str
    card: Card
    generation: int
    tokenizer: Tokenizer
    created: int
    stamp: Stamp
    pinned: bool = False
    adapter: Adapter | None = None
    bytes: int = 0
    users: int = 0
    is_gone: bool = False  # it was unloaded
    used: float = 0.0
    cancels: set[Callable[[], None]] = field(default_factory=set)
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def folder(self) -> Path:
        return self.card.folder


@dataclass(frozen=True)
class Broken:
    """Why files in this state cannot be used, and how that is told: they are not read again before they change."""

    stamp: Stamp
    reason: str
    fault: type[ServiceFault] = UnknownModel


class Registry:
    """The adapters of one base, by name. `roots` are the folders outside of which nothing is read at a request's wish;
    those in them are models too, read when they are first asked for. `most_bytes` is what all take in memory."""

    def __init__(self, base_name: str, roots: Sequence[Path], most_bytes: int) -> None:
        self.base_name, self.most_bytes = base_name, most_bytes
        self.roots = [root.resolve() for root in roots]
        self.broken: dict[str, Broken] = {}
        self._now: dict[str, Served] = {}
        self._generations: dict[str, int] = {}  # the last of each name, so that none comes twice

    def __iter__(self) -> Iterator[Served]:
        return iter(self._now.values())

    @property
    def bytes(self) -> int:
        return sum(served.bytes for served in self)

    def get(self, name: str) -> Served | None:
        return self._now.get(name)

    def find(self, name: str) -> Path | None:
        """The folder of an adapter that lies under this name in one of the roots."""
        if not _NAME.fullmatch(name):
            return None
        for root in self.roots:
            folder = root / name
            if adapter_in(folder) is not None and not leads_out(folder, root):
                return folder
        return None

    def changed(self, name: str) -> tuple[Path, Stamp] | None:
        """The folder in a root that a name means and the state of its files, where they are new or have changed since
        they were looked at. For any thread."""
        served, broken, folder = self.get(name), self.broken.get(name), self.find(name)
        if served is not None and (folder is None or folder not in (served.folder, served.folder.parent)):
            if broken is not None and stamp_of(served.folder) != broken.stamp:  # loaded from elsewhere, or deleted
                self.broken.pop(name, None)
            return None
        if folder is None or name == self.base_name:
            self.broken.pop(name, None)
            return None
        known, stamp = broken or served, stamp_of(folder)
        return None if known is not None and known.stamp == stamp else (folder, stamp)

    def holds(self, folder: Path) -> bool:
        """Whether it lies in one of the roots, so that it can be loaded again."""
        return any(folder.resolve().is_relative_to(root) for root in self.roots)

    def usable(self, served: Served) -> bool:
        """Whether it can answer: from memory, whatever its files are now, or from these."""
        return served.adapter is not None or served.name not in self.broken

    def names(self) -> list[str]:
        """All that can be asked for, the base's among them."""
        in_roots = (each.name for each in self._listed() if self.find(each.name))
        return list(dict.fromkeys([self.base_name, *self._now, *in_roots]))

    def misnamed(self) -> list[Path]:
        """The folders of adapters in the roots that no request can name."""
        return [each for each in self._listed() if not _NAME.fullmatch(each.name) and adapter_in(each) is not None]

    def _listed(self) -> Iterator[Path]:
        """What the roots have, each in the order of names."""
        return (each for root in self.roots if root.is_dir() for each in sorted(root.iterdir()))

    def unknown(self, name: str) -> UnknownModel:
        shown = name if len(name) <= 100 else f"{name[:99]}…"
        return UnknownModel(f"there is no model {shown!r}.{near(name[:200], self.names())}")

    def inside(self, path: Path) -> Path:
        """The folder that `path` means, in one of the roots wherever links lead. Raises `AdapterError`."""
        if not self.roots:
            raise AdapterError("no adapter can be loaded while the server runs", "start it with --adapters DIR")
        for root in self.roots:
            folder = root / path
            try:
                if folder.is_dir() and folder.resolve().is_relative_to(root) and folder.resolve() != root:
                    return folder
            except (OSError, ValueError, RuntimeError):  # names too long, with a zero, links in a circle
                continue
        raise AdapterError("there is no such folder among the server's adapters", "name one inside of --adapters DIR")

    def check_name(self, name: str) -> None:
        """Raises `AdapterError` for a name that no adapter may have."""
        if not _NAME.fullmatch(name):
            raise AdapterError(
                "a model's name has up to 128 letters, digits and the signs . _ -", "choose another name"
            )
        if name == self.base_name:
            raise AdapterError(f"{name!r} is the name of the base", "choose another name")

    def check(self, name: str, replace: bool, expected: int | None) -> None:
        """Raises `Conflict` where the name may not be given to what is loaded now."""
        if name in self._now and not replace:
            raise Conflict(f"there is a model {name!r} already; replace it with replace: true", "adapter_exists")
        self.check_generation(name, expected)

    def check_generation(self, name: str, expected: int | None) -> None:
        served = self.get(name)
        now = served.generation if served else 0
        if expected is not None and expected != now:
            raise Conflict(
                f"model {name!r} is in generation {now}, expected was {expected}: somebody else has changed it",
                "generation_mismatch",
            )

    def put(self, name: str, card: Card, tokenizer: Tokenizer, stamp: Stamp, pinned: bool) -> Served:
        """Shows a new generation of a name. Who has the former one keeps it."""
        generation = self._generations[name] = self._generations.get(name, 0) + 1
        served = self._now[name] = Served(name, card, generation, tokenizer, int(time.time()), stamp, pinned)
        self.broken.pop(name, None)
        return served

    def drop(self, name: str) -> None:
        del self._now[name]
        self.broken.pop(name, None)

    def make_room(self, wanted: int) -> list[Served]:
        """Those that have to give way to one of `wanted` bytes: not pinned, not in use, the one that was used longest
        ago first. Raises `NoMemory` where that is not enough."""
        free = self.most_bytes - self.bytes
        idle = [each for each in self if each.adapter is not None and not each.pinned and not each.users]
        going: list[Served] = []
        for served in sorted(idle, key=lambda each: each.used):
            if free >= wanted:
                break
            going.append(served)
            free += served.bytes
        if free < wanted:
            raise NoMemory(
                f"the adapter takes {wanted / 1e6:.1f} MB, and {free / 1e6:.1f} MB of the {self.most_bytes / 1e6:.1f} "
                "MB for adapters are free or can be freed (--memory)"
            )
        return going


def stamp_of(folder: Path) -> Stamp:
    """When the adapter's files were written, and how large they are."""
    files, found = adapter_in(folder) or folder, []
    for name in (CONFIG, WEIGHTS, TEMPLATE, "tokenizer_config.json", FACTS):
        try:
            state = (files / name).stat()
            found.append((state.st_mtime_ns, state.st_size))
        except OSError:
            found.append((0, -1))
    return tuple(found)


def pathless(text: str) -> str:
    """With the last part alone of each path: whoever asks a server is not told where its files are."""
    return _PATH.sub(r"\1", text)


def plain(error: InputError) -> list[str]:
    """The problems, without paths."""
    return [pathless(problem) for problem in error.problems]


def reason(error: InputError | OSError) -> str:
    """What is wrong and what helps, in one line without paths."""
    if isinstance(error, OSError):
        return f"its files cannot be read: {error.strerror}"
    (first, *more), remedy = plain(error), pathless(error.remedy)
    listed = f": {'; '.join(more[:_TOLD])}" if more else ""
    rest = f"; and {len(more) - _TOLD} more" if len(more) > _TOLD else ""
    return first + listed + rest + (f" → {remedy}" if remedy else "")
