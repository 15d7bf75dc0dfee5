"""The minutes of a search: simulated with paces from that of a toy to that of a model that is too large for them."""

import pytest

from afina.search.time_plan import (
    REPEATS,
    Pace,
    end_of_trials,
    reserved,
    rows_of_a_trial,
    rows_of_the_proof,
    shortest,
)

PACES = {
    "toy": (Pace(row=0.001, look=0.05, load=3, rest=2), 200),
    "tickets": (Pace(row=0.12, look=1.5, load=6, rest=40), 900),
    "long rows": (Pace(row=3.0, look=30, load=10, rest=200), 300),
    "many rows": (Pace(row=0.1, look=2, load=60, rest=60), 100_000),
    "slow answers": (Pace(row=0.01, look=0.5, load=5, rest=400), 1000),
    "long loading": (Pace(row=0.02, look=0.5, load=120, rest=5), 500),
}


def simulated(pace: Pace, full: int, minutes: float, epochs: float = 1.0, late: float = 1.0):
    """What the command takes, and how many trials, repeats and rows of the proof it comes to; the best has `epochs`
    times the rows, and work is `late` times what the pace says."""
    now = late * (pace.load + 16 * pace.trial(shortest(full)) / 8)  # loading, and a range test of some steps
    deadline = 60 * minutes
    proof = reserved(pace, full, deadline - now)
    rows = rows_of_a_trial(pace, full, deadline - now - proof)
    until, end, trials = end_of_trials(pace, rows, deadline - proof, now), deadline - proof, 0
    while now < until or not trials:
        now, trials = now + late * pace.trial(rows), trials + 1
    repeats = 0
    while now + pace.repeat(rows, epochs) / 2 <= end and repeats < REPEATS:
        now, repeats = now + late * pace.repeat(rows, epochs), repeats + 1
    proof_rows = rows_of_the_proof(pace, full, rows, deadline - now, (1.0, epochs))
    return now + late * pace.proof(proof_rows, (1.0, epochs)), trials, repeats, proof_rows, rows


@pytest.mark.parametrize("name", PACES)
@pytest.mark.parametrize("minutes", [2, 10, 45, 240])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.0])
def test_the_command_ends_within_its_minutes(name: str, minutes: float, epochs: float) -> None:
    pace, full = PACES[name]
    took, trials, repeats, proof, rows = simulated(pace, full, minutes, epochs)
    least = pace.load + 3 * pace.trial(shortest(full)) + pace.proof(shortest(full))  # nothing can be left out
    assert took <= max(1.1 * 60 * minutes, 1.2 * least)
    assert shortest(full) <= rows <= full
    assert min(rows, full) <= proof <= full
    if epochs <= 1 and 60 * minutes >= 3 * pace.proof(full):  # there is time for everything
        assert proof == full
        assert repeats == REPEATS
        assert trials >= 8
    if 60 * minutes > 2 * least:
        assert took >= 0.6 * 60 * minutes  # and it is used


@pytest.mark.parametrize("name", ["tickets", "long rows", "many rows"])
def test_work_that_is_slower_than_it_was_takes_from_what_comes_after_it(name: str) -> None:
    pace, full = PACES[name]
    minutes = 3 * pace.proof(full) / 60
    on_time, late = (simulated(pace, full, minutes, late=factor) for factor in (1.0, 1.3))
    assert late[0] <= 1.2 * 60 * minutes
    assert late[1] < on_time[1]


def test_a_number_of_trials_takes_what_it_takes() -> None:
    pace, full = PACES["tickets"]
    assert rows_of_a_trial(pace, full, None) == full // 3
    assert rows_of_a_trial(pace, 10, None) == 3
    assert rows_of_a_trial(pace, 2, None) == 1
