"""Tasks by name, and the default numbers of epochs."""

import pytest
from peft import TaskType

from afina.core.errors import SettingsError
from afina.core.task import CAUSAL, CLASSIFY, TASKS, task_named


def test_tasks_are_found_by_name_and_known_to_peft_and_transformers() -> None:
    import transformers

    for name, task in TASKS.items():
        assert task_named(name) is task
        assert task.task_type in TaskType.__members__
        assert hasattr(transformers, task.auto_class)
    with pytest.raises(SettingsError, match="Did you mean 'classify'"):
        task_named("clasify")


@pytest.mark.parametrize(
    ("task", "rows", "epochs"),
    [
        (CAUSAL, 10, 5),
        (CAUSAL, 640, 2),
        (CAUSAL, 9_000, 1),
        (CLASSIFY, 100, 10),
        (CLASSIFY, 10_000, 4),
        (CLASSIFY, 10**6, 3),
    ],
)
def test_fewer_rows_are_seen_more_often(task, rows: int, epochs: int) -> None:
    assert task.epoch_rule.epochs(rows) == epochs
