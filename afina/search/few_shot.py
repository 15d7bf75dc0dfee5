"""Few-shot prompting: training rows with their answers before each prompt."""

from dataclasses import replace
from itertools import zip_longest
from typing import Any

from afina.core.errors import DataError, counted
from afina.core.events import Listener, Notice
from afina.data.mapping import Example
from afina.data.template import prompt_ids, render
from afina.measure.outputs import EvaluationSet
from afina.runs.assemble import Assembled

SHOTS = 4  # examples before a prompt, or one per class
MOST_SHOTS = 16  # classes, at most, of which each is shown
_CANDIDATES = 256  # training rows that the examples are taken from
_SHARE = 0.6  # of the context that the examples may fill


def after_examples(assembled: Assembled, asked: EvaluationSet, listener: Listener) -> EvaluationSet:
    """The same prompts, each after a few training rows with their answers; fewer where the context is short.

    Raises `DataError` where not even one fits."""
    base = assembled.base
    room = base.facts.context_length - asked.max_new_tokens
    shots = _examples(assembled)
    while shots:
        turns = [turn for example in shots for turn in (*example.messages, example.answer)]
        examples = [_after(turns, example) for example in asked.examples]
        longest = max(len(prompt_ids(base.tokenizer, example.messages, example.tools)) for example in examples)
        if longest <= _SHARE * room or (longest <= room and len(shots) == 1):
            listener(Notice(f"few-shot: {counted(len(shots), 'example')} before each prompt"))
            rows = [row for example in examples for row in render(base.tokenizer, example)]
            return EvaluationSet(examples, rows, asked.kind, asked.max_new_tokens, asked.source)
        shots = shots[:-1]
    raise DataError("the rows are too long to be shown as examples before a prompt", "leave few-shot out of --methods")


def _after(turns: list[dict[str, Any]], example: Example) -> Example:
    """`example` with the turns of others before its own, after its system message."""
    system = [turn for turn in example.messages if turn["role"] == "system"]
    rest = [turn for turn in example.messages if turn["role"] != "system"]
    shown = [turn for turn in turns if turn["role"] != "system"]
    messages = (*system, *shown, *rest)
    earlier = tuple(i for i, turn in enumerate(messages) if turn["role"] == "assistant")
    return replace(example, messages=messages, unlearned=earlier)


def _examples(assembled: Assembled) -> list[Example]:
    """Training rows to show: one of each answer in turn, so that every class is seen where there are few."""
    locations = {row.location for row in assembled.data.train[:_CANDIDATES]}
    found = [e for e in assembled.splits.examples_at(locations) if e.messages]
    by_answer: dict[str, list[Example]] = {}
    for example in found:
        by_answer.setdefault(example.completion or "", []).append(example)
    few = 1 < len(by_answer) <= MOST_SHOTS and assembled.kind == "classification"
    count = max(SHOTS, len(by_answer)) if few else SHOTS
    in_turn = zip_longest(*by_answer.values())
    return [example for turn in in_turn for example in turn if example is not None][:count]
