"""How fast a machine trains: measured here by a benchmark of some seconds, or reckoned from a card's published figures.

Everything is seconds a unit of work, so that a forecast is a sum of products. P parameters of the repeated layers, T tokens.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afina.base import kernels
from afina.base.blocks import quantise
from afina.base.model import IGNORED, DecoderModel, Packed
from afina.base.ops import Segments
from afina.base.outline import decoder_skeleton
from afina.core.config import Settings
from afina.core.device import keep_freed_memory, processor
from afina.core.errors import InputError, OutputError
from afina.core.files import read_json, write_atomic, write_json
from afina.lora.attached import take_off
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.training.baselines import baseline
from afina.training.optimizer import Optimizer

WIDTHS = (384, 768, 1280)
_LAYERS = {384: 3, 768: 2, 1280: 1}
_MIDDLE = 768  # the width at which all else is measured
_WORDS = 16_384
_SHORT, _LONG, _ROW = 256, 768, 128  # tokens of two passes, and of a row in them
_FEW = 32  # texts that are written at one time
_LABELLED = 256
_NUMBERS = 1 << 22
_FILE = 128 << 20
_TIMES, _ENOUGH = 5, 0.12  # how often a thing is timed at most, and the seconds after which it is not again


class Rates(Settings):
    """Seconds a layer parameter: `a_pass`, whatever its tokens, and `a_token` of it."""

    a_pass: float
    a_token: float

    def seconds(self, parameters: float, tokens: float) -> float:
        return parameters * (self.a_pass + self.a_token * tokens)


class Width(Settings):
    """A pass through layers of one width: forward alone, the same with adapters of rank 16, with the backward pass for these, and for
    all weights. `few`: a token each of 32 texts in the making."""

    forward: Rates
    adapted: Rates
    lora: Rates
    full: Rates
    few: float


class Speed(Settings):
    """Seconds: `widths` by the width of the layers; `attention` (forward, and with the backward pass) a token, token before it and
    channel; `head` (forward; with its input's gradient; with its own too) a labelled token and parameter; `adam` a trained number;
    `unpack` a number of a quantised matrix; `write` a byte of a file; `launch` a layer and pass, for a card's kernels to be begun (here it is part of the others)."""

    widths: dict[int, Width]
    attention: tuple[float, float]
    head: tuple[float, float, float]
    adam: float
    unpack: float
    write: float
    launch: float = 0.0

    def at(self, width: int) -> Width:
        """What holds at a width between those known, by the logarithm."""
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


def measured(place: torch.device, dtype: torch.dtype, cache: Path) -> Speed:
    """How fast this machine is; measured once, and kept in `cache`."""
    found = known(place, dtype, cache)
    if found is None:
        found = _measure(place, dtype, cache)
        with suppress(OutputError):
            write_json(_file(cache), _kept(cache) | {_key(place, dtype): found.model_dump(mode="json")})
    return found


def known(place: torch.device, dtype: torch.dtype, cache: Path) -> Speed | None:
    """What was measured before on such a device, with this torch, as many threads and this number format."""
    with suppress(KeyError, ValueError):  # nothing, or of an earlier version
        return Speed.model_validate(_kept(cache)[_key(place, dtype)])
    return None


def _key(place: torch.device, dtype: torch.dtype) -> str:
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else processor()
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]  # other measurements, other figures
    return f"{place.type} {name} {torch.get_num_threads()} {dtype} torch {torch.__version__} {source}"


def _file(cache: Path) -> Path:
    return cache / "speed.json"


def _kept(cache: Path) -> dict[str, Any]:
    with suppress(InputError):  # absent or damaged
        return dict(read_json(_file(cache)))
    return {}


def _measure(place: torch.device, dtype: torch.dtype, cache: Path) -> Speed:
    keep_freed_memory()
    fused = kernels.load(cache) if place.type == "cpu" else None
    wide: dict[int, Width] = {}
    for width in WIDTHS:
        model = _model(width, _LAYERS[width], place, dtype, fused)
        parameters = sum(p.numel() for p in model.module.layers().parameters())
        wide[width] = _width(model, parameters)
    model = _model(_MIDDLE, 2, place, dtype, fused)
    attention = _attention(model)
    head = _head(model)
    return Speed(
        widths=wide,
        attention=attention,
        head=head,
        adam=_adam(model),
        unpack=_unpack(dtype) if place.type == "cpu" else 0.0,
        write=_write(cache),
    )


def _model(width: int, layers: int, place: torch.device, dtype: torch.dtype, fused: Any) -> DecoderModel:
    """Random layers such as those of Llama's family."""
    from transformers import LlamaConfig

    from afina.base.families import architecture

    heads = width // 64
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 2, vocab_size=_WORDS, tie_word_embeddings=True,
    )  # fmt: skip
    module = decoder_skeleton(config, architecture(config), fused).to(dtype).to_empty(device=place)
    module.tie()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.02, 0.02)
    module.requires_grad_(False)
    return DecoderModel(module)


def _packed(model: DecoderModel, tokens: int, row: int, labelled: int) -> Packed:
    place = next(model.module.parameters()).device
    ids = torch.randint(0, _WORDS, (tokens,), device=place)
    labels = torch.full_like(ids, IGNORED)
    labels[:labelled] = ids[:labelled]
    return Packed(ids, labels, Segments(tuple(range(0, tokens + 1, row))))


def _seconds(work: Callable[[], Any]) -> float:
    """The least of some times after a first that does not count: what else runs on the machine only ever adds."""
    _once(work)
    found = [_once(work)]
    while len(found) < _TIMES and sum(found) < _ENOUGH:
        found.append(_once(work))
    return min(found)


def _once(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _train(model: DecoderModel, packed: Packed) -> Callable[[], None]:
    def work() -> None:
        model.module.train()
        model.summed_loss(packed).backward()
        model.module.zero_grad(set_to_none=True)

    return work


def _read(model: DecoderModel, packed: Packed) -> Callable[[], None]:
    def work() -> None:
        model.module.eval()
        with torch.no_grad():
            model.summed_loss(packed)

    return work


def _width(model: DecoderModel, parameters: int) -> Width:
    module: nn.Module = model.module

    def rates(work: Callable[[DecoderModel, Packed], Callable[[], None]]) -> Rates:
        short, long = (_seconds(work(model, _packed(model, tokens, _ROW, 1))) for tokens in (_SHORT, _LONG))
        a_token = max(0.0, long - short) / (_LONG - _SHORT)
        return Rates(a_pass=max(0.0, short - _SHORT * a_token) / parameters, a_token=a_token / parameters)

    forward = rates(_read)
    few = _seconds(_read(model, _packed(model, _FEW, 1, 1))) / parameters
    inject(module, LoraConfig())
    long = _seconds(_read(model, _packed(model, _LONG, _ROW, 1))) / parameters
    adapted = Rates(a_pass=forward.a_pass, a_token=max(forward.a_token, long / _LONG - forward.a_pass / _LONG))
    lora = rates(_train)
    take_off(module)
    inject(module, baseline(module, "full", 1))
    full = rates(_train)
    take_off(module)
    return Width(forward=forward, adapted=adapted, lora=lora, full=full, few=few)


def _attention(model: DecoderModel) -> tuple[float, float]:
    """By how much a pass of one long row takes longer than one of short rows."""
    module: nn.Module = model.module
    arch = model.module.arch
    units = len(arch.specs) * _LONG * (_LONG - _ROW) / 2 * arch.specs[0].q_size

    def more(work: Callable[[DecoderModel, Packed], Callable[[], None]]) -> float:
        long, short = (_seconds(work(model, _packed(model, _LONG, row, 1))) for row in (_LONG, _ROW))
        return max(0.0, long - short) / units

    forward = more(_read)
    inject(module, LoraConfig())
    both = more(_train)
    take_off(module)
    return forward, both


def _head(model: DecoderModel) -> tuple[float, float, float]:
    module: nn.Module = model.module
    units = _LABELLED * _WORDS * model.module.arch.hidden

    def more(work: Callable[[DecoderModel, Packed], Callable[[], None]]) -> float:
        many, one = (_seconds(work(model, _packed(model, _LABELLED, _ROW, n))) for n in (_LABELLED, 1))
        return max(0.0, many - one) / units

    forward = more(_read)
    inject(module, LoraConfig())
    frozen = more(_train)
    take_off(module)
    inject(module, baseline(module, "head", 1))
    trained = _seconds(_train(model, _packed(model, _LABELLED, _ROW, _LABELLED)))
    take_off(module)
    plain = _seconds(_read(model, _packed(model, _LABELLED, _ROW, 1)))
    return forward, frozen, max(frozen, (trained - plain) / units)


def _adam(model: DecoderModel) -> float:
    """A step over all weights: gradients in fp32, their norm, AdamW, and the weights written back."""
    module: nn.Module = model.module
    inject(module, baseline(module, "full", 1))
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = Optimizer(module, 0.0)

    found = []
    for _ in range(3):
        for parameter in trainable:
            parameter.grad = torch.full_like(parameter, 1e-3)
        found.append(_once(lambda: optimizer.step(1e-5, 1.0)))
    take_off(module)
    return min(found[1:]) / sum(p.numel() for p in trainable)


def _unpack(dtype: torch.dtype) -> float:
    blocks = quantise(torch.randn(_NUMBERS >> 10, 1 << 10), "nf4", dtype)
    assert blocks is not None
    return _seconds(lambda: blocks.numbers()) / _NUMBERS


def _write(cache: Path) -> float:
    """Zeros into a file beside the models, as whole runs' files are written."""
    with suppress(OutputError, OSError), tempfile.TemporaryDirectory(dir=cache if cache.is_dir() else None) as folder:
        return _once(lambda: write_atomic(Path(folder) / "file", bytes(_FILE))) / _FILE
    return 1e-9
