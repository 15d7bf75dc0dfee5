"""A metric of the user's own: a function in a Python file, `--metric FILE.py:FUNCTION`."""

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from afina.core.errors import SettingsError, near
from afina.measure.metrics.scores import Metric, mean


@dataclass(frozen=True)
class OwnMetric:
    """`function(answer, references)` gives a row's score; higher is better, and the metric is the mean over the rows."""

    name: str
    path: Path
    function: Callable[[str, list[str]], Any]

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
        """The metric of these answers. Raises `SettingsError` where the function fails or gives no finite number."""
        rows = enumerate(zip(answers, references, strict=True), 1)
        return mean(self.name, [self._row(row, answer, list(refs)) for row, (answer, refs) in rows])

    def _row(self, row: int, answer: str, references: list[str]) -> float:
        where = f"--metric {self.path}:{self.name}, row {row}, answer {_short(answer)}"
        try:
            found = self.function(answer, references)
            value = float(found) if isinstance(found, SupportsFloat) else math.nan
        except Exception as error:
            raise SettingsError(
                f"{where}: {_told(error, self.path)}",
                f"mend {self.name}(answer, references), which is called once a row",
            ) from error
        if not math.isfinite(value):
            raise SettingsError(f"{where}: it gave {_short(found)}, expected a finite number", f"mend {self.name}")
        return value


def own_metric(spec: str) -> OwnMetric:
    """The metric `FILE.py:FUNCTION`. The file is run, as `import` would, and may import its neighbours.

    Raises `SettingsError` where there is no such file or function, or where the file fails.
    """
    place, _, name = spec.rpartition(":")
    path = Path(place)
    if not place or not name.isidentifier() or path.suffix != ".py":
        raise SettingsError(f"--metric {spec!r} does not name a file and a function", "write it as FILE.py:FUNCTION")
    if not path.is_file():
        raise SettingsError(f"--metric {spec}: there is no file {path}", "check the path")
    module = _run(path)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        has = f"it has {', '.join(known)}" if known else "it has no function"
        raise SettingsError(
            f"--metric {spec}: no function {name!r} in {path}, {has}.{near(name, known)}",
            "write it as FILE.py:FUNCTION",
        )
    return OwnMetric(name, path, function)


def _run(path: Path) -> ModuleType:
    """The recipe of Python's documentation (importlib, "Importing a source file directly")."""
    name = f"afina_metric_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    folder = str(path.parent.absolute())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SettingsError(f"--metric {path} cannot be imported: {_told(error, path)}", "mend the file") from error
    return module


def _told(error: BaseException, path: Path) -> str:
    """What went wrong, and the last line of the file that had a part in it."""
    text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.absolute()
    ]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path.absolute():
        lines.append(error.lineno)
    return f"{text} (line {lines[-1]})" if lines else text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
