"""The operations in torch, on any device: what each of them is, and what the other implementations are tested against.

T tokens, packed; C channels; N labelled positions, V tokens of the vocabulary; R rows of K numbers each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afina.engine.kernels import Kernels
from afina.engine.ops.activations import gated_by_torch
from afina.engine.ops.attention import Past, attend_by_torch, attend_cached_by_torch
from afina.engine.ops.few_rows import FewRows, Part
from afina.engine.ops.losses import chunk_losses_by_torch
from afina.engine.ops.low_rank import LowRankUpdate, outer_product_by_torch
from afina.engine.ops.norms import rms_norm_by_torch
from afina.engine.ops.rotary import AttentionSpec, Rotation, rotate_by_torch
from afina.engine.ops.segments import Segments
from afina.engine.ops.unpack import unpack_by_torch


class Ops:
    """What a decoder computes with between its matrix products, chosen once for it (choice.py). All results are
    differentiable where nothing else is said. Inputs may be strided by row.

    This class computes in torch. Another implementation is a subclass in a file of its own, which overrides what it
    does faster; what it leaves is computed here.
    """

    kernels: Kernels | None = None  # of the C++ implementation: tape.py records their calls, mixed.py packs for them
    ranks = 1  # the ranks of joined adapters are filled up to a multiple of this, with zeros
    few = 0  # rows up to which a product is bound by reading the weights, and `few_rows` faster than the matrix library

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ops":
        return self

    def takes(self, x: Tensor) -> bool:
        """Whether it computes with tensors on the device and of the dtype of `x`."""
        return True

    def rms_norm(self, x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        """y = w · x / √(mean x² + eps), the mean in fp32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""
        return rms_norm_by_torch(x_TC, weight_C, eps)

    def add_rms_norm(self, x_TC: Tensor, added_TC: Tensor, weight_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(h, y): h = x + added, and y the norm of h."""
        h_TC = x_TC + added_TC
        return h_TC, rms_norm_by_torch(h_TC, weight_C, eps)

    def gated(self, gate_up_TI: Tensor, kind: str) -> Tensor:
        """act(gate) · up, (T, I), of a joined (T, 2·I) product (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
        return gated_by_torch(gate_up_TI, kind)

    def rotate(self, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None) -> Tensor:
        """Queries and keys, normed and rotated, side by side: (T, (H + Hkv)·D).

        Rotation: Su et al. 2021, https://arxiv.org/abs/2104.09864; the two halves of a head's first `rotary_dim` are
        the pairs.
        """
        if rotation is None:
            return qkv_TE[:, : spec.qk_size]
        return torch.cat([x_THD.flatten(1) for x_THD in rotate_by_torch(qkv_TE, spec, rotation)], 1)

    def attend(self, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments) -> Tensor:
        """Causal attention of each segment to its ancestors and to itself; (T, H·D). Queries and keys are rotated here.

        Costs what the rows cost one by one, not the square of the pass's length.
        """
        return attend_by_torch(qkv_TE, spec, rotation, segments)

    def attend_cached(self, qk_TE: Tensor, v_TE: Tensor, spec: AttentionSpec, past: Past, segments: Segments) -> Tensor:
        """Attention, after rotation, of segments to their past and to themselves; (T, H·D), without gradients. Their
        keys and values join the past."""
        return attend_cached_by_torch(qk_TE, v_TE, spec, past, segments)

    def check_labels(self, labels_N: Tensor, count: int, vocabulary: int) -> None:
        """Raises `IndexError` where native code would compute an address outside the logits from the labels."""

    def chunk_losses(self, logits_NV: Tensor, labels_N: Tensor, losses_N: Tensor, gradient: bool) -> Tensor:
        """Writes −log p(label), in nats, into `losses_N` (fp32); softmax − onehot where the `gradient` is wanted,
        perhaps in the place of the logits. Without gradients of its own."""
        return chunk_losses_by_torch(logits_NV, labels_N, losses_N, gradient)

    def unpack(self, data: Tensor, kind: int, out_RK: Tensor) -> None:
        """Writes the numbers of the blocks `data` (R, bytes), of format `kind` (unpack.py), into `out_RK`."""
        out_RK.copy_(unpack_by_torch(data, kind, out_RK.shape[1]))

    def low_rank(self, b_OR: Tensor, scaling: float, dtype: torch.dtype) -> LowRankUpdate:
        """s·B of an adapter, ready for its products in `dtype`."""
        return LowRankUpdate(b_OR, scaling, dtype)

    def outer_product(self, left_TM: Tensor, right_TN: Tensor, scale: float) -> Tensor:
        """scale · leftᵀ right, (M, N) in fp32; one of the two has but a few columns."""
        return outer_product_by_torch(left_TM, right_TN, scale)

    def few_rows(self, parts: Sequence[Part], inputs: int, bias: Tensor | None) -> FewRows | None:
        """The product of up to `few` rows with the weights of `parts`, their updates and their biases; None where it
        has none for such weights."""
        return None


TORCH = Ops()
