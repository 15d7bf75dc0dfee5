"""Continuous batching: requests are submitted at any time, and each step gives a token of every active one. Finished
requests leave the batch, and waiting ones take their place.

N requests that get a token; V vocabulary.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import torch
from torch import Tensor

from afina.core.device import overlaps, sent
from afina.core.errors import counted
from afina.core.updates import Updates
from afina.models.detokeniser import Detokeniser
from afina.models.model import ActiveSequences, Answer, Writer
from afina.models.sampling import GREEDY, Choice, Likelihood, Likelihoods, Sampler, Sampling, choose, likelihoods
from afina.models.tokenizer import Tokenizer

MAX_BATCH_SIZE = 32  # active sequences
_NO_TOKEN = -1  # what a prompt never holds
PREFILL_TOKENS = 4096  # prompt tokens that a step reads, where nobody waits for the next token


class Request:
    """A prompt to be continued, and the handle of its answer: `token_ids` are those so far, without the stop token,
    and `text` what they say.

    `finish_reason` is None until the request has finished: by itself (stop, and `stop_reason` is the string or the
    token), at `max_new_tokens` (length), cancelled, or because of `fault`, which is this request's alone. `updates` are
    those of the adapter that it is for; None: the model as it is. `top` is how many of the likeliest tokens to tell
    beside each token (None: not even how likely that is). The times, in seconds of `time.monotonic`, are None until
    then.
    """

    def __init__(
        self, prompt_ids: Sequence[int], max_new_tokens: int, sampling: Sampling, updates: Updates | None,
        top: int | None,
    ) -> None:  # fmt: skip
        self.prompt_ids, self.max_new_tokens, self.updates = list(prompt_ids), max_new_tokens, updates
        self.sampling, self.top = sampling, top
        self.token_ids: list[int] = []
        self.chosen = 0  # tokens, also those that the host does not know yet
        self.last: Tensor  # of them, on the device
        self.known = _NO_TOKEN  # the last of them that the host knows
        self.generated = 0  # tokens, the stop token included
        self.cached = 0  # tokens of the prompt that were read before
        self.is_read = False  # the prompt, whole
        self.likelihoods: list[Likelihood] = []  # of the answer's tokens, where `top` is given
        self.echo = False  # tell it of the prompt's tokens too
        self.prompt_likelihoods: list[Likelihood] = []
        self.finish_reason: Literal["stop", "length", "cancelled", "fault"] | None = None
        self.stop_reason: str | int | None = None
        self.fault: Exception | None = None
        self.stop_ids: frozenset[int] = frozenset()
        self.text: Detokeniser
        self.sampler: Sampler
        self.submitted = monotonic()
        self.entered: float | None = None
        self.read: float | None = None

    @property
    def tokens(self) -> int:
        """The most that it has, prompt and answer."""
        return len(self.prompt_ids) + self.max_new_tokens

    def fail(self, fault: Exception) -> None:
        self.finish_reason, self.fault = "fault", fault

    @property
    def needs_its_tokens(self) -> bool:
        """Whether it cannot go on before the host knows its tokens."""
        return self.sampling.constraint is not None or not self.max_new_tokens


@dataclass(frozen=True)
class _Unread:
    """Tokens that were chosen for requests, and that the host does not know yet; of the requests at `told` their
    likelihoods."""

    requests: list[Request]
    choice: Choice
    told: list[int]
    likelihoods: Likelihoods | None


class Batcher:
    """Generates for many requests at one time.

    Up to `max_batch_size` requests are active; the others wait, and enter in the order in which they were submitted. A
    step reads up to `prefill_tokens` of the prompts, so that those that are read already go on meanwhile. What prompts
    begin with is read once, also where another request of the same updates, active or over, began so: its keys and
    values are there until their memory is needed. When no request is left, the KV cache is freed; where `kept` is
    given, those of requests that are over stay in so many bytes more, and `shrink` frees what the next one does not
    need. Only where all is freed may the model change. `max_tokens` is what the cache has room for, as many for each
    request as the longest of them needs (None: for whatever is asked). The model's module has to be in evaluation mode.
    Not for several threads.

    Where the host may go on while the device computes, it reads the tokens of a step while the device computes the
    next one, of which it drops what follows a stop: the same answers, a step later.

    Cost: a step is one forward pass over a token of each active sequence, and one over the prompts that are read; on
    such a device, one more pass in all.
    """

    def __init__(
        self, model: Writer, tokenizer: Tokenizer, max_batch_size: int = MAX_BATCH_SIZE, *, kept: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS, max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.kept, self.prefill_tokens, self.max_tokens = kept, prefill_tokens, max_tokens
        self.model, self.tokenizer, self.max_batch_size = model, tokenizer, max_batch_size
        self._device = next(model.module.parameters()).device
        self._late = overlaps(self._device)
        self._unread: list[_Unread] = []
        self._echoing: deque[tuple[Request, Iterator[Tensor]]] = deque()  # whose prompts are scored
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        self._sequences: ActiveSequences | None = None  # of the active requests, in their order
        self._shape = 0, 0  # how many of them there is memory for, and of how many tokens

    def submit(
        self, prompt_ids: Sequence[int], max_new_tokens: int, sampling: Sampling = GREEDY,
        updates: Updates | None = None, top: int | None = None, tokenizer: Tokenizer | None = None,
    ) -> Request:  # fmt: skip
        """Adds a request, whose tokens come with the next steps; `tokenizer` is its own, where that is another. Raises
        `ValueError` for a prompt of no token, and for an answer of fewer than none."""
        if not prompt_ids or max_new_tokens < 0:
            raise ValueError(f"a prompt of {counted(len(prompt_ids), 'token')}, and an answer of {max_new_tokens}")
        request = Request(prompt_ids, max_new_tokens, sampling, updates, top)
        self.add(request, tokenizer)
        return request

    def add(self, request: Request, tokenizer: Tokenizer | None = None) -> None:
        """Adds a request that was made elsewhere, as `submit` does."""
        own = tokenizer or self.tokenizer
        request.stop_ids, request.text = own.stop_ids, Detokeniser(own, request.sampling.stop)
        request.sampler = Sampler(
            request.sampling, self._device, sorted(own.stop_ids), request.prompt_ids, request.token_ids
        )
        if request.echo:
            scores = self.model.prompt_logits(request.prompt_ids, request.updates, self.prefill_tokens)
            self._echoing.append((request, scores))
        else:
            self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Ends a request early, also while its prompt is read; another may take its slot in the next step. A finished
        request stays as it is."""
        if request.finish_reason is not None:
            return
        request.finish_reason = "cancelled"
        self._echoing = deque(each for each in self._echoing if each[0] is not request)
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._drop_finished()

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._active or self._waiting or self._echoing)

    @property
    def active(self) -> Sequence[Request]:
        return self._active

    @property
    def waiting(self) -> Sequence[Request]:
        return self._waiting

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Gives each request whose prompt is read another token, and reads on in the prompts of others. The requests
        that have another token, or are over."""
        changed = self._echo() if self._echoing else []
        if going_on := [request for request in self._active if request.is_read]:
            changed += self._decode(going_on)
        self._enter()
        if any(not request.is_read for request in self._active):
            assert self._sequences is not None
            indices, logits_NV = self._sequences.read(self.prefill_tokens)
            if indices:
                self._choose([self._active[i] for i in indices], logits_NV)
            if not self._late or any(request.needs_its_tokens for request in self._active):
                changed += self._read_tokens()
            self._drop_finished()
        return changed

    def _decode(self, requests: list[Request]) -> list[Request]:
        """Gives each of the requests whose prompt is read another token; those of which the host knows another."""
        assert self._sequences is not None
        if all(request.chosen >= request.max_new_tokens for request in requests):  # and the host knows not all of them
            changed = self._read_tokens()
            self._drop_finished()
            return changed
        logits_BV = self._sequences.decode(torch.stack([request.last for request in requests]))
        earlier, self._unread = self._unread, []
        self._choose(requests, logits_BV)
        chosen, self._unread = self._unread, earlier
        changed = self._read_tokens()  # while the device computes
        self._sequences.record([request.known for request in requests])
        self._unread = chosen
        if not self._late or any(request.needs_its_tokens for request in self._active):
            changed += self._read_tokens()
        self._drop_finished()
        return changed

    def _echo(self) -> list[Request]:
        """Scores another part of the prompt of the first that is to be told it; the request where it is over then."""
        request, parts = self._echoing[0]
        told, prompt = request.prompt_likelihoods, request.prompt_ids
        request.entered = request.entered or monotonic()
        try:
            if not told:
                told.append(Likelihood(prompt[0], None))
            if len(told) < len(prompt):
                logits_NV = next(parts)
                following = prompt[len(told) : len(told) + len(logits_NV)]
                told += likelihoods(logits_NV[: len(following)], following, request.top or 0)
            if len(told) < len(prompt):
                return []
        except Exception as fault:
            request.fail(fault)
        self._echoing.popleft()
        if request.fault is None and request.max_new_tokens:
            self._waiting.append(request)
            return []
        request.read = monotonic()
        request.finish_reason = request.finish_reason or "length"
        return [request]

    def answer(self, request: Request) -> Answer:
        """What has been written for the request, cut before the stop string that ended it. Raises its fault."""
        if request.fault is not None:
            raise request.fault
        request.text.end()
        return Answer(request.text.text.strip(), len(request.token_ids), request.finish_reason == "stop")

    def _enter(self) -> None:
        """Makes waiting requests active, as far as there is room."""
        free = self.max_batch_size - len(self._active)
        if self._active:
            assert self._sequences is not None
            # Reading one prompt costs nearly as much as reading several, so a quarter of the batch enters at one time.
            if not self._sequences.can_add or free < min(self.max_batch_size / 4, len(self._waiting)):
                return
        entering: list[Request] = []
        while self._waiting and len(entering) < free and self._has_room([*entering, self._waiting[0]]):
            entering.append(self._waiting.popleft())
        if not entering:
            return
        shape, sequences, first = self._grown(entering), self._sequences, not self._active
        self._active += entering  # which fail with the others where there is no memory for them
        if first and not (sequences and sequences.can_add and shape):
            known = [*entering, *self._waiting] if self.max_tokens is None else entering
            self._shape = min(self.max_batch_size, len(known)), max(request.tokens for request in known)
            self._sequences = None  # before there is another
            self._sequences = self.model.start(*self._shape, self.kept or 0)
        elif self._sequences is not None:
            self._shape = shape or self._shape
            self._sequences.reserve(*self._shape)
        assert self._sequences is not None
        cached = self._sequences.add([r.prompt_ids for r in entering], [r.updates for r in entering])
        for request, n in zip(entering, cached, strict=True):
            request.cached, request.entered = n, monotonic()

    def _has_room(self, entering: list[Request]) -> bool:
        """Whether the requests may be active beside those that are; a single one may."""
        return self._grown(entering) is not None or (
            not self._active
            and (len(entering) == 1 or len(entering) * max(r.tokens for r in entering) <= (self.max_tokens or 0))
        )

    def _grown(self, entering: list[Request]) -> tuple[int, int] | None:
        """The shape of the memory that is there once it is grown for them; None where that is too much."""
        count = len(self._active) + len(entering)
        slots = max(self._shape[0], 1 << (count - 1).bit_length() if count > self._shape[0] else 0)
        room = max(self._shape[1], *(request.tokens for request in entering))
        return (slots, room) if self.max_tokens is None or slots * room <= self.max_tokens else None

    def _choose(self, requests: list[Request], logits_NV: Tensor) -> None:
        """Chooses the token that follows for each of the requests."""
        choice = choose([request.sampler for request in requests], logits_NV)
        for request, token in zip(requests, choice.tokens_B.unbind(), strict=True):
            request.is_read, request.last, request.chosen = True, token, request.chosen + 1
        told = [i for i, request in enumerate(requests) if request.top is not None]
        found = None
        if told:
            rows = sent(torch.tensor(told), logits_NV.device)
            most = max(requests[i].top or 0 for i in told)
            found = Likelihoods(logits_NV[rows], choice.tokens_B[rows], most)
        self._unread.append(_Unread(requests, choice, told, found))

    def _read_tokens(self) -> list[Request]:
        """Gives the requests the tokens that were chosen for them, or a fault; those that have another, or are over."""
        changed: list[Request] = []
        unread, self._unread = self._unread, []
        for each in unread:
            likely = dict(zip(each.told, each.likelihoods.read() if each.likelihoods else (), strict=True))
            for i, (request, token) in enumerate(zip(each.requests, each.choice.read(), strict=True)):
                if request.finish_reason is not None:
                    continue  # what was chosen after a stop
                request.read = request.read or monotonic()
                changed.append(request)
                if isinstance(token, Exception):
                    request.known = _NO_TOKEN
                    request.fail(token)
                elif not request.max_new_tokens:
                    request.finish_reason = "length"
                else:
                    self._append(request, token)
                    if request.top is not None and len(request.token_ids) == request.generated:
                        found = likely[i]
                        request.likelihoods.append(Likelihood(found.id, found.logprob, found.top[: request.top]))
        return changed

    def _append(self, request: Request, token: int) -> None:
        """Adds the token to the answer, or finishes the request."""
        how = request.sampling
        request.generated += 1
        request.known = token
        if token in request.stop_ids and not how.ignore_eos:
            request.finish_reason, request.stop_reason = "stop", token
            return
        request.token_ids.append(token)
        request.text.add(token, may_stop=len(request.token_ids) >= how.min_tokens)
        if request.text.stopped_by is not None:
            request.finish_reason, request.stop_reason = "stop", request.text.stopped_by
        elif len(request.token_ids) >= request.max_new_tokens:
            request.finish_reason = "length"

    def _drop_finished(self) -> None:
        remaining = [i for i, request in enumerate(self._active) if request.finish_reason is None]
        if len(remaining) < len(self._active):
            assert self._sequences is not None
            self._active = [self._active[i] for i in remaining]
            self._unread = self._unread if self._active else []
            if self.busy or self.kept is not None:
                self._sequences.retain(remaining)
            else:
                self._free()

    def drop_active(self) -> list[Request]:
        """Takes the active requests away, unfinished, and frees what is kept, after a pass that failed as a whole.
        Where none is active, it is the one that has waited longest."""
        active, self._active, self._unread = self._active, [], []
        if not active and self._waiting:
            active = [self._waiting.popleft()]
        self._free()
        return active

    @torch.inference_mode()
    def shrink(self) -> None:
        """Frees the KV cache but for one request, in up to `kept` bytes, and what is kept of others; not while one is
        active."""
        if self._sequences is None or self._active:
            return
        self._shape = 1, self._sequences.shrink()
        if not self._shape[1]:
            self._free()

    def _free(self) -> None:
        self._sequences, self._shape = None, (0, 0)

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values that there is memory for."""
        sequences = self._sequences  # another thread may look while this one frees them
        return 0 if sequences is None else sequences.bytes
