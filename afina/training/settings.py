"""What a user can say about training; `plan` fills in what is left open."""

from typing import Annotated, Literal

from afina.core.config import Settings, setting
from afina.core.registry import OneOf
from afina.training.objectives import OBJECTIVES
from afina.training.optimizers import OPTIMIZERS

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
    objective: Annotated[str, OneOf(OBJECTIVES)] = "supervised"
    """What a step learns from; supervised: the labelled tokens of the rows."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    """How gradients become steps."""
    epochs: float | None = setting(None, "--epochs", gt=0, le=100_000)
    """Epochs; by default enough to see about 1,600 rows, 1 to 5 (classifiers: 40,000 rows, 3 to 10)."""
    rows: int | None = setting(None, instead_of="epochs", ge=1)
    """Training rows to see in all, instead of a number of epochs."""
    batch_size: int | None = setting(None, ge=1)
    """Rows per optimiser step; by default 8 (classifiers: 32). Large batches hurt LoRA: stay under 32."""
    tokens_per_batch: int | None = setting(None, instead_of="batch_size", ge=1)
    """Most tokens per optimiser step, instead of a number of rows (a longer row goes alone)."""
    micro_batch_size: int | None = setting(None, ge=1)
    """Most rows per micro-batch; fewer than `batch_size` save memory and give the same gradients."""
    tokens_per_pass: int = setting(1024, ge=1)
    """Most tokens that are computed per micro-batch (a longer row goes alone); fewer save memory and give the same
    gradients."""
    share: bool = True
    """Compute what several rows of a micro-batch begin with only once: the same gradients, in less time and memory."""
    group_prompts: bool = False
    """Put rows of the same prompt into one step, up to its number of rows, where they share more; steps are then less
    varied."""
    learning_rate: float | None = setting(None, gt=0)
    """Highest learning rate; by default chosen from the model's width and the number of steps."""
    lora_plus_ratio: float = setting(1.0, gt=0)
    """LoRA+: B learns this many times as fast as A; 16 in the paper (Hayou et al. 2024,
    https://arxiv.org/abs/2402.12354)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up: to zero along a line or a cosine, or not at all."""
    warmup: float = setting(0.05, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises from zero."""
    weight_decay: float = setting(0.0, ge=0)
    """The optimiser's weight decay, for weights trained in full; A and B have none."""
    max_grad_norm: float = setting(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    checkpoint_activations: bool | None = None
    """Keep only each layer's input for the backward pass and recompute the rest: much less memory, a third slower; by
    default where memory would be short."""
    eval_steps: int | None = setting(None, ge=1)
    """Steps between two evaluations on the held-out rows; by default a fifth of the run."""
    checkpoint_steps: int = setting(50, ge=1)
    """Most steps that a killed run loses: how often its state is saved for `--resume`, beside every evaluation."""
    deterministic: bool = False
    """On a card, add in one order only, so that a run that is resumed ends with the same bits; slower. The processor
    does so always, and this changes nothing there."""
    samples: int = setting(0, ge=0, le=100)
    """How many prompts of the evaluation are answered after each look at the held-out rows, to be seen while it trains:
    it takes as long as the longest answer, and decides nothing. Plain text has no prompts."""
    early_stopping: int = setting(3, ge=0)
    """Stop after this many evaluations in a row without improvement; 0 never stops."""
