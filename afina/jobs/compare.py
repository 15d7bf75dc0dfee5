"""`compare`: LoRA beside prompting, a trained head, the last layers and full fine-tuning, on your data.

Each method sees the same rows for as many epochs, after the same search for a learning rate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, model_validator

from afina.core.config import Result, Settings, Words, read_yaml, section, setting
from afina.core.errors import RunFailed, SettingsError, near
from afina.core.events import Listener, Notice, ignore
from afina.core.files import read_json, write_json
from afina.core.job import Job
from afina.runs.tracking import check_trackers
from afina.runs.worker import run_in_process
from afina.search.comparison import Comparison, Measured, write_page
from afina.search.files import Cost, Rates, kept
from afina.search.resumable import end_of_training, read_or_run, resumable_folder, with_test_split
from afina.settings import RunSettings, without_adapter
from afina.training.settings import Method

COMPARED = ("base", "few-shot", "head", "last-k", "lora", "full")
_UNTRAINED = ("base", "few-shot")  # which need no training


class CompareSettings(Settings):
    methods: Words = setting(COMPARED, metavar="LIST")
    """Of base, few-shot, head, last-k, lora, full and bias, with commas between; by default the first six."""
    minutes: float | None = setting(None, metavar="M", gt=0)
    """Train each method for M minutes at its own pace, instead of --epochs."""
    seeds: int = setting(1, metavar="N", ge=1)
    """Trainings of each method, with different seeds."""
    run: RunSettings = section(
        without=(
            "method",
            "adapter",
            "force",
            "overwrite",
            "export",
            "quantize",
            "train.learning_rate",
            "train.early_stopping",
        )
    )

    @model_validator(mode="after")
    def _one_budget(self) -> "CompareSettings":
        if self.minutes and (self.run.train.epochs or self.run.train.rows):
            raise ValueError("--minutes and --epochs exclude each other: give one of them")
        return self


class CompareResult(Result):
    methods: dict[str, dict[str, Any]]
    """What each reached, at what cost; or why it `failed`."""
    metric: str | None
    """The main metric, by which they are ranked."""
    best: str | None
    as_good_as_the_best: tuple[str, ...]
    recommended: str | None
    words: tuple[str, ...]
    """What follows, in sentences."""
    data: str
    rows: int
    """How many they were evaluated on."""
    trivial: dict[str, Any] | None
    """The best of the answers that need no model: `what`, and its `quality`."""
    folder: Path = Field(exclude=True)


def compare(settings: CompareSettings, listener: Listener = ignore) -> CompareResult:
    """Trains and evaluates each of `methods`, writes it all into `run.out`, and resumes there where it was cut off.

    All see the same rows, and are evaluated on rows that neither training nor the choice of a learning rate saw. Each
    trains in a process of its own, whose memory is measured. Raises `InputError`, or `Interrupted` after Ctrl-C: what
    was finished is kept.
    """
    run, minutes = settings.run, settings.minutes
    _check(run, settings.methods)
    out = run.out or Path("runs") / f"{run.data.name}-compare"
    run = with_test_split(run)
    with resumable_folder(out, "compare", settings, run, {"minutes": minutes}):
        found: dict[str, list[Measured]] = {}
        for method in settings.methods:
            listener(Notice(f"— {method} —"))
            try:
                found[method] = (
                    [_ask(run, method, out, listener)]
                    if method in _UNTRAINED
                    else [_train(run, method, out, minutes, run.seed + i, listener) for i in range(settings.seeds)]
                )
            except RunFailed as error:
                listener(Notice(f"{method} failed: {error}", warning=True))
                found[method] = [Measured.failed(method, str(error))]
        comparison = Comparison.of(found, str(run.data.path), out)
        write_json(out / "comparison.json", comparison.json())
        write_page(comparison, out / "comparison.html")
    return CompareResult(**comparison.json(), folder=out)


def _check(settings: RunSettings, methods: Sequence[str]) -> None:
    known = [*COMPARED, *(name for name in get_args(Method) if name not in ("last", *COMPARED))]
    for name in methods:
        if name not in known:
            raise SettingsError(
                f"--methods: there is no method {name!r}.{near(name, known)}", f"choose from {','.join(known)}"
            )
    if len(set(methods)) < len(methods) or not methods:
        wrong = "names a method twice" if methods else "names no method"
        raise SettingsError(f"--methods {wrong}", f"choose from {','.join(known)}")
    if settings.adapter or settings.quantize:
        raise SettingsError(
            "a comparison trains every method from the base in full", "leave --adapter and --quantize out"
        )
    if settings.method != "lora" or settings.train.learning_rate is not None:
        raise SettingsError(
            "a comparison takes its methods from --methods, and finds a learning rate for each",
            "leave --method and --train.learning_rate out",
        )
    check_trackers(settings.track)


def _ask(settings: RunSettings, method: str, out: Path, listener: Listener) -> Measured:
    folder = out / method
    asked = {"settings": settings.model_dump(mode="json"), "folder": str(folder), "shots": method == "few-shot"}
    return read_or_run(
        folder,
        lambda: Measured.of(method, folder, Cost.read(folder / "cost.json").content),
        lambda: run_in_process("ask", asked, listener),
        listener,
    )


def _train(
    settings: RunSettings, method: str, out: Path, minutes: float | None, seed: int, listener: Listener
) -> Measured:
    """A full training of a method, at the learning rate that a short search finds first (once for all seeds)."""
    name: Any = "last" if method == "last-k" else method
    values = settings.model_dump(mode="json") | {"method": name, "seed": seed}
    if name != "lora":
        values = without_adapter(values)
    if name != "last":
        values.pop("last_layers")
    search = _rates(values | {"seed": settings.seed}, out / f"{method}-rates.json", listener)
    folder = out / (method if seed == settings.seed else f"{method}-seed-{seed}")
    values["train"]["learning_rate"] = search["rate"]
    values["train"]["early_stopping"] = 0  # as many rows for all
    if minutes is not None:
        pace = sum(each["rows"] for each in search["tried"]) / sum(each["seconds"] for each in search["tried"])
        values["train"]["epochs"] = None
        values["train"]["rows"] = max(1, round(60 * minutes * pace))
    return read_or_run(
        folder,
        lambda: Measured.of(method, folder, _cost(folder, search)),
        lambda: run_in_process("train", {"settings": values | {"out": str(folder)}}, listener),
        listener,
    )


def _rates(values: dict[str, Any], file: Path, listener: Listener) -> dict[str, Any]:
    """What the search for a learning rate found, now or before."""
    found = kept(Rates.read, file, listener)
    if found is None or found.rate is None:
        run_in_process("rates", {"settings": values, "file": str(file)}, listener)
        found = Rates.read(file)
    return found.content


def _cost(folder: Path, search: dict[str, Any]) -> dict[str, Any]:
    config = read_yaml(folder / "config.yaml")
    done = end_of_training(folder)
    size = sum(path.stat().st_size for path in (folder / "adapter").glob("*.safetensors"))
    return {
        "trainable_parameters": read_json(folder / "adapter" / "afina.json")["trainable_parameters"],
        "peak_memory_gb": done.peak_memory_gb,
        "start_memory_gb": done.start_memory_gb,
        "seconds": done.seconds,
        "search_seconds": sum(each["seconds"] for each in search["tried"]),
        "training_tokens_per_second": done.tokens_per_second,
        "size_mb": size / 1e6,
        "learning_rate": config["train"]["learning_rate"],
        "epochs": config["train"]["epochs"],
    }


JOB = Job.of(compare)
