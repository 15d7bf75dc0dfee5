"""Afina adapts a pretrained language model to one task with LoRA.

import afina
result = afina.train(afina.RunSettings(data={"path": "examples.csv", "prompt": "{question}", "completion": "{answer}"}))
print(result.evaluation.scores["adapted"])
print(afina.generate(result.folder, ["How do I …?"]))
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports
from afina.version import __version__

if TYPE_CHECKING:
    from afina.core.errors import AfinaError as AfinaError
    from afina.data.load import load_data as load_data
    from afina.data.settings import DataSettings as DataSettings
    from afina.jobs.choose import choose as choose
    from afina.jobs.compare import Budget as Budget
    from afina.jobs.compare import compare as compare
    from afina.jobs.evaluate import evaluate as evaluate
    from afina.jobs.fit import fit as fit
    from afina.jobs.generate import generate as generate
    from afina.jobs.train import resume as resume
    from afina.jobs.train import train as train
    from afina.jobs.tune import Effort as Effort
    from afina.jobs.tune import tune as tune
    from afina.lora.config import LoraConfig as LoraConfig
    from afina.models.load import load_base as load_base
    from afina.settings import RunSettings as RunSettings
    from afina.training.settings import TrainingSettings as TrainingSettings

__getattr__, _names = exports(
    __name__,
    {
        "AfinaError": "afina.core.errors",
        "Budget": "afina.jobs.compare",
        "DataSettings": "afina.data.settings",
        "Effort": "afina.jobs.tune",
        "LoraConfig": "afina.lora.config",
        "RunSettings": "afina.settings",
        "TrainingSettings": "afina.training.settings",
        "choose": "afina.jobs.choose",
        "compare": "afina.jobs.compare",
        "evaluate": "afina.jobs.evaluate",
        "fit": "afina.jobs.fit",
        "generate": "afina.jobs.generate",
        "load_base": "afina.models.load",
        "load_data": "afina.data.load",
        "resume": "afina.jobs.train",
        "train": "afina.jobs.train",
        "tune": "afina.jobs.tune",
    },
)
__all__ = ["__version__", *_names]
