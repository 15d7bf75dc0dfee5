"""The files of a run folder: what each holds, declared once, and how all of them are read as far as they are undamaged.

A model names what later readers rely on, requires no more than that, and keeps whatever else a file holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from afina.core.config import read_yaml
from afina.core.device import Precision
from afina.core.errors import InputError, brief
from afina.core.events import Done, Finding, HeldOut, Step, end_of, read_events
from afina.core.files import jsonl_rows, read_json, read_text
from afina.core.limits import COLUMN_TEMPLATE_CHARACTERS, NEW_TOKENS, YAML_CHARACTERS
from afina.core.task import CAUSAL, TaskName
from afina.data.files import known_encoding
from afina.data.layouts import Kind
from afina.data.settings import ASKING
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.models.model import Quantize
from afina.runs.folder import settle

SEARCH = "search.yaml"


class Recorded(BaseModel):
    """A file, or a part of one, that a run wrote; `content` is all it holds, as plain values."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file at `path`. Raises `InputError` where it does not hold what a run writes there."""
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, value: Any, path: Path) -> Self:
        """`value`, which was read from `path`, as `read` gives it."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise unexpected(path, error) from error

    @property
    def content(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


def unexpected(path: Path, error: ValidationError) -> InputError:
    """Names the first value that is not as a run writes it."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return InputError(f"{path} does not hold what a run writes there: {f'{name}: ' if name else ''}{first['msg']}")


class DataSection(Recorded):
    path: str
    test: float | None = None
    test_path: str | None = None
    too_long: str | None = None


class TrainSection(Recorded):
    batch_size: int | None = None


class Config(Recorded):
    """`config.yaml`."""

    base: str
    method: str
    quantize: str | None = None
    data: DataSection
    train: TrainSection = TrainSection()

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.of(read_yaml(path), path)


class SearchRecord(Recorded):
    """`search.yaml`, in a folder in which one command makes several runs or trials: `plan` is what they share, and
    `command` goes on with it where it is not `finished`."""

    search: str
    command: str
    finished: bool
    plan: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.of(read_yaml(path), path)


class BaseRecord(Recorded):
    name: str
    sha256: str


class LoadRecord(Recorded):
    name: str
    revision: str | None = None


class AdapterFacts(Recorded):
    """`adapter/afina.json`."""

    base: BaseRecord
    load: LoadRecord
    template_sha256: str
    tokenizer_sha256: str | None = None
    data: dict[str, Annotated[str, Field(max_length=COLUMN_TEMPLATE_CHARACTERS)] | None]
    kind: Kind
    max_new_tokens: int = Field(ge=1, le=NEW_TOKENS)
    precision: Precision
    quantize: Quantize | None = None
    task: TaskName = CAUSAL.name
    classes: list[str] = []
    own_template: bool = False
    rows: dict[str, int] = {}

    @model_validator(mode="after")
    def _answers_only(self) -> Self:
        if others := sorted(self.data.keys() - {*ASKING}):
            raise ValueError(f"it sets {', '.join(others)} of data, and an adapter says only how rows are asked")
        if encoding := self.data.get("encoding"):
            known_encoding(encoding)
        return self


class DifferenceRecord(Recorded):
    value: float | None
    low: float | None
    high: float | None
    rows: int
    verdict: str


class EvaluationRecord(Recorded):
    """`evaluation.json`."""

    base: dict[str, float | dict[str, Any] | None]
    adapted: dict[str, float | dict[str, Any] | None]
    difference: dict[str, DifferenceRecord]
    over_trivial: DifferenceRecord
    main_metric: str
    kind: str
    rows: int
    findings: list[str] = []

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.main_metric not in self.difference.keys() & self.base.keys():
            raise ValueError(f"the main metric {self.main_metric!r} has no score")
        if absent := self.base.keys() - self.adapted.keys():
            raise ValueError(f"the adapted model has no {', '.join(sorted(absent))}")
        return self


class MemoryForecast(Recorded):
    total: float


class ForecastValues(Recorded):
    memory_gb: MemoryForecast


class ForecastRecord(Recorded):
    """`forecast.json`."""

    forecast: ForecastValues


class Rejected(Recorded):
    """A line of `rejected.jsonl`."""

    where: str = ""
    reason: str = ""


class Prediction(Recorded):
    """A line of `predictions.jsonl`."""

    where: str
    prompt: str
    references: list[str]
    adapted: str


class PeftConfig(Recorded):
    """`adapter/adapter_config.json`, which other programs write too."""

    modules_to_save: list[str] | None = None


def read_lines(model: type[Recorded], path: Path) -> list[Any]:
    """The lines of a `.jsonl` file, each as a `model`. Raises `InputError`."""
    return [model.of(line, path) for line in jsonl_rows(path)]


# What reading raises where a file is damaged; safetensors adds its own for headers that mean nothing.
_UNREADABLE = (InputError, SafetensorError, OSError, ValueError, LookupError, TypeError)
_RETRAIN = "restore it from a copy, or retrain"
_OF_A_RUN = ("config.yaml", "metrics.jsonl", "evaluation.json", "adapter")


@dataclass(frozen=True)
class RunFiles:
    """A run's files; what is absent or damaged is None or empty, and `damaged` says so."""

    folder: Path
    config: Config | None
    facts: AdapterFacts | None
    steps: list[Step]
    held_out: list[HeldOut]
    done: Done | None
    evaluation: EvaluationRecord | None
    rejected: list[Rejected]
    peft: PeftConfig
    weights: dict[str, torch.Tensor] | None
    damaged: list[Finding]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    @property
    def evaluated(self) -> bool:
        return (self.folder / "evaluation.json").exists()


def read_run(folder: Path) -> RunFiles:
    """Reads all files, each by itself. Raises `InputError` where `folder` holds nothing of a run."""
    settle(folder)
    if not any((folder / name).exists() for name in _OF_A_RUN):
        raise InputError(f"{folder} contains no run", "give the folder that `afina train` wrote (its --out)")
    damaged: list[Finding] = []

    def attempt(name: str, read: Callable[[Path], Any], otherwise: Any, remedy: str = _RETRAIN) -> Any:
        path = folder / name
        try:
            return read(path) if path.exists() else otherwise
        except _UNREADABLE as error:
            why = f"it cannot be read: damaged or cut off ({brief(error).replace(f'{folder}/', '')})"
            damaged.append(Finding(name, "wrong", why, remedy))
            return otherwise

    if not (folder / "config.yaml").exists():
        missing = "it is missing; without it the run can be neither resumed nor reproduced"
        damaged.append(Finding("config.yaml", "wrong", missing, _RETRAIN))
    attempt("forecast.json", ForecastRecord.read, None, "the run does not need it")
    attempt(
        "predictions.jsonl", lambda path: read_lines(Prediction, path), [], "`afina eval RUN DATA` writes a new one"
    )
    events = attempt("metrics.jsonl", read_events, [], "restore it from a copy; the adapter does not need it")
    return RunFiles(
        folder,
        attempt("config.yaml", _complete_config, None),
        attempt("adapter/afina.json", AdapterFacts.read, None),
        [event for event in events if isinstance(event, Step)],
        [event for event in events if isinstance(event, HeldOut)],
        end_of(events),
        attempt("evaluation.json", EvaluationRecord.read, None, "`afina eval RUN DATA` writes a new one"),
        attempt(
            "rejected.jsonl", lambda path: read_lines(Rejected, path), [], "`afina data check` reports on the rows"
        ),
        attempt(f"adapter/{CONFIG}", PeftConfig.read, PeftConfig()),
        attempt(f"adapter/{WEIGHTS}", load_file, {} if (folder / "adapter" / WEIGHTS).exists() else None),
        damaged,
    )


def _complete_config(path: Path) -> Config:
    if not read_text(path, 4 * YAML_CHARACTERS, InputError).endswith("\n"):
        raise InputError("its last line is incomplete")
    return Config.read(path)
