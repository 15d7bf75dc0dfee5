"""Bases to choose from, and the choice among those that were tried."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afina.forecast.estimate import Forecast
from afina.measure.evaluation import difference_json
from afina.measure.intervals import Difference, paired_difference
from afina.measure.metric import mean
from afina.search.base_trial import BaseTrial


@dataclass(frozen=True)
class Candidate:
    """A base that could be adapted here: what training it needs, why it is named, the languages of the data that the
    catalogue does not list for it (`unknown`), and what was measured where it was tried.
    """

    name: str
    parameters: int
    licence: str | None
    is_here: bool
    forecast: Forecast
    reasons: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    trial: BaseTrial | None = None
    failed: str | None = None

    def json(self) -> dict[str, Any]:
        return {
            "base": self.name,
            "parameters": self.parameters,
            "licence": self.licence,
            "here": self.is_here,
            "memory_gb": self.forecast.memory.total / 1e9,
            "seconds": self.forecast.seconds,
            "reasons": list(self.reasons),
            "unknown_languages": list(self.unknown),
            "probe": asdict(self.trial) if self.trial else None,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Choice:
    """The candidates: those that were `tried`, the best first, and `others`. `metric` is that of their scores;
    `classes` are the shares of the classes among the answers, where answers name one.
    """

    task: str
    metric: str
    languages: tuple[str, ...]
    share: float
    tried: list[Candidate]
    others: list[Candidate]
    folder: Path
    classes: tuple[float, ...] = ()

    @property
    def guess(self) -> float | None:
        """Bits per answer of guessing by the frequency of each class, the entropy of `classes`; None without two
        classes.
        """
        return -sum(share * math.log2(share) for share in self.classes) if len(self.classes) > 1 else None

    @property
    def beats_guessing(self) -> bool:
        """Whether the best needs fewer bits than guessing, by more than chance."""
        if self.guess is None or self.best is None or self.best.trial is None:
            return True
        bits = self.best.trial.bits
        return paired_difference(mean(bits), mean([self.guess] * len(bits))).verdict == "better"

    @property
    def best(self) -> Candidate | None:
        return next((each for each in self.tried if each.trial), None)

    @property
    def lead(self) -> Difference | None:
        """The second's bits per answer less the best's, on the same held-out rows; None without a second."""
        seen = [each.trial for each in self.tried if each.trial]
        if len(seen) < 2 or len(seen[0].bits) != len(seen[1].bits):
            return None
        return paired_difference(mean(seen[0].bits), mean(seen[1].bits))

    def json(self) -> dict[str, Any]:
        best = self.best
        return {
            "task": self.task,
            "metric": self.metric,
            "languages": list(self.languages),
            "share": self.share,
            "guess": self.guess,
            "best": best.name if best else None,
            "revision": best.trial.revision if best and best.trial else None,
            "lead": difference_json(self.lead) if self.lead else None,
            "tried": [each.json() for each in self.tried],
            "others": [each.json() for each in self.others],
        }
