"""The minutes of `afina tune`: what a trial, the repeats and the full trainings at the end may take of them.

All in seconds; points in time are those of `time.time()`, which processes share.
"""

import time
from dataclasses import dataclass
from typing import Any

from afina.forecast.estimate import forecast_training
from afina.forecast.machines import this_machine
from afina.forecast.workload import workload_of
from afina.runs.assemble import Assembled

FEWEST_TRIALS = 10  # trials are so short that at least this many fit into the time of the search
REPEATS = 3  # seeds with which the best and the defaults are trained before a winner is announced
EVALUATIONS = 2  # of a trial, after the same numbers of rows in all; the pruner is told each
SHORTEST = 0.15  # of a full training: the rows of a trial, at least
_TRAININGS = FEWEST_TRIALS + 2 * REPEATS
_MOST_PROOF = 0.5  # of the time that is left after the range test: more only for what cannot be shortened
_NEARLY = 0.9  # of the rows of a full training: so near to all, all are taken


@dataclass(frozen=True)
class Pace:
    """What work takes here: a row of training, a `look` at the held-out rows of a trial, and of a full training what
    does not depend on its rows: `load`ing the base and the data (twice), and `rest`: evaluations and answers.
    """

    row: float
    look: float
    load: float
    rest: float

    def trial(self, rows: int) -> float:
        return rows * self.row + EVALUATIONS * self.look

    def proof(self, rows: int) -> float:
        """The two full trainings at the end, with their evaluations."""
        return 2 * (rows * self.row + 2 * self.load + self.rest)


def shortest(full_rows: int) -> int:
    return max(1, round(SHORTEST * full_rows))


def rows_of_a_trial(pace: Pace, full_rows: int, budget: dict[str, Any]) -> int:
    """How many rows a trial sees: those of a full training, or fewer, so that enough trials fit into the time."""
    if budget.get("trials"):
        return max(shortest(full_rows), full_rows // 3)
    seconds = (end_of_search(pace, full_rows, budget) - time.time()) / _TRAININGS - EVALUATIONS * pace.look
    return int(min(full_rows, max(shortest(full_rows), seconds / pace.row)))


def end_of_search(pace: Pace, full_rows: int, budget: dict[str, Any]) -> float:
    """When trials and repeats should end, so that the full trainings end in time: these may be shortened, but not to
    fewer rows than a trial has at least."""
    left = budget["deadline"] - time.time()
    reserved = min(pace.proof(full_rows), max(_MOST_PROOF * left, pace.proof(shortest(full_rows))))
    return float(budget["deadline"] - reserved)


def end_of_trials(pace: Pace, rows: int, end: float, begun: float) -> float:
    """When the last trial should have begun: the repeats come after it, and it should end by then more likely than
    not."""
    repeats = min(2 * REPEATS * pace.trial(rows), (end - begun) * 2 * REPEATS / _TRAININGS)
    return end - repeats - pace.trial(rows) / 2


def rows_of_the_proof(pace: Pace, full_rows: int, trial_rows: int, deadline: float) -> int:
    """How many rows the full trainings see: all, or as many as there is time for."""
    fixed = pace.proof(0)
    rows = int((deadline - time.time() - fixed) / (2 * pace.row))
    return full_rows if rows >= _NEARLY * full_rows else max(rows, min(trial_rows, full_rows))


def pace_of(assembled: Assembled, row: float, look: float, load: float) -> Pace:
    """The pace of a full training, from what was measured of a short one. Its answers are forecast, and corrected by
    how far the forecast of a row is from what was measured."""
    if assembled.skeleton is None:
        return Pace(row, look, load, 0.0)
    settings, data = assembled.settings, assembled.data
    machine = this_machine(assembled.cache, settings.device, settings.precision, measure=False)
    seen = forecast_training(assembled.skeleton, settings, workload_of(data, assembled.max_new_tokens), machine)
    answers = seen.evaluation * row * len(data.train) / max(seen.epoch_seconds, 1e-9)
    evaluations = 1 + -(-seen.plan.steps // seen.plan.eval_steps)
    return Pace(row, look, load, evaluations * look + answers)
