"""Several adapters on one base: attached by name, switched in no time, the base's weights untouched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from afina.core.errors import AdapterError, near
from afina.core.layers import replace
from afina.lora.config import LoraConfig
from afina.lora.extras import Swap, swaps
from afina.lora.injection import wrappers
from afina.lora.layer import Wrapper
from afina.lora.peft_files import load_adapter


class Adapters:
    """The adapters of `model`. One at most is in place; the others wait beside it as their own layers, sharing the base's.

    adapters = Adapters(model)
    adapters.attach("pt", "runs/pt"); adapters.attach("en", "runs/en")
    adapters.use("en")
    with adapters.using(None): ...   # the base
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[str, tuple[dict[str, Wrapper], list[Swap]]] = {}
        self.active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    def attach(self, name: str, folder: Path | str) -> LoraConfig:
        """Reads the adapter in `folder` and puts it in place. Raises `AdapterError`; then everything is as it was."""
        if name in self._known:
            raise AdapterError(f"an adapter {name!r} is attached already", "choose another name, or delete it first")
        before = self.active
        self.use(None)
        try:
            config = load_adapter(self._model, Path(folder))
        except AdapterError:
            self._take_off()
            self.use(before)
            raise
        self._known[name] = (dict(wrappers(self._model)), list(swaps(self._model)))
        self.active = name
        return config

    def use(self, name: str | None) -> None:
        """Puts the adapter `name` in place of the active one; None leaves the base."""
        if name is not None and name not in self._known:
            raise AdapterError(f"no adapter {name!r} is attached.{near(name, list(self._known))}", "attach it first")
        if name == self.active:
            return
        self._take_off()
        if name is not None:
            layers, swapped = self._known[name]
            for path, layer in layers.items():
                replace(self._model, path, layer)
            swaps(self._model)[:] = swapped
            for each in swapped:
                each.enabled = True
        self.active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def delete(self, name: str) -> None:
        """Forgets the adapter; its files stay."""
        if name == self.active:
            self.use(None)
        if self._known.pop(name, None) is None:
            raise AdapterError(f"no adapter {name!r} is attached.{near(name, list(self._known))}")

    def _take_off(self) -> None:
        take_off(self._model)
        self.active = None


def take_off(model: nn.Module) -> None:
    """Leaves the base as it was before any adapter was put into it."""
    for each in swaps(model):
        each.enabled = False
    swaps(model).clear()
    for path, wrapper in list(wrappers(model)):
        replace(model, path, wrapper.base)
