"""Afina adapts a pretrained language model to one task with LoRA.

import afina
data = afina.DataSettings(path="examples.csv", prompt="{question}", completion="{answer}")
result = afina.train(afina.RunSettings(data=data, out="runs/first"))
print(result.evaluation.adapted)
print(afina.generate(afina.GenerateSettings(run=result.folder, prompts=["How do I …?"])).rows)

Every function takes its settings and, if wanted, a listener to what happens; `JOBS` lists all that the command line
can do.
"""

from afina.core.lazy import exports
from afina.core.process.runtime import set_environment
from afina.version import __version__

TYPE_CHECKING = False  # not typing's: see __main__
if TYPE_CHECKING:
    from afina.core.errors import AfinaError as AfinaError
    from afina.data.load import load_data as load_data
    from afina.data.settings import DataSettings as DataSettings
    from afina.jobs import JOBS as JOBS
    from afina.jobs.choose import ChooseSettings as ChooseSettings
    from afina.jobs.choose import choose as choose
    from afina.jobs.compare import CompareSettings as CompareSettings
    from afina.jobs.compare import compare as compare
    from afina.jobs.evaluate import EvaluateSettings as EvaluateSettings
    from afina.jobs.evaluate import evaluate as evaluate
    from afina.jobs.export import ExportSettings as ExportSettings
    from afina.jobs.export import export as export
    from afina.jobs.fit import FitSettings as FitSettings
    from afina.jobs.fit import fit as fit
    from afina.jobs.generate import GenerateSettings as GenerateSettings
    from afina.jobs.generate import generate as generate
    from afina.jobs.resume import ResumeSettings as ResumeSettings
    from afina.jobs.resume import resume as resume
    from afina.jobs.train import train as train
    from afina.jobs.tune import TuneSettings as TuneSettings
    from afina.jobs.tune import tune as tune
    from afina.lora.config import LoraConfig as LoraConfig
    from afina.models.load import load_base as load_base
    from afina.settings import RunSettings as RunSettings
    from afina.training.settings import TrainingSettings as TrainingSettings

set_environment()
__getattr__, _names = exports(
    __name__,
    {
        "AfinaError": "afina.core.errors",
        "ChooseSettings": "afina.jobs.choose",
        "CompareSettings": "afina.jobs.compare",
        "DataSettings": "afina.data.settings",
        "EvaluateSettings": "afina.jobs.evaluate",
        "ExportSettings": "afina.jobs.export",
        "FitSettings": "afina.jobs.fit",
        "GenerateSettings": "afina.jobs.generate",
        "JOBS": "afina.jobs",
        "LoraConfig": "afina.lora.config",
        "ResumeSettings": "afina.jobs.resume",
        "RunSettings": "afina.settings",
        "TrainingSettings": "afina.training.settings",
        "TuneSettings": "afina.jobs.tune",
        "choose": "afina.jobs.choose",
        "compare": "afina.jobs.compare",
        "evaluate": "afina.jobs.evaluate",
        "export": "afina.jobs.export",
        "fit": "afina.jobs.fit",
        "generate": "afina.jobs.generate",
        "load_base": "afina.models.load",
        "load_data": "afina.data.load",
        "resume": "afina.jobs.resume",
        "train": "afina.jobs.train",
        "tune": "afina.jobs.tune",
    },
)
__all__ = ["__version__", *_names]
