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
from afina.measure.metric import Group, Metric, Predictions, RowStats, mean
from afina.measure.metrics import METRICS


def read_metrics(specs: Sequence[str]) -> list[Metric]:
    """The metrics FILE.py:FUNCTION of `specs`. Raises `SettingsError`, also where a name is taken."""
    own = [own_metric(spec) for spec in specs]
    taken = [metric.name for metric in own if metric.name in METRICS]
    if taken or len({metric.name for metric in own}) < len(own):
        name = (taken or [own[0].name])[0]
        raise SettingsError(f"--metric: there is already a metric {name!r}", "rename the function")
    return own


def own_metric(spec: str) -> Metric:
    """The metric FILE.py:FUNCTION: the mean of what `function(answer, references)` gives per row; higher is better.

    The file is run, as `import` would, and may import its neighbours. Raises `SettingsError` where there is no such
    file or function, or where the file fails; so does computing the metric where the function fails or returns no
    finite number.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier() or path.suffix != ".py":
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
    return Metric(name, name, Group.OWN, _MeanOf(name, path, function))


@dataclass(frozen=True)
class _MeanOf:
    """The mean of `function(answer, references)` over the rows."""

    name: str
    path: Path
    function: Callable[[str, list[str]], Any]

    def __call__(self, predictions: Predictions) -> RowStats:
        rows = enumerate(zip(predictions.answers, predictions.references, strict=True), 1)
        return mean([self._score(row, answer, list(references)) for row, (answer, references) in rows])

    def _score(self, row: int, answer: str, references: list[str]) -> float:
        location = f"--metric {self.path}:{self.name}, row {row}, answer {_short(answer)}"
        try:
            result = self.function(answer, references)
            value = float(result) if isinstance(result, SupportsFloat) else math.nan
        except Exception as error:
            raise SettingsError(
                f"{location}: {_cause(error, self.path)}",
                f"fix {self.name}(answer, references), which is called once per row",
            ) from error
        if not math.isfinite(value):
            raise SettingsError(
                f"{location}: it returned {_short(result)}, expected a finite number", f"fix {self.name}"
            )
        return value


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
        raise SettingsError(f"--metric {path} cannot be imported: {_cause(error, path)}", "fix the file") from error
    return module


def _cause(error: BaseException, path: Path) -> str:
    """What went wrong, and the last line of the file that was involved."""
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
