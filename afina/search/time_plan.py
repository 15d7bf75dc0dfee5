"""The minutes of `afina tune`: what a trial, the repeats and the full trainings at the end may take of them.

All in seconds.
"""

from collections.abc import Sequence

from afina.forecast.estimate import forecast_training
from afina.forecast.machines import this_machine
from afina.forecast.workload import workload_of
from afina.runs.assemble import Assembled
from afina.search.files import PaceRecord

FEWEST_TRIALS = 10  # trials are so short that at least this many fit into the time of the search
REPEATS = 3  # seeds with which the best and the defaults are trained before a winner is announced
EVALUATIONS = 2  # of a trial, after the same numbers of rows in all; the pruner is told each
SHORTEST = 0.15  # of a full training: the rows of a trial, at least
_TRAININGS = FEWEST_TRIALS + 2 * REPEATS
_MOST_PROOF = 0.5  # of the time that is left after the range test: more only for what cannot be shortened
_NEARLY = 0.9  # of the rows of a full training: so near to all, all are taken


class Pace(PaceRecord):
    """What work takes here: a row of training, a `look` at the held-out rows of a trial, and of a full training what
    does not depend on its rows: `load`ing the base and the data (twice), and `rest`: evaluations and answers.
    """

    def trial(self, rows: float) -> float:
        return rows * self.row + EVALUATIONS * self.look

    def repeat(self, rows: int, epochs: float) -> float:
        """The defaults and the best, which has `epochs` times the rows, with one other seed."""
        return self.trial(rows) + self.trial(rows * epochs)

    def proof(self, rows: float, epochs: Sequence[float] = (1.0, 1.0)) -> float:
        """The full trainings at the end with their evaluations, each of `epochs` times the rows."""
        return sum(rows * each * self.row + 2 * self.load + self.rest for each in epochs)


def shortest(full_rows: int) -> int:
    return max(1, round(SHORTEST * full_rows))


def rows_of_a_trial(pace: Pace, full_rows: int, seconds: float | None) -> int:
    """How many rows a trial sees: those of a full training, or fewer, so that enough trials and the repeats fit into
    the `seconds` of the search (None: so many trials were asked for, whatever they take)."""
    if seconds is None:
        return max(shortest(full_rows), full_rows // 3)
    each = seconds / _TRAININGS - EVALUATIONS * pace.look
    return int(min(full_rows, max(shortest(full_rows), each / pace.row)))


def reserved(pace: Pace, full_rows: int, left: float) -> float:
    """How much of the time that is `left` is for the full trainings: what they take, or a part of it, into which fewer
    rows fit, but as many as a trial has at least."""
    return min(pace.proof(full_rows), max(_MOST_PROOF * left, pace.proof(shortest(full_rows))))


def end_of_trials(pace: Pace, rows: int, end: float, begun: float) -> float:
    """When the last trial should have begun: the repeats come after it, and it should end by then more likely than
    not."""
    repeats = min(2 * REPEATS * pace.trial(rows), (end - begun) * 2 * REPEATS / _TRAININGS)
    return end - repeats - pace.trial(rows) / 2


def rows_of_the_proof(
    pace: Pace, full_rows: int, trial_rows: int, seconds: float, epochs: Sequence[float] = (1.0, 1.0)
) -> int:
    """How many rows the full trainings see, each `epochs` times: all, or as many as fit into the `seconds`."""
    rows = int((seconds - pace.proof(0, epochs)) / (sum(epochs) * pace.row))
    return full_rows if rows >= _NEARLY * full_rows else max(rows, min(trial_rows, full_rows))


def pace_of(assembled: Assembled, row: float, look: float, load: float) -> Pace:
    """The pace of a full training, from what was measured of a short one. Its answers are forecast, and corrected by
    how far the forecast of a row is from what was measured."""
    if assembled.skeleton is None:
        return Pace(row=row, look=look, load=load, rest=0.0)
    settings, data = assembled.settings, assembled.data
    machine = this_machine(assembled.cache, settings.device, settings.precision, measure=False)
    seen = forecast_training(assembled.skeleton, settings, workload_of(data, assembled.max_new_tokens), machine)
    answers = seen.evaluation * row * len(data.train) / max(seen.epoch_seconds, 1e-9)
    evaluations = 1 + -(-seen.plan.steps // seen.plan.eval_steps)
    return Pace(row=row, look=look, load=load, rest=evaluations * look + answers)
