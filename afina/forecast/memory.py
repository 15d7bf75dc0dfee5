"""The memory that a training will hold, item by item, from shapes and lengths alone."""

from dataclasses import asdict, dataclass, replace

from afina.forecast.workload import Case, MicroBatches
from afina.measure.verification import REFERENCE_TOKENS
from afina.models import footprint as model_bytes
from afina.models.batcher import MAX_BATCH_SIZE, PREFILL_TOKENS
from afina.training.loss import TOKENS
from afina.training.optimizers import OPTIMIZERS

GB = 1e9
_BEST = 4  # bytes per trained number: the best weights so far
_PER_WORD = 1_300  # bytes of a tokenizer per word of its vocabulary
# Small blocks that are freed between micro-batches leave fragments in the heap, which the next ones, of other
# lengths, fill only in part; and the matrix library keeps some MB.
_FRAGMENTATION, _LIBRARY = 0.9, 50_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes of each item at the peak.

    `cache` is that of generation after training, when nothing else of training is held. `copies` of weights that are
    trained in full lie beside the frozen ones; their gradients take the place of activations, and are counted where
    they are more.
    """

    weights: int
    copies: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    cache: int
    overhead: int

    @property
    def training(self) -> int:
        return self.answering - self.cache + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def answering(self) -> int:
        return self.weights + self.copies + self.adapter + self.cache + self.overhead

    @property
    def total(self) -> int:
        return max(self.training, self.answering)

    def json(self) -> dict[str, float]:
        sums = {"total": self.total, "training": self.training, "answering": self.answering}
        return {k: v / GB for k, v in sums.items()} | {k: v / GB for k, v in asdict(self).items()}


def held(case: Case) -> Memory:
    """The items that do not depend on the rows."""
    base, machine, found = case.base, case.machine, case.trained
    size = model_bytes.element_size(machine.dtype)
    kept = OPTIMIZERS[case.settings.train.optimizer]
    masters = kept.master_bytes if size < 4 else 0
    weights = model_bytes.weight_bytes(base.module, machine.dtype, case.settings.quantize, case.base.heads)
    if case.settings.quantize == "keep":
        weights = base.file_bytes
    return Memory(
        weights=weights,
        copies=found.copies * size,
        adapter=(found.adapter + found.fixed) * (4 + size),
        gradients=found.adapter * 4,
        optimizer=found.adapter * (kept.moment_bytes + _BEST) + found.copies * (kept.moment_bytes + _BEST + masters),
        activations=0,
        logits=0,
        cache=0,
        overhead=machine.libraries + _PER_WORD * int(getattr(base.config, "vocab_size", 0)),
    )


def with_micro_batches(fixed: Memory, case: Case, batches: MicroBatches, recompute: bool) -> Memory:
    """`fixed`, with what the micro-batches of training and the generation after it take."""
    base, workload, found = case.base, case.workload, case.trained
    module, dtype = base.module, case.machine.dtype
    size = model_bytes.element_size(dtype)
    per_token = case.kept * found.depth
    layers = max(1, int(base.config.num_hidden_layers))
    if recompute:
        one_layer = per_token / layers
        per_token = model_bytes.layer_input_bytes(module, dtype) + one_layer
    transient = model_bytes.working_bytes(module, dtype)
    activations = batches.largest * max(per_token + transient / 2, transient)
    if case.machine.is_card:
        gathered = batches.paths * model_bytes.cache_bytes(module, dtype) * found.depth
        activations += gathered / layers if recompute else gathered
    elif case.machine.fused:
        activations += batches.largest * model_bytes.attention_sum_bytes(module)
    words = model_bytes.output_size(module)
    free = case.machine.available if case.machine.is_card else 0
    logits = model_bytes.logit_bytes(module, dtype, max(1, round(batches.largest * workload.labelled)), free)
    head = words * int(base.config.hidden_size)
    if case.settings.method in ("full", "head") and base.task.continues_text:
        logits += (4 + size) * head  # the head's gradient in fp32, and in its own format
    # Activations are freed while gradients are computed, but those of an earlier micro-batch of the step are held
    # already. When the optimiser steps, all gradients of copies are held in fp32, and the head's in its own format
    # too.
    in_fp32 = found.copies * 4 + min(found.copies, head) * size
    earlier = found.copies * size if batches.summed else 0
    moving = max(
        activations + logits + earlier,
        in_fp32,
        min(TOKENS, workload.held_out) * transient + REFERENCE_TOKENS * words * (size + 4),
    )
    kept_logits = REFERENCE_TOKENS * words * 4  # of the best weights, for the verification after training
    slots = min(MAX_BATCH_SIZE, workload.asked)
    cache = min(PREFILL_TOKENS, slots * workload.longest) * transient + slots * words * (size + 4)
    if base.task.writes_text:
        cache += slots * (workload.longest + workload.most_new) * model_bytes.cache_bytes(module, dtype)
    fragments: float = 0
    if case.machine.heap:
        fragments = (
            _FRAGMENTATION
            * per_token
            / case.kept
            * model_bytes.heap_bytes(module, dtype, int(max(workload.lengths)), batches.largest)
        )
    gradients: float = moving if moving == in_fp32 else min(earlier, moving)
    of_logits = min(logits, moving - gradients)
    return replace(
        fixed,
        gradients=round(fixed.gradients + gradients),
        activations=round(moving - gradients - of_logits),
        logits=round(of_logits + kept_logits),
        cache=round(cache),
        overhead=round(fixed.overhead + fragments + _LIBRARY),
    )
