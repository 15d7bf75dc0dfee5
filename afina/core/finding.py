"""What was looked at and how it stands: one form for a machine, a run and whatever else is examined."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """Something that was looked at: its state, what was found, and what to do where it is not well."""

    what: str
    state: State
    found: str
    remedy: str = ""
