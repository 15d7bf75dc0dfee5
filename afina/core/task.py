"""What a model is adapted for: one object for each task, which says all that the rest must know of it.

A setting names a task (`--task classify`). Code whose behaviour depends on the task asks the object, and never compares
names.
"""

from dataclasses import dataclass
from typing import Literal

from afina.core.errors import SettingsError, near

TaskName = Literal["causal", "classify", "seq2seq"]


@dataclass(frozen=True)
class EpochRule:
    """The default number of epochs: enough to see about `rows` rows in all, from `least` to `most` epochs."""

    rows: int
    least: int
    most: int

    def epochs(self, rows: int) -> float:
        """For a training set of `rows` rows."""
        return float(min(self.most, max(self.least, round(self.rows / rows))))


@dataclass(frozen=True)
class Task:
    """`task_type` is PEFT's, `auto_class` the class of `transformers` that loads such a model, `model_kind` the
    catalogue's word for one.

    A model that `continues_text` answers in the same sequence as its prompt, which a chat template renders, so that
    prompts and plain text have a loss too. One that `writes_text` generates it token by token; any other predicts one
    of a fixed set of classes. `kind` is the only kind of data that can be learned, where there is only one.
    `batch_size` is the default, in rows per optimiser step.
    """

    name: TaskName
    task_type: str
    auto_class: str
    model_kind: str
    continues_text: bool
    writes_text: bool
    kind: Literal["classification"] | None
    batch_size: int
    epoch_rule: EpochRule

    @property
    def needs_classes(self) -> bool:
        """Whether the model has a new head over classes, and each row one label, the number of its class."""
        return not self.writes_text


CAUSAL = Task(
    name="causal",
    task_type="CAUSAL_LM",
    auto_class="AutoModelForCausalLM",
    model_kind="instruct",
    continues_text=True,
    writes_text=True,
    kind=None,
    batch_size=8,
    epoch_rule=EpochRule(rows=1_600, least=1, most=5),
)
CLASSIFY = Task(
    name="classify",
    task_type="SEQ_CLS",
    auto_class="AutoModelForSequenceClassification",
    model_kind="encoder",
    continues_text=False,
    writes_text=False,
    kind="classification",
    batch_size=32,
    epoch_rule=EpochRule(rows=40_000, least=3, most=10),  # much less is learned from one label per row
)
SEQ2SEQ = Task(
    name="seq2seq",
    task_type="SEQ_2_SEQ_LM",
    auto_class="AutoModelForSeq2SeqLM",
    model_kind="seq2seq",
    continues_text=False,
    writes_text=True,
    kind=None,
    batch_size=8,
    epoch_rule=CAUSAL.epoch_rule,
)
TASKS: dict[str, Task] = {task.name: task for task in (CAUSAL, CLASSIFY, SEQ2SEQ)}


def task_named(name: str) -> Task:
    """Raises `SettingsError` that names the tasks."""
    if name not in TASKS:
        raise SettingsError(f"there is no task {name!r}.{near(name, list(TASKS))}", f"choose from {', '.join(TASKS)}")
    return TASKS[name]
