"""Rows of some tokens in embeddings and output heads, trained (PEFT's `trainable_token_indices`); the base's own stay
as they are.

Shapes: T tokens (in any number of leading dimensions), I width of the embedding, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.errors import AdapterError, near
from afina.core.layers import replace, weight_holder
from afina.lora.layer import Wrapper


class TrainableTokens(Wrapper):
    """An embedding with trained `rows` for the `tokens`, at first the base's. ids are (…), the output is (…, width)."""

    def __init__(self, base: Any, tokens: tuple[int, ...], rows: nn.Parameter | None = None) -> None:
        super().__init__(base)
        self.tokens = tokens
        self.rows = nn.Parameter(base.weight[list(tokens)].detach().float().clone()) if rows is None else rows
        row_of_V = torch.full((len(base.weight),), -1, device=base.weight.device)
        row_of_V[list(tokens)] = torch.arange(len(tokens), device=base.weight.device)
        self.register_buffer("_row_of_V", row_of_V, persistent=False)  # -1 where a token keeps the base's row
        self.register_buffer("_tokens", torch.tensor(tokens, device=row_of_V.device), persistent=False)

    def forward(self, ids_T: Tensor) -> Tensor:
        y_TI: Tensor = self.base(ids_T)
        if not self.enabled:
            return y_TI
        row_T = self._row_of_V[ids_T]  # type: ignore[index]
        rows_TI = self.rows.to(y_TI.dtype)[row_T.clamp(min=0)] * getattr(self.base, "embed_scale", 1.0)
        return torch.where((row_T >= 0)[..., None], rows_TI, y_TI)


class TrainableTokensHead(TrainableTokens):
    """An output head with trained rows. x is (…, width), the logits are (…, vocabulary)."""

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TV: Tensor = self.base(x_TI)
        if not self.enabled:
            return y_TV
        bias = None if self.base.bias is None else self.base.bias[self._tokens]
        return y_TV.index_copy(-1, self._tokens, F.linear(x_TI, self.rows.to(x_TI.dtype), bias))  # type: ignore[arg-type]


Tokens = tuple[int, ...] | dict[str, tuple[int, ...]]


def train_tokens(model: nn.Module, tokens: Tokens, saved: list[str]) -> None:
    """Makes the rows of `tokens` trainable: of the embedding, or of the layers that a dictionary names by the ends of
    their paths. Layers tied to an embedding, such as an output head, share its rows, unless named with other tokens.

    `saved` are the paths of the modules that are trained in full. Raises `AdapterError` where the model does not name
    its embedding, where a layer is absent or trained otherwise, or where a token does not exist.
    """
    layers: dict[str, Any] = {p: m for p, m in model.named_modules() if isinstance(m, nn.Embedding | nn.Linear)}
    if isinstance(tokens, dict):
        given = {path: ids for name, ids in tokens.items() for path in _named(name, list(layers))}
    else:
        given = {_embedding_path(model): tokens}
    wrapped: set[str] = set()
    for path, ids in sorted(given.items(), key=lambda item: not isinstance(layers.get(item[0]), nn.Embedding)):
        if path not in layers or any(path == each or path.startswith(f"{each}.") for each in saved):
            raise AdapterError(
                f"trainable_tokens of {path}, which is trained otherwise too: the two exclude each other",
                "leave one of them out",
            )
        layer, rows = layers[path], None
        _check_tokens(ids, len(layer.weight))
        for other, twin in layers.items():
            follows = isinstance(layer, nn.Embedding) and weight_holder(twin) is weight_holder(layer)
            if (other == path or (follows and given.get(other, ids) == ids)) and other not in wrapped:
                kind = TrainableTokens if isinstance(twin, nn.Embedding) else TrainableTokensHead
                module = kind(twin, ids, rows)
                rows = module.rows
                replace(model, other, module)
                wrapped.add(other)


def _embedding_path(model: Any) -> str:
    if not hasattr(model, "get_input_embeddings"):
        raise AdapterError(
            "trainable_tokens need a model that names its embedding (get_input_embeddings)",
            "name the layer, as in {embed_tokens: 5-9}, or leave them out",
        )
    embedding = model.get_input_embeddings()
    return str(next(path for path, module in model.named_modules() if module is embedding))


def _named(name: str, paths: list[str]) -> list[str]:
    """PEFT's rule: the layers whose paths end with `name`."""
    found = [path for path in paths if path.endswith(name)]
    if not found:
        ends = sorted({path.rsplit(".", 1)[-1] for path in paths})
        raise AdapterError(f"trainable_tokens: {name!r} is no embedding and no linear layer.{near(name, ends)}")
    return found


def _check_tokens(tokens: tuple[int, ...], rows: int) -> None:
    if max(tokens) >= rows or min(tokens) < 0 or len(set(tokens)) < len(tokens):
        raise AdapterError(
            f"trainable_tokens must be different numbers from 0 to {rows - 1}", "look the tokens up in the tokenizer"
        )
