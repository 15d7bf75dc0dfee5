"""The learning rate against closed forms."""

import math

import pytest

from afina.training import TrainingSettings, make_plan
from afina.training.plan import PlanFacts
from afina.training.schedule import learning_rate


def test_schedules() -> None:
    for name, end in (("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)):
        settings = TrainingSettings(epochs=1, learning_rate=1.0, batch_size=1, warmup=0.1, schedule=name)
        steps, _ = make_plan(settings, PlanFacts([10] * 100, 5, 32), 0)
        rates = [learning_rate(step, steps, settings) for step in range(101)]
        assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert rates[10] == 1.0
        assert rates[100] == pytest.approx(end)
    settings = TrainingSettings(epochs=1, learning_rate=1.0, batch_size=1, warmup=0, schedule="cosine")
    assert learning_rate(25, make_plan(settings, PlanFacts([10] * 100, 5, 32), 0)[0], settings) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )
