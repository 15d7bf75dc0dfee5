"""What a model card, README.md beside a model, says of the model in its head of YAML."""

import re
from pathlib import Path
from typing import Any

from afina.core.errors import InputError
from afina.core.files import read_text
from afina.core.limits import JSON_BYTES
from afina.core.limits.yaml_text import front_matter

_LICENCE_CHARACTERS = 100


def licence_of(folder: Path) -> str | None:
    """The licence that the card in the folder states; None where none does."""
    licence = _head(folder).get("license")
    return licence if isinstance(licence, str) and len(licence) <= _LICENCE_CHARACTERS else None


def made_of(folder: Path) -> str | None:
    """The model of the hub that the one in the folder was made of, by its card; None where it does not say."""
    found = _head(folder).get("base_model")
    name = found[0] if isinstance(found, list) and found else found
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]{1,99}/[\w.-]{1,99}", name) else None


def _head(folder: Path) -> dict[str, Any]:
    """Empty where there is no card, or one that cannot be read: nothing depends on it."""
    try:
        head = front_matter(read_text(folder / "README.md", JSON_BYTES, InputError))
    except (OSError, InputError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}
