"""Step 3, adapting: what a step learns from, how it changes the weights, and the loop.

Comes in: a base with trainable parameters, rows, settings. Goes out: trained parameters, and events on the way. What
requires a gradient is trained; the room knows no other difference between LoRA and its alternatives (`baselines`).
`settings`: what a user can say (`--train.*`); `plan`: the rules that fill in the rest. `objectives/`: what is learned
from rows, and the measure watched on held-out rows. `optimizers/`: one file per update rule. `loop`: steps,
evaluations, early stopping. `checkpoint`: what a killed run is resumed from. `loss`: the cross-entropy of rows.
`schedule`: the learning rate of each step. Public: `TrainingSettings`, `Plan`, `make_plan`, `Trainer`, `mean_loss`;
`objectives.OBJECTIVES`, `optimizers.OPTIMIZERS`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.training.loop import Trainer as Trainer
    from afina.training.loss import mean_loss as mean_loss
    from afina.training.plan import Plan as Plan
    from afina.training.plan import make_plan as make_plan
    from afina.training.settings import TrainingSettings as TrainingSettings

__getattr__, __all__ = exports(
    __name__,
    {
        "Plan": "afina.training.plan",
        "Trainer": "afina.training.loop",
        "TrainingSettings": "afina.training.settings",
        "make_plan": "afina.training.plan",
        "mean_loss": "afina.training.loss",
    },
)
