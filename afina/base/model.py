"""What training, measuring and generating ask of a decoder, and the implementation through transformers.

B rows, T tokens, N labelled positions, V words. Rows are padded right in training, left in generation.
"""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SHORT = 384  # tokens; beyond, the square of the length weighs more than the slow backward pass


class Decoding(Protocol):
    """A batch in the middle of generation."""

    def step(self, ids_B: Tensor) -> Tensor:
        """Appends one token to each row; the logits (B, V) of the next."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with the given rows only."""


class CausalModel(Protocol):
    """A frozen decoder-only model. `module` is the network, with transformers' names, where adapters are injected."""

    module: nn.Module

    def label_logits(self, ids_BT: Tensor, mask_BT: Tensor, labelled_BT: Tensor) -> Tensor:
        """Logits (N, V) at the positions, in row order, where `labelled_BT` is true, and at no others."""

    def start(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Decoding]:
        """Reads left-padded prompts; the logits (B, V) of the first new token, and the state to go on from."""


class TransformersModel:
    """Any causal model of transformers behind `CausalModel`."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._attention = module.config._attn_implementation
        accepted = inspect.signature(module.forward).parameters
        self.selects = "logits_to_keep" in accepted
        self.takes_positions = "position_ids" in accepted

    def label_logits(self, ids_BT: Tensor, mask_BT: Tensor, labelled_BT: Tensor) -> Tensor:
        self._attend(ids_BT)
        columns = labelled_BT.any(0).nonzero().squeeze(1)
        # The columns in which any row has a label: the head is the dearest product, and prompts need none of it.
        extra: dict[str, Any] = {"logits_to_keep": columns} if self.selects else {}
        logits = self.module(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra).logits
        if not self.selects:
            logits = logits[:, columns]
        return logits[labelled_BT[:, columns]]  # type: ignore[no-any-return]

    def _attend(self, ids_BT: Tensor) -> None:
        """Plain products for short rows on the processor, where the fused attention's backward pass is several times slower."""
        module: Any = self.module
        short = ids_BT.device.type == "cpu" and ids_BT.shape[1] <= SHORT
        wanted = "eager" if short else self._attention
        if module.config._attn_implementation != wanted:
            module.set_attn_implementation(wanted)

    def start(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Decoding]:
        from transformers import DynamicCache

        state = _TransformersDecoding(self, DynamicCache(config=self.module.config), mask_BT)
        return state.read(ids_BT), state


class _TransformersDecoding:
    def __init__(self, model: TransformersModel, cache: Any, mask_BT: Tensor) -> None:
        self._model, self._cache, self._mask_BT = model, cache, mask_BT

    def read(self, ids_BT: Tensor) -> Tensor:
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._model.selects else {}
        if self._model.takes_positions:
            # Padding on the left takes no position, so a row reads the same alone and in a batch.
            extra["position_ids"] = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        out = self._model.module(
            input_ids=ids_BT, attention_mask=self._mask_BT, past_key_values=self._cache, use_cache=True, **extra
        )
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def step(self, ids_B: Tensor) -> Tensor:
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(ids_B), 1)], 1)
        return self.read(ids_B[:, None])

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask_BT = self._mask_BT[rows]
