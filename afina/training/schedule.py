"""The learning rate at each step."""

import math

from afina.training.plan import Plan
from afina.training.settings import TrainingSettings


def learning_rate(step: int, plan: Plan, settings: TrainingSettings) -> float:
    """The learning rate of optimiser step `step` (0 first): a linear warm-up, then the schedule's decay."""
    warmup = round(settings.warmup * plan.steps)
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, plan.steps - warmup)
    if settings.schedule == "linear":
        return plan.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return plan.learning_rate
