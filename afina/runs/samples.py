"""What a model in training answers to a few prompts that it is not trained on: to be seen, nothing is decided by it."""

import time
from collections.abc import Callable, Sequence

from afina.core.events import Answers, Sample
from afina.data.mapping import Example, said_of
from afina.data.template import prompt_ids
from afina.measure.outputs import EvaluationSet
from afina.models.generation import generate
from afina.models.load import Base

_MOST = 600  # characters of a text that are kept: it is written down after every evaluation


def answers_of(base: Base, asked: EvaluationSet, count: int) -> Callable[[int], Answers] | None:
    """What tells, of the step that it is called with, how `base` as it is by then answers `count` of the rows of
    `asked`: greedily, in one batch, so that it costs the prompts' reading and the steps of the longest answer. None
    where there are none, as with plain text, which asks nothing."""
    chosen = [] if asked.kind == "text" else _varied(asked.examples)[:count]
    if not chosen:
        return None
    prompts = [prompt_ids(base.tokenizer, example.messages, example.tools) for example in chosen]

    def answers(step: int) -> Answers:
        begun = time.monotonic()
        found = generate(base, prompts, asked.max_new_tokens)
        texts = (said_of({"content": each.text}) for each in found)
        samples = (
            Sample(_cut(example.messages[-1]["content"]), _cut(example.references[0]), _cut(text))
            for example, text in zip(chosen, texts, strict=True)
        )
        return Answers(step, tuple(samples), time.monotonic() - begun)

    return answers


def _varied(examples: Sequence[Example]) -> list[Example]:
    """The first of each answer that is expected, and then the others: of labels, three rows show three."""
    first = {example.references[0]: example for example in reversed(examples)}
    chosen = {id(example) for example in first.values()}
    return sorted(examples, key=lambda example: id(example) not in chosen)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
