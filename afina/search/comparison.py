"""Methods side by side: their scores and costs, whether the differences could be chance, and which one to use."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean as average
from statistics import stdev
from typing import Any

from afina.core.errors import counted
from afina.core.files import write_atomic
from afina.measure.evaluation import difference_json
from afina.measure.intervals import FEWEST_ROWS, Difference, paired_difference
from afina.measure.metric import Metric, Predictions, RowStats
from afina.measure.metrics import METRICS
from afina.measure.pages.plots import quality_against_cost
from afina.measure.pages.rendering import render_page
from afina.measure.pages.summary import interval, label, number
from afina.runs.files import EvaluationRecord, Prediction, read_lines

TRAINED = ("head", "last-k", "lora", "full", "bias")
CLAIMS = {"memory": 1 / 3, "seconds": 1 / 1.25}  # of full fine-tuning's: what the LoRA paper claims for LoRA


@dataclass(frozen=True)
class Measured:
    """One run of a method: its evaluation, predictions and cost; or why there are none."""

    method: str
    evaluation: dict[str, Any] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    failure: str = ""

    @staticmethod
    def of(method: str, folder: Path, cost: dict[str, Any]) -> "Measured":
        """The evaluation in `folder`.

        Raises `InputError`, `OSError`, `KeyError` or `ValueError` where its files are damaged."""
        predictions = [row.content for row in read_lines(Prediction, folder / "predictions.jsonl")]
        evaluation = EvaluationRecord.read(folder / "evaluation.json").content
        found = Measured(method, evaluation, predictions, cost, str(folder))
        rows = found.evaluation["rows"]
        if found.evaluation["kind"] != "text" and len(found.predictions) != rows:
            raise ValueError(f"predictions.jsonl has {len(found.predictions)} of {counted(rows, 'row')}")
        _ = found.quality
        return found

    @staticmethod
    def failed(method: str, reason: str) -> "Measured":
        return Measured(method, failure=reason)

    @property
    def quality(self) -> float:
        return float(self.evaluation["adapted"][self.evaluation["main_metric"]])

    @property
    def metric(self) -> Metric:
        """The main metric of its evaluation."""
        return METRICS[self.evaluation["main_metric"]]

    def main(self) -> RowStats:
        """The main score of the answers, which can be resampled."""
        answers, references = ([row[name] for row in self.predictions] for name in ("adapted", "references"))
        return self.metric.stats(Predictions(self.evaluation["kind"], answers, references))

    def memory_gb(self) -> float:
        """The peak, less what the process held after its imports."""
        return float(self.cost["peak_memory_gb"] - self.cost["start_memory_gb"])


@dataclass(frozen=True)
class Comparison:
    """The methods by name, in the order requested, with one `Measured` per seed."""

    methods: dict[str, list[Measured]]
    data: str
    folder: Path
    differences: dict[str, Difference]
    best: str | None

    @staticmethod
    def of(found: dict[str, list[Measured]], data: str, folder: Path) -> "Comparison":
        """`differences` are method − best for each other method, on the same rows."""
        there = {name: runs[0] for name, runs in found.items() if not runs[0].failure}
        if not there:
            return Comparison(found, data, folder, {}, None)
        main = {name: run.main() for name, run in there.items()}
        lower = next(iter(there.values())).metric.lower_is_better
        sign = -1 if lower else 1
        best = max(there, key=lambda name: sign * there[name].quality)
        differences = {n: paired_difference(main[best], m, lower) for n, m in main.items() if n != best}
        return Comparison(found, data, folder, differences, best)

    @property
    def there(self) -> dict[str, Measured]:
        """The first run of each method that did not fail."""
        return {name: runs[0] for name, runs in self.methods.items() if not runs[0].failure}

    @property
    def metric(self) -> str:
        return str(next(iter(self.there.values())).evaluation["main_metric"])

    def as_good(self) -> list[str]:
        """The best method and those that are not distinguishable from it."""
        same = [n for n, d in self.differences.items() if d.verdict in ("not distinguishable", "too few rows to tell")]
        return [name for name in self.methods if name == self.best or name in same]

    @property
    def rows(self) -> int:
        """How many they were evaluated on."""
        return int(next(iter(self.there.values())).evaluation["rows"]) if self.there else 0

    def trivial(self) -> tuple[str, float]:
        """The best trivial baseline, which needs no model: what it is, and its score."""
        found = {what: each[self.metric] for what, each in self.there[str(self.best)].evaluation["trivial"].items()}
        sign = -1 if self.there[str(self.best)].metric.lower_is_better else 1
        name = max(found, key=lambda what: sign * found[what])
        return name, float(found[name])

    def recommended(self) -> str | None:
        """Of the methods as good as the best: one that needs no training, else the one that takes the least memory.

        None where there are too few rows."""
        if self.rows < FEWEST_ROWS:
            return None
        good = self.as_good()
        free = [name for name in good if name not in TRAINED]
        return free[0] if free else min(good, key=lambda name: self.there[name].memory_gb(), default=None)

    def json(self) -> dict[str, Any]:
        """The object of `--json`: `methods` by name, and what follows from them."""
        return {
            "methods": {name: self._entry(name, runs) for name, runs in self.methods.items()},
            "metric": self.metric if self.there else None,
            "best": self.best,
            "as_good_as_the_best": self.as_good() if self.there else [],
            "recommended": self.recommended() if self.there else None,
            "words": list(self.words()),
            "data": self.data,
            "rows": self.rows,
            "trivial": dict(zip(("what", "quality"), self.trivial(), strict=True)) if self.there else None,
        }

    def _entry(self, name: str, runs: list[Measured]) -> dict[str, Any]:
        run = runs[0]
        if run.failure:
            return {"failed": run.failure}
        main, scores = run.evaluation["main_metric"], run.evaluation["adapted"]
        general = {language: g["adapted"] - g["base"] for language, g in run.evaluation["general"].items()}
        return {
            "metric": main,
            "quality": run.quality,
            "interval": run.evaluation["interval"]["adapted"][main],
            "against_best": difference_json(self.differences[name]) if name in self.differences else None,
            "scores": {k: v for k, v in scores.items() if not isinstance(v, dict)},
            **run.cost,
            "memory_above_imports_gb": run.memory_gb(),
            "answer_seconds": scores.get("latency"),
            "stop_rate": scores.get("stop_rate"),
            "answer_tokens_per_second": scores.get("tokens_per_second"),
            "forgetting": general,
            "seeds": [each.quality for each in runs if not each.failure],
            "folder": run.folder,
        }

    def words(self) -> Iterator[str]:
        """The recommendation, and whether the claims of the LoRA paper hold here."""
        if not self.there:
            yield "No method was completed."
            return
        yield self._recommendation() if self.recommended() else self._too_few()
        yield self._against_trivial()
        yield from self._claims()

    def _too_few(self) -> str:
        best = str(self.best)
        return (
            f"{counted(self.rows, 'row is')} too few to choose by: {best} has the best {label(self.metric)}, "
            f"{number(self.metric, self.there[best].quality)}, which may be chance. "
            "Use a larger test split: a larger file, --test or --test-data."
        )

    def _against_trivial(self) -> str:
        what, score = self.trivial()
        best = self.there[str(self.best)]
        better = best.evaluation["over_trivial"]["verdict"] == "better"
        than = f"which {self.best} beats" if better else "which no method here beats by more than chance"
        return f"A trivial baseline ({what}) reaches {number(self.metric, score)} {label(self.metric)}, {than}."

    def _recommendation(self) -> str:
        choice, good, best = self.recommended(), self.as_good(), str(self.best)
        rest = [name for name in good if name != choice]
        reached = f"{number(self.metric, self.there[str(choice)].quality)} {label(self.metric)}"
        if not rest:
            return f"Use {choice}: {reached}, better than every other method here by more than chance."
        why = "it needs no training" if choice not in TRAINED else "it takes the least memory"
        than = "" if choice == best else f" (best: {best}, {number(self.metric, self.there[best].quality)})"
        return (
            f"Use {choice}: {reached}{than}. On these rows it is not distinguishable from {' and '.join(rest)}, "
            f"and {why}."
        )

    def _claims(self) -> Iterator[str]:
        if not {"lora", "full"} <= self.there.keys():
            return
        lora, full = self.there["lora"], self.there["full"]
        gap = paired_difference(full.main(), lora.main(), lora.metric.lower_is_better)
        quality = {"better": "better than", "worse": "worse than"}.get(gap.verdict, "not distinguishable from")
        difference = interval(self.metric, difference_json(gap))
        yield f"LoRA is {quality} full fine-tuning in quality ({label(self.metric)}: difference {difference})."
        memory = "{:.2f} against {:.2f} GB, without the imported libraries"
        for what, a, b, claim, shown in (
            ("memory", lora.memory_gb(), full.memory_gb(), CLAIMS["memory"], memory),
            ("training time", lora.cost["seconds"], full.cost["seconds"], CLAIMS["seconds"], "{:.0f} against {:.0f} s"),
            ("size on disk", lora.cost["size_mb"], full.cost["size_mb"], 1.0, "{:.1f} against {:.1f} MB"),
        ):  # fmt: skip
            claimed = f"the claim is at most {claim:.2f} times" if claim < 1 else "the claim is that it is smaller"
            verdict = "this holds here" if a <= claim * b and a < b else "this does not hold here"
            yield f"LoRA's {what} is {a / b:.2f} times full fine-tuning's ({shown.format(a, b)}); {claimed}: {verdict}."


_COLUMNS: tuple[tuple[str, str, str], ...] = (  # heading, key, format
    ("trainable", "trainable_parameters", "{:,}"),
    ("memory, GB", "peak_memory_gb", "{:.2f}"),
    ("without imports, GB", "memory_above_imports_gb", "{:.2f}"),
    ("training, s", "seconds", "{:.0f}"),
    ("learning-rate search, s", "search_seconds", "{:.0f}"),
    ("tokens/s", "training_tokens_per_second", "{:.0f}"),
    ("on disk, MB", "size_mb", "{:.1f}"),
    ("one answer, s", "answer_seconds", "{:.2f}"),
    ("stops at EOS", "stop_rate", "{:.0%}"),
    ("learning rate", "learning_rate", "{:.2g}"),
)


def table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and lines of the table, as text."""
    languages = sorted({k for m in comparison["methods"].values() for k in m.get("forgetting", {})})
    heads = ["method", label(comparison["metric"]), "95 % interval", *(head for head, _, _ in _COLUMNS)]
    heads += [f"forgetting {language}, nats" for language in languages]
    lines = []
    for name, entry in comparison["methods"].items():
        if "failed" in entry:
            lines.append([name, "failed", *[""] * (len(heads) - 2)])
            continue
        low, high = (number(entry["metric"], x) for x in entry["interval"])
        seeds = entry["seeds"]
        spread = ""
        if len(seeds) > 1:
            middle, deviation = (number(entry["metric"], of(seeds)) for of in (average, stdev))
            spread = f" ({counted(len(seeds), 'seed')}: {middle} ± {deviation})"
        lines.append(
            [
                name,
                number(entry["metric"], entry["quality"]) + spread,
                f"{low} to {high}",
                *(form.format(entry[key]) if entry.get(key) is not None else "—" for _, key, form in _COLUMNS),
                *(f"{entry['forgetting'][k]:+.2f}" if k in entry["forgetting"] else "—" for k in languages),
            ]
        )
    return heads, lines


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page: one file that needs no network."""
    found = comparison.json()
    heads, lines = table(found) if comparison.there else ([], [])
    trained = {n: e for n, e in found["methods"].items() if e.get("seconds") and n in TRAINED}
    flat = {n: e["quality"] for n, e in found["methods"].items() if "quality" in e and n not in TRAINED}
    costs = (("seconds", "training, seconds"), ("memory_above_imports_gb", "memory without imports, GB"))
    plots = [
        quality_against_cost(
            {n: (e[key], e["quality"], e["interval"]) for n, e in trained.items()}, flat, what, label(found["metric"])
        )
        for key, what in costs
        if trained
    ]
    examples = []
    names = list(comparison.there)
    if names and comparison.there[names[0]].predictions:
        rows = zip(*(comparison.there[name].predictions for name in names), strict=True)
        examples = [
            (row[0]["prompt"], row[0]["references"][0], [each["adapted"] for each in row]) for row in list(rows)[:6]
        ]
    folders = [found["methods"][n]["folder"] for n in sorted(trained, key=lambda n: n != found["recommended"])]
    text = render_page(
        "comparison.html",
        trained=folders,
        comparison=found,
        heads=heads,
        lines=lines,
        plots=plots,
        examples=examples,
        names=names,
        failures={n: e["failed"] for n, e in found["methods"].items() if "failed" in e},
        label=label(found["metric"]) if found["metric"] else "",
    )
    write_atomic(path, text)
