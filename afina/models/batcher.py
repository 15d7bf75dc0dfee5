"""Continuous batching: requests are submitted at any time, and each step gives a token of every active one. Finished
requests leave the batch, and waiting ones take their place.

B active sequences; V vocabulary.
"""

from collections import deque
from typing import Literal

import torch
from torch import Tensor

from afina.core.errors import AdapterError, counted
from afina.models.causal import PREFILL_TOKENS
from afina.models.model import ActiveSequences, Answer, Writer
from afina.models.sampling import GREEDY, Sampler, Sampling, likeliest
from afina.models.tokenizer import Tokenizer

MAX_BATCH_SIZE = 32  # active sequences


class Request:
    """A prompt to be continued, and the handle of its answer: `token_ids` are those so far, without the stop token.

    `finish_reason` is None until the request has finished: by itself (stop), at `max_new_tokens` (length), or
    cancelled. `adapter` names the adapter that it is for; None: the model as it is.
    """

    def __init__(
        self, prompt_ids: list[int], max_new_tokens: int, sampling: Sampling, adapter: str | None, device: torch.device
    ) -> None:
        self.prompt_ids, self.max_new_tokens, self.adapter = prompt_ids, max_new_tokens, adapter
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        self.sampler = Sampler(sampling, device)


class Batcher:
    """Generates for many requests at one time.

    Up to `max_batch_size` requests are active; the others wait, and enter in the order in which they were submitted.
    What prompts begin with is read once, also where another request, active or over, began so: its keys and values are
    there until their memory is needed. When no request is left, the KV cache is freed, but with `keep`, until `forget`;
    only then may the model change. The model's module has to be in evaluation mode. `adapter` is the
    name of the adapter in place. Not for several threads.

    Cost: a step is one forward pass over a token of each active sequence, and one over the prompts that enter.
    """

    def __init__(
        self, model: Writer, tokenizer: Tokenizer, max_batch_size: int = MAX_BATCH_SIZE, adapter: str | None = None,
        keep: bool = False,
    ) -> None:  # fmt: skip
        self.keep = keep
        self.model, self.tokenizer, self.max_batch_size, self.adapter = model, tokenizer, max_batch_size, adapter
        self._device = next(model.module.parameters()).device
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        self._sequences: ActiveSequences | None = None  # of the active requests, in their order

    def submit(
        self, prompt_ids: list[int], max_new_tokens: int, sampling: Sampling = GREEDY, adapter: str | None = None
    ) -> Request:
        """Adds a request, whose tokens come with the next steps. Raises `AdapterError` where its adapter is not the
        one in place, and `ValueError` for a prompt or an answer of no token."""
        if not prompt_ids or max_new_tokens < 1:
            raise ValueError(f"a prompt of {counted(len(prompt_ids), 'token')}, and an answer of {max_new_tokens}")
        if adapter not in (None, self.adapter):
            served = f"only {self.adapter!r} is" if self.adapter else "the model has none with a name"
            raise AdapterError(f"the adapter {adapter!r} is not loaded: {served}", "leave the adapter's name out")
        request = Request(prompt_ids, max_new_tokens, sampling, adapter, self._device)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request early; another may take its slot in the next step. A finished request stays as it is."""
        if request.finish_reason is not None:
            return
        request.finish_reason = "cancelled"
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._drop_finished()

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._active or self._waiting)

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, int]]:
        """The next token of each active request, also where it is a stop token. Then `Request.finish_reason` says
        which have finished."""
        parts_BV: list[Tensor] = []
        if self._active:
            assert self._sequences is not None
            last_B = torch.tensor([request.token_ids[-1] for request in self._active], device=self._device)
            parts_BV.append(self._sequences.decode(last_B))
        entering = self._entering()
        if entering:
            parts_BV.append(self._prefill(entering))
        if not parts_BV:
            return []
        logits_BV = parts_BV[0] if len(parts_BV) == 1 else torch.cat(parts_BV)
        tokens = list(zip(self._active, self._choose(logits_BV), strict=True))
        for request, token in tokens:
            self._append(request, token)
        self._drop_finished()
        return tokens

    def answer(self, request: Request) -> Answer:
        """What has been written for the request, cut before the stop string that ended it."""
        text = self.tokenizer.decode(request.token_ids)
        for string in request.sampler.sampling.stop:
            text = text.split(string)[0]
        return Answer(text.strip(), len(request.token_ids), request.finish_reason == "stop")

    def _entering(self) -> list[Request]:
        """The waiting requests that become active now."""
        free = self.max_batch_size - len(self._active)
        if self._active:
            assert self._sequences is not None
            # Reading one prompt costs nearly as much as reading several, so a quarter of the batch enters at one time.
            if not self._sequences.can_add or free < min(self.max_batch_size / 4, len(self._waiting)):
                return []
        return [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]

    def _prefill(self, entering: list[Request]) -> Tensor:
        """Makes the requests active; the logits (len(entering), V) of their first tokens."""
        if self._sequences is None or not (self._active or self._sequences.can_add):
            known = [*entering, *self._waiting]
            room = max(len(request.prompt_ids) + request.max_new_tokens for request in known)
            self._sequences = self.model.start(min(self.max_batch_size, len(known)), room)
        self._active += entering
        self._sequences.add([request.prompt_ids for request in entering], [None] * len(entering))
        logits: dict[int, Tensor] = {}
        while len(logits) < len(entering):
            whole, logits_NV = self._sequences.read(PREFILL_TOKENS)
            logits |= zip(whole, logits_NV, strict=True)
        return torch.stack([logits[i] for i in sorted(logits)])

    def _choose(self, logits_BV: Tensor) -> list[int]:
        if all(request.sampler.sampling.is_argmax for request in self._active):
            return likeliest(logits_BV)
        return [
            request.sampler.choose(logits_V, [*request.prompt_ids, *request.token_ids])
            for request, logits_V in zip(self._active, logits_BV, strict=True)
        ]

    def _append(self, request: Request, token: int) -> None:
        """Adds the token to the answer, or finishes the request."""
        if token in self.tokenizer.stop_ids:
            request.finish_reason = "stop"
            return
        request.token_ids.append(token)
        stop = request.sampler.sampling.stop
        if stop:
            text = self.tokenizer.decode(request.token_ids)
            if any(string in text for string in stop):
                request.finish_reason = "stop"
                return
        if len(request.token_ids) >= request.max_new_tokens:
            request.finish_reason = "length"

    def _drop_finished(self) -> None:
        remaining = [i for i, request in enumerate(self._active) if request.finish_reason is None]
        if len(remaining) < len(self._active):
            assert self._sequences is not None
            self._active = [self._active[i] for i in remaining]
            if self.busy or self.keep:
                self._sequences.retain(remaining)
            else:
                self._sequences = None

    def forget(self) -> None:
        """Frees what was kept; not while requests are active."""
        if not self._active:
            self._sequences = None
