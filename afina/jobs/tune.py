"""`tune`: search the settings of LoRA on held-out loss, and judge the best once on rows it never saw."""

import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from afina.core.config import Result, Settings, section, setting
from afina.core.errors import InputError, RunFailed, SettingsError, counted, reading
from afina.core.events import Listener, Notice, ignore
from afina.core.files import check_regular, write_json, write_yaml
from afina.core.job import Job
from afina.runs.tracking import check_trackers
from afina.runs.worker import run_in_process
from afina.search.comparison import Measured
from afina.search.files import ProofRows, RangeTest, Repeats, kept
from afina.search.resumable import end_of_training, read_or_run, resumable_folder, with_test_split
from afina.search.study import (
    JOURNAL,
    RANGE_TEST,
    REPEATS_FILE,
    best_of,
    configured,
    defaults,
    open_study,
    read_repeats,
    spent,
)
from afina.search.time_plan import Pace, rows_of_the_proof
from afina.search.tuning import Tuning, write_page
from afina.search.workers import search_in_processes
from afina.settings import RunSettings

_PROOF = "proof.json"  # in the folder of the search: the rows of the full trainings at the end


class TuneSettings(Settings):
    minutes: float | None = setting(None, metavar="M", gt=0)
    """About this many for all of it: loading, the search, repeats of what it found with other seeds, and two full
    trainings with their evaluations, which get as many rows as there is time for."""
    trials: int | None = setting(None, metavar="N", ge=1)
    """This many trials, however long they take."""
    workers: int = setting(1, metavar="N", ge=1)
    """Processes that run trials at the same time."""
    ray: bool = False
    """The workers are trials of Ray Tune, on its cluster (pip install 'afina[ray]')."""
    run: RunSettings = section(
        without=(
            "method",
            "last_layers",
            "adapter",
            "force",
            "overwrite",
            "export",
            "train.learning_rate",
            "train.tokens_per_batch",
        )
    )


class TuneResult(Result):
    best: dict[str, Any]
    """The settings of the best trial."""
    defaults: dict[str, Any]
    winner: str
    """best or defaults."""
    words: tuple[str, ...]
    """What follows, in sentences."""
    next_hour: tuple[str, ...]
    """What is left to try."""
    repeats: dict[str, tuple[float, ...]]
    """Held-out losses of both with other seeds."""
    gain: dict[str, float] | None
    """How much lower the best's loss is with other seeds, and the standard error."""
    test: dict[str, Any] | None
    """best − defaults on the test split."""
    quality: dict[str, float]
    importances: dict[str, float]
    trial_rows: int
    probe: dict[str, Any]
    config: str
    """The file of the winner, which `afina train --config` takes."""
    trials: tuple[dict[str, Any], ...]
    folder: Path = Field(exclude=True)


def tune(settings: TuneSettings, listener: Listener = ignore) -> TuneResult:
    """Searches for settings of LoRA, and writes everything into `run.out`; resumes there where it was cut off.

    The best is repeated with other seeds, and the test split is looked at once, in the end, by the winner and by the
    defaults. Raises `InputError`, or `Interrupted` after Ctrl-C: finished trials are kept.
    """
    _check(settings)
    run = settings.run
    out = run.out or Path("runs") / f"{run.data.name}-tune"
    run = with_test_split(run)
    with resumable_folder(out, "tune", settings, run, {"workers": settings.workers}):
        return TuneResult(**_tune(run, settings, out, listener).json(), folder=out)


def _tune(settings: RunSettings, effort: TuneSettings, out: Path, listener: Listener) -> Tuning:
    begun = time.time()
    for name, record in ((RANGE_TEST, RangeTest), (REPEATS_FILE, Repeats), (_PROOF, ProofRows)):
        if kept(record.read, out / name, listener) is None:
            (out / name).unlink(missing_ok=True)
    _fail_unfinished(out)
    budget: dict[str, Any] = {"trials": effort.trials, "workers": effort.workers, "begun": begun}
    if effort.minutes:
        budget["deadline"] = begun + 60 * effort.minutes - _spent(out, effort.workers)
    arguments = {"settings": settings.model_dump(mode="json"), "folder": str(out), "budget": budget}
    batch_size = _search(arguments, effort, settings.threads, listener)
    study, tested = open_study(out), RangeTest.read(out / RANGE_TEST).content
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise RunFailed(
            "no trial was completed", f"look at {out}, or start again with another --out and a longer search"
        )
    best, plain = best_of(study), defaults(tested["rule"])
    epochs = [1.0] if best == plain else [1.0, best["epochs"]]
    rows = _proof_rows(out / _PROOF, tested, epochs, budget.get("deadline"), listener)
    finals = {}
    for name, chosen in (("defaults", plain), ("best", best)):
        if name == "best" and best == plain:
            continue
        wanted = configured(settings, chosen, tested["full_rows"], batch_size)
        write_yaml(out / f"{name}.yaml", wanted.model_dump(mode="json", exclude={"out", "overwrite"}))
        finals[name] = read_or_run(
            out / name,
            partial(_final, name, out / name),
            partial(_train, name, configured(settings, chosen, rows, batch_size), out / name, listener),
            listener,
        )
    tuning = Tuning.of(study, tested | {"proof_rows": rows}, read_repeats(out), finals, plain, out)
    write_json(out / "tuning.json", tuning.json())
    write_page(tuning, out / "tuning.html")
    return tuning


def _search(arguments: dict[str, Any], effort: TuneSettings, threads: int | None, listener: Listener) -> int:
    """Runs the search, in as many processes as `effort` says; the batch size that the settings alone have."""

    def in_one_process(*phases: str) -> int:
        found = run_in_process("search", arguments | {"phases": phases, "worker": 0}, listener)
        return int(found["batch_size"])

    if effort.workers == 1 and not effort.ray:
        return in_one_process("range", "trials", "repeat")
    in_one_process("range")
    if effort.ray:
        from afina.search.ray_workers import search_on_ray

        search_on_ray(arguments, effort.workers)
    else:
        search_in_processes(arguments, effort.workers, threads, listener)
    return in_one_process("repeat")


def _final(name: str, folder: Path) -> Measured:
    return Measured.of(name, folder, {"seconds": end_of_training(folder).seconds})


def _train(name: str, settings: RunSettings, folder: Path, listener: Listener) -> None:
    listener(Notice(f"— a full training with the {'best' if name == 'best' else 'default'} settings —"))
    run_in_process("train", {"settings": settings.model_dump(mode="json") | {"out": str(folder)}}, listener)


def _spent(out: Path, workers: int) -> float:
    """Seconds that this search took before it was cut off, as far as they are recorded."""
    seconds = sum(read_repeats(out)["seconds"])
    if (out / RANGE_TEST).exists():
        tested = RangeTest.read(out / RANGE_TEST)
        seconds += tested.seconds + tested.pace.load
    if (out / JOURNAL).exists():
        seconds += spent(open_study(out)) / workers
    for name in ("defaults", "best"):
        with suppress(InputError, ValueError):  # it did not come to it
            seconds += end_of_training(out / name).seconds
    return seconds


def _proof_rows(
    file: Path, tested: dict[str, Any], epochs: list[float], deadline: float | None, listener: Listener
) -> int:
    """How many rows the full trainings see: all of them, or as many as there is time for. Once decided it stays so, for
    one of them may be done already."""
    full = int(tested["full_rows"])
    if file.exists():
        return ProofRows.read(file).rows
    rows = full
    if deadline is not None:
        pace, left = Pace(**tested["pace"]), deadline - time.time()
        rows = rows_of_the_proof(pace, full, tested["trial_rows"], left, epochs)
        if rows < full:
            listener(
                Notice(
                    f"there is time for {rows:,} of the {counted(full, 'row')} of a full training; --minutes gives more"
                )
            )
    write_json(file, {"rows": rows})
    return rows


def _check(effort: TuneSettings) -> None:
    settings = effort.run
    if effort.minutes is None and effort.trials is None:
        raise SettingsError("a search needs an end: --minutes M or --trials N", "give one of the two")
    if effort.minutes is not None and effort.trials is not None:
        raise SettingsError("--minutes and --trials exclude each other", "give one of the two")
    check_trackers(settings.track)
    if find_spec("optuna") is None or find_spec("sklearn") is None:
        raise SettingsError("tune needs Optuna and scikit-learn, which are not installed", "pip install 'afina[tune]'")
    if effort.ray and find_spec("ray") is None:
        raise SettingsError("--ray needs Ray Tune, which is not installed", "pip install 'afina[ray]'")
    if settings.method != "lora" or settings.adapter:
        raise SettingsError("tune searches settings of a new LoRA adapter", "leave --method and --adapter out")
    if settings.train.tokens_per_batch:
        raise SettingsError("tune varies the number of rows per step", "leave --train.tokens_per_batch out")
    if settings.lora != type(settings.lora)() or settings.train.learning_rate is not None:
        raise SettingsError(
            "tune chooses the learning rate and the settings of LoRA itself",
            "leave --lora.* and --train.learning_rate out",
        )


def _fail_unfinished(out: Path) -> None:
    """Trials that a killed search left unfinished become failed ones. (The folder is locked: nobody is running
    them.)
    """
    if not (out / JOURNAL).exists():
        return
    import optuna

    check_regular(out / JOURNAL, InputError)
    with reading(f"{out / JOURNAL} is damaged", InputError, "start again with another --out"):
        study = open_study(out)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


JOB = Job.of(tune)
