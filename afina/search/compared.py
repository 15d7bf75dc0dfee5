"""The parts of a comparison, each of which runs in a process of its own (worker.py): ask the base, find a learning rate, train."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from afina.core.config import build, changed
from afina.core.device import memory_gb, peak_memory_gb
from afina.core.errors import InputError, NonFiniteLoss, RunFailed
from afina.core.events import Listener, Notice
from afina.core.files import read_json, write_json
from afina.measure.evaluator import evaluate_outputs
from afina.measure.outputs import cached_outputs, outputs_of
from afina.models.load import import_libraries
from afina.runs.assemble import assemble
from afina.runs.folder import record
from afina.runs.training import resume_run, train_run
from afina.search.few_shot import after_examples
from afina.search.trial import Bench
from afina.settings import RunSettings

RATES = (1 / 3, 1.0, 3.0)  # times the rule's rate; where the best is the first or the last, one more beyond it
_STEPS = 20  # that a look at a rate takes at least
_SHARE = 0.2  # of the training


def ask_base(settings: dict[str, Any], folder: str, shots: bool, listener: Listener) -> None:
    """Evaluates the base as it is, or with some training rows before each question; `folder` gets what an evaluation writes."""
    import_libraries()
    start = memory_gb()
    whole = assemble(build(RunSettings, settings), listener)
    if shots and not whole.base.task.writes_text:
        raise RunFailed("a classifier names classes, and cannot be shown examples before a question")
    asked = whole.asked()
    plain = cached_outputs(whole.base, asked, listener, "base", whole.cache)
    other = outputs_of(whole.base, after_examples(whole, asked, listener), listener, "few-shot") if shots else plain
    cost = {"peak_memory_gb": peak_memory_gb(), "start_memory_gb": start}
    write_json(Path(folder) / "cost.json", cost)
    record(Path(folder), evaluate_outputs(asked, plain, other))


def search_rate(settings: dict[str, Any], file: str, listener: Listener) -> None:
    """Tries learning rates on a fifth of the training, from the same start on the same rows; `file` keeps each that was tried.

    The same for every method: three rates around the rule's, and one more where the best of them is at the edge.
    """
    bench = Bench(build(RunSettings, settings), listener)
    path = Path(file)
    found: dict[str, Any] = {"tried": []}
    with suppress(InputError):  # it is not there yet, or was damaged
        found |= read_json(path)
    plan, full_rows = bench.plan(bench.settings), bench.full_rows(bench.settings)
    rule = plan.learning_rate
    rows = min(full_rows, max(_STEPS * plan.batch_size, round(_SHARE * full_rows)))

    def look(rate: float) -> float:
        known = {each["rate"]: each["loss"] for each in found["tried"]}
        if rate not in known:
            try:
                trial = bench.run(changed(bench.settings, {"train.learning_rate": rate}), rows, listener=listener)
                entry: dict[str, Any] = {
                    "rate": rate,
                    "loss": trial.loss,
                    "tokens": trial.tokens,
                    "seconds": trial.training_seconds,
                }
                entry["rows"] = trial.rows
            except NonFiniteLoss:
                entry = {"rate": rate, "loss": None, "tokens": 0, "seconds": 0.0, "rows": 0}
            loss = entry["loss"]
            listener(
                Notice(f"learning rate {rate:.2g}: held-out loss {'not finite' if loss is None else f'{loss:.3f}'}")
            )
            found["tried"].append(entry)
            write_json(path, found)
            known[rate] = loss
        return float("inf") if known[rate] is None else known[rate]

    rates = sorted(float(f"{factor * rule:.2g}") for factor in RATES)
    best = min(rates, key=look)
    if best == rates[0]:
        best = min((best, float(f"{best * RATES[0]:.2g}")), key=look)
    elif best == rates[-1]:
        best = min((best, float(f"{best * RATES[-1]:.2g}")), key=look)
    write_json(path, found | {"rate": best})


def train_method(settings: dict[str, Any], listener: Listener) -> None:
    """A whole training with its evaluation; goes on with one that was cut off."""
    made = build(RunSettings, settings)
    if (made.folder / "config.yaml").exists():
        resume_run(made.folder, listener)
    else:
        train_run(made, listener)
