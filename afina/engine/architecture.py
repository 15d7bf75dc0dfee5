"""What a decoder-only transformer is made of, as data: `Architecture` and its parts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from afina.core.errors import BaseModelError, brief, counted
from afina.core.limits import LAYERS, WIDEST
from afina.engine.limits import MOST_POSITIONS, MOST_TOKENS, finite, whole
from afina.engine.ops import AttentionSpec

# What libraries raise, each in its way, where the numbers of a configuration do not describe a model.
CONFIGURATION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@contextmanager
def checking_configuration() -> Iterator[None]:
    """Raises `BaseModelError` where what is built inside the block from a configuration cannot be built."""
    try:
        yield
    except CONFIGURATION_ERRORS as error:
        raise BaseModelError(
            f"the base's configuration describes no model ({brief(error)})", "download the base again"
        ) from error


class Unsupported(Exception):
    """This decoder cannot be the model; the message says why. `transformers` can."""


@dataclass(frozen=True)
class Names:
    """Paths of transformers' modules: within the model, then within a layer."""

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    attention_norm: str | None = "input_layernorm"
    after_attention_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    after_mlp_norm: str | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies (rotary_dim / 2) and the factor on cosines and sines. Where `original` is set (longrope),
    rows of more than so many tokens take `long_frequencies`. Raises `ValueError`."""

    frequencies: Tensor
    factor: float = 1.0
    original: int | None = None
    long_frequencies: Tensor | None = None

    def __post_init__(self) -> None:
        finite("rotary factor", self.factor)
        for frequencies in (self.frequencies, self.long_frequencies):
            if frequencies is not None and (
                frequencies.dtype != torch.float32
                or frequencies.shape != (len(self.frequencies),)
                or not frequencies.isfinite().all()
            ):
                raise ValueError("the rotary frequencies are not finite numbers, one for each pair")
        if self.original is not None:
            whole("original positions", self.original, 1, MOST_POSITIONS)
            if self.long_frequencies is None:
                raise ValueError("the rotary frequencies of long rows are missing")


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer, configured. `specs` and `ropes` are by layer; `ropes` is empty with learned
    positions. Raises `ValueError` for numbers that describe no model, whatever file they came from."""

    model_type: str
    hidden: int
    inner: int
    vocabulary: int
    specs: tuple[AttentionSpec, ...]
    ropes: tuple[Rope, ...]
    activation: str
    eps: float
    tied: bool
    names: Names = field(default_factory=Names)
    gated: bool = True
    layer_norm: bool = False
    norm_offset: float = 0.0
    parallel: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    conv1d: bool = False
    interleaved: bool = False  # q, k and v of a head lie together in one joined layer
    learned_positions: int = 0
    embedding_scale: float | None = None
    logit_cap: float = 0.0
    renamed: Mapping[str, str] = field(default_factory=dict)  # weights that checkpoints have under another name
    # Endings of constants that some checkpoints hold although every program computes them.
    computed: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def __post_init__(self) -> None:
        whole("layers", len(self.specs), 1, LAYERS)
        for name, value, most in (
            ("hidden size", self.hidden, WIDEST), ("inner size", self.inner, WIDEST),
            ("vocabulary", self.vocabulary, MOST_TOKENS),
        ):  # fmt: skip
            whole(name, value, 1, most)
        whole("learned positions", self.learned_positions, 1 if self.names.positions else 0, MOST_POSITIONS)
        for name, number in (("eps", self.eps), ("logit cap", self.logit_cap), ("scale", self.embedding_scale or 0)):
            finite(name, number)
        if self.ropes and len(self.ropes) != len(self.specs):
            raise ValueError(f"{counted(len(self.specs), 'layer')}, of which {len(self.ropes)} have rotary frequencies")
        pairs = [len(rope.frequencies) for rope in self.ropes] or [0] * len(self.specs)
        for spec, count in zip(self.specs, pairs, strict=True):
            if spec.rotary_dim != 2 * count:
                raise ValueError(f"{spec.rotary_dim} rotated numbers per head, but {count} rotary frequencies")
            if self.interleaved and spec.heads != spec.kv_heads:
                raise ValueError("queries, keys and values that lie together are of as many heads each")
