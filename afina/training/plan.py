"""The plan of a training: its settings with nothing left open, and the rules that fill in what was."""

from collections.abc import Sequence
from dataclasses import dataclass

from afina.core.config import Settings
from afina.core.errors import counted
from afina.core.task import CAUSAL, Task
from afina.data.batch import epoch_order
from afina.engine.grouping import grouped
from afina.training.baselines import RATE_AS_FULL
from afina.training.optimizers import OPTIMIZERS
from afina.training.settings import Method, TrainingSettings


class Plan(Settings):
    """Training settings with nothing left open."""

    epochs: float
    steps: int
    steps_per_epoch: int
    batch_size: int
    tokens_per_batch: int | None = None
    learning_rate: float
    eval_steps: int
    checkpoint_activations: bool

    def settings(self) -> dict[str, float]:
        """Those of the training settings that can be left open, by name."""
        names = {"epochs", "batch_size", "learning_rate", "eval_steps", "checkpoint_activations"}
        return self.model_dump(include=names if self.tokens_per_batch is None else names - {"batch_size"})

    def batches(
        self, lengths: Sequence[int], seed: int, epoch: int, prompts: Sequence[int] | None = None
    ) -> list[list[int]]:
        """The rows of each optimiser step in `epoch` (0 first), by number; `lengths` are theirs, in tokens. Of those of
        the same of `prompts`, where given, as many come together as a step has rows."""
        order = epoch_order(len(lengths), seed, epoch, prompts, self.batch_size)
        return _batches(self.batch_size, self.tokens_per_batch, lengths, order)


# The best rate for full fine-tuning falls with the model's width; that for what is small and new is about ten times as
# high, and up to fifteen times in runs of under a hundred steps, nearly independent of rank ("LoRA Without Regret",
# 2025). LoRA learns better at twice that, but not answers of a single word, for which it forgets far more
# (docs/decisions.md).
_FULL_RATE_AT_2048 = 2e-5
_FACTOR, _SHORT_RUN_FACTOR, _SHORT_RUN = 10, 15, 100
_LONGER, _WORD = 2, 4  # times that rate, for answers of so many tokens and more
_SHARE = 0.6  # of the free memory that activations may take; matrix products and the allocator want some too


@dataclass(frozen=True)
class PlanFacts:
    """What the rules look at beside the settings: the `lengths` of the training rows in tokens, of which `labelled`
    have a loss on average, the model's width, its task, the bytes per token that the backward pass keeps, and the bytes
    that are free for them."""

    lengths: Sequence[int]
    labelled: float
    hidden_size: int
    task: Task = CAUSAL
    activation_bytes: int = 0
    free_bytes: int = 0


def make_plan(
    settings: TrainingSettings, facts: PlanFacts, seed: int, method: Method = "lora"
) -> tuple[Plan, list[str]]:
    """Fills in by rule what `settings` leave open; the plan, and a line with the reason of each choice."""
    reasons: list[str] = []
    rows = len(facts.lengths)
    epochs = settings.epochs if settings.rows is None else settings.rows / rows
    if epochs is None:
        rule = facts.task.epoch_rule
        epochs = rule.epochs(rows)
        reasons.append(
            f"epochs {epochs:g}: enough to see about {rule.rows:,} rows, {rule.least} to {rule.most}; "
            f"the file has {counted(rows, 'row')}"
        )
    size = settings.batch_size or facts.task.batch_size
    order = epoch_order(rows, seed, 0)
    per_epoch = len(_batches(size, settings.tokens_per_batch, facts.lengths, order))
    steps = max(1, round(epochs * per_epoch))
    rate = settings.learning_rate
    if rate is None:
        rate, reason = _learning_rate(facts, steps, method, OPTIMIZERS[settings.optimizer].rate_factor)
        reasons.append(reason)
    every = settings.eval_steps
    if every is None:
        every = max(1, -(-steps // 5))
        reasons.append(f"held-out evaluation every {every} of {counted(steps, 'step')}: about five times")
    recompute = settings.checkpoint_activations
    if recompute is None:
        recompute = _is_short_of_memory(settings, facts)
        if recompute:
            reasons.append(
                f"activations are recomputed in the backward pass, to save memory: a micro-batch would need "
                f"{_activations(settings, facts) / 1e9:.1f} GB, {facts.free_bytes / 1e9:.1f} GB are free"
            )
    return Plan(
        epochs=epochs,
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=size,
        tokens_per_batch=settings.tokens_per_batch,
        learning_rate=rate,
        eval_steps=every,
        checkpoint_activations=recompute,
    ), reasons


def _batches(
    batch_size: int, tokens_per_batch: int | None, lengths: Sequence[int], order: Sequence[int]
) -> list[list[int]]:
    """The rows in `order`, in batches of `batch_size` rows, or where given of up to `tokens_per_batch` tokens."""
    if tokens_per_batch is None:
        return [list(order[at : at + batch_size]) for at in range(0, len(order), batch_size)]
    return grouped(order, lambda row: int(lengths[row]), tokens_per_batch)


def _learning_rate(facts: PlanFacts, steps: int, method: Method, rate_factor: float) -> tuple[float, str]:
    """The rate, and its reason."""
    factor, why = 1, []
    if method not in RATE_AS_FULL:
        factor = _FACTOR
        if steps < _SHORT_RUN:
            factor = _SHORT_RUN_FACTOR
            why.append(f"a short run of {counted(steps, 'step')}")
        if method == "lora" and facts.labelled >= _WORD:
            factor *= _LONGER
        elif method == "lora" and facts.task.writes_text:
            why.append("half of what suits answers of more than a word")
    rate = float(f"{rate_factor * factor * _FULL_RATE_AT_2048 * (2048 / facts.hidden_size):.2g}")
    because = f" ({'; '.join(why)})" if why else ""
    return rate, (
        f"learning rate {rate:g}: {factor} times what suits full fine-tuning at width {facts.hidden_size}{because}"
    )


def _activations(settings: TrainingSettings, facts: PlanFacts) -> int:
    """Bytes of the largest micro-batch: one of the limit in tokens, or the longest row alone."""
    tokens = max(int(max(facts.lengths)), min(settings.tokens_per_pass, int(sum(facts.lengths))))
    return tokens * facts.activation_bytes


def _is_short_of_memory(settings: TrainingSettings, facts: PlanFacts) -> bool:
    return _activations(settings, facts) > _SHARE * facts.free_bytes
