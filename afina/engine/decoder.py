"""One decoder for all families: transformers' names, packed rows, fused operations, joined products.

T tokens (packed), C channels, E = (H + 2·Hkv)·D outputs of the query, key and value layers, S rows of a pack.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from afina.core.device import sent
from afina.core.updates import Updates
from afina.engine.architecture import Architecture, Rope
from afina.engine.blocks import BlockLinear, Blocks
from afina.engine.joined import JoinedLinear
from afina.engine.kernels import expect_below
from afina.engine.kv_cache import Cache
from afina.engine.layers import BlockEmbedding, Conv1D, Embedding, RmsNorm, add_norm
from afina.engine.mixed import PackedUpdates, Place, RowUpdates
from afina.engine.ops import ACTIVATIONS, NORM_ALL_HEADS, TORCH, Ops, Rotation, Segments


@dataclass(frozen=True)
class ForwardState:
    """What all layers of one forward pass share. With a `cache`, the tokens' keys and values are added to it."""

    ops: Ops
    segments: Segments
    rotations: dict[int, Rotation]
    cache: Cache | None = None
    steady: bool = False  # no layer has changed since the last forward pass with this cache
    updates: RowUpdates | None = None  # of each token, beside the frozen weights


class DecoderLayer(nn.Module):
    """Attention and MLP, each with the norms that its family has before and after it, added to the residual stream."""

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        names, spec = arch.names, arch.specs[index]
        self.arch, self.index, self.spec = arch, index, spec

        def projection(inputs: int, outputs: int, bias: bool) -> nn.Module:
            return Conv1D(inputs, outputs) if arch.conv1d else nn.Linear(inputs, outputs, bias)

        for name in (names.attention_norm, names.after_attention_norm, names.mlp_norm, names.after_mlp_norm):
            if name:
                self.add_module(name, _norm(arch))
        attention, mlp = nn.Module(), nn.Module()
        sizes = (spec.q_size, spec.kv_size, spec.kv_size)
        for name, size in zip(names.qkv, sizes if len(names.qkv) == 3 else (sum(sizes),), strict=True):
            attention.add_module(name, projection(arch.hidden, size, arch.qkv_bias))
        attention.add_module(names.out, projection(spec.q_size, arch.hidden, arch.out_bias))
        if spec.norm:
            together = spec.norm == NORM_ALL_HEADS
            q_width, k_width = (spec.q_size, spec.kv_size) if together else (spec.head_dim, spec.head_dim)
            attention.add_module("q_norm", RmsNorm(q_width, spec.eps, arch.norm_offset))
            attention.add_module("k_norm", RmsNorm(k_width, spec.eps, arch.norm_offset))
        inner = arch.inner * (2 if arch.gated and len(names.up) == 1 else 1)
        for name in names.up:
            mlp.add_module(name, projection(arch.hidden, inner, arch.mlp_bias))
        mlp.add_module(names.down, projection(arch.inner, arch.hidden, arch.mlp_bias))
        self.add_module(names.attention, attention)
        self.add_module("mlp", mlp)
        joined = [
            JoinedLinear(owner, *layers, number=4 * index + i)
            for i, (owner, layers) in enumerate(
                ((attention, names.qkv), (attention, (names.out,)), (mlp, names.up), (mlp, (names.down,)))
            )
        ]
        self._qkv, self._out, self._up, self._down = joined

    def joined(self) -> dict[str, tuple[JoinedLinear, str]]:
        """What computes each linear layer, and its name there, by its path in this layer."""
        attention = self.arch.names.attention
        owners = (attention, self._qkv), (attention, self._out), ("mlp", self._up), ("mlp", self._down)
        return {f"{owner}.{name}": (joined, name) for owner, joined in owners for name in joined.places()}

    def places(self) -> dict[str, Place]:
        """Where each linear layer stands, by its path in this layer."""
        return {path: joined.places()[name] for path, (joined, name) in self.joined().items()}

    def forward(
        self, x_TC: Tensor, added_TC: Tensor | None, state: ForwardState, at_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream is x + added, before and after the layer: the sum is left to the next norm, which fuses
        it. After it, only of the tokens `at_N` where these are given."""
        names = self.arch.names
        x_TC, y_TC = self._normed(names.attention_norm, x_TC, added_TC, state)
        seen_TC = self._attend(y_TC, state)
        if at_N is not None:
            x_TC, seen_TC = x_TC.index_select(0, at_N), seen_TC.index_select(0, at_N)
            state = state if state.updates is None else replace(state, updates=state.updates.at(at_N))
        attended_TC = self._out(seen_TC, state.ops, state.steady, state.updates)
        attended_TC = self._after(names.after_attention_norm, attended_TC, state)
        if self.arch.parallel:
            _, y_TC = self._normed(names.mlp_norm, x_TC, None, state)
            return x_TC, attended_TC + self._mlp(y_TC, state)
        x_TC, y_TC = self._normed(names.mlp_norm, x_TC, attended_TC, state)
        return x_TC, self._after(names.after_mlp_norm, self._mlp(y_TC, state), state)

    def _normed(self, name: str | None, x: Tensor, added: Tensor | None, state: ForwardState) -> tuple[Tensor, Tensor]:
        return add_norm(getattr(self, name) if name else None, x, added, state.ops)

    def _after(self, name: str | None, x: Tensor, state: ForwardState) -> Tensor:
        return self._normed(name, x, None, state)[1]

    def _mlp(self, y_TC: Tensor, state: ForwardState) -> Tensor:
        up = self._up(y_TC, state.ops, state.steady, state.updates)
        activation = self.arch.activation
        inner = state.ops.gated(up, activation) if self.arch.gated else ACTIVATIONS[activation](up)
        return self._down(inner, state.ops, state.steady, state.updates)

    def _attend(self, y_TC: Tensor, state: ForwardState) -> Tensor:
        spec = self.spec
        qkv_TE = self._qkv(y_TC, state.ops, state.steady, state.updates)
        if self.arch.interleaved:
            qkv_TE = qkv_TE.unflatten(1, (spec.heads, 3, spec.head_dim)).transpose(1, 2).flatten(1)
        rotation = state.rotations.get(self.index)
        if state.cache is None:
            return state.ops.attend(qkv_TE, spec, rotation, state.segments)
        return state.cache.attend(self.index, qkv_TE, spec, rotation, state.segments, state.ops)


def drops(module: nn.Module) -> bool:
    """Whether it draws random numbers in training, which are to be drawn again where it is computed again. Keeping
    their state is a wait for a card, each time."""
    return any(isinstance(each, nn.Dropout) and each.p > 0 for each in module.modules())


def _norm(arch: Architecture) -> nn.Module:
    if arch.layer_norm:
        return nn.LayerNorm(arch.hidden, eps=arch.eps)
    return RmsNorm(arch.hidden, arch.eps, arch.norm_offset)


class Decoder(nn.Module):
    """A decoder-only language model. `config` is what transformers parsed; module paths are those of transformers."""

    def __init__(self, arch: Architecture, config: Any, ops: Ops) -> None:
        super().__init__()
        self.arch, self.config, self.ops = arch, config, ops
        self.checkpointing = False  # keep only each layer's input for the backward pass, and recompute the rest
        self._tables: dict[int, tuple[Rope, Tensor, Tensor]] = {}
        self._prepared: WeakKeyDictionary[Updates, PackedUpdates] = WeakKeyDictionary()
        names = arch.names
        self._put(names.embedding, Embedding(arch.vocabulary, arch.hidden, arch.embedding_scale))
        if names.positions:
            self._put(names.positions, Embedding(arch.learned_positions, arch.hidden, None))
        self._put(names.layers, nn.ModuleList(DecoderLayer(arch, i) for i in range(len(arch.specs))))
        self._put(names.final_norm, _norm(arch))
        self._put(names.head, nn.Linear(arch.hidden, arch.vocabulary, False))
        parent, _, name = names.head.rpartition(".")
        self._head = JoinedLinear(self.get_submodule(parent), name, number=4 * len(arch.specs))
        self.tie()

    def tie(self) -> None:
        """Makes the output head share the token embeddings, where the model does."""
        if not self.arch.tied:
            return
        embedding = self.get_input_embeddings()
        if isinstance(embedding, BlockEmbedding):
            self._put(self.arch.names.head, BlockLinear(embedding.blocks))
        else:
            self.get_output_embeddings().weight = embedding.weight

    def untie(self) -> None:
        """Before weights are given: the output head has its own, whatever the configuration said."""
        self.config.tie_word_embeddings = False
        self.arch = replace(self.arch, tied=False)
        head = self.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight))

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As transformers has it: which weights the configuration makes one on reading."""
        names = self.arch.names
        tied = self.config.tie_word_embeddings
        return {f"{names.head}.weight": f"{names.embedding}.weight"} if tied else {}

    def placing(self) -> Callable[[str, Tensor], Tensor]:
        """What puts a weight, by its name, as it is read, where its joined product reads it; others stay where they
        are."""
        joined: dict[str, tuple[JoinedLinear, str]] = {
            f"{self.arch.names.layers}.{i}.{path}.weight": own
            for i, layer in enumerate(self.decoder_layers())
            for path, own in layer.joined().items()
        }

        def placed(name: str, weight: Tensor) -> Tensor:
            if name not in joined:
                return weight
            product, own = joined[name]
            return product.take(own, weight)

        return placed

    def take_blocks(self, path: str, blocks: Blocks) -> None:
        """Replaces the linear layer or embedding at `path` by one over `blocks`."""
        layer: Any = self.get_submodule(path)
        if isinstance(layer, Embedding):
            self._put(path, BlockEmbedding(blocks, layer.embed_scale))
        else:
            self._put(path, BlockLinear(blocks, layer.bias))

    @property
    def dtype(self) -> torch.dtype:
        """That of the token embeddings as they are looked up."""
        layer = self.get_input_embeddings()
        layer = getattr(layer, "base", layer)
        dtype: torch.dtype = layer.blocks.dtype if isinstance(layer, BlockEmbedding) else layer.weight.dtype
        return dtype

    def _put(self, path: str, module: nn.Module) -> None:
        owner: nn.Module = self
        *parents, name = path.split(".")
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        owner.add_module(name, module)

    def get_input_embeddings(self) -> Any:
        return self.get_submodule(self.arch.names.embedding)

    def get_output_embeddings(self) -> Any:
        return self.get_submodule(self.arch.names.head)

    def ops_for(self, x: Tensor) -> Ops:
        """The operations, in torch where those of this decoder are not for the device or the dtype of `x`."""
        return self.ops if self.ops.takes(x) else TORCH

    def decoder_layers(self) -> Any:
        return self.get_submodule(self.arch.names.layers)

    def places(self) -> dict[str, Place]:
        """Where each linear layer stands, by its path."""
        names = self.arch.names
        found = {
            f"{names.layers}.{i}.{path}": place
            for i, layer in enumerate(self.decoder_layers())
            for path, place in layer.places().items()
        }
        (head,) = self._head.places().values()
        return found | {names.head: head}

    def prepare(self, updates: Updates) -> PackedUpdates:
        """The updates as the products of this decoder need them, made once as long as they live. Raises `AdapterError`
        with all that has no place here."""
        like = torch.empty(0, dtype=self.dtype, device=next(self.parameters()).device)
        kind = like.dtype, like.device, self.ops_for(like).kernels
        packed = self._prepared.get(updates)
        if packed is None or not packed.suits(*kind):
            packed = self._prepared[updates] = PackedUpdates(updates.factors, self.places(), *kind)
        return packed

    def forward(
        self, ids_T: Tensor, segments: Segments, cache: Cache | None = None, at_N: Tensor | None = None,
        updates: RowUpdates | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The residual stream after the last layer as two summands, (T, C) each; `normed` adds them. Where tokens
        `at_N` are given, of these only, (N, C): what the last layer does after attention is done for no others."""
        return self.through(*self.begin(ids_T, segments, cache, updates), at_N)

    def begin(
        self, ids_T: Tensor, segments: Segments, cache: Cache | None, updates: RowUpdates | None = None
    ) -> tuple[Tensor, ForwardState]:
        """The token embeddings (T, C), and what the layers share."""
        names = self.arch.names
        x = self.get_submodule(names.embedding)(ids_T)
        positions = cache.positions(segments) if cache else segments.positions_T
        there = sent(positions, x.device) if cache else segments.on(x.device, "positions_T")
        if names.positions:
            x = x + self.get_submodule(names.positions)(there.long())
        lengths = cache.lengths_T(segments) if cache else segments.lengths_T
        rotations = self._rotations(positions, there, lengths)
        steady = cache is not None and cache.used
        return x, ForwardState(self.ops_for(x), segments, rotations, cache, steady, updates)

    def through(self, x: Tensor, state: ForwardState, at_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` from the token embeddings on."""
        added: Tensor | None = None
        layers = self.decoder_layers()
        for layer in layers:
            wanted_N = at_N if layer is layers[-1] else None
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x, added = checkpoint(
                    layer, x, added, state, wanted_N, use_reentrant=False, preserve_rng_state=drops(layer)
                )
            else:
                x, added = layer(x, added, state, wanted_N)
        assert added is not None
        return x, added

    def normed(self, x_TC: Tensor, added_TC: Tensor) -> Tensor:
        """The final norm of the residual stream, for the positions given."""
        return add_norm(self.get_submodule(self.arch.names.final_norm), x_TC, added_TC, self.ops_for(x_TC))[1]

    def logits(self, hidden_NC: Tensor, updates_N: RowUpdates | None = None) -> Tensor:
        """(N, V), in the dtype of `hidden_NC`."""
        return self.capped(self.scores(hidden_NC, updates_N))

    def scores(self, hidden_NC: Tensor, updates_N: RowUpdates | None = None) -> Tensor:
        """(N, V), the logits before their cap."""
        return self._head(hidden_NC, self.ops_for(hidden_NC), updates=updates_N)

    def capped(self, scores_NV: Tensor) -> Tensor:
        cap = self.arch.logit_cap
        return torch.tanh(scores_NV / cap) * cap if cap else scores_NV

    def _rotations(self, positions_T: Tensor, there_T: Tensor, lengths_T: Tensor) -> dict[int, Rotation]:
        """By layer, of tokens at these positions, which are `there` on the device, too."""
        tables: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        rotations = {}
        needed = int(positions_T.max()) + 1
        for index, rope in enumerate(self.arch.ropes):
            if id(rope) not in tables:
                cosines, sines = self._table(rope, needed, there_T.device)
                rows_T, rows_there_T = positions_T, there_T
                if rope.original is not None:  # by each row's own length: a pack gives what its rows give alone
                    rows_T = positions_T + (lengths_T > rope.original).int() * (len(cosines) // 2)
                    rows_there_T = sent(rows_T, there_T.device)
                expect_below(len(cosines), rows_T)
                tables[id(rope)] = (cosines, sines, rows_there_T)
            norms: tuple[Tensor | None, Tensor | None] = (None, None)
            if self.arch.specs[index].norm:
                attention = getattr(self.decoder_layers()[index], self.arch.names.attention)
                norms = attention.q_norm.scale(), attention.k_norm.scale()
            rotations[index] = Rotation(*tables[id(rope)], *norms)
        return rotations

    @torch.inference_mode(False)  # training may use these tensors later
    def _table(self, rope: Rope, needed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines (positions, rotary_dim / 2) for `needed` positions or more, cached and grown by doubling.

        Where long rows have other frequencies, their tables follow, with as many positions. Layers of one kind share a
        table.
        """
        known = self._tables.get(id(rope))
        kinds = [f for f in (rope.frequencies, rope.long_frequencies) if f is not None]
        if known is None or known[0] is not rope or len(known[1]) < needed * len(kinds) or known[1].device != device:
            size = max(256, 1 << (needed - 1).bit_length())
            positions = torch.arange(size, dtype=torch.float32)[:, None]
            angles = torch.cat([positions * frequencies for frequencies in kinds])
            known = (rope, (angles.cos() * rope.factor).to(device), (angles.sin() * rope.factor).to(device))
            self._tables[id(rope)] = known
        return known[1], known[2]
