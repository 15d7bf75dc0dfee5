"""Whether an adapter does something, tried on the way that its requests will take; on the engine's thread."""

from statistics import median
from time import perf_counter
from typing import Any

import torch

from afina.core.device import wait_for
from afina.core.errors import AdapterError
from afina.models.load import Base
from afina.serving.adapters import Adapter
from afina.serving.proof import spread

_TOKENS = 48  # from all over the vocabulary
_WARM, _TIMED = 4, 9  # steps: the first ones record what later ones repeat


def probe(base: Base, adapter: Adapter, name: str) -> int:
    """Reads the same tokens with the adapter and without it, in one batch; the bytes that the adapter takes.

    Raises `AdapterError` where the logits are equal, or are no numbers.
    """
    model: Any = base.model
    ids = _tokens(base)
    with torch.inference_mode():
        sequences = model.start(2, len(ids) + 1)
        sequences.add([ids, ids], [None, adapter])
        rows: dict[int, torch.Tensor] = {}
        while len(rows) < 2:
            indices, logits_NV = sequences.read(4 * len(ids))
            rows |= dict(zip(indices, logits_NV.float(), strict=True))
    if not rows[1].isfinite().all():
        raise AdapterError(
            f"adapter {name!r} makes logits that are NaN or infinite", "its training diverged: use another checkpoint"
        )
    if torch.equal(rows[0], rows[1]):
        raise AdapterError(
            f"adapter {name!r} changes nothing: with it the logits are the base's", "serve the one that was trained"
        )
    return adapter.bytes + int(model.prepare(adapter))


def overhead(base: Base, adapter: Adapter, rows: int) -> tuple[float, float]:
    """Seconds that a step of so many answers takes without an adapter, and with it; the medians of steps in turns."""
    model: Any = base.model
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode():
        active = {}
        for adapted in (False, True):
            sequences = active[adapted] = model.start(rows, 2 * _TOKENS)
            sequences.add([_tokens(base)[i : i + 8] for i in range(rows)], [adapter if adapted else None] * rows)
            read: list[int] = []
            while len(read) < rows:
                read += sequences.read(16 * rows)[0]
        device = next(model.module.parameters()).device
        ids_B = torch.full((rows,), _tokens(base)[0], device=device)
        for step in range(_WARM + _TIMED):
            for adapted, sequences in active.items():
                wait_for(device)
                begun = perf_counter()
                sequences.decode(ids_B)
                wait_for(device)
                if step >= _WARM:
                    seconds[adapted].append(perf_counter() - begun)
    return median(seconds[False]), median(seconds[True])


def _tokens(base: Base) -> list[int]:
    return [*base.tokenizer.encode("Hello."), *spread(base, min(_TOKENS, base.facts.context_length - 2))]
