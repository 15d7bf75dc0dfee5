"""How fast a machine trains: measured here by a benchmark of some seconds, or estimated from a card's published
figures.

Everything is in seconds per unit of work, so that a forecast is a sum of products.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afina.core.config import Settings
from afina.core.device import keep_freed_memory, processor
from afina.core.errors import InputError, OutputError
from afina.core.files import read_json, write_atomic, write_json
from afina.core.layers import evaluation_mode
from afina.core.machine import OtherPrograms
from afina.engine import ops
from afina.engine.blocks import quantise
from afina.engine.ops import Segments
from afina.lora.adapters import unload
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.models.causal import DecoderModel
from afina.models.model import IGNORE_INDEX, Packed, unshared
from afina.models.skeleton import decoder_skeleton
from afina.training.baselines import baseline
from afina.training.optimizer import Optimizer

_LAYERS = {384: 2, 768: 1, 1280: 1}  # by width
_MIDDLE = 768  # the width at which everything else is measured
_WORDS = 16_384
_SHORT, _LONG, _ROW = 256, 1024, 128  # tokens of a short and a long pass, and of each row in them
_FEW = 32  # active sequences of a decoding step
_NUMBERS = 1 << 22
_FILE = 128 << 20
_ROUNDS = 3
_DISTURBED = 0.3  # processors that others use
_LOOK = 0.5  # seconds
_SLOWDOWN = 1.05  # a training over the fastest round, on a machine that it does not have to itself


class Rates(Settings):
    """Seconds per parameter of the layers: `a_pass` for each pass, whatever its tokens, and `a_token` for each
    token.
    """

    a_pass: float
    a_token: float

    def seconds(self, parameters: float, tokens: float) -> float:
        return parameters * (self.a_pass + self.a_token * tokens)


class Width(Settings):
    """A pass through layers of one width: `forward` alone, the same with `adapted` layers (rank 16), forward and
    backward for the adapters (`lora`), and for all weights (`full`). `few`: one decoding step of 32 sequences.
    """

    forward: Rates
    adapted: Rates
    lora: Rates
    full: Rates
    few: float


class Speed(Settings):
    """Seconds of each unit of work.

    `widths` are by the width of the layers. `attention` (forward; with the backward pass) is per token, earlier token
    and channel; `head` (forward; with its input's gradient; with its own too) per labelled token and parameter;
    `adam` per trained number; `unpack` per number of a dequantised matrix; `write` per byte of a file; `launch` per
    layer and pass, for launching a card's kernels (measured speeds have it in the others). `others`: how many
    processors other programs used while it was measured.
    """

    widths: dict[int, Width]
    attention: tuple[float, float]
    head: tuple[float, float, float]
    adam: float
    unpack: float
    write: float
    launch: float = 0.0
    others: float = 0.0

    @property
    def was_disturbed(self) -> bool:
        return self.others > _DISTURBED

    def at(self, width: int) -> Width:
        """The speed at any width, interpolated between those measured, in logarithms."""
        known = sorted(self.widths)
        low = max((w for w in known if w <= width), default=known[0])
        high = min((w for w in known if w >= width), default=known[-1])
        if low == high:
            return self.widths[low]
        share = (torch.tensor(width / low).log() / torch.tensor(high / low).log()).item()
        a, b = self.widths[low].model_dump(), self.widths[high].model_dump()
        return Width.model_validate(_between(a, b, share))


def _between(a: Any, b: Any, share: float) -> Any:
    if isinstance(a, dict):
        return {key: _between(a[key], b[key], share) for key in a}
    return a ** (1 - share) * b**share


def measured(device: torch.device, dtype: torch.dtype, cache: Path) -> Speed:
    """How fast this machine is now, which is kept in `cache`."""
    with OtherPrograms() as others:
        found = _measure(device, dtype, cache)
    found = found.model_copy(update={"others": others.processors})
    with suppress(OutputError):
        write_json(_file(cache), _kept(cache) | {_key(device, dtype): found.model_dump(mode="json")})
    return found


def is_calm() -> bool:
    """Whether other programs leave the processor to this one now."""
    with OtherPrograms() as others:
        time.sleep(_LOOK)
    return others.processors <= _DISTURBED


def known(device: torch.device, dtype: torch.dtype, cache: Path) -> Speed | None:
    """What was measured before on such a device, with this version of torch, number of threads and number format."""
    with suppress(KeyError, ValueError):  # nothing, or of an earlier version
        return Speed.model_validate(_kept(cache)[_key(device, dtype)])
    return None


def _key(device: torch.device, dtype: torch.dtype) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]  # other measurements, other figures
    return f"{device.type} {name} {torch.get_num_threads()} {dtype} torch {torch.__version__} {source}"


def _file(cache: Path) -> Path:
    return cache / "speed.json"


def _kept(cache: Path) -> dict[str, Any]:
    with suppress(InputError, TypeError, ValueError):  # absent or damaged
        return dict(read_json(_file(cache)))
    return {}


def _measure(device: torch.device, dtype: torch.dtype, cache: Path) -> Speed:
    keep_freed_memory()
    own = ops.chosen(device, cache)
    models = {width: _model(width, layers, device, dtype, own) for width, layers in _LAYERS.items()}
    timings = _Timings()
    for _ in range(_ROUNDS):
        for width, model in models.items():
            _layers(timings, width, model)
        _attention(timings, models[_MIDDLE], own)
        _head(timings, models[_MIDDLE])
        if device.type == "cpu":
            _unpack(timings, dtype)
    return Speed(
        widths={width: _width(timings, width, model) for width, model in models.items()},
        attention=_attention_rates(timings, models[_MIDDLE]),
        head=_head_rates(timings, models[_MIDDLE]),
        adam=timings["adam"] / sum(p.numel() for p in models[_MIDDLE].module.decoder_layers().parameters()),
        unpack=timings["unpack"] / _NUMBERS if device.type == "cpu" else 0.0,
        write=_write(cache),
    )


class _Timings:
    """Seconds of each thing by its name: the least over rounds.

    In rounds, because other programs use the machine in bursts: each thing is timed several times, some seconds
    apart. In the first round, memory and products are made ready.
    """

    def __init__(self) -> None:
        self._found: dict[Any, list[float]] = {}

    def time(self, name: Any, function: Callable[[], Any]) -> None:
        self._found.setdefault(name, []).append(seconds_of(function))

    def __getitem__(self, name: Any) -> float:
        return _SLOWDOWN * min(self._found[name])


def _model(width: int, layers: int, device: torch.device, dtype: torch.dtype, own: ops.Ops) -> DecoderModel:
    """Random layers such as those of Llama's family."""
    from transformers import LlamaConfig

    from afina.engine.families import architecture_of

    heads = width // 64
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 2, vocab_size=_WORDS, tie_word_embeddings=True,
    )  # fmt: skip
    module = decoder_skeleton(config, architecture_of(config), own).to(dtype).to_empty(device=device)
    module.tie()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.02, 0.02)
    module.requires_grad_(False)
    return DecoderModel(module)


def _packed(model: DecoderModel, tokens: int, row: int, labelled: int) -> Packed:
    device = next(model.module.parameters()).device
    ids = torch.randint(0, _WORDS, (tokens,), device=device)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:labelled] = ids[:labelled]
    return unshared(ids, labels, Segments(tuple(range(0, tokens + 1, row))))


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
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


def _layers(timings: _Timings, width: int, model: DecoderModel) -> None:
    """Passes through the layers alone; in the middle width also the optimiser."""
    module: nn.Module = model.module
    short, long = (_packed(model, tokens, _ROW, 1) for tokens in (_SHORT, _LONG))

    def both(kind: str, function: Callable[[DecoderModel, Packed], Callable[[], None]]) -> None:
        timings.time((width, kind, _SHORT), function(model, short))
        timings.time((width, kind, _LONG), function(model, long))

    both("forward", reading_pass)
    timings.time((width, "few"), reading_pass(model, _packed(model, _FEW, 1, 1)))
    inject(module, LoraConfig())
    timings.time((width, "adapted"), reading_pass(model, long))
    both("lora", _layers_pass)
    unload(module)
    inject(module, baseline(module, "last", _LAYERS[width]))  # the gradient of the token embeddings is that of the head
    both("full", _layers_pass)
    if width == _MIDDLE:
        _adam(timings, module)
    unload(module)


def _layers_pass(model: DecoderModel, packed: Packed) -> Callable[[], None]:
    """Training with every token wanted of the last layer: models have more layers, whose tokens are."""

    def function() -> None:
        model.module.train()
        x_TC, added_TC = model.module(packed.ids_T, packed.segments)
        torch.autograd.backward([x_TC, added_TC], [x_TC.detach(), added_TC.detach()])
        model.module.zero_grad(set_to_none=True)

    return function


def _adam(timings: _Timings, module: nn.Module) -> None:
    """A step over the layers' weights: gradients in fp32, their norm, AdamW, and the weights written back."""
    optimizer = Optimizer(module, 0.0)

    def gradients() -> None:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1e-3)

    gradients()
    optimizer.step(1e-5, 1.0)  # makes the moments
    gradients()
    timings.time("adam", lambda: optimizer.step(1e-5, 1.0))


def _attention(timings: _Timings, model: DecoderModel, own: ops.Ops) -> None:
    """Attention over one long row, and over short rows."""
    spec = model.module.arch.specs[0]
    like = next(model.module.parameters())
    values = torch.randn(_LONG, spec.qk_size + spec.kv_size, dtype=like.dtype, device=like.device)
    leaf = values.clone().requires_grad_()

    def attend(qkv: Tensor, row: int) -> Tensor:
        return own.attend(qkv, spec, None, Segments(tuple(range(0, _LONG + 1, row))))

    def back(row: int) -> None:
        attend(leaf, row).sum().backward()

    for row in (_ROW, _LONG):
        timings.time(("attention", row), partial(attend, values, row))
        timings.time(("attention and back", row), partial(back, row))


def _head(timings: _Timings, model: DecoderModel) -> None:
    """Passes in which every token is labelled."""
    module: nn.Module = model.module
    packed = _packed(model, _SHORT, _ROW, _SHORT)
    timings.time("head", reading_pass(model, packed))
    inject(module, LoraConfig())
    timings.time("head under adapters", training_pass(model, packed))
    unload(module)
    inject(module, baseline(module, "head", 1))
    timings.time("head trained", training_pass(model, packed))
    unload(module)


def _unpack(timings: _Timings, dtype: torch.dtype) -> None:
    blocks = quantise(torch.randn(_NUMBERS >> 10, 1 << 10), "nf4", dtype)
    assert blocks is not None
    timings.time("unpack", blocks.dequantised)


def _width(timings: _Timings, width: int, model: DecoderModel) -> Width:
    parameters = sum(p.numel() for p in model.module.decoder_layers().parameters())

    def rates(kind: str) -> Rates:
        short, long = timings[width, kind, _SHORT], timings[width, kind, _LONG]
        a_token = max(0.0, long - short) / (_LONG - _SHORT)
        return Rates(a_pass=max(0.0, short - _SHORT * a_token) / parameters, a_token=a_token / parameters)

    forward = rates("forward")
    adapted = (timings[width, "adapted"] / parameters - forward.a_pass) / _LONG
    return Width(
        forward=forward,
        adapted=Rates(a_pass=forward.a_pass, a_token=max(forward.a_token, adapted)),
        lora=rates("lora"),
        full=rates("full"),
        few=timings[width, "few"] / parameters,
    )


def _attention_rates(timings: _Timings, model: DecoderModel) -> tuple[float, float]:
    """How much longer one long row takes than short ones, per unit of work: forward, and with the backward pass."""
    units = _LONG * (_LONG - _ROW) / 2 * model.module.arch.specs[0].q_size
    forward, back = (
        max(0.0, timings[kind, _LONG] - timings[kind, _ROW]) for kind in ("attention", "attention and back")
    )
    return forward / units, back / units


def _head_rates(timings: _Timings, model: DecoderModel) -> tuple[float, float, float]:
    units = _SHORT * _WORDS * model.module.arch.hidden
    plain = timings[_MIDDLE, "forward", _SHORT]
    forward, trained = timings["head"] - plain, timings["head trained"] - plain
    frozen = timings["head under adapters"] - timings[_MIDDLE, "lora", _SHORT]
    return max(0.0, forward) / units, max(0.0, frozen) / units, max(0.0, frozen, trained) / units


def _write(cache: Path) -> float:
    """Seconds per byte of a file in the cache, written as the files of a run are."""
    with suppress(OutputError, OSError), tempfile.TemporaryDirectory(dir=cache if cache.is_dir() else None) as folder:
        return seconds_of(lambda: write_atomic(Path(folder) / "file", bytes(_FILE))) / _FILE
    return 1e-9
