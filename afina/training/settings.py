"""What a user can say about training, and the rules that fill in what was left open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from afina.core.config import Settings, setting
from afina.core.task import CAUSAL, Task
from afina.data.batch import epoch_order, grouped

Method = Literal["lora", "full", "head", "last", "bias"]  # what is trained (baselines.py)
METHOD_NAMES: dict[str, str] = {
    "lora": "LoRA",
    "full": "full fine-tuning",
    "head": "a trained head over frozen features",
    "last": "its last layers trained",
    "bias": "its biases trained",
}
MOST_BATCH = 32  # larger ones hurt LoRA


class TrainingSettings(Settings):
    epochs: float | None = setting(None, "--epochs", gt=0, le=100_000)
    """Passes over the training rows; by default enough for about 1,600 rows, 1 to 5 (classifiers: 40,000 rows, 3 to 10)."""
    rows: int | None = setting(None, ge=1)
    """Training rows to see in all, instead of a number of passes."""
    batch_size: int | None = setting(None, ge=1)
    """Rows an optimiser step; by default 8 (classifiers: 32). Large batches hurt LoRA: stay under 32."""
    tokens_per_batch: int | None = setting(None, ge=1)
    """Most tokens an optimiser step, instead of a number of rows (a longer row goes alone)."""
    micro_batch_size: int | None = setting(None, ge=1)
    """Most rows a forward pass; fewer than `batch_size` saves memory and gives the same gradients."""
    tokens_per_pass: int = setting(1024, ge=1)
    """Most tokens a forward pass (a longer row goes alone); fewer save memory and give the same gradients."""
    learning_rate: float | None = setting(None, gt=0)
    """Highest learning rate; by default chosen from the model's width and the number of steps."""
    lora_plus_ratio: float = setting(1.0, gt=0)
    """LoRA+: B learns this many times as fast as A; 16 in the paper (Hayou et al. 2024, https://arxiv.org/abs/2402.12354)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up: to zero along a line or a cosine, or not at all."""
    warmup: float = setting(0.05, ge=0, lt=1)
    """Part of the steps in which the learning rate rises from zero."""
    weight_decay: float = setting(0.0, ge=0)
    """AdamW's weight decay, of weights trained whole; A and B have none."""
    max_grad_norm: float = setting(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    checkpoint_activations: bool | None = None
    """Keep only each layer's input for the backward pass and compute the rest again: much less memory, a third slower; by
    default where memory would be short."""
    eval_steps: int | None = setting(None, ge=1)
    """Steps between two evaluations on the held-out rows; by default a fifth of the run."""
    checkpoint_steps: int = setting(50, ge=1)
    """Most steps that a killed run loses: how often its state is saved for `--resume`, beside every evaluation."""
    early_stopping: int = setting(3, ge=0)
    """Stop after this many evaluations in a row without improvement; 0 never stops."""


class Plan(Settings):
    """Training settings with nothing left open."""

    epochs: float
    steps: int
    steps_per_epoch: int
    learning_rate: float
    eval_steps: int
    checkpoint_activations: bool


# The best rate for full fine-tuning falls with the model's width; LoRA's is about ten times that, and up to fifteen in runs
# of under a hundred steps, nearly independent of rank ("LoRA Without Regret", 2025).
_FULL_RATE_AT_2048 = 2e-5
_LORA_FACTOR, _SHORT_RUN_FACTOR, _SHORT_RUN = 10, 15, 100
_SHARE = 0.6  # of the free memory that activations may take; products and the allocator want some too


def batches(settings: TrainingSettings, lengths: Sequence[int], seed: int, epoch: int) -> list[list[int]]:
    """The rows of each optimiser step in `epoch` (0 first), by number; `lengths` are theirs, in tokens."""
    order = epoch_order(len(lengths), seed, epoch)
    if settings.tokens_per_batch is None:
        size = settings.batch_size or CAUSAL.batch_size
        return [order[at : at + size] for at in range(0, len(order), size)]
    return grouped(order, lambda row: int(lengths[row]), settings.tokens_per_batch)


@dataclass(frozen=True)
class Model:
    """What the rules look at: the width, the bytes a token that the backward pass keeps, and the bytes that are free."""

    hidden_size: int
    activation_bytes: int = 0
    free_bytes: int = 0
    task: Task = CAUSAL
    whole: bool = False  # weights are trained whole, which calls for smaller steps than an adapter


def plan(settings: TrainingSettings, lengths: Sequence[int], model: Model, seed: int) -> tuple[Plan, list[str]]:
    """Fills in what was left open, by rule; and every choice with its reason, one a line. `lengths` of the training rows."""
    reasons = []
    rows = len(lengths)
    epochs = settings.epochs if settings.rows is None else settings.rows / rows
    if epochs is None:
        rule = model.task.epoch_rule
        epochs = rule.epochs(rows)
        reasons.append(
            f"epochs {epochs:g}: about {rule.rows:,} rows are seen, in {rule.least} to {rule.most} passes; "
            f"there are {rows} rows"
        )
    per_epoch = len(batches(settings, lengths, seed, 0))
    steps = max(1, round(epochs * per_epoch))
    rate = settings.learning_rate
    if rate is None:
        factor = 1 if model.whole else _SHORT_RUN_FACTOR if steps < _SHORT_RUN else _LORA_FACTOR
        rate = float(f"{factor * _FULL_RATE_AT_2048 * (2048 / model.hidden_size):.2g}")
        reasons.append(
            f"learning rate {rate:g}: {factor} times what suits full fine-tuning at width {model.hidden_size}"
            + (f" (a short run of {steps} steps)" if factor == _SHORT_RUN_FACTOR else "")
        )
    every = settings.eval_steps
    if every is None:
        every = max(1, -(-steps // 5))
        reasons.append(f"held-out evaluation every {every} of {steps} steps: about five times")
    recompute = settings.checkpoint_activations
    if recompute is None:
        needed = max(int(max(lengths)), min(settings.tokens_per_pass, int(sum(lengths)))) * model.activation_bytes
        recompute = needed > _SHARE * model.free_bytes
        if recompute:
            reasons.append(
                f"activations are computed twice, to keep memory: a pass would need {needed / 1e9:.1f} GB, "
                f"{model.free_bytes / 1e9:.1f} GB are free"
            )
    return (
        Plan(
            epochs=epochs,
            steps=steps,
            steps_per_epoch=per_epoch,
            learning_rate=rate,
            eval_steps=every,
            checkpoint_activations=recompute,
        ),
        reasons,
    )
