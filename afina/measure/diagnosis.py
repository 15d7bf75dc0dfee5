"""What is wrong with an adapter, in words: told from what it does, whatever its files say."""

from collections.abc import Sequence
from typing import Any

from afina.measure.general import FORGOTTEN, LANGUAGES
from afina.measure.intervals import Difference
from afina.measure.metrics.scores import ratio
from afina.measure.outcomes import Outcome, Questions

_SELDOM = 0.5  # of the answers: a model that ends fewer by itself has not learned to
_EMPTY, _REPEATED = 0.1, 0.3
_WORSE = 0.1  # nats a token: the right answers surprise it more than they surprise the base
_LEARNED = 0.4  # of the loss; reading prompts along with the task makes their tokens 12 % easier on E2E


def findings(
    asked: Questions,
    base: Outcome,
    adapted: Outcome,
    scores: dict[str, dict[str, Any]],
    difference: Difference,
    over_trivial: Difference,
    general: dict[str, dict[str, Any]],
) -> list[str]:
    """A sentence or two for each thing that is wrong, the gravest first."""
    if base.nats == adapted.nats and base.answers == adapted.answers:
        return [
            "The adapter changes nothing: every loss and every answer is the base's own. Its weights are zero, or it was not "
            "trained; train it again, or look at it with `afina adapters show`."
        ]
    found = []
    before, after = _loss(base.nats), _loss(adapted.nats)
    if after > before + _WORSE:
        found.append(
            f"The adapted model is worse at these very answers than its base: loss {before:.2f} → {after:.2f} nats a token. So it "
            "looks where an adapter meets another base or another chat template than it was trained with, or was damaged."
        )
    found += _writing(asked, scores["adapted"], scores["base"])
    read_before, read_after = _loss(base.prompt_nats), _loss(adapted.prompt_nats)
    # A base that knew no language at all reads everything better, not the prompts alone.
    everything = min([1.0, *(losses["adapted"] / losses["base"] for losses in general.values())])
    if read_after < (1 - _LEARNED) * everything * read_before and asked.kind != "text":
        found.append(
            f"The adapter was trained on the prompts too: their own loss fell from {read_before:.2f} to {read_after:.2f} nats a token. "
            "It spends its capacity on writing questions; train it on the answers only (Afina's label mask does)."
        )
    if difference.verdict == "worse":
        found.append("By the main score the base without the adapter is the better model on these rows.")
    if over_trivial.verdict == "worse":
        found.append("A trivial answer, which needs no model, is better than the adapted model.")
    for language, losses in general.items():
        rise = losses["adapted"] - losses["base"]
        if rise > FORGOTTEN:
            found.append(
                f"It has forgotten: the loss on general {LANGUAGES[language]} text rose by {rise:.2f} nats a token "
                f"({losses['base']:.2f} → {losses['adapted']:.2f}). A lower learning rate, fewer epochs, a smaller rank, or "
                "`afina data prepare --replay` keeps more; for this task alone it does not matter."
            )
    return found


def _loss(pairs: Sequence[tuple[float, int]]) -> float:
    return ratio(sum(nats for nats, _ in pairs), sum(tokens for _, tokens in pairs))


def _writing(asked: Questions, adapted: dict[str, Any], base: dict[str, Any]) -> list[str]:
    found = []
    if adapted.get("stop_rate", 1.0) < _SELDOM:
        found.append(
            f"It does not end its answers: {_percent(1 - adapted['stop_rate'])} were cut off at {asked.max_new_tokens} tokens "
            f"(base: {_percent(1 - base['stop_rate'])}). The end of a turn was not learned, or its token is another one here."
        )
    if adapted.get("empty_rate", 0.0) > _EMPTY:
        found.append(f"{_percent(adapted['empty_rate'])} of its answers are empty.")
    if adapted.get("repetition", 0.0) > _REPEATED:
        found.append(
            f"It repeats itself: {_percent(adapted['repetition'])} of its runs of four words were there before."
        )
    return found


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"
