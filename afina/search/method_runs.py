"""The runs that a comparison of methods consists of, each in a process of its own (`runs.worker`).

The base is evaluated, or a learning rate is searched for and a full training made with it.
"""

from pathlib import Path
from typing import Any

from afina.core.config import build, changed
from afina.core.device import memory_gb, peak_memory_gb, pick_device
from afina.core.errors import NonFiniteLoss, RunFailed
from afina.core.events import Listener, Notice
from afina.core.files import write_json
from afina.measure.evaluator import evaluate_outputs
from afina.measure.outputs import cached_outputs, outputs_of
from afina.models.load import import_libraries
from afina.runs.assemble import assemble
from afina.runs.folder import record
from afina.runs.training import resume_run, train_run
from afina.search.few_shot import after_examples
from afina.search.files import Rates, kept
from afina.search.trial import TrialRunner
from afina.settings import RunSettings

RATES = (1 / 3, 1.0, 3.0)  # times the rule's rate; where the best is the first or the last, one more beyond it
_STEPS = 20  # of a trial of a rate, at least
_SHARE = 0.2  # of a full training


def ask_base(settings: dict[str, Any], folder: str, shots: bool, listener: Listener) -> None:
    """Evaluates the base as it is, or with some training rows before each prompt; writes the evaluation into
    `folder`.
    """
    wanted = build(RunSettings, settings)
    import_libraries()
    device = pick_device(wanted.device)
    start = memory_gb(device)
    assembled = assemble(wanted, listener)
    if shots and not assembled.base.task.writes_text:
        raise RunFailed("a classifier has no prompt in which it could be shown examples")
    asked = assembled.asked()
    plain = other = cached_outputs(assembled.base, asked, listener, "base", assembled.cache)
    if shots:
        other = outputs_of(assembled.base, after_examples(assembled, asked, listener), listener, "few-shot")
    cost = {"peak_memory_gb": peak_memory_gb(device), "start_memory_gb": start}
    write_json(Path(folder) / "cost.json", cost)
    record(Path(folder), evaluate_outputs(asked, plain, other))


def search_rate(settings: dict[str, Any], file: str, listener: Listener) -> None:
    """Tries learning rates on a fifth of the training, each from the same init on the same rows; `file` keeps each
    result.

    The search is the same for every method: three rates around the rule's, one more where the best is at the edge.
    """
    runner = TrialRunner(build(RunSettings, settings), listener)
    path = Path(file)
    before = kept(Rates.read, path, listener)
    found: dict[str, Any] = before.content if before else {"tried": []}
    plan, full_rows = runner.plan(runner.settings), runner.full_rows(runner.settings)
    rows = min(full_rows, max(_STEPS * plan.batch_size, round(_SHARE * full_rows)))

    def loss_at(rate: float) -> float:
        known = {each["rate"]: each["loss"] for each in found["tried"]}
        if rate not in known:
            entry = _try_rate(runner, rate, rows)
            loss = known[rate] = entry["loss"]
            listener(
                Notice(f"learning rate {rate:.2g}: held-out loss {'not finite' if loss is None else f'{loss:.3f}'}")
            )
            found["tried"].append(entry)
            write_json(path, found)
        return float("inf") if known[rate] is None else float(known[rate])

    rates = sorted(float(f"{factor * plan.learning_rate:.2g}") for factor in RATES)
    best = min(rates, key=loss_at)
    if best == rates[0]:
        best = min((best, float(f"{best * RATES[0]:.2g}")), key=loss_at)
    elif best == rates[-1]:
        best = min((best, float(f"{best * RATES[-1]:.2g}")), key=loss_at)
    write_json(path, found | {"rate": best})


def _try_rate(runner: TrialRunner, rate: float, rows: int) -> dict[str, Any]:
    """What a short training at `rate` reached; its loss is None where it diverged."""
    try:
        trial = runner.run(changed(runner.settings, {"train.learning_rate": rate}), rows)
    except NonFiniteLoss:
        return {"rate": rate, "loss": None, "tokens": 0, "seconds": 0.0, "rows": 0}
    return {
        "rate": rate,
        "loss": trial.loss,
        "tokens": trial.tokens,
        "seconds": trial.training_seconds,
        "rows": trial.rows,
    }


def train_method(settings: dict[str, Any], listener: Listener) -> None:
    """A full training with its evaluation; resumes one that was cut off."""
    wanted = build(RunSettings, settings)
    if (wanted.folder / "config.yaml").exists():
        resume_run(wanted.folder, listener)
    else:
        train_run(wanted, listener)
