"""Several adapters on one base: attached by name, switched without copying, the base's weights untouched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from afina.core.errors import AdapterError, near
from afina.core.layers import replace
from afina.lora.config import LoraConfig
from afina.lora.injection import wrappers
from afina.lora.layer import Wrapper
from afina.lora.modules_to_save import TrainedCopy, trained_copies
from afina.lora.peft_files import load_adapter


class Adapters:
    """The adapters of `model`. At most one is active; the others are kept as layers of their own that share the base's.

    adapters = Adapters(model)
    adapters.attach("pt", "runs/pt"); adapters.attach("en", "runs/en")
    adapters.use("en")
    with adapters.using(None): ...   # the base
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[str, tuple[dict[str, Wrapper], list[TrainedCopy]]] = {}
        self.active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    def attach(self, name: str, folder: Path | str) -> LoraConfig:
        """Reads the adapter in `folder` and makes it active. Raises `AdapterError`; then everything is as it was."""
        if name in self._known:
            raise AdapterError(f"an adapter {name!r} is attached already", "choose another name, or delete it first")
        before = self.active
        self.use(None)
        try:
            config = load_adapter(self._model, Path(folder))
        except AdapterError:
            unload(self._model)
            self.use(before)
            raise
        self._known[name] = (dict(wrappers(self._model)), list(trained_copies(self._model)))
        self.active = name
        return config

    def use(self, name: str | None) -> None:
        """Makes the adapter `name` the active one; with None the model is its base."""
        if name is not None and name not in self._known:
            raise AdapterError(f"no adapter {name!r} is attached.{near(name, list(self._known))}", "attach it first")
        if name == self.active:
            return
        unload(self._model)
        if name is not None:
            layers, copies = self._known[name]
            for path, layer in layers.items():
                replace(self._model, path, layer)
            trained_copies(self._model)[:] = copies
            for each in copies:
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


def unload(model: nn.Module) -> None:
    """Takes the adapter out of `model` and leaves the base as it was before."""
    for each in trained_copies(model):
        each.enabled = False
    trained_copies(model).clear()
    for path, wrapper in list(wrappers(model)):
        replace(model, path, wrapper.base)
