"""What the routes of the server ask of the engine behind them, and what they get.

All of it is called from the event loop's thread. One other thread owns torch.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from afina.models.sampling import Likelihood as Likelihood
from afina.models.sampling import Sampling
from afina.models.tokenizer import Tokenizer
from afina.serving.metrics import Metrics

FinishReason = Literal["stop", "length", "cancelled"]
State = Literal["loading", "ready", "stopping"]


@dataclass(frozen=True)
class ModelFacts:
    """A model that can be asked for by its name `id`: the base, or an adapter on it, in one of its generations.

    `root` is the adapter's or base's name that was loaded, `parent` the base's name (None: it is the base); `hash` and
    `base_hash` are of the weights; `bytes` what the adapter takes in memory; `created` seconds since 1970; `labels` the
    classes of a classifier; `requests` how many are running or waiting.
    """

    id: str
    root: str
    parent: str | None
    hash: str
    base_hash: str
    generation: int
    created: int
    max_model_len: int
    bytes: int = 0
    rank: int | None = None
    form: str = "base"
    task: str = "chat"
    template: bool = True
    pinned: bool = False
    requests: int = 0
    labels: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        adapter = self.hash[:8] if self.parent else "base"
        return f"afina-{self.base_hash[:8]}-{adapter}-g{self.generation}"


@dataclass(frozen=True)
class Wanted:
    """One answer. `logprobs`: how many of the likeliest tokens to tell beside each (None: nothing is told); `echo`: of
    the prompt's tokens too; `scale` multiplies the adapter's update."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    logprobs: int | None = None
    echo: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Piece:
    """What came since the last piece: complete text, of which nothing is taken back, and the tokens behind it. Text
    that may be the beginning of a stop string or of a character waits for a later piece. In the last piece
    `finish_reason` says why it is, and `stop_reason` which stop string or token ended it, where one did."""

    text: str
    tokens: tuple[Likelihood, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Stream(Protocol):
    """An answer as it is written: iterate over its pieces. Raises `ServiceFault` where the engine fails on it."""

    cached_tokens: int  # of the prompt, whose keys and values were there already
    generated_tokens: int  # the stop token included
    queue_ms: float
    prompt_ms: float
    generation_ms: float
    prompt: tuple[Likelihood, ...]  # of its tokens, where `echo` asked for it

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    def cancel(self) -> None:
        """No more is computed for it after the step that runs now. Once it is over this does nothing."""


class Handle(Protocol):
    """A model in the generation in which it was asked for: it stays as it is until `close`, whatever is loaded."""

    facts: ModelFacts
    tokenizer: Tokenizer  # with the template that was saved with the adapter, else the base's

    def close(self) -> None: ...

    async def generate(self, wanted: Wanted) -> Stream:
        """Raises `QueueFull`, `TooLong`, `Unanswerable`, `NoMemory` or `Stopping`, before anything is computed."""

    async def classify(self, prompts: Sequence[list[int]]) -> list[dict[str, float]]:
        """The probability of each label, of a classifier. Raises `QueueFull` and `Stopping`."""


class Service(Protocol):
    state: State

    async def look(self, name: str | None = None) -> None:
        """Reads what is new or changed on disk under this name, or under all, beside the event loop: `models` and
        `open` tell what was found by the last look."""

    def models(self) -> list[ModelFacts]: ...

    def open(self, name: str) -> Handle:
        """Raises `UnknownModel`, which names those with like names, and `Replaced`."""

    async def load(
        self, name: str, path: Path, pin: bool = False, replace: bool = False, expected_generation: int | None = None
    ) -> ModelFacts:
        """Reads an adapter whole, tries it, and only then shows it. Raises `AdapterError` (all that does not fit),
        `Conflict`."""

    async def unload(self, name: str, expected_generation: int | None = None, wait_s: float = 30.0) -> tuple[int, bool]:
        """Bytes that were freed, and whether all its requests ended within `wait_s`; after it they are cancelled."""

    def metrics(self) -> Metrics:
        """What is counted, to be written out."""

    async def stop(self, grace_s: float = 30.0) -> None:
        """Takes nothing more, lets what runs finish for so long, and ends the rest with `Stopping`."""


class ServiceFault(Exception):
    """Why a request is not served. `str()` of it is what the user is told: no path, no name of another's model."""


class UnknownModel(ServiceFault): ...


class QueueFull(ServiceFault):
    """`most`: of how many answers the server takes care at one time, those that run and those that wait."""

    def __init__(self, waiting: int, retry_after_s: int, most: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after_s} s")
        self.retry_after_s, self.most = retry_after_s, most


class TooLong(ServiceFault):
    """The prompt and the answer do not fit into the model's context."""


class Unanswerable(ServiceFault):
    """The prompt is none that the model could continue."""


class NoMemory(ServiceFault):
    """The request alone would take more memory than the server may use."""


class Stopping(ServiceFault):
    """The server is loading, or ends."""


class Replaced(ServiceFault):
    """The model's files changed in this moment: asked again it answers."""


class Conflict(ServiceFault):
    def __init__(self, message: str, code: Literal["adapter_exists", "generation_mismatch", "adapter_in_use"]) -> None:
        super().__init__(message)
        self.code = code
