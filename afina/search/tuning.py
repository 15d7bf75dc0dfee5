"""What a search found: whether the best settings beat the defaults by more than chance, and what is left to try."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from afina.core.errors import counted
from afina.core.files import write_atomic
from afina.measure.evaluation import difference_json
from afina.measure.intervals import Difference, paired_difference
from afina.measure.pages.plots import bars, search_history, search_rates
from afina.measure.pages.rendering import render_page
from afina.measure.pages.summary import interval, label, number
from afina.search.comparison import Measured

if TYPE_CHECKING:
    import optuna

FEWEST = 4  # completed trials that an estimate of importances needs
_EDGE = 1.5  # a best rate within this factor of an end of the range suggests better ones beyond it


@dataclass(frozen=True)
class Tuning:
    """The result of a search.

    `best` and `plain` (the defaults) are parameters; `repeats` has the held-out losses of both with other seeds,
    `finals` full trainings of both, evaluated on the test split. `range_test` is what the test of learning rates
    found.
    """

    trials: list[dict[str, Any]]
    best: dict[str, Any]
    plain: dict[str, Any]
    importances: dict[str, float]
    repeats: dict[str, list[float]]
    finals: dict[str, Measured]
    range_test: dict[str, Any]
    trial_rows: int
    folder: Path

    @staticmethod
    def of(
        study: "optuna.Study", range_test: dict[str, Any], repeats: dict[str, list[float]], finals: dict[str, Measured],
        plain: dict[str, Any], folder: Path,
    ) -> "Tuning":  # fmt: skip
        trials = [
            {
                "number": t.number,
                "state": t.state.name.lower(),
                "loss": t.value if t.value is not None else _last(t.intermediate_values),
                "seconds": t.duration.total_seconds() if t.duration else None,
                **t.params,
            }
            for t in study.trials
            if t.state.name in ("COMPLETE", "PRUNED")
        ]
        return Tuning(
            trials,
            dict(study.best_trial.params),
            plain,
            _importances(study),
            repeats,
            finals,
            range_test,
            range_test["trial_rows"],
            folder,
        )

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [trial for trial in self.trials if trial["state"] == "complete"]

    def gain(self) -> tuple[float, float] | None:
        """How much lower the best's held-out loss is than the defaults', the mean over other seeds, and its standard
        error.

        The seed of the search itself, which chose the best, does not count.
        """
        pairs = [d - b for d, b in zip(self.repeats["defaults"], self.repeats["best"], strict=False)]
        return (mean(pairs), stdev(pairs) / math.sqrt(len(pairs))) if len(pairs) > 1 else None

    def winner(self) -> str:
        """`best`, if it is better with other seeds too, by more than two standard errors; otherwise `defaults`."""
        gain = self.gain()
        return "best" if gain is not None and gain[0] > 2 * gain[1] else "defaults"

    def on_test(self) -> Difference | None:
        """best − defaults on the test split, by the main metric."""
        if "best" not in self.finals:
            return None
        plain, best = self.finals["defaults"], self.finals["best"]
        return paired_difference(plain.main(), best.main(), best.metric.lower_is_better)

    def words(self) -> Iterator[str]:
        pruned = sum(trial["state"] == "pruned" for trial in self.trials)
        rows = f"each on {self.trial_rows:,} of the {counted(self.range_test['full_rows'], 'row')} of a full training"
        tried = f"{counted(len(self.trials), 'trial')} ({rows}; {pruned} pruned)"
        if self.best == self.plain:
            yield f"None of {tried} was better than the defaults: keep them."
        else:
            yield f"The best of {tried}: {described(self.best, self.plain)}."
            yield self._repeated()
        difference = self.on_test()
        if difference is not None:
            yield self._tested(difference)
            rows, full = self.range_test["proof_rows"], self.range_test["full_rows"]
            if rows < full:
                yield f"There was time to train both on {rows:,} of the {counted(full, 'row')} of a full training."
        yield self._cost()

    def _repeated(self) -> str:
        gain = self.gain()
        if gain is None:
            return "It was not repeated with other seeds, so no winner is announced."
        seeds = len(self.repeats["best"])
        size = (
            f"{abs(gain[0]):.4f} nats {'lower' if gain[0] > 0 else 'higher'}, "
            f"the mean over {counted(seeds, 'other seed')}, standard error {gain[1]:.4f}"
        )
        if self.winner() == "best":
            return f"With other seeds its held-out loss is again lower than the defaults' ({size}): these settings win."
        return (
            f"With other seeds its held-out loss is not clearly lower than the defaults' ({size}): the defaults stand."
        )

    def _tested(self, found: Difference) -> str:
        metric = self.finals["best"].evaluation["main_metric"]
        a, b = (number(metric, self.finals[name].quality) for name in ("defaults", "best"))
        judged = {
            "better": "the tuned settings are better by more than chance",
            "worse": "the tuned settings are worse",
            "not distinguishable": "the difference is within what chance can explain",
        }.get(found.verdict, found.verdict)
        return (
            f"On the {counted(found.rows, 'row')} of the test split, which the search never "
            f"saw: defaults {a}, tuned {b} "
            f"{label(metric)} (95 % interval of the difference {interval(metric, difference_json(found))}); "
            f"{judged}. {self._losses()}"
        )

    def _losses(self) -> str:
        """The loss on the test split, which is more sensitive than the score."""
        plain, best = (self.finals[name].evaluation["adapted"].get("loss") for name in ("defaults", "best"))
        return "" if plain is None or best is None else f"The loss there: defaults {plain:.3f}, tuned {best:.3f} nats."

    def _cost(self) -> str:
        spent = {
            "the range of learning rates": self.range_test["seconds"],
            "the trials": sum(trial["seconds"] or 0.0 for trial in self.trials),
            "the repeats with other seeds": sum(self.repeats["seconds"]),
            "the full trainings": sum(run.cost["seconds"] for run in self.finals.values()),
        }
        each = ", ".join(f"{seconds / 60:.1f} for {what}" for what, seconds in spent.items() if seconds)
        return f"All this took {sum(spent.values()) / 60:.1f} minutes, without evaluations: {each}."

    def next_hour(self) -> Iterator[str]:
        """What is worth trying with more time."""
        rate, low, high = self.best["rate"], self.range_test["low"], self.range_test["high"]
        if rate * _EDGE > high:
            yield f"learning rates above {high:.2g}: the best is at the upper end of what was tried"
        if rate < low * _EDGE:
            yield f"learning rates below {low:.2g}: the best is at the lower end of what was tried"
        varied = {name: len({trial[name] for trial in self.trials}) for name in self.plain if name != "rate"}
        untried = [name for name, count in varied.items() if count == 1]
        if untried:
            yield f"{', '.join(untried)}: there was no time to vary {'it' if len(untried) == 1 else 'them'}"
        improved = [t["number"] for t in self.finished if t["loss"] == min(x["loss"] for x in self.finished)]
        if improved and len(self.trials) - improved[0] <= max(2, len(self.trials) // 4):
            yield "more trials: the best was found late, so the search had not converged"
        if self.importances:
            first = max(self.importances, key=self.importances.__getitem__)
            share = 100 * self.importances[first]
            yield f"a finer choice of {first}, which mattered most ({share:.0f} % of the variance)"
        yield (
            "more rows, or cleaner ones: `afina data check` shows what is doubtful, and data often matter more than "
            "settings"
        )

    def json(self) -> dict[str, Any]:
        gain, test = self.gain(), self.on_test()
        return {
            "best": self.best,
            "defaults": self.plain,
            "winner": self.winner(),
            "words": list(self.words()),
            "next_hour": list(self.next_hour()),
            "repeats": self.repeats,
            "gain": {"loss": gain[0], "standard_error": gain[1]} if gain else None,
            "test": difference_json(test) if test else None,
            "quality": {name: run.quality for name, run in self.finals.items()},
            "importances": self.importances,
            "trial_rows": self.trial_rows,
            "probe": {k: v for k, v in self.range_test.items() if k not in ("rates", "losses")},
            "config": str(self.config),
            "trials": self.trials,
        }

    @property
    def config(self) -> Path:
        """The file that `afina train --config` takes."""
        return self.folder / f"{self.winner()}.yaml"


def described(chosen: dict[str, Any], plain: dict[str, Any]) -> str:
    """What differs from the defaults, in words."""
    parts = [f"learning rate {chosen['rate']:.2g} (default {plain['rate']:.2g})"]
    for name, value in chosen.items():
        if name != "rate" and value != plain[name]:
            parts.append(f"{name} × {value:g}" if name in ("batch", "epochs") else f"{name} {value}")
    return ", ".join(parts)


def _last(values: dict[int, float]) -> float | None:
    return values[max(values)] if values else None


def _importances(study: "optuna.Study") -> dict[str, float]:
    """How much of the variance of the losses each setting explains (fANOVA); empty where few trials were completed."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    varied = [n for n in complete[0].params if len({t.params[n] for t in complete}) > 1] if complete else []
    if len(complete) < FEWEST or not varied or len({t.value for t in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {
        k: float(v)
        for k, v in optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied).items()
    }


def write_page(tuning: Tuning, path: Path) -> None:
    """Writes the page: one file that needs no network."""
    found = tuning.json()
    finished = tuning.finished
    names = list(tuning.plain)
    order = sorted(
        tuning.trials, key=lambda t: (t["state"] != "complete", t["loss"] if t["loss"] is not None else math.inf)
    )
    lines = [
        [
            f"{t['number']}",
            "" if t["loss"] is None else f"{t['loss']:.4f}",
            t["state"],
        ]
        + [f"{t[name]:.2g}" if isinstance(t[name], float) else str(t[name]) for name in names]
        for t in order
    ]
    history = [(t["number"], t["loss"], t["state"] == "complete") for t in tuning.trials if t["loss"] is not None]
    plots = [
        ("Trials", search_history(history)),
        ("Learning rate", search_rates([(t["rate"], t["loss"]) for t in finished], tuning.plain["rate"])),
    ]
    if found["importances"]:
        ranked = sorted(found["importances"].items(), key=lambda each: -each[1])
        plots.append(("What mattered", bars([(n, 100 * v) for n, v in ranked], "per cent of the variance")))
    text = render_page(
        "tuning.html",
        tuning=found,
        lines=lines,
        names=[f"{name} ×" if name in ("batch", "epochs") else name for name in names],
        plots=plots,
        config=tuning.config,
        few=FEWEST,
        runs=tuning.finals,
    )
    write_atomic(path, text)
