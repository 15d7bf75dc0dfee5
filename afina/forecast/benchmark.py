"""How fast this machine trains: a benchmark of some seconds, on the device where a run would be."""

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.device import device_name, in_any_order, keep_freed_memory, overlaps, processor, wait_for
from afina.core.errors import InputError, OutputError
from afina.core.files import read_json, write_atomic, write_json
from afina.core.layers import evaluation_mode
from afina.core.machine import OtherPrograms
from afina.core.process.neighbours import share_the_processor
from afina.engine import ops
from afina.engine.blocks import quantise
from afina.engine.ops import Segments
from afina.forecast.speed import DISTURBED, Rates, Speed, Width
from afina.lora.adapters import unload
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.models.causal import DecoderModel
from afina.models.footprint import free_bytes
from afina.models.model import IGNORE_INDEX, Packed, unshared
from afina.models.skeleton import decoder_skeleton
from afina.training.baselines import baseline
from afina.training.optimizer import Optimizer

_FILE = 128 << 20
_ROUNDS = 3
_LOOK = 0.5  # seconds
_SLOWDOWN = 1.05  # a training over the fastest round, on a machine that it does not have to itself
_FEW = 32  # active sequences of a decoding step


@dataclass(frozen=True)
class _Sizes:
    """What is timed: so many `layers` of each width, everything else at the width `middle`, with `words` in the
    vocabulary. `short` and `long` are the tokens of a short and a long pass at the width `middle` (where `scaled`, as
    many more in narrower layers), in rows of `row` tokens. `numbers` are dequantised."""

    layers: dict[int, int]
    middle: int
    words: int
    short: int
    long: int
    row: int
    numbers: int
    scaled: bool = False

    def tokens(self, width: int) -> tuple[int, int]:
        """Of a short and a long pass."""
        share = self.middle / width if self.scaled else 1
        return int(self.short * share), int(self.long * share)


_ON_PROCESSOR = _Sizes({384: 2, 768: 1, 1280: 1}, 768, 16_384, 256, 1024, 128, 1 << 22)
# Passes must keep a card busy for longer than their kernels take to be launched, which is timed by itself.
_ON_CARD = _Sizes({1024: 1, 2048: 1, 4096: 1}, 2048, 65_536, 8192, 32_768, 512, 1 << 26, scaled=True)
_PER_TOKEN = 200_000  # bytes of a layer of width 2048 per token of a pass, at most


def _is_card(device: torch.device) -> bool:
    """Whether kernels are launched there, which takes time of its own."""
    return device.type != "cpu"


def _sizes(device: torch.device) -> _Sizes:
    if not _is_card(device):
        return _ON_PROCESSOR
    long = _ON_CARD.long if overlaps(device) else min(4096, _ON_CARD.long)  # whose scores fit, if they are made
    while long > 4096 and long * _PER_TOKEN > free_bytes(device) / 2:
        long //= 2
    return _Sizes(**{**vars(_ON_CARD), "long": long, "short": long // 4})


def measured(device: torch.device, dtype: torch.dtype, cache: Path) -> Speed:
    """How fast this machine is now, which is kept in `cache`."""
    with OtherPrograms() as others, in_any_order(device):
        found = _measure(device, dtype, cache)
    found = found.model_copy(update={"others": 0.0 if _is_card(device) else others.processors})
    with suppress(OutputError):
        write_json(_file(cache), _kept(cache) | {_key(device, dtype): found.model_dump(mode="json")})
    return found


def is_calm() -> bool:
    """Whether other programs leave the processor to this one now."""
    with OtherPrograms() as others:
        time.sleep(_LOOK)
    return others.processors <= DISTURBED


def known(device: torch.device, dtype: torch.dtype, cache: Path) -> Speed | None:
    """What was measured before on such a device, with this version of torch, number of threads and number format."""
    with suppress(KeyError, ValueError):  # nothing, or of an earlier version
        return Speed.model_validate(_kept(cache)[_key(device, dtype)])
    return None


def _key(device: torch.device, dtype: torch.dtype) -> str:
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]  # other measurements, other figures
    name = device_name(device) if _is_card(device) else processor()
    return f"{device.type} {name} {torch.get_num_threads()} {dtype} torch {torch.__version__} {source}"


def _file(cache: Path) -> Path:
    return cache / "speed.json"


def _kept(cache: Path) -> dict[str, Any]:
    with suppress(InputError, TypeError, ValueError):  # absent or damaged
        return dict(read_json(_file(cache)))
    return {}


def _measure(device: torch.device, dtype: torch.dtype, cache: Path) -> Speed:
    share_the_processor()
    keep_freed_memory()
    sizes = _sizes(device)
    bench = _Benchmark(sizes, device, dtype, ops.chosen(device, cache))
    for _ in range(_ROUNDS):
        bench.round()
    return bench.speed(_write(cache))


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """How long it takes until the device has done what `function` asks of it."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start


def training_pass(model: Any, packed: Packed) -> Callable[[], None]:
    def function() -> None:
        model.module.train()
        model.summed_loss(packed).backward()
        model.module.zero_grad(set_to_none=True)

    return function


def reading_pass(model: Any, packed: Packed) -> Callable[[], None]:
    def function() -> None:
        with torch.no_grad(), evaluation_mode(model.module):
            model.summed_loss(packed)

    return function


def _layers_pass(model: DecoderModel, packed: Packed) -> Callable[[], None]:
    """Training with every token wanted of the last layer: models have more layers, whose tokens are."""

    def function() -> None:
        model.module.train()
        x_TC, added_TC = model.module(packed.ids_T, packed.segments)
        torch.autograd.backward([x_TC, added_TC], [x_TC.detach(), added_TC.detach()])
        model.module.zero_grad(set_to_none=True)

    return function


class _Benchmark:
    """The least seconds of each thing over rounds, by its name.

    In rounds, because other programs use the machine in bursts: each thing is timed several times, some seconds
    apart. In the first round, memory and products are made ready.
    """

    def __init__(self, sizes: _Sizes, device: torch.device, dtype: torch.dtype, own: ops.Ops) -> None:
        self.sizes, self.device, self.dtype, self.own = sizes, device, dtype, own
        self.models = {width: self._model(width, layers) for width, layers in sizes.layers.items()}
        self.middle = self.models[sizes.middle]
        self._found: dict[Any, list[float]] = {}

    def _time(self, name: Any, function: Callable[[], Any]) -> None:
        self._found.setdefault(name, []).append(seconds_of(function, self.device))

    def _seconds(self, *name: Any) -> float:
        return _SLOWDOWN * min(self._found[name])

    def _model(self, width: int, layers: int) -> DecoderModel:
        """Random layers such as those of Llama's family."""
        from transformers import LlamaConfig

        from afina.engine.families import architecture_of

        heads = width // 64
        config = LlamaConfig(
            hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=heads // 2, vocab_size=self.sizes.words, tie_word_embeddings=True,
        )  # fmt: skip
        module = decoder_skeleton(config, architecture_of(config), self.own).to(self.dtype)
        module = module.to_empty(device=self.device)
        module.tie()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.uniform_(-0.02, 0.02)
        module.requires_grad_(False)
        return DecoderModel(module)

    def _packed(self, tokens: int, row: int, labelled: int) -> Packed:
        ids = torch.randint(0, self.sizes.words, (tokens,), device=self.device)
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[:labelled] = ids[:labelled]
        return unshared(ids, labels, Segments(tuple(range(0, tokens + 1, row))))

    def round(self) -> None:
        for width, model in self.models.items():
            self._layers(width, model)
        self._attention()
        self._head()
        if _is_card(self.device):
            self._on_card()
        blocks = quantise(torch.randn(self.sizes.numbers >> 10, 1 << 10, device=self.device), "nf4", self.dtype)
        assert blocks is not None
        self._time(("unpack",), blocks.dequantised)

    def _layers(self, width: int, model: DecoderModel) -> None:
        """Passes through the layers alone; in the middle width also the optimiser."""
        module: nn.Module = model.module
        packed = {tokens: self._packed(tokens, self.sizes.row, 1) for tokens in self.sizes.tokens(width)}

        def both(kind: str, function: Callable[[DecoderModel, Packed], Callable[[], None]]) -> None:
            for tokens, each in packed.items():
                self._time((width, kind, tokens), function(model, each))

        both("forward", reading_pass)
        self._time((width, "few"), reading_pass(model, self._packed(_FEW, 1, 1)))
        inject(module, LoraConfig())
        self._time((width, "adapted"), reading_pass(model, packed[max(packed)]))
        both("lora", _layers_pass)
        unload(module)
        # The gradient of the token embeddings is that of the head.
        inject(module, baseline(module, "last", self.sizes.layers[width]))
        both("full", _layers_pass)
        if width == self.sizes.middle:
            self._adam(module)
        unload(module)

    def _adam(self, module: nn.Module) -> None:
        """A step over the layers' weights: gradients in fp32, their norm, AdamW, and the weights written back."""
        optimizer = Optimizer(module, 0.0)

        def gradients() -> None:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.full_like(parameter, 1e-3)

        gradients()
        optimizer.step(1e-5, 1.0)  # makes the moments
        gradients()
        self._time(("adam",), lambda: optimizer.step(1e-5, 1.0))

    def _attention(self) -> None:
        """Attention over one long row, and over short rows."""
        spec, long = self.middle.module.arch.specs[0], self.sizes.long
        values = torch.randn(long, spec.qk_size + spec.kv_size, dtype=self.dtype, device=self.device)
        leaf = values.clone().requires_grad_()

        def attend(qkv: Tensor, row: int) -> Tensor:
            return self.own.attend(qkv, spec, None, Segments(tuple(range(0, long + 1, row))))

        def back(row: int) -> None:
            attend(leaf, row).sum().backward()

        for row in (self.sizes.row, long):
            self._time(("attention", row), partial(attend, values, row))
            self._time(("attention and back", row), partial(back, row))

    def _head(self) -> None:
        """Passes in which every token is labelled."""
        module: nn.Module = self.middle.module
        packed = self._packed(self.sizes.short, self.sizes.row, self.sizes.short)
        self._time(("head",), reading_pass(self.middle, packed))
        inject(module, LoraConfig())
        self._time(("head under adapters",), training_pass(self.middle, packed))
        unload(module)
        inject(module, baseline(module, "head", 1))
        self._time(("head trained",), training_pass(self.middle, packed))
        unload(module)

    def _on_card(self) -> None:
        """What a pass of a few tokens takes is the launch of its kernels; what it would take without that, reading
        the weights."""
        head = self.middle.module.get_output_embeddings().weight
        x = torch.randn(_FEW, head.shape[1], dtype=self.dtype, device=self.device)
        self._time(("weights",), lambda: F.linear(x, head))
        module: nn.Module = self.middle.module
        inject(module, LoraConfig())
        self._time(("launch",), _layers_pass(self.middle, self._packed(_FEW, _FEW, 1)))
        unload(module)

    # -------------------------------------------------------------------------------------------- what it comes to

    def speed(self, write: float) -> Speed:
        """`write` are the seconds per byte of a file."""
        layers: nn.Module = self.middle.module.decoder_layers()
        launch = 0.0
        if _is_card(self.device):
            launch = self._seconds("launch") / (2 * self.sizes.layers[self.sizes.middle])
        return Speed(
            widths={width: self._width(width, model) for width, model in self.models.items()},
            attention=self._attention_rates(),
            head=self._head_rates(),
            adam=self._seconds("adam") / sum(p.numel() for p in layers.parameters()),
            unpack=self._seconds("unpack") / self.sizes.numbers,
            write=write,
            launch=launch,
        )

    def _width(self, width: int, model: DecoderModel) -> Width:
        parameters = sum(p.numel() for p in model.module.decoder_layers().parameters())
        short, long = self.sizes.tokens(width)

        def rates(kind: str) -> Rates:
            first, second = self._seconds(width, kind, short), self._seconds(width, kind, long)
            a_token = max(0.0, second - first) / (long - short)
            return Rates(a_pass=max(0.0, first - short * a_token) / parameters, a_token=a_token / parameters)

        forward = rates("forward")
        adapted = (self._seconds(width, "adapted") / parameters - forward.a_pass) / long
        few = self._seconds(width, "few") / parameters
        if _is_card(self.device):
            few = self._seconds("weights") / self.middle.module.get_output_embeddings().weight.numel()
        return Width(
            forward=forward,
            adapted=Rates(a_pass=forward.a_pass, a_token=max(forward.a_token, adapted)),
            lora=rates("lora"),
            full=rates("full"),
            few=few,
        )

    def _attention_rates(self) -> tuple[float, float]:
        """How much longer one long row takes than short ones, per unit of work: forward, and with the backward
        pass."""
        row, long = self.sizes.row, self.sizes.long
        units = long * (long - row) / 2 * self.middle.module.arch.specs[0].q_size
        forward, back = (
            max(0.0, self._seconds(kind, long) - self._seconds(kind, row))
            for kind in ("attention", "attention and back")
        )
        return forward / units, back / units

    def _head_rates(self) -> tuple[float, float, float]:
        sizes = self.sizes
        units = sizes.short * sizes.words * self.middle.module.arch.hidden
        plain = self._seconds(sizes.middle, "forward", sizes.short)
        forward, trained = self._seconds("head") - plain, self._seconds("head trained") - plain
        frozen = self._seconds("head under adapters") - self._seconds(sizes.middle, "lora", sizes.short)
        return max(0.0, forward) / units, max(0.0, frozen) / units, max(0.0, frozen, trained) / units


def _write(cache: Path) -> float:
    """Seconds per byte of a file in the cache, written as the files of a run are."""
    with suppress(OutputError, OSError), tempfile.TemporaryDirectory(dir=cache if cache.is_dir() else None) as folder:
        start = time.perf_counter()
        write_atomic(Path(folder) / "file", bytes(_FILE))
        return (time.perf_counter() - start) / _FILE
    return 1e-9
