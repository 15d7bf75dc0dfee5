"""`eval --tasks`: score an adapted model and its base on tasks of the lm-evaluation-harness.

https://github.com/EleutherAI/lm-evaluation-harness
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afina.core.config import Result, Words, setting
from afina.core.errors import AdapterError, InputError, SettingsError, near
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.jobs._opening import OpenSettings
from afina.lora.adapters import unload
from afina.lora.merging import dequantise, merge
from afina.models.through_transformers import as_transformers, quiet
from afina.runs.facts import is_merged
from afina.runs.opening import Adapted

BATCH = 8  # rows that lm_eval pads to one length and reads at once


class HarnessSettings(OpenSettings):
    tasks: Words = setting(..., metavar="LIST", min_length=1)
    """Tasks of lm-evaluation-harness instead of DATA (pip install 'afina[lm-eval]'), with commas between: names or
    groups (`lm-eval ls tasks`; `*` matches several), or paths of tasks' YAML files."""
    limit: int | None = setting(None, metavar="N", ge=1)
    """Only the first N rows."""
    chat: bool = False
    """With --tasks: put the chat template around each question, as in training; published scores are mostly without."""


class HarnessResult(Result):
    tasks: dict[str, dict[str, dict[str, float | None]]]
    """By task and metric (as lm_eval names them): `base`, `base_stderr`, `adapted`, `adapted_stderr`, each None where
    lm_eval gives none."""
    rows: dict[str, int]
    """How many rows each task has."""


def harness(settings: HarnessSettings, listener: Listener = ignore) -> HarnessResult:
    """Runs lm_eval's `tasks` on the model with the adapter in `run` and on its base, on the first `limit` rows of each.

    Raises `InputError`, a `SettingsError` where lm_eval is not installed.
    """
    run, tasks = settings.run, settings.tasks
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SettingsError(f"lm_eval cannot be used: {error}", "pip install 'afina[lm-eval]'") from error
    if is_merged(run):
        raise AdapterError(f"{run} is a merged model, without a base to compare it with", "give the run it came from")
    with _quiet():
        manager = TaskManager()  # reads the headers of thousands of tasks: some seconds
        chosen = _load(manager, tasks)
    adapted = settings.open(listener)
    if not adapted.base.task.writes_text:
        raise AdapterError(
            f"{run} is a classifier, and lm_eval's tasks are for models that write text", "use afina eval"
        )

    def scores(name: str, model: Any) -> dict[str, Any]:
        listener(Notice(f"lm_eval: the {name} model on {', '.join(tasks)}"))
        tokenizer, longest = adapted.base.tokenizer.inner, adapted.base.facts.context_length
        with _quiet():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, max_length=longest)
            found: dict[str, Any] = simple_evaluate(
                lm,
                tasks=list(chosen),
                limit=settings.limit,
                apply_chat_template=settings.chat,
                log_samples=False,
                task_manager=manager,
            )
        return found

    with_adapter = scores("adapted", as_transformers(merge(adapted.base.model.module)))
    without = scores("base", as_transformers(_bare(adapted)))
    return HarnessResult(
        tasks={task: _side_by_side(found, with_adapter["results"][task]) for task, found in without["results"].items()},
        rows={task: int(n["effective"]) for task, n in without["n-samples"].items()},
    )


def _load(manager: Any, names: Sequence[str]) -> list[Any]:
    """The tasks and groups called `names`, with their data. Raises `SettingsError`, `InputError`."""
    chosen: dict[str, Any] = {}
    for name in names:
        matches = [name] if Path(name).suffix == ".yaml" and Path(name).is_file() else manager.match_tasks([name])
        if not matches:
            raise SettingsError(
                f"lm_eval has no task {name!r}.{near(name, manager.all_tasks)}",
                "`lm-eval ls tasks` lists them; a task of your own is given as the path of its YAML file",
            )
        for match in matches:
            try:
                found = manager.load([match])
            except Exception as error:  # whatever the task's own code, its data's reader or the network makes of it
                raise InputError(f"lm_eval's task {match} cannot be loaded: {type(error).__name__}: {error}") from error
            for task_name, task in found["tasks"].items():
                for mark, why in (
                    ("UNSAFE_CODE", "runs code that a model wrote"),
                    ("MULTIMODAL", "asks about pictures"),
                ):
                    if getattr(task, mark, False):
                        raise SettingsError(
                            f"lm_eval's task {task_name} {why}, which Afina does not do", "leave it out"
                        )
            chosen |= {match: found["groups"][match]} if match in found["groups"] else found["tasks"]
    try:
        manager.load(list(chosen.values()))
    except ValueError as error:  # a group, and a task of it
        raise SettingsError(f"lm_eval: {error}", "name each task once") from error
    return list(chosen.values())


def _bare(adapted: Adapted) -> Any:
    """The base's module, from which the adapter is removed for good; dequantised, as the merged one is."""
    module: Any = adapted.base.model.module
    unload(module)
    dequantise(module)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what lm_eval and transformers log; lm_eval's progress bars stay."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(before)


def _side_by_side(base: dict[str, Any], adapted: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """The metrics of one task. lm_eval's keys are "metric,filter" and "metric_stderr,filter"; a filter "none" is
    dropped."""

    def number(scores: dict[str, Any], key: str) -> float | None:
        value = scores.get(key)
        return float(value) if isinstance(value, int | float) else None

    table = {}
    for key in base:
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = f"{metric}_stderr,{kind}"
            table[metric if kind == "none" else key] = {
                "base": number(base, key),
                "base_stderr": number(base, error),
                "adapted": number(adapted, key),
                "adapted_stderr": number(adapted, error),
            }
    return table


JOB = Job.of(harness)
