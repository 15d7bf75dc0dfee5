"""The fields that chat and completions share, and what the engine is asked because of them."""

import secrets
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from afina.core.errors import counted
from afina.data.layouts import ONE_ANSWER
from afina.models.sampling import Constraint, Sampling
from afina.models.tokenizer import Tokenizer
from afina.serving.http.body import Body, prompt_field
from afina.serving.http.errors import invalid, unsupported
from afina.serving.service import ModelFacts

_NOT_FOR_CHANCE = {*ONE_ANSWER, "summarisation"}  # of a text there are several summaries, and the likeliest is wanted
MOST_CHOICES = 8
_STOPS = 16
_DEFAULT_ANSWER = 2048  # tokens, where a request says no number: memory is kept for so many
Text = Annotated[str, Field(max_length=1 << 20)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(Body):
    include_usage: bool | None = None


class Extras(Body):
    """What Afina has beyond OpenAI's API."""

    scale: float | None = Field(None, ge=-8, le=8, description="multiplies the adapter's update")
    regex: Annotated[str, Field(max_length=10_000)] | None = Field(None, description="what the whole answer matches")
    choices: Annotated[list[Text], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="the answer is one of these"
    )
    truncate: bool | None = Field(None, description="cut what is too long for the context, and say so")

    @property
    def form(self) -> str | None:
        """The field that says what the answer is, where there is one."""
        if self.regex is not None:
            return "afina.regex"
        return None if self.choices is None else "afina.choices"


class Asked(Body):
    """What chat and completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    max_tokens: Annotated[int, Field(ge=0, le=1 << 24)] | None = Field(
        None, description=f"of the answer; by default what the context leaves, up to {_DEFAULT_ANSWER} (text: 16)"
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0 for models of tasks with one answer and of summaries, else 1"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=_STOPS)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 24)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    ignore_eos: bool | None = None
    afina: Extras | None = None

    @property
    def extras(self) -> Extras:
        return self.afina or Extras()

    @property
    def told(self) -> int | None:
        """How many of the likeliest tokens are told beside each; None: nothing is told of likelihoods."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """Whether the prompt is a part of the answer."""
        return False

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """Raises `HttpError`."""
        if self.stream_options is not None and not self.stream:
            raise unsupported("stream_options is for requests with stream: true", "stream_options")


@dataclass
class Prompt:
    """Token ids, and what has to be said of how they came about."""

    ids: list[int]
    warnings: list[str] = field(default_factory=list)
    truncated: int = 0  # tokens that were left out


def sampling_of(
    asked: Asked, facts: ModelFacts, tokenizer: Tokenizer, seed: int, constraint: Constraint | None = None
) -> Sampling:
    """How the tokens of one answer are chosen. Raises `HttpError`."""
    one = 0.0 if facts.task in _NOT_FOR_CHANCE else 1.0
    stop = asked.stop or []
    return Sampling(
        temperature=one if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=max(0, asked.top_k or 0),
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        logit_bias=_biases(asked.logit_bias or {}, tokenizer),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=seed,
        min_tokens=asked.min_tokens or 0,
        ignore_eos=bool(asked.ignore_eos),
        constraint=constraint,
    )


def _biases(given: dict[str, float], tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    most = len(tokenizer.inner)
    for name in given:
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < most):
            raise invalid(f"{name!r} is no token of the model, which has {most:,}", "logit_bias")
    return tuple((int(name), bias) for name, bias in given.items())


def seeds(asked: Asked) -> list[int]:
    """One for each answer that is asked for; of chance where none is given."""
    first = secrets.randbits(48) if asked.seed is None else asked.seed % 2**62
    return [first + i for i in range(asked.n or 1)]


def new_tokens(asked: Asked, most: int | None, facts: ModelFacts, prompt: int) -> int:
    """How many tokens are written at most. Raises `HttpError` `context_length_exceeded`, which gives both numbers."""
    room = facts.max_model_len - prompt
    wanted = max(1, min(room, _DEFAULT_ANSWER)) if most is None else most
    if wanted > room:
        raise too_long(facts, prompt, most, prompt_field(type(asked)))
    if (asked.min_tokens or 0) > wanted:
        raise invalid(f"min_tokens is more than the {counted(wanted, 'token')} of the answer", "min_tokens")
    return wanted


def too_long(facts: ModelFacts, prompt: int, most: int | None, asked: str | None) -> Exception:
    answer = f", and {most:,} are asked for as the answer" if most else ""
    return invalid(
        f"the context of {facts.id!r} has {facts.max_model_len:,} tokens; the prompt has {prompt:,}{answer}: shorten "
        "them, or say afina.truncate",
        asked,
        "context_length_exceeded",
    )


def room_for_prompt(facts: ModelFacts, most: int | None) -> int:
    """The tokens that a prompt may have when it is cut: at least one; an answer that leaves none is too long."""
    kept = min(256, facts.max_model_len // 4) if most is None else most
    return max(1, facts.max_model_len - max(kept, 1))


def scale_of(asked: Asked, facts: ModelFacts) -> float:
    """By what the adapter's update is multiplied. Raises `HttpError` where there is none."""
    scale = asked.extras.scale
    if scale is not None and facts.parent is None:
        raise invalid(f"{facts.id!r} is the base: it has no adapter to scale", "afina.scale")
    return 1.0 if scale is None else scale
