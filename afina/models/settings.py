"""Which base a run adapts."""

from afina.core.config import Settings
from afina.models.model import Quantize


class BaseChoice(Settings):
    """A base, as it is loaded again: the name of its files, their revision, and how its weights are kept."""

    name: str
    revision: str | None
    quantize: Quantize | None
