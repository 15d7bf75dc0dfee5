"""One decoder for all families: transformers' names, packed rows, fused operations, joined products.

T tokens (packed), C channels, E = (H + 2·Hkv)·D outputs of the query, key and value layers, S rows of a pack.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from afina.engine import ops
from afina.engine.blocks import BlockLinear, Blocks
from afina.engine.families import PLAIN_ACTIVATIONS, Architecture, Rope
from afina.engine.frozen import Conv1D
from afina.engine.joined import Joined
from afina.engine.kernels import Kernels, serves
from afina.engine.kv_cache import Cache
from afina.engine.ops import Rotation, Segments


class RmsNorm(nn.Module):
    """Root mean square norm; `offset` is added to the stored weight."""

    def __init__(self, width: int, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps, self.offset = eps, offset

    def scale(self) -> Tensor:
        """What the normed values are multiplied by, in fp32."""
        weight = self.weight.float()
        return weight + self.offset if self.offset else weight


class Embedding(nn.Embedding):
    """Word vectors, times `embed_scale` where the model has one."""

    def __init__(self, words: int, width: int, scale: float | None) -> None:
        super().__init__(words, width, _weight=torch.empty(words, width))
        self.embed_scale = 1.0 if scale is None else scale

    def forward(self, ids: Tensor) -> Tensor:
        x = self._vectors(ids)
        return x if self.embed_scale == 1.0 else x * torch.tensor(self.embed_scale, dtype=x.dtype, device=x.device)

    def _vectors(self, ids: Tensor) -> Tensor:
        return super().forward(ids)


class BlockEmbedding(Embedding):
    """Word vectors in blocks, of which those of the words asked for are written out."""

    def __init__(self, blocks: Blocks, scale: float) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = blocks.rows, blocks.columns
        self.blocks, self.embed_scale = blocks, scale

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.blocks.numbers()

    def _vectors(self, ids: Tensor) -> Tensor:
        return self.blocks.take(ids.flatten()).numbers().view(*ids.shape, -1)

    def dequantised(self) -> Embedding:
        """The layer with its numbers as an ordinary weight."""
        with torch.device("meta"):
            plain = Embedding(self.num_embeddings, self.embedding_dim, self.embed_scale)
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        return plain


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share. With a `cache`, the keys and values of the tokens join it."""

    fused: Kernels | None
    segments: Segments
    rotations: dict[int, Rotation]
    cache: Cache | None = None
    steady: bool = False  # the layers are as they were in the last pass with this cache


class Block(nn.Module):
    """A layer: attention and MLP, each between the norms that its family has, added to the residual stream."""

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
        kv_size = spec.kv_heads * spec.width
        sizes = (spec.q_size, kv_size, kv_size)
        for name, size in zip(names.qkv, sizes if len(names.qkv) == 3 else (sum(sizes),), strict=True):
            attention.add_module(name, projection(arch.hidden, size, arch.qkv_bias))
        attention.add_module(names.out, projection(spec.q_size, arch.hidden, arch.out_bias))
        if spec.norm:
            wide = spec.norm == ops.NORM_ALL_HEADS
            attention.add_module("q_norm", RmsNorm(spec.q_size if wide else spec.width, spec.eps, arch.norm_offset))
            attention.add_module("k_norm", RmsNorm(kv_size if wide else spec.width, spec.eps, arch.norm_offset))
        inner = arch.inner * (2 if arch.gated and len(names.up) == 1 else 1)
        for name in names.up:
            mlp.add_module(name, projection(arch.hidden, inner, arch.mlp_bias))
        mlp.add_module(names.down, projection(arch.inner, arch.hidden, arch.mlp_bias))
        self.add_module(names.attention, attention)
        self.add_module("mlp", mlp)
        self._qkv, self._out = Joined(attention, *names.qkv), Joined(attention, names.out)
        self._up, self._down = Joined(mlp, *names.up), Joined(mlp, names.down)

    def forward(self, x_TC: Tensor, added_TC: Tensor | None, now: Pass) -> tuple[Tensor, Tensor]:
        """The residual stream is x + added; so is what is returned, the sum being left to the next norm."""
        names = self.arch.names
        x_TC, y_TC = self._normed(names.attention_norm, x_TC, added_TC, now)
        attended_TC = self._out(self._attend(y_TC, now), now.fused, now.steady)
        attended_TC = self._after(names.after_attention_norm, attended_TC, now)
        if self.arch.parallel:
            _, y_TC = self._normed(names.mlp_norm, x_TC, None, now)
            return x_TC, attended_TC + self._mlp(y_TC, now)
        x_TC, y_TC = self._normed(names.mlp_norm, x_TC, attended_TC, now)
        return x_TC, self._after(names.after_mlp_norm, self._mlp(y_TC, now), now)

    def _normed(self, name: str | None, x: Tensor, added: Tensor | None, now: Pass) -> tuple[Tensor, Tensor]:
        return add_norm(getattr(self, name) if name else None, x, added, now.fused)

    def _after(self, name: str | None, x: Tensor, now: Pass) -> Tensor:
        return self._normed(name, x, None, now)[1]

    def _mlp(self, y_TC: Tensor, now: Pass) -> Tensor:
        up = self._up(y_TC, now.fused, now.steady)
        if self.arch.gated:
            return self._down(ops.gated(now.fused, up, self.arch.activation), now.fused, now.steady)
        return self._down(PLAIN_ACTIVATIONS[self.arch.activation](up), now.fused, now.steady)

    def _attend(self, y_TC: Tensor, now: Pass) -> Tensor:
        spec = self.spec
        qkv_TE = self._qkv(y_TC, now.fused, now.steady)
        if self.arch.interleaved:
            qkv_TE = qkv_TE.unflatten(1, (spec.heads, 3, spec.width)).transpose(1, 2).flatten(1)
        rotation = now.rotations.get(self.index)
        if now.cache is None:
            return ops.attention(now.fused, qkv_TE, spec, rotation, now.segments)
        return now.cache.attend(self.index, qkv_TE, spec, rotation, now.segments, now.fused)


def _norm(arch: Architecture) -> nn.Module:
    if arch.layer_norm:
        return nn.LayerNorm(arch.hidden, eps=arch.eps)
    return RmsNorm(arch.hidden, arch.eps, arch.norm_offset)


def add_norm(norm: Any, x: Tensor, added: Tensor | None, fused: Kernels | None) -> tuple[Tensor, Tensor]:
    """(h, norm(h)) with h = x + added; without a norm (h, h)."""
    if isinstance(norm, RmsNorm):
        if added is None:
            return x, ops.rms_norm(fused, x, norm.scale(), norm.eps)
        return ops.add_rms_norm(fused, x, added, norm.scale(), norm.eps)
    h = x if added is None else x + added
    return h, h if norm is None else norm(h)


class Decoder(nn.Module):
    """A decoder-only language model. `config` is what transformers parsed; module paths are those of transformers."""

    def __init__(self, arch: Architecture, config: Any, fused: Kernels | None) -> None:
        super().__init__()
        self.arch, self.config, self.fused = arch, config, fused
        self.checkpointing = False  # keep only each layer's input for the backward pass, and compute the rest again
        self._tables: dict[int, tuple[Rope, Tensor, Tensor]] = {}
        names = arch.names
        self._put(names.embedding, Embedding(arch.words, arch.hidden, arch.embedding_scale))
        if names.positions:
            self._put(names.positions, Embedding(arch.learned_positions, arch.hidden, None))
        self._put(names.layers, nn.ModuleList(Block(arch, i) for i in range(len(arch.specs))))
        self._put(names.final_norm, _norm(arch))
        self._put(names.head, nn.Linear(arch.hidden, arch.words, False))
        parent, _, name = names.head.rpartition(".")
        self._head = Joined(self.get_submodule(parent), name)
        self.tie()

    def tie(self) -> None:
        """Makes the output head share the word vectors, where the family does."""
        if not self.arch.tied:
            return
        words = self.get_input_embeddings()
        if isinstance(words, BlockEmbedding):
            self._put(self.arch.names.head, BlockLinear(words.blocks))
        else:
            self.get_output_embeddings().weight = words.weight

    def take_blocks(self, path: str, blocks: Blocks) -> None:
        """Puts a layer over `blocks` in the place of the linear layer or embedding at `path`."""
        layer: Any = self.get_submodule(path)
        if isinstance(layer, Embedding):
            self._put(path, BlockEmbedding(blocks, layer.embed_scale))
        else:
            self._put(path, BlockLinear(blocks, layer.bias))

    @property
    def dtype(self) -> torch.dtype:
        """What the word vectors are given in."""
        words = self.get_input_embeddings()
        words = getattr(words, "base", words)
        dtype: torch.dtype = words.blocks.dtype if isinstance(words, BlockEmbedding) else words.weight.dtype
        return dtype

    def _put(self, path: str, module: nn.Module) -> None:
        at: nn.Module = self
        *parents, name = path.split(".")
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(name, module)

    def get_input_embeddings(self) -> Any:
        return self.get_submodule(self.arch.names.embedding)

    def get_output_embeddings(self) -> Any:
        return self.get_submodule(self.arch.names.head)

    def kernels(self, x: Tensor) -> Kernels | None:
        """The fused kernels where there are any that can work on `x`."""
        return self.fused if serves(x) else None

    def layers(self) -> Any:
        return self.get_submodule(self.arch.names.layers)

    def forward(self, ids_T: Tensor, segments: Segments, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream after the last layer as two summands, (T, C) each; see `normed`."""
        names = self.arch.names
        positions = cache.positions(segments) if cache else segments.positions_T
        x = self.get_submodule(names.embedding)(ids_T)
        if names.positions:
            x = x + self.get_submodule(names.positions)(positions.to(ids_T.device).long())
        lengths = cache.lengths_T(segments) if cache else segments.lengths_T
        rotations = self._rotations(positions, lengths, x.device)
        now = Pass(self.kernels(x), segments, rotations, cache, cache is not None and cache.used)
        added: Tensor | None = None
        for block in self.layers():
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x, added = checkpoint(block, x, added, now, use_reentrant=False)
            else:
                x, added = block(x, added, now)
        assert added is not None
        return x, added

    def normed(self, x_TC: Tensor, added_TC: Tensor) -> Tensor:
        """The final norm of the residual stream, for the positions given."""
        return add_norm(self.get_submodule(self.arch.names.final_norm), x_TC, added_TC, self.kernels(x_TC))[1]

    def logits(self, hidden_NC: Tensor) -> Tensor:
        """(N, V), in the dtype of the computation."""
        logits = self._head(hidden_NC, self.kernels(hidden_NC))
        cap = self.arch.logit_cap
        return torch.tanh(logits / cap) * cap if cap else logits

    def _rotations(self, positions_T: Tensor, lengths_T: Tensor, device: torch.device) -> dict[int, Rotation]:
        tables: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        rotations = {}
        needed = int(positions_T.max()) + 1
        for index, rope in enumerate(self.arch.ropes):
            if id(rope) not in tables:
                cosines, sines = self._table(rope, needed, device)
                rows_T = positions_T
                if rope.original is not None:  # each text by its own length: a pack gives what its rows give alone
                    rows_T = positions_T + (lengths_T > rope.original).int() * (len(cosines) // 2)
                tables[id(rope)] = (cosines, sines, rows_T.to(device))
            norms: tuple[Tensor | None, Tensor | None] = (None, None)
            if self.arch.specs[index].norm:
                attention = getattr(self.layers()[index], self.arch.names.attention)
                norms = attention.q_norm.scale(), attention.k_norm.scale()
            rotations[index] = Rotation(*tables[id(rope)], *norms)
        return rotations

    @torch.inference_mode(False)  # what is kept serves training too
    def _table(self, rope: Rope, needed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `needed` positions, kept and grown by doubling; with other frequencies for long texts, those
        for them below, as many again. Layers of one kind share theirs."""
        known = self._tables.get(id(rope))
        kinds = [f for f in (rope.frequencies, rope.long_frequencies) if f is not None]
        if known is None or known[0] is not rope or len(known[1]) < needed * len(kinds) or known[1].device != device:
            size = max(256, 1 << (needed - 1).bit_length())
            at = torch.arange(size, dtype=torch.float32)[:, None]
            angles = torch.cat([at * frequencies for frequencies in kinds])
            known = (rope, (angles.cos() * rope.factor).to(device), (angles.sin() * rope.factor).to(device))
            self._tables[id(rope)] = known
        return known[1], known[2]
