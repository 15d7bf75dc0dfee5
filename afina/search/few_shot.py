"""Few-shot prompting: training rows with their answers before each question."""

from itertools import zip_longest

from afina.core.errors import DataError
from afina.core.events import Listener, Notice
from afina.data.mapping import Example
from afina.data.template import Row, prompt_ids, render
from afina.measure.outputs import EvaluationSet
from afina.models.load import Base
from afina.runs.assemble import Assembled

SHOTS = 4  # examples before a question, or one a class of up to
MOST_SHOTS = 16
_CANDIDATES = 256  # training rows from which they are taken
_SHARE = 0.6  # of the context that they may fill


def after_examples(whole: Assembled, asked: EvaluationSet, listener: Listener) -> EvaluationSet:
    """The questions, each behind a few training rows with their answers; fewer of them where the context is short."""
    room = whole.base.facts.context_length - asked.max_new_tokens
    examples = _examples(whole)
    while examples:
        turns = [
            turn
            for example in examples
            for turn in (*example.messages, {"role": "assistant", "content": example.completion or ""})
        ]
        put = [_behind(turns, example) for example in asked.examples]
        longest = max(len(prompt_ids(whole.base.tokenizer, example.messages)) for example in put)
        if longest <= _SHARE * room or (longest <= room and len(examples) == 1):
            listener(Notice(f"few-shot: {len(examples)} examples before each question"))
            rows = _rows(whole.base, put)
            return EvaluationSet(put, rows, asked.kind, asked.max_new_tokens, asked.source)
        examples = examples[:-1]
    raise DataError(
        "the rows are too long to be shown as examples before a question", "leave few-shot out of --methods"
    )


def _rows(base: Base, examples: list[Example]) -> list[Row]:
    return [render(base.tokenizer, example) for example in examples]


def _behind(turns: list[dict[str, str]], example: Example) -> Example:
    system = [turn for turn in example.messages if turn["role"] == "system"]
    rest = [turn for turn in example.messages if turn["role"] != "system"]
    shown = [turn for turn in turns if turn["role"] != "system"]
    return Example(
        (*system, *shown, *rest),
        example.completion,
        example.references,
        example.source,
        example.location,
        last_only=True,
    )


def _examples(whole: Assembled) -> list[Example]:
    """Training rows to show: one of each answer in turn, so that every label of a few is seen."""
    locations = [row.location for row in whole.data.train[:_CANDIDATES]]
    found = [e for e in whole.splits.examples_at(set(locations)) if e.messages]
    by_answer: dict[str, list[Example]] = {}
    for example in found:
        by_answer.setdefault(example.completion or "", []).append(example)
    few = 1 < len(by_answer) <= MOST_SHOTS and whole.kind == "classification"
    count = max(SHOTS, len(by_answer)) if few else SHOTS
    in_turn = zip_longest(*by_answer.values())
    return [example for turn in in_turn for example in turn if example is not None][:count]
