"""Public names that are imported when first used, so that `afina --help` need not import torch."""

import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `python -m afina` has the current folder on its path until all this is imported
    from collections.abc import Callable
    from typing import Any


def exports(package: str, names: dict[str, str]) -> "tuple[Callable[[str], Any], list[str]]":
    """The `__getattr__` and `__all__` of a package whose public `names` live in the modules given beside them.

    A name that is found is stored in the package, so the lookup is paid once (PEP 562).
    """

    def __getattr__(name: str) -> "Any":  # noqa: N807 - the hook's own name
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, sorted(names)
