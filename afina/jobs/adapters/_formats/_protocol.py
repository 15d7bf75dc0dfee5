"""What a format of adapters says of itself."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from afina.core.task import CAUSAL, TaskName
from afina.lora.config import LoraConfig


@dataclass(frozen=True)
class ForeignAdapter:
    """`put_in(module)` puts the adapter into a base's module, and returns its configuration. `base` is the base that
    its files name, where they do; `task` what it is for."""

    put_in: Callable[[Any], LoraConfig]
    base: str | None = None
    task: TaskName = CAUSAL.name


class ForeignFormat(Protocol):
    """`files` are the names under which a folder holds such an adapter. A format that is `unscaled` needs `alpha` and
    `parts` from the user: its files hold neither."""

    name: str
    files: tuple[str, ...] = ()
    unscaled: bool = False

    def claims(self, path: Path, names: Collection[str]) -> bool:
        """Whether the file at `path`, which holds tensors of these `names`, is of this format."""

    def read(self, state: dict[str, Tensor], path: Path, alpha: float | None, parts: Sequence[bool]) -> ForeignAdapter:
        """The adapter whose tensors are `state`. Raises `AdapterError` where something is not understood."""
