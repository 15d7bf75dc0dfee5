"""What is wrong with an adapter, in sentences, judged by what it does, whatever its files say."""

from collections.abc import Iterator, Sequence

from afina.measure.evaluation import Evaluation
from afina.measure.general_text import FORGOTTEN, LANGUAGES
from afina.measure.metric import ratio
from afina.measure.outputs import EvaluationSet, ModelOutputs

_SELDOM = 0.5  # of the answers: a model that ends fewer of them has not learned to
_EMPTY, _REPEATED = 0.1, 0.3
_WORSE = 0.1  # nats per token by which the loss on the expected answers rose
_LEARNED = 0.4  # of the loss on the prompts; reading prompts along with the task makes their tokens 12 % easier on E2E


def adapter_findings(
    evaluation: Evaluation, eval_set: EvaluationSet, base: ModelOutputs, adapted: ModelOutputs
) -> list[str]:
    """A sentence or two for each thing that is wrong, the gravest first."""
    if base.nats == adapted.nats and base.answers == adapted.answers:
        return [
            "The adapter changes nothing: every loss and every answer equals the base's. Its weights are zero, or it "
            "was not trained; retrain it, or inspect it with `afina adapters show`."
        ]
    return [
        *_worse(base, adapted),
        *_writing(evaluation, eval_set.max_new_tokens),
        *_trained_on_prompts(evaluation, eval_set, base, adapted),
        *_verdicts(evaluation),
        *_forgotten(evaluation),
    ]


def _loss(pairs: Sequence[tuple[float, int]]) -> float:
    """The mean loss, in nats per token."""
    return ratio(sum(nats for nats, _ in pairs), sum(tokens for _, tokens in pairs))


def _worse(base: ModelOutputs, adapted: ModelOutputs) -> Iterator[str]:
    before, after = _loss(base.nats), _loss(adapted.nats)
    if after > before + _WORSE:
        yield (
            f"The adapted model is worse than its base on the expected answers: loss {before:.2f} → {after:.2f} nats. "
            "This happens when an adapter is damaged, or used with a base or chat template it was not trained with."
        )


def _writing(evaluation: Evaluation, max_new_tokens: int) -> Iterator[str]:
    adapted, base = evaluation.scores["adapted"], evaluation.scores["base"]
    if adapted.get("stop_rate", 1.0) < _SELDOM:
        yield (
            f"It does not end its answers: {_rounded(1 - adapted['stop_rate'])} were cut off at {max_new_tokens} "
            f"tokens (base: {_rounded(1 - base['stop_rate'])}). It did not learn the end of a turn, or this tokenizer "
            "has another token for it."
        )
    if adapted.get("empty_rate", 0.0) > _EMPTY:
        yield f"{_rounded(adapted['empty_rate'])} of its answers are empty."
    if adapted.get("repetition", 0.0) > _REPEATED:
        yield (
            f"It repeats itself: {_rounded(adapted['repetition'])} of the 4-grams in its answers occurred before in "
            "the same answer."
        )


def _trained_on_prompts(
    evaluation: Evaluation, eval_set: EvaluationSet, base: ModelOutputs, adapted: ModelOutputs
) -> Iterator[str]:
    before, after = _loss(base.prompt_nats), _loss(adapted.prompt_nats)
    # A base that knew no language at all reads everything better, not only the prompts.
    everything = min([1.0, *(losses["adapted"] / losses["base"] for losses in evaluation.general.values())])
    if after < (1 - _LEARNED) * everything * before and eval_set.kind != "text":
        yield (
            f"The adapter was trained on the prompts too: their loss fell from {before:.2f} to {after:.2f} nats "
            "per token. It spends capacity on writing prompts; train it on the answers only, as Afina does."
        )


def _verdicts(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.differences[evaluation.main].verdict == "worse":
        yield "By the main metric, the base without the adapter is better on these rows."
    if evaluation.over_trivial.verdict == "worse":
        yield "A trivial baseline, which needs no model, is better than the adapted model."


def _forgotten(evaluation: Evaluation) -> Iterator[str]:
    for language, losses in evaluation.general.items():
        rise = losses["adapted"] - losses["base"]
        if rise > FORGOTTEN:
            yield (
                f"It has forgotten: the loss on general {LANGUAGES[language]} text rose by {rise:.2f} nats per token "
                f"({losses['base']:.2f} → {losses['adapted']:.2f}). A lower learning rate, fewer epochs, a lower rank "
                "or `afina data prepare --replay` preserves more; for this task alone it does not matter."
            )


def _rounded(share: float) -> str:
    return f"{100 * share:.0f} %"
