"""What the parts of gpu.py share: shapes, random models made on the device, rows, one training step, the limit."""

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from common import ALPHA, RANK, RATE, TARGETS
from torch import nn

from afina.core.device import cache_folder, device_name, pick_dtype, wait_for
from afina.data.template import Row
from afina.engine import ops
from afina.engine.blocks import quantise_linears
from afina.engine.decoder import Decoder
from afina.engine.families import architecture_of
from afina.lora import LoraConfig, inject
from afina.models.causal import DecoderModel
from afina.models.load import Base
from afina.models.skeleton import decoder_skeleton
from afina.training.accumulation import add_gradients, micro_batches
from afina.training.loss import device_of
from afina.training.loss_scale import LossScale
from afina.training.objectives import OBJECTIVES
from afina.training.optimizer import Optimizer


@dataclass(frozen=True)
class Shape:
    """The sizes of a public model of Llama's family."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    words: int
    tied: bool

    def config(self, positions: int = 4096) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.words, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=positions, tie_word_embeddings=self.tied, rope_theta=500_000.0, eos_token_id=2,
        )  # fmt: skip

    def operations(self, length: float) -> float:
        """Floating-point operations of training an adapter on a labelled token of rows of so many tokens: the products
        with the frozen weights forward and for their input's gradient, and causal attention with its backward pass."""
        head_dim = self.hidden // self.heads
        attention = 2 * self.hidden * (self.hidden + self.kv_heads * head_dim)
        products = self.layers * (attention + 3 * self.hidden * self.inner) + self.words * self.hidden
        return 4 * products + 14 * self.layers * self.hidden * length / 2


SHAPES = {
    "135M": Shape(576, 1536, 30, 9, 3, 49_152, True),  # SmolLM2-135M
    "1.7B": Shape(2048, 8192, 24, 32, 32, 49_152, True),  # SmolLM2-1.7B
    "8B": Shape(4096, 14_336, 32, 32, 8, 128_256, False),  # Llama 3.1 8B
}
TINY = {"tiny": Shape(64, 128, 2, 4, 2, 320, True)}


@dataclass(frozen=True)
class Place:
    """Where the benchmark runs, and how much of it."""

    device: torch.device
    tiny: bool

    @property
    def shapes(self) -> dict[str, Shape]:
        return TINY if self.tiny else SHAPES

    @property
    def dtype(self) -> torch.dtype:
        """What speed is measured in: what a run would take there."""
        return torch.float32 if self.device.type == "cpu" else pick_dtype("auto", self.device, cache_folder())[0]

    def describe(self) -> str:
        by = ops.why_torch(self.device) or (type(ops.chosen(self.device, cache_folder())).__name__,)
        text = f"{device_name(self.device)}, torch {torch.__version__}, {self.dtype}, {'; '.join(by)}"
        if self.device.type != "cuda":
            return text
        free, total = torch.cuda.mem_get_info(self.device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(self.device)))
        return f"{text}, capability {capability}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def say(*words: Any) -> None:
    print(*words, flush=True)


class Memory:
    """What was reserved of the device's memory at most inside the block, as forecasts count it; before it, what is not
    needed is let go."""

    gb = 0.0

    def __init__(self, place: Place) -> None:
        self._device = place.device

    def __enter__(self) -> "Memory":
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.gb = torch.cuda.max_memory_reserved(self._device) / 1e9


def limit(place: Place) -> float:
    """The most operations a second of large matrix products here, over a second after a warm-up."""
    if place.device.type == "cpu":
        from common import matrix_peak

        return matrix_peak(place.dtype)
    best = 0.0
    for m, n, k in ((8192, 8192, 8192), (4096, 14_336, 4096), (16_384, 4096, 4096)):
        a, b = torch.randn(m, k, device=place.device).to(place.dtype), torch.randn(k, n, device=place.device)
        b = b.to(place.dtype)
        seconds = timed(lambda a=a, b=b: a @ b, place, 0.4)
        best = max(best, 2 * m * n * k / seconds)
    return best


def timed(function: Callable[[], Any], place: Place, seconds: float) -> float:
    """Seconds of one call, of as many as take about so long, after two to warm up."""
    for _ in range(2):
        function()
    wait_for(place.device)
    begun = time.perf_counter()
    function()
    wait_for(place.device)
    once = time.perf_counter() - begun
    count = max(1, min(1000, int(seconds / max(once, 1e-6))))
    begun = time.perf_counter()
    for _ in range(count):
        function()
    wait_for(place.device)
    return (time.perf_counter() - begun) / count


class Silent:
    """In the place of a tokenizer: nothing stops, and nothing is written."""

    stop_ids: frozenset[int] = frozenset()
    task = None

    def decode_part(self, ids: Sequence[int]) -> str:
        return ""


def base_of(module: Decoder, dtype: torch.dtype) -> Base:
    tokenizer: Any = Silent()
    facts: Any = SimpleNamespace(vocabulary=module.arch.vocabulary)
    return Base(DecoderModel(module), tokenizer, facts, dtype, "as asked", "")


@torch.no_grad()
def filled(module: nn.Module, seed: int = 0) -> None:
    """Random weights, made where they are: norms near one, the rest small."""
    for i, (name, parameter) in enumerate(module.named_parameters()):
        if "lora" in name:
            continue
        generator = torch.Generator(parameter.device).manual_seed(1000 * seed + i)
        parameter.normal_(0.0, 0.02, generator=generator)
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.add_(1.0)


def ours(shape: Shape, place: Place, quantize: str | None = None, adapted: bool = True, **more: Any) -> Base:
    """Our decoder with random weights, adapted in all linear layers; `more` are settings of the adapter."""
    config = shape.config()
    module = decoder_skeleton(config, architecture_of(config), ops.chosen(place.device, cache_folder())).to(place.dtype)
    layers = list(module.decoder_layers())
    within = {each for layer in layers for each in layer.modules()}
    beside = [each for each in module.modules() if each not in within and not list(each.children())]
    for i, part in enumerate((*layers, *beside)):  # one at a time: before they are quantised, all may not fit
        filled(part.to_empty(device=place.device), i)
        if quantize and part in within:
            quantise_linears(part, quantize, place.dtype)
    module.tie()
    module.requires_grad_(False).eval()
    if adapted:
        inject(module, LoraConfig(rank=RANK, alpha=ALPHA, target_modules=tuple(TARGETS), **more), 0)
    return base_of(module, place.dtype)


def stepper(base: Base, tokens_per_pass: int) -> Callable[[Sequence[Row]], Any]:
    """A whole training step over rows, the loss scaled where the trainer would; its loss."""
    base.model.module.train()
    objective = OBJECTIVES["supervised"]
    scale = LossScale(device_of(base)) if base.dtype == torch.float16 else None
    optimizer = Optimizer(base.model.module, 0.0, scale=scale)

    def step(rows: Sequence[Row]) -> Any:
        made = micro_batches(base, rows, objective, tokens_per_pass, None)
        loss, _ = add_gradients(base, rows, made, objective, factor=scale and scale.factor)
        optimizer.step(RATE, 1.0)
        return loss

    return step


def full_rows(shape: Shape, count: int, length: int) -> list[Row]:
    """Rows of one length, all labelled, that share nothing."""
    source = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [source.randrange(3, shape.words) for _ in range(length)]
        rows.append(Row(ids, ids, ""))
    return rows


def short_rows(shape: Shape, count: int) -> list[Row]:
    """Lengths such as those of E2E under a chat template: some 30 tokens that all begin with, 30 of a question, and
    about 35 of an answer, which alone are labelled."""
    source = random.Random(1)
    head = [source.randrange(3, shape.words) for _ in range(30)]
    rows = []
    for _ in range(count):
        asked, answered = round(source.gauss(30, 6)), max(8, round(source.gauss(35, 10)))
        ids = head + [source.randrange(3, shape.words) for _ in range(asked + answered)]
        rows.append(Row(ids, [-100] * (len(ids) - answered) + ids[-answered:], ""))
    return rows


def tokens_of(rows: Sequence[Row]) -> int:
    return sum(len(row.input_ids) for row in rows)


def profile_of(function: Callable[[], Any], place: Place) -> str:
    """The largest parts of what `function` does, as torch's profiler has them."""
    from torch.profiler import ProfilerActivity, profile

    function()
    on_card = place.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=kinds) as found:
        function()
        wait_for(place.device)
    by = "self_device_time_total" if on_card else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=60)
