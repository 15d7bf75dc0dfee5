"""What a training will need, from shapes and lengths alone: memory, seconds, disk."""

from dataclasses import dataclass
from typing import Any

import torch

from afina.core.device import precision_of
from afina.forecast.machines import Machine
from afina.forecast.memory import GB, Memory, held, with_micro_batches
from afina.forecast.seconds import Seconds
from afina.forecast.through_transformers import slower
from afina.forecast.workload import Case, Workload, case_of, micro_batches_of
from afina.models.skeleton import Skeleton
from afina.settings import Facts, RunSettings, resolve
from afina.training.optimizers import OPTIMIZERS
from afina.training.plan import Plan


def shared_in_words(computed: float) -> str:
    """`Forecast.computed`; '' where next to nothing is shared."""
    return f"{100 * computed:.0f} % of the tokens are computed: the rest is shared" if computed < 0.995 else ""


@dataclass(frozen=True)
class Forecast:
    """What a training with these settings needs on a machine.

    `seconds` are those of the training, `evaluation` those of the evaluation after it. `disk` bytes are used at most
    (checkpoints included), of which `kept` remain. `computed` is the share of the rows' tokens that is computed: the
    rest is shared."""

    settings: RunSettings
    memory: Memory
    available: int
    seconds: float
    epoch_seconds: float
    evaluation: float
    download: int
    disk: int
    kept: int
    plan: Plan
    trained: int
    computed: float

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    def json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "memory_gb": self.memory.json(),
            "available_gb": self.available / GB,
            "seconds": self.seconds,
            "epoch_seconds": self.epoch_seconds,
            "evaluation_seconds": self.evaluation,
            "download_gb": self.download / GB,
            "disk_gb": self.disk / GB,
            "kept_gb": self.kept / GB,
            "epochs": self.plan.epochs,
            "steps": self.plan.steps,
            "checkpoint_activations": self.plan.checkpoint_activations,
            "trainable_parameters": self.trained,
            "computed": self.computed,
        }


def forecast_training(base: Skeleton, settings: RunSettings, workload: Workload, machine: Machine) -> Forecast:
    """What training `base` with `settings` on `workload` needs. Raises `AdapterError` and `SettingsError` as training
    does.
    """
    case = case_of(base, settings, workload, machine)
    trained, fixed = case.trained, held(case)
    plan = resolve(settings, _facts(case, max(0, machine.available - fixed.training))).plan
    batches = micro_batches_of(case, plan)
    seconds = Seconds(case, plan.checkpoint_activations, slower(case, batches), batches.computed)
    epoch_batches = seconds.training(batches)
    epoch = epoch_batches + seconds.steps(plan.steps_per_epoch)
    rehearsal = epoch_batches * batches.largest / batches.tokens
    # As many saves as evaluations: after each but the first, and in the end.
    evaluations = 1 + -(-plan.steps // plan.eval_steps)
    saved, optimizer = 4 * (trained.numbers + trained.fixed), OPTIMIZERS[settings.train.optimizer]
    weights = 4 * trained.numbers  # and as many of the best step
    state = 2 * weights + trained.numbers * (optimizer.master_bytes + optimizer.moment_bytes)
    written = (evaluations - 1 + plan.steps // settings.train.checkpoint_steps) * state + evaluations * saved
    evaluating = evaluations * (seconds.evaluation() + seconds.reference_logits() + seconds.samples())
    return Forecast(
        settings=settings,
        memory=with_micro_batches(fixed, case, batches, plan.checkpoint_activations),
        available=machine.available,
        seconds=rehearsal + epoch * plan.epochs + evaluating + written * machine.speed.write,
        epoch_seconds=epoch,
        evaluation=seconds.answers(),
        download=0 if base.is_local else base.file_bytes,
        disk=2 * state + saved,
        kept=saved,
        plan=plan,
        trained=trained.numbers,
        computed=batches.computed,
    )


def _facts(case: Case, free_bytes: int) -> Facts:
    base, machine = case.base, case.machine
    return Facts(
        task=base.task,
        lengths=case.workload.lengths,
        labelled=case.workload.labelled * sum(case.workload.lengths) / len(case.workload.lengths),
        hidden_size=int(base.config.hidden_size),
        activation_bytes=round(case.kept * case.trained.depth),
        free_bytes=free_bytes,
        precision=precision_of(machine.dtype),
        precision_reason=f"as on {machine.name}",
        threads=torch.get_num_threads(),
        base=base.name,
        revision=base.revision,
        heads=base.heads,
        trained=None if case.settings.method == "lora" else case.adapter,
    )
