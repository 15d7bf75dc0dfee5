"""The search of `afina tune`: what may vary, in which order, and the trials themselves, on one base that all of a process share."""

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.config import build, changed
from afina.core.errors import AdapterError, NonFiniteLoss
from afina.core.events import HeldOut, Listener, Notice, Progress
from afina.core.files import read_json, write_json
from afina.lora.inits import INITS
from afina.lora.variants import VARIANTS
from afina.search.trial import Bench, Trial
from afina.settings import RunSettings
from afina.training.settings import MOST_BATCH

if TYPE_CHECKING:
    import optuna

# The learning rate first, for nothing else can be judged at a wrong one; what makes trials longer or shorter last.
STAGES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (1 / 3, ()),
    (3 / 4, ("rank", "targets", "form")),
    (1.0, ("rank", "targets", "form", "batch", "epochs")),
)
FIRST_RATES = (1.0, 3.0, 1 / 3)  # times the rule's: the first trials, before the sampler knows anything
LOOKS = 2  # evaluations of a trial, at the same numbers of rows for all; the pruner sees each
FEWEST_TRIALS = 10  # a trial is so short that as many fit into the time of the search
SHORTEST = 0.15  # of a whole training
REPEATS = 3  # seeds with which the best and the defaults are trained before a winner is announced
_PROBE_STEPS = 16, 40  # at least and at most, of the range of learning rates
_PROBE_WIDTH = 30.0  # from the rule's divided by this to its multiple
_WIDEST = 32.0  # between the lowest rate that is searched and the highest

STUDY = "tune"
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
    """The settings of a full training with what was chosen; the settings alone would see `rows` rows, `batch_size` per step."""
    lora = {"rank": chosen["rank"], "alpha": 2.0 * chosen["rank"], "target_modules": chosen["targets"]}
    return changed(
        settings,
        {
            "train.learning_rate": chosen["rate"],
            "train.batch_size": min(MOST_BATCH, max(1, round(batch_size * chosen["batch"]))),
            "train.rows": max(1, round(rows * chosen["epochs"])),
            "train.epochs": None,
            **{f"lora.{name}": value for name, value in {**lora, **forms()[chosen["form"]]}.items()},
        },
    )


def open_study(folder: Path) -> "optuna.Study":
    """The study in `folder`, which several processes may share."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(folder / "study.journal")
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path))),
        study_name=STUDY,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )


def spent(study: "optuna.Study") -> float:
    """Seconds of all trials that came to an end of their own."""
    return sum(t.duration.total_seconds() for t in study.trials if t.duration and t.state.name in _ENDED)


def search_trials(
    settings: dict[str, Any], folder: str, parts: Sequence[str], budget: dict[str, Any], worker: int, listener: Listener
) -> dict[str, int]:
    """Does `parts` of the search in `folder`, in this order: probe (learning rates), trials, repeat (with other seeds).

    `budget` has `seconds` (of the search and the repetition) or `trials`; what was done before counts, and is not done again.
    Gives the `batch_size` of the settings as they are for this base.
    """
    search = _Search(Bench(build(RunSettings, settings), listener), Path(folder), budget, worker, listener)
    if "probe" in parts and not search.probe_file.exists():
        search.probe()
    if "trials" in parts:
        search.trials()
    if "repeat" in parts:
        search.repeat()
    return {"batch_size": search.plan.batch_size}


class _Search:
    def __init__(self, bench: Bench, folder: Path, budget: dict[str, Any], worker: int, listener: Listener) -> None:
        self.bench, self.folder, self.budget, self.worker, self.listener = bench, folder, budget, worker, listener
        self.settings = bench.settings
        self.rows, self.plan = bench.full_rows(self.settings), bench.plan(self.settings)
        self.probe_file = folder / "probe.json"

    def probe(self) -> None:
        """A short training in which the learning rate rises from far too low to far too high (Smith 2017,
        https://arxiv.org/abs/1506.01186, section 3.3): where the loss is lowest is the most that is worth trying.

        It also tells how fast this machine is, and so how long a trial may be.
        """
        rule, size = self.plan.learning_rate, self.plan.batch_size

        def rates(steps: int) -> list[float]:
            return [rule * _PROBE_WIDTH ** (2 * i / max(1, steps - 1) - 1) for i in range(steps)]

        begun = time.monotonic()
        fewest, most = _PROBE_STEPS
        steps = min(most, max(fewest, self.rows // size))  # no longer than a whole training, where that is short
        try:
            trial = self.bench.run(self.settings, steps * size, listener=self.listener, rates=rates)
        except NonFiniteLoss:  # far too high is the end of it; a gentler one cannot diverge
            trial = self.bench.run(self.settings, steps * size, listener=self.listener)
            trial = Trial(**{**trial.__dict__, "training": []})
        smooth = _smoothed(trial.training)
        tried = rates(len(smooth)) if smooth else []
        lowest = tried[min(range(len(smooth)), key=smooth.__getitem__)] if smooth else rule
        high = min(max(lowest, rule), 8 * rule)
        pace = trial.rows / trial.training_seconds
        look = max(0.0, trial.seconds - trial.training_seconds)
        write_json(
            self.probe_file,
            {
                "rule": rule, "rates": tried, "losses": smooth, "low": high / _WIDEST, "high": high, "rows_per_second": pace,
                "look_seconds": look, "seconds": time.monotonic() - begun, "full_rows": self.rows,
            },
        )  # fmt: skip
        self.listener(
            Notice(
                f"learning rates up to {high:.2g} are worth trying (the rule says {rule:.2g}); "
                f"a whole training takes about {self.rows / pace / 60:.1f} minutes here"
            )
        )

    def trials(self) -> None:
        """Trials until the budget is used up, each as long as the others in rows."""
        import optuna

        study = open_study(self.folder)
        probe = read_json(self.probe_file)
        for factor in FIRST_RATES:
            rate = min(max(factor * probe["rule"], probe["low"]), probe["high"])
            study.enqueue_trial(defaults(rate), skip_if_exists=True)
        rows = trial_rows(probe, self.budget)
        while True:
            done = self._done(study, probe)
            if done >= 1:
                return
            free = next(names for until, names in STAGES if done < until)
            fixed = {name: values[0] for name, values in choices().items() if name not in free}
            sampler = optuna.samplers.TPESampler(seed=1000 * self.worker + len(study.trials), n_startup_trials=6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
            self._one(study, study.ask(), probe, rows, done)

    def _done(self, study: "optuna.Study", probe: dict[str, Any]) -> float:
        """The part of the budget that is used up."""
        if self.budget.get("trials"):
            return sum(t.state.name in (*_ENDED, "RUNNING") for t in study.trials) / float(self.budget["trials"])
        used = spent(study) / float(self.budget["workers"]) + probe["seconds"]
        return float(used / (self.budget["seconds"] * FEWEST_TRIALS / (FEWEST_TRIALS + 2 * REPEATS)))

    def _one(self, study: "optuna.Study", trial: "optuna.Trial", probe: dict[str, Any], rows: int, done: float) -> None:
        import optuna

        rate = trial.suggest_float("rate", probe["low"], probe["high"], log=True)
        chosen: dict[str, Any] = {"rate": rate} | {
            name: trial.suggest_categorical(name, values) for name, values in choices().items()
        }
        settings = configured(self.settings, chosen, self.rows, self.plan.batch_size)
        looks = max(1, round(LOOKS * chosen["epochs"]))
        seen = 0

        def hopeless(found: HeldOut) -> bool:
            nonlocal seen
            seen += 1
            trial.report(found.cost, seen)
            return seen < looks and trial.should_prune()

        self.listener(Progress(f"search, per cent done; trial {trial.number}", round(100 * done), 100))
        try:
            found = self.bench.run(
                settings, round(rows * chosen["epochs"]), looks, listener=self.listener, hopeless=hopeless
            )
        except (NonFiniteLoss, AdapterError) as error:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # a failed one was cut off, and does not count
            end = "diverged" if isinstance(error, NonFiniteLoss) else f"not possible here: {str(error).splitlines()[0]}"
            self.listener(Notice(f"trial {trial.number}: {describe_choice(chosen)}: {end}"))
            return
        except BaseException:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        trial.set_user_attr("tokens", found.tokens)
        trial.set_user_attr("losses", found.losses)
        pruned = found.reason == "pruned"
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, found.loss)
        end = f"given up at {found.losses[-1][1]:.4f}" if pruned else f"held-out loss {found.loss:.4f}"
        self.listener(Notice(f"trial {trial.number}: {describe_choice(chosen)}: {end}"))

    def repeat(self) -> None:
        """The best configuration and the defaults once more with other seeds, which change the order of rows and the start."""
        study, probe = open_study(self.folder), read_json(self.probe_file)
        best, rows = best_of(study), trial_rows(probe, self.budget)
        path = self.folder / "repeats.json"
        found = read_repeats(self.folder)
        plain = defaults(probe["rule"])
        if best == plain:
            return
        for seed in range(1, REPEATS + 1):
            for name, chosen in (("defaults", plain), ("best", best)):
                if len(found[name]) >= seed:
                    continue
                own = changed(self.settings, {"seed": self.settings.seed + seed})
                settings = configured(own, chosen, self.rows, self.plan.batch_size)
                trial = self.bench.run(settings, round(rows * chosen["epochs"]), listener=self.listener)
                found[name].append(trial.loss)
                found["seconds"].append(trial.seconds)
                write_json(path, found)
                self.listener(Notice(f"{name} with seed {settings.seed}: held-out loss {trial.loss:.4f}"))


def read_repeats(folder: Path) -> dict[str, list[float]]:
    """The held-out losses of the repetition so far, of the best and of the defaults, and the seconds of each training."""
    path = folder / "repeats.json"
    return dict(read_json(path)) if path.exists() else {"best": [], "defaults": [], "seconds": []}


def trial_rows(probe: dict[str, Any], budget: dict[str, Any]) -> int:
    """How many rows a trial sees: a whole training's, or fewer, so that enough trials fit into the time."""
    full = int(probe["full_rows"])
    shortest = max(1, round(SHORTEST * full))
    if budget.get("trials"):
        return max(shortest, full // 3)
    seconds = budget["seconds"] * budget["workers"] / (FEWEST_TRIALS + 2 * REPEATS) - LOOKS * probe["look_seconds"]
    return int(min(full, max(shortest, seconds * probe["rows_per_second"])))


def best_of(study: "optuna.Study") -> dict[str, Any]:
    """The parameters of the trial with the lowest loss."""
    return dict(study.best_trial.params)


def describe_choice(chosen: dict[str, Any]) -> str:
    """What was chosen, in words; what is the default is left out."""
    plain = [
        f"{name} {chosen[name]}"
        for name, values in choices().items()
        if chosen[name] != values[0] and name not in ("batch", "epochs")
    ]
    plain += [f"{name} × {chosen[name]:g}" for name in ("batch", "epochs") if chosen[name] != 1]
    return ", ".join([f"rate {chosen['rate']:.2g}", *plain])


def _smoothed(losses: Sequence[float], keep: float = 0.8) -> list[float]:
    """Running mean that forgets, corrected for its start; up to where it is no number any more."""
    found, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            break
        mean = keep * mean + (1 - keep) * loss
        found.append(mean / (1 - keep**i))
    return found
