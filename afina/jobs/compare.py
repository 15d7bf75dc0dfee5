"""`compare`: LoRA beside prompting, a trained head, the last layers and full fine-tuning, on your data.

Each method sees the same rows for as many epochs, after the same search for a learning rate.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import Field, model_validator

from afina.core.config import Result, Settings, Words, changed, read_yaml, section, setting
from afina.core.errors import InputError, Interrupted, OutputError, RunFailed, SettingsError, near
from afina.core.events import Done, Listener, Notice, end_of, ignore, read_events
from afina.core.files import check_writable, read_json, write_json, write_yaml
from afina.core.job import Job
from afina.runs.folder import LOCK, RunFolder, is_complete
from afina.runs.tracking import check_trackers
from afina.runs.worker import run_in_process
from afina.search.comparison import Comparison, Measured, write_page
from afina.settings import RunSettings
from afina.training.settings import Method

METHODS = ("base", "few-shot", "head", "last-k", "lora", "full")
_ASKED = ("base", "few-shot")  # need no training
_TEST = 0.15  # of the rows are the test split, where no other was asked for
_PLAN = "compare.yaml"


class CompareSettings(Settings):
    methods: Words = setting(METHODS, metavar="LIST")
    """Of base, few-shot, head, last-k, lora, full and bias, with commas between; by default the first six."""
    minutes: float | None = setting(None, metavar="M", gt=0)
    """Train each method for M minutes at its own pace, instead of --epochs."""
    seeds: int = setting(1, metavar="N", ge=1)
    """Trainings of each method, with different seeds."""
    run: RunSettings = section(
        without=("method", "adapter", "force", "overwrite", "quantize", "train.learning_rate", "train.early_stopping")
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
    trains in a process of its own, whose memory is measured. Raises `InputError`, or `Interrupted` after Ctrl-C: what was
    finished is kept.
    """
    run, minutes = settings.run, settings.minutes
    _check(run, settings.methods)
    out = run.out or Path("runs") / f"{run.data.path.stem}-compare"
    run = with_rows_apart(run)
    with begun(out / _PLAN, run, {"minutes": minutes}, "comparison"):
        found: dict[str, list[Measured]] = {}
        for method in settings.methods:
            listener(Notice(f"— {method} —"))
            try:
                found[method] = (
                    [_ask(run, method, out, listener)]
                    if method in _ASKED
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
    known = [*METHODS, *(name for name in get_args(Method) if name not in ("last", *METHODS))]
    for name in methods:
        if name not in known:
            raise SettingsError(
                f"--methods names {name!r}, which there is not.{near(name, known)}", f"choose of {','.join(known)}"
            )
    if len(set(methods)) < len(methods) or not methods:
        wrong = "names a method twice" if methods else "names no method"
        raise SettingsError(f"--methods {wrong}", f"choose of {','.join(known)}")
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


def with_rows_apart(settings: RunSettings) -> RunSettings:
    """The settings of every training of a comparison or search: with rows for the very end, one split whatever the seed, and no folder."""
    values: dict[str, Any] = {"data.seed": settings.data_seed, "out": None, "overwrite": False}
    if not (settings.data.test or settings.data.test_path):
        values["data.test"] = _TEST
    return changed(settings, values)


@contextmanager
def begun(path: Path, settings: RunSettings, more: dict[str, Any], what: str) -> Iterator[None]:
    """Holds the folder of `path`, in which a comparison or search writes down its plan: it is new, or holds the same plan.

    A plan of which nothing was finished binds nobody, and goes where the work ends before anything else is there. Says after
    Ctrl-C that what was finished is kept.
    """
    out = path.parent
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out} is a file, expected a folder", "choose another --out")
    plan = {"settings": changed(settings, {"track": ()}).model_dump(mode="json"), **more}
    with RunFolder(out).locked():
        _agree(path, plan, what)
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            kept = f"what was finished is kept in {out}" if _holds_more(path) else "nothing was finished yet"
            raise Interrupted(f"interrupted; {kept}", "the same command resumes it") from None
        finally:
            if not _holds_more(path):
                path.unlink(missing_ok=True)


def _agree(path: Path, plan: dict[str, Any], what: str) -> None:
    """Writes the plan, or sees that it is the one by which something was finished here. Raises `OutputError`."""
    if not _holds_more(path):
        check_writable(path)
        write_yaml(path, plan)
        return
    if not path.exists():
        raise OutputError(f"--out {path.parent} holds something that is no {what}", "choose another --out")
    before = read_yaml(path)
    if before != plan:
        raise OutputError(
            f"--out {path.parent} holds a {what} with other settings ({', '.join(_differing(before, plan))})",
            "give another --out, or the same settings to go on with it",
        )


def _holds_more(path: Path) -> bool:
    """Whether the folder of `path` holds more than it and the lock, which a killed process leaves behind."""
    return path.parent.is_dir() and any(each.name not in (path.name, LOCK) for each in path.parent.iterdir())


def _differing(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in {**before, **after}
            for line in _differing(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == after else [path.removeprefix("settings.")]


_T = TypeVar("_T")
_DAMAGED = (InputError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)


def part(folder: Path, read: Callable[[], _T], make: Callable[[], None], listener: Listener) -> _T:
    """What `read` finds in `folder`: as it was finished before, or else made. Where its files are damaged it is put aside, and
    made again."""
    if is_complete(folder):
        try:
            return read()
        except _DAMAGED as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            aside = next(p for i in count(1) if not (p := folder.with_name(f"{folder.name}-damaged-{i}")).exists())
            listener(
                Notice(f"{folder} is damaged ({told}): it is put aside as {aside.name}, and made again", warning=True)
            )
            folder.rename(aside)
    make()
    return read()


def _ask(settings: RunSettings, method: str, out: Path, listener: Listener) -> Measured:
    folder = out / method
    asked = {"settings": settings.model_dump(mode="json"), "folder": str(folder), "shots": method == "few-shot"}
    return part(
        folder,
        lambda: Measured.of(method, folder, read_json(folder / "cost.json")),
        lambda: run_in_process("ask", asked, listener),
        listener,
    )


def _train(
    settings: RunSettings, method: str, out: Path, minutes: float | None, seed: int, listener: Listener
) -> Measured:
    """One training of a method, with the learning rate that a short search finds for it first (for all seeds alike)."""
    name: Any = "last" if method == "last-k" else method
    values = settings.model_dump(mode="json") | {"method": name, "seed": seed}
    if name != "lora":
        values["lora"] = {}
    if name != "last":
        values.pop("last_layers")
    search = _rates(values | {"seed": settings.seed}, out / f"{method}-rates.json", listener)
    folder = out / (method if seed == settings.seed else f"{method}-seed-{seed}")
    values["train"]["learning_rate"] = search["rate"]
    values["train"]["early_stopping"] = 0  # equal rows for all
    if minutes is not None:
        pace = sum(each["rows"] for each in search["tried"]) / sum(each["seconds"] for each in search["tried"])
        values["train"]["epochs"] = None
        values["train"]["rows"] = max(1, round(60 * minutes * pace))
    return part(
        folder,
        lambda: Measured.of(method, folder, _cost(folder, search)),
        lambda: run_in_process("train", {"settings": values | {"out": str(folder)}}, listener),
        listener,
    )


def _rates(values: dict[str, Any], file: Path, listener: Listener) -> dict[str, Any]:
    """What the search of a learning rate found, before or now."""
    with suppress(InputError):  # it is not there yet, or was damaged
        found: dict[str, Any] = read_json(file)
        if "rate" in found:
            return found
    run_in_process("rates", {"settings": values, "file": str(file)}, listener)
    return dict(read_json(file))


def _cost(folder: Path, search: dict[str, Any]) -> dict[str, Any]:
    config = read_yaml(folder / "config.yaml")
    done = ending(folder)
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


def ending(run: Path) -> Done:
    """How the training in the folder `run` ended. Raises `ValueError` where it was cut off."""
    done = end_of(read_events(run / "metrics.jsonl"))
    if done is None:
        raise ValueError(f"{run / 'metrics.jsonl'} has no end")
    return done


JOB = Job.of(compare)
