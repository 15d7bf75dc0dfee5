"""LoRA beside its alternatives on one's own data: each under the same rows, passes and search of a learning rate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from afina.core.config import read_yaml
from afina.core.errors import Interrupted, OutputError, RunFailed, SettingsError, near
from afina.core.events import Done, Listener, Notice, ignore, parse
from afina.core.files import check_writable, read_json, read_jsonl, write_json, write_yaml
from afina.jobs.runs import LOCK, RunFolder, is_complete
from afina.jobs.settings import RunSettings
from afina.jobs.worker import apart
from afina.measure.comparison import Comparison, Measured, write_page
from afina.training.settings import Method

METHODS = ("base", "few-shot", "head", "last-k", "lora", "full")
_ASKED = ("base", "few-shot")  # need no training
_KEPT_APART = 0.15  # of the rows, where nobody said which rows to evaluate on
_PLAN = "compare.yaml"


@dataclass(frozen=True)
class Budget:
    """How long every method is trained: the settings' passes, or so many `minutes` at its own pace."""

    minutes: float | None = None
    seeds: int = 1


def compare(
    settings: RunSettings,
    methods: Sequence[str] = METHODS,
    budget: Budget = Budget(),
    listener: Listener = ignore,
) -> Comparison:
    """Trains and evaluates each of `methods`, writes it all into `settings.out`, and goes on there where it was cut off.

    All see the same rows, and are evaluated on rows that neither training nor the choice of a learning rate saw. Each trains in
    a process of its own, whose memory is measured. Raises `InputError`, or `Interrupted` after Ctrl-C: what was finished is kept.
    """
    _check(settings, methods)
    out = settings.out or Path("runs") / f"{settings.data.path.stem}-compare"
    settings = with_rows_apart(settings)
    plan = {"settings": settings.model_dump(mode="json"), "minutes": budget.minutes}
    begin(out / _PLAN, plan, "comparison")
    with RunFolder(out).held(), kept_in(out):
        found: dict[str, list[Measured]] = {}
        for method in methods:
            listener(Notice(f"— {method} —"))
            try:
                found[method] = (
                    [_ask(settings, method, out, listener)]
                    if method in _ASKED
                    else [
                        _train(settings, method, out, budget, settings.seed + i, listener) for i in range(budget.seeds)
                    ]
                )
            except RunFailed as error:
                listener(Notice(f"{method} failed: {error}", warning=True))
                found[method] = [Measured.failed(method, str(error))]
        comparison = Comparison.of(found, str(settings.data.path), out)
        write_json(out / "comparison.json", comparison.json())
        write_page(comparison, out / "comparison.html")
    return comparison


def _check(settings: RunSettings, methods: Sequence[str]) -> None:
    known = [*METHODS, *(name for name in get_args(Method) if name not in ("last", *METHODS))]
    for name in methods:
        if name not in known:
            raise SettingsError(
                f"--methods names {name!r}, which there is not.{near(name, known)}", f"choose of {','.join(known)}"
            )
    if len(set(methods)) < len(methods) or not methods:
        raise SettingsError("--methods names a method twice, or none", f"choose of {','.join(known)}")
    if settings.adapter or settings.quantize:
        raise SettingsError(
            "a comparison trains every method from the base in full", "leave --adapter and --quantize out"
        )
    if settings.method != "lora" or settings.train.learning_rate is not None:
        raise SettingsError(
            "a comparison takes its methods from --methods, and finds a learning rate for each",
            "leave --method and --train.learning_rate out",
        )


def with_rows_apart(settings: RunSettings) -> RunSettings:
    """The settings of every training of a comparison or search: with rows for the very end, one split whatever the seed, and no folder."""
    data = settings.data
    update: dict[str, Any] = {"seed": settings.seed if data.seed is None else data.seed}
    if not (data.test or data.test_path):
        update["test"] = _KEPT_APART
    return settings.model_copy(update={"data": data.model_copy(update=update), "out": None, "overwrite": False})


def begin(path: Path, plan: dict[str, Any], what: str) -> None:
    """Makes the folder of `path`, in which a comparison or search writes down its `plan`; or sees that it holds the same one."""
    out = path.parent
    if path.exists():
        before = read_yaml(path)
        if before != plan:
            raise OutputError(
                f"--out {out} holds a {what} with other settings ({', '.join(_differing(before, plan))})",
                "give another --out, or the same settings to go on with it",
            )
        return
    # A killed process leaves its lock behind, held by nobody.
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise OutputError(f"--out {out} holds something that is no {what}", "choose another --out")
    check_writable(path)
    write_yaml(path, plan)


@contextmanager
def kept_in(out: Path) -> Iterator[None]:
    """Says after Ctrl-C that what was finished is kept."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(
            f"interrupted; what was finished is kept in {out}\n  → the same command goes on with it"
        ) from None


def _differing(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in {**before, **after}
            for line in _differing(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == after else [path.removeprefix("settings.")]


def _ask(settings: RunSettings, method: str, out: Path, listener: Listener) -> Measured:
    folder = out / method
    if not (folder / "evaluation.json").exists():
        apart(
            "ask",
            {"settings": settings.model_dump(mode="json"), "folder": str(folder), "shots": method == "few-shot"},
            listener,
        )
    return Measured.of(method, folder, read_json(folder / "cost.json"))


def _train(settings: RunSettings, method: str, out: Path, budget: Budget, seed: int, listener: Listener) -> Measured:
    """One training of a method, with the learning rate that a short search finds for it first (for all seeds alike)."""
    name: Any = "last" if method == "last-k" else method
    values = settings.model_dump(mode="json") | {"method": name, "seed": seed}
    if name != "lora":
        values["lora"] = {}
    if name != "last":
        values.pop("last_layers")
    file = out / f"{method}-rates.json"
    if not file.exists() or "rate" not in read_json(file):
        apart("rates", {"settings": values | {"seed": settings.seed}, "file": str(file)}, listener)
    search = read_json(file)
    folder = out / (method if seed == settings.seed else f"{method}-seed-{seed}")
    if not is_complete(folder):
        values["train"]["learning_rate"] = search["rate"]
        values["train"]["early_stopping"] = 0  # equal rows for all
        if budget.minutes is not None:
            pace = sum(each["rows"] for each in search["tried"]) / sum(each["seconds"] for each in search["tried"])
            values["train"]["epochs"] = None
            values["train"]["rows"] = max(1, round(60 * budget.minutes * pace))
        apart("train", {"settings": values | {"out": str(folder)}}, listener)
    config = read_yaml(folder / "config.yaml")
    events = [parse(row) for row in read_jsonl(folder / "metrics.jsonl")]
    done = next(event for event in reversed(events) if isinstance(event, Done))
    size = sum(path.stat().st_size for path in (folder / "adapter").glob("*.safetensors"))
    cost = {
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
    return Measured.of(method, folder, cost)
