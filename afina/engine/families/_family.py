"""What a family says of itself, and what several families share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from afina.engine.architecture import Architecture, Rope, Unsupported
from afina.engine.limits import whole
from afina.engine.ops import AttentionSpec

Settings = dict[str, Any]


def rope_alone(metadata: Mapping[str, Any], rope: Settings) -> Settings:
    return {"rope_parameters": rope}


@dataclass(frozen=True)
class Stored:
    """How a tensor lies in a GGUF file: with its rows in the `order` of a configuration (row i of the file is row
    order(config)[i] of transformers'), as (outputs, inputs) where transformers' matrix is `turned`, its numbers larger
    by `offset`."""

    order: Callable[[Any], Tensor] | None = None
    turned: bool = False
    offset: float = 0.0

    def to_file(self, weight: Tensor, config: Any) -> Tensor:
        """transformers' tensor as the file has it."""
        weight = weight.T if self.turned and weight.dim() == 2 else weight
        return self.rows_to_file(weight + self.offset if self.offset else weight, config)

    def restored(self, weight: Tensor, config: Any) -> Tensor:
        """The file's tensor as transformers has it. Of a matrix that is kept in the file's blocks, it is given the
        numbers of the rows, (rows,), and returns them in transformers' order. One of other rows than the configuration
        says stays as it is, for who compares shapes."""
        weight = self.rows_restored(weight, config)
        weight = weight - self.offset if self.offset else weight
        return weight.T if self.turned and weight.dim() == 2 else weight

    def rows_to_file(self, rows: Tensor, config: Any) -> Tensor:
        """What has a row for each output of a layer, (outputs, …), in the file's order."""
        return rows if self.order is None else rows.index_select(0, self.order(config))

    def rows_restored(self, rows: Tensor, config: Any) -> Tensor:
        """The way back."""
        order = None if self.order is None else self.order(config)
        return rows if order is None or len(order) != len(rows) else rows.index_select(0, order.argsort())


AS_IT_IS = Stored()


@dataclass(frozen=True)
class GgufLayout:
    """How llama.cpp's converter writes models of a family, and so how they are read and written here.

    `settings` maps names in transformers' configuration to keys in the file (after the architecture's name and a dot);
    `further(metadata, rope)` gives the settings that no single key holds, from the metadata under such keys and the
    rotary parameters. `stored` has, by the names of tensors in the file without their layer and without .weight or
    .bias, those that lie there otherwise than in transformers. `needs_head`: llama.cpp reads no file without an output
    head, though it be the token embeddings again. `window_is_ignored`: llama.cpp computes without the sliding window
    that the file names.
    """

    architecture: str
    settings: Mapping[str, str]
    further: Callable[[Mapping[str, Any], Settings], Settings] = rope_alone
    stored: Mapping[str, Stored] = field(default_factory=dict)
    needs_head: bool = False
    window_is_ignored: bool = False


@dataclass(frozen=True)
class Family:
    """Models of one type. `name` is `model_type` in transformers' configurations."""

    name: str
    architecture: Callable[[Any], Architecture]  # of a configuration; may raise `Unsupported`
    gguf: GgufLayout | None = None


# Settings of GGUF files that most families have.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
GROUPED_SIZES = SIZES | {
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
HEAD_DIM = {"head_dim": "attention.key_length"}


def llama_like(config: Any) -> Architecture:
    """Llama and what differs from it by a flag."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    bias = bool(getattr(config, "attention_bias", False))
    layers = config.num_hidden_layers
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or 0
    ropes = {kind: rope_of(config, head_dim, kind) for kind in set(types or [""])}
    rotary_dim = len(next(iter(ropes.values())).frequencies) * 2
    spec = AttentionSpec(heads, config.num_key_value_heads or heads, head_dim, rotary_dim, head_dim**-0.5)
    kinds = types or [""] * layers
    if len(kinds) != layers:
        raise ValueError(f"{layers} layers, of which {len(kinds)} have a kind of attention")
    specs = tuple(replace(spec, window=window if kind in ("", "sliding_attention") else 0) for kind in kinds)
    return Architecture(
        model_type=config.model_type,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
        specs=specs,
        ropes=tuple(ropes[kind] for kind in kinds),
        activation=getattr(config, "hidden_act", None) or config.hidden_activation,
        eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
    )


def with_specs(architecture: Architecture, **changes: Any) -> Architecture:
    """The architecture with `changes` of the attention of every layer."""
    return replace(architecture, specs=tuple(replace(spec, **changes) for spec in architecture.specs))


def rope_of(config: Any, head_dim: int, kind: str) -> Rope:
    """The frequencies of layers of one kind; by transformers' own functions where they are scaled."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    nested = kind in parameters
    parameters = parameters[kind] if nested else parameters
    scaling = parameters.get("rope_type", "default")
    if scaling == "default":
        rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        whole("rotary width", rotary_dim, 2, head_dim)
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        return Rope(1.0 / parameters["rope_theta"] ** exponents)
    if scaling == "dynamic":
        raise Unsupported("rotary positions scaled by the length of the text have no fast path")
    extra = {"layer_type": kind} if nested else {}
    function = ROPE_INIT_FUNCTIONS[scaling]
    frequencies, factor = function(config, torch.device("cpu"), **extra)
    if scaling != "longrope":
        return Rope(frequencies.float(), factor)
    original = parameters["original_max_position_embeddings"]
    long, _ = function(config, torch.device("cpu"), seq_len=original + 1, **extra)
    return Rope(frequencies.float(), factor, original, long.float())
