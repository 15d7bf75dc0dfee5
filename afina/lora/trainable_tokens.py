"""Token embeddings of some tokens, trained (PEFT's `trainable_token_indices`); the base's own stay as they are.

Shapes: T tokens (in any number of leading dimensions), I width of the embedding, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from afina.core.errors import AdapterError
from afina.core.layers import replace
from afina.lora.layer import LoraLayer, Wrapper


class TrainableTokens(Wrapper):
    """An embedding with trained `rows` for the `tokens`, at first the base's. ids are (…), the output is (…, width)."""

    def __init__(self, base: Any, tokens: tuple[int, ...], rows: nn.Parameter | None = None) -> None:
        super().__init__(base)
        self.tokens = tokens
        self.rows = nn.Parameter(base.weight[list(tokens)].detach().float().clone()) if rows is None else rows
        row_of_V = torch.full((len(base.weight),), -1, device=base.weight.device)
        row_of_V[list(tokens)] = torch.arange(len(tokens), device=base.weight.device)
        self.register_buffer("_row_of_V", row_of_V, persistent=False)  # -1 where a token keeps the base's embedding

    def forward(self, ids_T: Tensor) -> Tensor:
        y_TI: Tensor = self.base(ids_T)
        if not self.enabled:
            return y_TI
        row_T = self._row_of_V[ids_T]  # type: ignore[index]
        rows_TI = self.rows.to(y_TI.dtype)[row_T.clamp(min=0)] * getattr(self.base, "embed_scale", 1.0)
        return torch.where((row_T >= 0)[..., None], rows_TI, y_TI)


class TrainableTokensHead(Wrapper):
    """An output head tied to an embedding with trained rows. x is (…, width), the logits are (…, vocabulary)."""

    def __init__(self, base: Any, embedding: TrainableTokens) -> None:
        super().__init__(base)
        self._embedding = (embedding,)  # not a submodule: its rows belong to the embedding

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TV: Tensor = self.base(x_TI)
        if not self.enabled:
            return y_TV
        (embedding,) = self._embedding
        index = torch.tensor(embedding.tokens, device=y_TV.device)
        return y_TV.index_copy(-1, index, x_TI @ embedding.rows.to(x_TI.dtype).T)


def train_tokens(model: nn.Module, tokens: tuple[int, ...], saved: list[str]) -> None:
    """Makes the embeddings of `tokens` trainable, and their rows of a tied output head.

    `saved` are the paths of the modules that are trained in full. Raises `AdapterError` where the model does not name
    its embedding, where that is trained otherwise, or where a token does not exist.
    """
    known: Any = model
    if not hasattr(model, "get_input_embeddings"):
        raise AdapterError(
            "trainable_tokens need a model that names its embedding (get_input_embeddings)", "leave them out"
        )
    embedding = known.get_input_embeddings()
    vocabulary = len(embedding.weight)
    path = next(path for path, module in model.named_modules() if module is embedding)
    if isinstance(embedding, LoraLayer) or any(path == each or path.startswith(f"{each}.") for each in saved):
        raise AdapterError(
            "trainable_tokens and an embedding that is trained otherwise exclude each other", "leave one of them out"
        )
    if max(tokens) >= vocabulary or min(tokens) < 0 or len(set(tokens)) < len(tokens):
        raise AdapterError(
            f"trainable_tokens must be different numbers from 0 to {vocabulary - 1}",
            "look the tokens up in the tokenizer",
        )
    head = known.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight, trained = embedding.weight, TrainableTokens(embedding, tokens)
    for path, module in list(model.named_modules()):
        if module is embedding:
            replace(model, path, trained)
        elif isinstance(module, nn.Embedding) and module.weight is weight:  # an encoder's and a decoder's may be one
            replace(model, path, TrainableTokens(module, tokens, trained.rows))
        elif module is head and head.weight is weight:
            replace(model, path, TrainableTokensHead(head, trained))
