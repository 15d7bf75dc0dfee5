"""The search of `afina tune`: the search space, its stages, and the trials themselves, on one base per process."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.config import build, changed
from afina.core.errors import AdapterError, NonFiniteLoss
from afina.core.events import HeldOut, Listener, Notice, Progress, minutes
from afina.core.files import write_json
from afina.lora.inits import INITS
from afina.lora.variants import VARIANTS
from afina.search.files import RangeTest, Repeats
from afina.search.time_plan import (
    EVALUATIONS,
    REPEATS,
    Pace,
    end_of_trials,
    pace_of,
    reserved,
    rows_of_a_trial,
)
from afina.search.trial import TrialRunner
from afina.settings import RunSettings
from afina.training.settings import MOST_BATCH

if TYPE_CHECKING:
    import optuna

# Up to each share of the budget, what varies beside the learning rate: nothing at first, for nothing else can be
# judged at a wrong rate; what makes trials longer or shorter comes last.
STAGES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (1 / 3, ()),
    (3 / 4, ("rank", "targets", "form")),
    (1.0, ("rank", "targets", "form", "batch", "epochs")),
)
FIRST_RATES = (1.0, 3.0, 1 / 3)  # times the rule's: the first trials, before the sampler has data
_RANGE_STEPS = 16, 40  # of the range test, at least and at most
_RANGE_WIDTH = 30.0  # it goes from the rule's rate divided by this to the rate times this
_WIDEST = 32.0  # the highest rate of the search space over the lowest

STUDY = "tune"
# In the folder of the search.
RANGE_TEST, REPEATS_FILE, JOURNAL = "probe.json", "repeats.json", "study.journal"
_ENDED = ("COMPLETE", "PRUNED")


def forms() -> dict[str, dict[str, Any]]:
    """The methods of LoRA that are tried: settings by the name of what they change."""
    variants = {each.name: {"variant": each.name} for each in VARIANTS if each.tuned and each.name != "lora"}
    inits = {each.name: {"init": each.name} for each in INITS if each.tuned}
    return {"lora": {}, "rslora": {"rslora": True}, **variants, **inits}


def choices() -> dict[str, tuple[Any, ...]]:
    """What a trial may change beside the learning rate, the default first. `form` is a method of LoRA; `batch` and
    `epochs` multiply the settings' batch size and epochs."""
    return {
        "rank": (16, 8, 32, 64),
        "targets": ("all-linear", "mlp", "attention"),
        "form": tuple(forms()),
        "batch": (1.0, 0.5, 2.0),
        "epochs": (1.0, 0.5, 2.0),
    }


def defaults(rate: float) -> dict[str, Any]:
    return {"rate": rate, **{name: values[0] for name, values in choices().items()}}


def configured(settings: RunSettings, chosen: dict[str, Any], rows: int, batch_size: int) -> RunSettings:
    """The settings of a full training with what was chosen; the settings alone would see `rows` rows, `batch_size`
    per step.
    """
    lora = {"rank": chosen["rank"], "alpha": 2.0 * chosen["rank"], "target_modules": chosen["targets"]}
    return changed(
        settings,
        {
            "train.learning_rate": chosen["rate"],
            "train.batch_size": min(MOST_BATCH, max(1, round(batch_size * chosen["batch"]))),
            "train.rows": max(1, round(rows * chosen["epochs"])),
            **{f"lora.{name}": value for name, value in {**lora, **forms()[chosen["form"]]}.items()},
        },
    )


def open_study(folder: Path) -> "optuna.Study":
    """The study in `folder`, which several processes may share."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(folder / JOURNAL)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path))),
        study_name=STUDY,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )


def spent(study: "optuna.Study") -> float:
    """Seconds of all trials that were completed or pruned."""
    return sum(t.duration.total_seconds() for t in study.trials if t.duration and t.state.name in _ENDED)


def search_trials(
    settings: dict[str, Any],
    folder: str,
    phases: Sequence[str],
    budget: dict[str, Any],
    worker: int,
    listener: Listener,
) -> dict[str, int]:
    """Does `phases` of the search in `folder`, in this order: range (of learning rates), trials, repeat (other
    seeds).

    `budget` has the number of `workers`, when the command has `begun`, and the `deadline` by which all of it should
    end, or the number of `trials`; what was done before counts, and is not repeated. Returns the `batch_size` that the
    settings alone have for this base.
    """
    search = _Search(TrialRunner(build(RunSettings, settings), listener), Path(folder), budget, worker, listener)
    if "range" in phases and not search.range_file.exists():
        search.test_range()
    if "trials" in phases:
        search.run_trials()
    if "repeat" in phases:
        search.repeat()
    return {"batch_size": search.plan.batch_size}


class _Search:
    def __init__(
        self, runner: TrialRunner, folder: Path, budget: dict[str, Any], worker: int, listener: Listener
    ) -> None:
        self.runner, self.folder, self.budget, self.worker, self.listener = runner, folder, budget, worker, listener
        self.settings = runner.settings
        self.rows, self.plan = runner.full_rows(self.settings), runner.plan(self.settings)
        self.range_file = folder / RANGE_TEST

    def test_range(self) -> None:
        """LR range test (Smith 2017, https://arxiv.org/abs/1506.01186, section 3.3): a short training in which the
        learning rate rises from far too low to far too high. Where the loss is lowest is the highest rate worth
        trying.

        It also measures the speed of training here, from which the length of a trial follows.
        """
        rule, size = self.plan.learning_rate, self.plan.batch_size
        load = time.time() - self.budget["begun"]

        def rates(steps: int) -> list[float]:
            return [rule * _RANGE_WIDTH ** (2 * i / max(1, steps - 1) - 1) for i in range(steps)]

        start = time.monotonic()
        fewest, most = _RANGE_STEPS
        steps = min(most, max(fewest, self.rows // size))  # no longer than a full training, where that is short
        try:
            trial = self.runner.run(self.settings, steps * size, rates=rates)
            smooth = _smoothed(trial.step_losses)
        except NonFiniteLoss:  # from the far too high rates at the end; the rule's does not diverge
            trial = self.runner.run(self.settings, steps * size)
            smooth = []
        tried = rates(len(smooth)) if smooth else []
        lowest = tried[min(range(len(smooth)), key=smooth.__getitem__)] if smooth else rule
        high = min(max(lowest, rule), 8 * rule)
        look = max(0.0, trial.seconds - trial.training_seconds)
        pace = pace_of(self.runner.assembled, trial.training_seconds / trial.rows, look, load)
        left = self.budget.get("deadline", math.inf) - time.time()
        proof = reserved(pace, self.rows, left)
        rows = rows_of_a_trial(pace, self.rows, left - proof if math.isfinite(left) else None)
        write_json(
            self.range_file,
            {
                "rule": rule,
                "rates": tried,
                "losses": smooth,
                "low": high / _WIDEST,
                "high": high,
                "pace": pace.content,
                "seconds": time.monotonic() - start,
                "full_rows": self.rows,
                "trial_rows": rows,
                "proof_seconds": proof,
            },
        )
        self.listener(
            Notice(
                f"learning rates up to {high:.2g} are worth trying (the rule gives {rule:.2g}); a full training takes "
                f"about {minutes(self.rows * pace.row)} here, a trial {minutes(pace.trial(rows))}, and the full "
                f"trainings at the end {minutes(pace.proof(self.rows))} with their evaluations"
            )
        )

    def run_trials(self) -> None:
        """Trials until the budget is used up, all of as many rows."""
        import optuna

        study = open_study(self.folder)
        tested = RangeTest.read(self.range_file).content
        for factor in FIRST_RATES:
            rate = min(max(factor * tested["rule"], tested["low"]), tested["high"])
            study.enqueue_trial(defaults(rate), skip_if_exists=True)
        rows = tested["trial_rows"]
        share = self._share(study, tested)
        while (done := share()) < 1 or not any(t.state.name in (*_ENDED, "RUNNING") for t in study.trials):
            free = next((names for until, names in STAGES if done < until), ())
            fixed = {name: values[0] for name, values in choices().items() if name not in free}
            sampler = optuna.samplers.TPESampler(seed=1000 * self.worker + len(study.trials), n_startup_trials=6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
            trial = study.ask()
            self.listener(Progress(f"search, per cent done; trial {trial.number}", round(100 * done), 100))
            self._run_trial(study, trial, tested, rows)

    def _share(self, study: "optuna.Study", tested: dict[str, Any]) -> Callable[[], float]:
        """What says which share of the budget is used up: 1 once no further trial should begin."""
        if self.budget.get("trials"):
            trials = float(self.budget["trials"])
            return lambda: sum(t.state.name in (*_ENDED, "RUNNING") for t in study.trials) / trials
        pace, begun, before = Pace(**tested["pace"]), time.time(), spent(study) / float(self.budget["workers"])
        end = self.budget["deadline"] - tested["proof_seconds"]
        until = end_of_trials(pace, tested["trial_rows"], end, begun)
        return lambda: (before + time.time() - begun) / max(1e-9, before + until - begun) if until > begun else 1.0

    def _run_trial(self, study: "optuna.Study", trial: "optuna.Trial", tested: dict[str, Any], rows: int) -> None:
        from optuna.trial import TrialState

        rate = trial.suggest_float("rate", tested["low"], tested["high"], log=True)
        chosen: dict[str, Any] = {"rate": rate} | {
            name: trial.suggest_categorical(name, values) for name, values in choices().items()
        }
        settings = configured(self.settings, chosen, self.rows, self.plan.batch_size)
        evaluations = max(1, round(EVALUATIONS * chosen["epochs"]))
        reported = 0

        def should_prune(held_out: HeldOut) -> bool:
            nonlocal reported
            reported += 1
            trial.report(held_out.cost, reported)
            return reported < evaluations and trial.should_prune()

        try:
            result = self.runner.run(settings, round(rows * chosen["epochs"]), evaluations, should_prune=should_prune)
        except (NonFiniteLoss, AdapterError) as error:
            study.tell(trial, state=TrialState.PRUNED)  # FAIL is for trials that were cut off, which do not count
            end = "diverged" if isinstance(error, NonFiniteLoss) else f"not possible here: {str(error).splitlines()[0]}"
            self.listener(Notice(f"trial {trial.number}: {describe_choice(chosen)}: {end}"))
            return
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_user_attr("tokens", result.tokens)
        trial.set_user_attr("losses", result.losses)
        if result.reason == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
            end = f"pruned at {result.losses[-1][1]:.4f}"
        else:
            study.tell(trial, result.loss)
            end = f"held-out loss {result.loss:.4f}"
        self.listener(Notice(f"trial {trial.number}: {describe_choice(chosen)}: {end}"))

    def repeat(self) -> None:
        """Trains with the best settings and with the defaults once more with other seeds, which change the order of
        rows and the init.
        """
        study, tested = open_study(self.folder), RangeTest.read(self.range_file).content
        best, rows = best_of(study), tested["trial_rows"]
        plain = defaults(tested["rule"])
        if best == plain:
            return
        pace = Pace(**tested["pace"])
        repeats, end = read_repeats(self.folder), self.budget.get("deadline", math.inf) - tested["proof_seconds"]
        for seed in range(1, REPEATS + 1):
            if time.time() + pace.repeat(rows, best["epochs"]) / 2 > end:
                self.listener(Notice("there is no time for repeats with more seeds", warning=True))
                return
            for name, chosen in (("defaults", plain), ("best", best)):
                if len(repeats[name]) >= seed:
                    continue
                own = changed(self.settings, {"seed": self.settings.seed + seed})
                settings = configured(own, chosen, self.rows, self.plan.batch_size)
                trial = self.runner.run(settings, round(rows * chosen["epochs"]))
                repeats[name].append(trial.loss)
                repeats["seconds"].append(trial.seconds)
                write_json(self.folder / REPEATS_FILE, repeats)
                self.listener(Notice(f"{name} with seed {settings.seed}: held-out loss {trial.loss:.4f}"))


def read_repeats(folder: Path) -> dict[str, list[float]]:
    """The held-out losses with other seeds so far, of the best and of the defaults, and the seconds of each
    training.
    """
    path = folder / REPEATS_FILE
    return Repeats.read(path).content if path.exists() else {"best": [], "defaults": [], "seconds": []}


def best_of(study: "optuna.Study") -> dict[str, Any]:
    """The parameters of the trial with the lowest loss."""
    return dict(study.best_trial.params)


def describe_choice(chosen: dict[str, Any]) -> str:
    """What was chosen, in words, without what is the default."""
    plain = [
        f"{name} {chosen[name]}"
        for name, values in choices().items()
        if chosen[name] != values[0] and name not in ("batch", "epochs")
    ]
    plain += [f"{name} × {chosen[name]:g}" for name in ("batch", "epochs") if chosen[name] != 1]
    return ", ".join([f"rate {chosen['rate']:.2g}", *plain])


def _smoothed(losses: Sequence[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start as in Adam; up to the first value that is not finite."""
    found, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            break
        mean = keep * mean + (1 - keep) * loss
        found.append(mean / (1 - keep**i))
    return found
