"""The seconds of a training, from its shapes and the measured speed of a machine."""

from dataclasses import dataclass
from typing import Any

from afina.engine.ops import padded
from afina.forecast.speed import Width
from afina.forecast.workload import CHARACTERS, Case, MicroBatches, numbers_trained
from afina.lora.config import LoraConfig
from afina.measure.general_text import LANGUAGES, paragraphs
from afina.measure.outputs import ALONE
from afina.measure.verification import REFERENCE_TOKENS
from afina.models import footprint as model_bytes
from afina.models.batcher import MAX_BATCH_SIZE
from afina.training.baselines import RATE_AS_FULL
from afina.training.loss import TOKENS
from afina.training.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Slower:
    """How many times the seconds of Afina's own decoder a pass takes: of training, and of reading alone."""

    training: float
    reading: float


ALIKE = Slower(1.0, 1.0)


class Seconds:
    """The seconds of each thing that a training does, of one case. Of the tokens that it reads without gradients the
    share `computed` is, as of the training rows; the rest is shared."""

    def __init__(self, case: Case, recompute: bool, slower: Slower, computed: float = 1.0) -> None:
        self.case, self.speed, self.recompute, self.slower = case, case.machine.speed, recompute, slower
        self.computed = computed
        module, quantize = case.base.module, case.settings.quantize
        config: Any = case.base.config
        self.hidden, self.layers = int(config.hidden_size), int(config.num_hidden_layers)
        self.words = model_bytes.output_size(module)
        self.parameters = _layer_parameters(module)
        heads = int(getattr(config, "num_attention_heads", 1))
        self.channels = self.layers * heads * int(getattr(config, "head_dim", 0) or self.hidden // heads)
        self.width: Width = self.speed.at(self.hidden)
        quantised = model_bytes.quantised_layers(module, quantize, case.base.heads) if quantize else []
        self.unpack = sum(layer.weight.numel() for layer in quantised) * self.speed.unpack

    def training(self, batches: MicroBatches) -> float:
        """The forward and backward passes of an epoch."""
        width, speed, found = self.width, self.speed, self.case.trained
        usual = numbers_trained(self.case.base.module, LoraConfig()).adapter
        # The benchmark's adapters have rank 16, on all layers: others cost more or less beside the frozen product.
        lora = self.parameters + 1.5 * (found.adapter - usual if self.case.settings.method == "lora" else -usual)
        read = batches.count * width.forward.a_pass + batches.tokens * width.forward.a_token
        forward = self.parameters * read
        through = batches.count * width.lora.a_pass + batches.tokens * width.lora.a_token
        whole = batches.count * width.full.a_pass + batches.tokens * width.full.a_token
        seconds: float = forward + found.depth * max(0.0, lora * through - forward)
        if self.case.settings.method in RATE_AS_FULL:
            seconds += found.depth * self.parameters * max(0.0, whole - through)
        again = found.depth if self.recompute else 0.0  # the share of the layers that are computed twice
        seconds += again * forward
        attention = (1 + again) * speed.attention[0] + found.depth * (speed.attention[1] - speed.attention[0])
        seconds += attention * batches.square * self.channels
        kind = 2 if self.case.settings.method in ("full", "head") else 1 if found.depth else 0
        labelled = max(batches.labelled, batches.count * padded(1)) if self.case.base.is_decoder else batches.labelled
        seconds += labelled * self.words * self.hidden * speed.head[kind]
        passes = batches.count * (1 + again + found.depth)
        return self._run(seconds + passes * self.unpack, passes) * self.slower.training

    def _run(self, seconds: float, passes: float) -> float:
        """The time of so many passes through the layers: a card runs kernels while later ones are launched."""
        return max(seconds, passes * self.layers * self.speed.launch)

    def steps(self, count: int) -> float:
        optimizer = OPTIMIZERS[self.case.settings.train.optimizer]
        return count * self.case.trained.numbers * self.speed.adam * optimizer.step_cost

    def reading(self, tokens: float, passes: float, square: float, labelled: float) -> float:
        """Forward passes without gradients."""
        rates = self.width.adapted if self.case.settings.method == "lora" else self.width.forward
        layers = self.parameters * (passes * rates.a_pass + tokens * rates.a_token)
        attention = self.speed.attention[0] * square * self.channels
        head = labelled * self.words * self.hidden * self.speed.head[0]
        return self._run(layers + attention + head + passes * self.unpack, passes) * self.slower.reading

    def evaluation(self) -> float:
        """One evaluation of the held-out loss."""
        workload = self.case.workload
        mean = workload.tokens / max(1, len(workload.lengths))
        tokens = self.computed * workload.held_out
        return self.reading(tokens, -(-tokens // TOKENS), tokens * mean / 2, workload.held_out * workload.labelled)

    def reference_logits(self) -> float:
        """The logits that are kept for the verification after training."""
        workload = self.case.workload
        tokens = min(REFERENCE_TOKENS / workload.labelled, workload.held_out)
        return self.reading(tokens, min(1, workload.held_out), 0, tokens * workload.labelled)

    def answers(self) -> float:
        """The answers of the base and of the adapted model, after training."""
        workload = self.case.workload
        prompts = self.computed * workload.asked * workload.prompt
        read = self.reading(
            prompts, -(-workload.asked // MAX_BATCH_SIZE), prompts * workload.prompt / 2, workload.asked
        )
        if not self.case.base.task.writes_text:
            return 2 * read
        general = sum(len(text) for name in LANGUAGES for text in paragraphs(name)) / CHARACTERS
        read += self.reading(general, -(-general // TOKENS), 0, general)
        steps: float = (workload.asked / MAX_BATCH_SIZE + ALONE) * (
            min(workload.most_new, 2 * workload.answer) + workload.answer
        )
        return float(2 * read + self._steps(steps, MAX_BATCH_SIZE))

    def samples(self) -> float:
        """The answers to the few prompts that are asked after an evaluation."""
        workload, count = self.case.workload, self.case.settings.train.samples
        if not count:
            return 0.0
        prompts = self.computed * count * workload.prompt
        read = self.reading(prompts, 1, prompts * workload.prompt / 2, count)
        steps = min(workload.most_new, 2 * workload.answer) if self.case.base.task.writes_text else 0
        return float(read + self._steps(steps, count))

    def _steps(self, steps: float, rows: int) -> float:
        """So many tokens more of each of `rows` answers."""
        few = self.parameters * self.width.few
        seconds: float = few + rows * self.words * self.hidden * self.speed.head[0] + self.unpack
        return self._run(steps * seconds, steps) * self.slower.reading


def _layer_parameters(module: Any) -> int:
    """The parameters of the repeated layers: all but the token embeddings and the head."""
    words = module.get_input_embeddings().weight
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    left_out = {id(words)} | ({id(head.weight)} if head is not None else set())
    return sum(p.numel() for p in module.parameters() if id(p) not in left_out)
