"""The run's page, and the lines that tell a result in words and numbers, formed from the files of a run folder."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afina.core.config import read_yaml
from afina.core.events import Done, HeldOut, Step, end_of, read_events
from afina.core.files import read_json, read_jsonl, write_atomic
from afina.measure.general import LANGUAGES
from afina.measure.intervals import FEWEST_ROWS
from afina.measure.pages import page
from afina.measure.plots import loss_curve
from afina.training.settings import METHOD_NAMES

LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "field_accuracy": "field accuracy",
    "field_precision": "field precision",
    "field_recall": "field recall",
    "field_f1": "field F1",
    "bleu": "BLEU (lower-cased)",
    "bleu_cased": "BLEU (cased)",
    "chrf": "chrF",
    "ter": "TER (lower is better)",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "valid_json": "valid JSON",
    "bits_per_byte": "bits a byte",
    "loss": "loss, nats a token",
    "perplexity": "perplexity",
    "distinct_1": "different words (distinct-1)",
    "distinct_2": "different pairs of words (distinct-2)",
    "repetition": "repeated runs of four words",
    "stop_rate": "stop rate",
    "truncated_rate": "cut off at the limit",
    "empty_rate": "empty answers",
    "judge": "preferred by the judge",
    "tokens_per_second": "tokens a second, in batches",
    "answers_per_second": "answers a second, in batches",
    "latency": "seconds for one answer alone",
}
_PERCENT = {
    "accuracy", "macro_f1", "field_accuracy", "field_precision", "field_recall", "field_f1", "exact_match", "valid_json",
    "distinct_1", "distinct_2", "repetition", "stop_rate", "truncated_rate", "empty_rate", "judge",
}  # fmt: skip
_ONE_DIGIT = {
    "bleu",
    "bleu_cased",
    "chrf",
    "ter",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "tokens_per_second",
    "answers_per_second",
}
UNDEFINED = "undefined"
_EXAMPLES = 12
_MATRIX = 12  # labels whose confusions are shown as a matrix


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A score as people read it: rates in per cent (their differences, with `sign`, in points), the others as numbers."""
    if value is None:
        return UNDEFINED
    plus = "+" if sign else ""
    if name in _PERCENT:
        return f"{100 * value:{plus}.1f}{' points' if sign else ' %'}"
    if name == "perplexity" and abs(value) >= 1000:
        return f"{value:{plus}.3g}"
    return f"{value:{plus}.1f}" if name in _ONE_DIGIT else f"{value:{plus}.3f}"


def table(evaluation: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Base, adapted, difference and interval of each score, as text. `evaluation` is `evaluation.json`'s object."""
    base, adapted = evaluation["base"], evaluation["adapted"]
    for name in sorted(base, key=lambda name: list(LABELS).index(name) if name in LABELS else len(LABELS)):
        if isinstance(base[name], dict):
            continue
        difference = evaluation["difference"].get(name)
        row = {"label": label(name), "base": number(name, base[name]), "adapted": number(name, adapted[name])}
        both = base[name] is not None and adapted[name] is not None
        row["difference"] = number(name, adapted[name] - base[name] if both else None, sign=True)
        row["interval"] = interval(name, difference) if difference else ""
        row["tone"] = {"better": "good", "worse": "bad"}.get(difference["verdict"], "") if difference else ""
        yield row


def label(name: str) -> str:
    """A score's name in words; the user's own metrics have theirs."""
    return LABELS.get(name, name)


def interval(name: str, difference: dict[str, Any]) -> str:
    """The interval of a difference of the score `name`, as people read it."""
    if difference["low"] is None:
        return UNDEFINED
    low = number(name, difference["low"], sign=True).removesuffix(" points")
    return f"{low} to {number(name, difference['high'], sign=True)}"


def general_lines(evaluation: dict[str, Any]) -> list[str]:
    """The loss on general text, before and after, in words."""
    return [
        f"loss on general {LANGUAGES[name]} text {found['base']:.2f} → {found['adapted']:.2f} nats a token "
        f"({interval('loss', found['difference'])})"
        for name, found in evaluation["general"].items()
    ]


def verdict(evaluation: dict[str, Any]) -> str:
    """The result in one sentence or two."""
    name = evaluation["main_metric"]
    words = _compared(evaluation["difference"][name], name, "the base")
    trivial = _compared(evaluation["over_trivial"], name, "a trivial answer")
    return f"The adapted model is {words}; it is {trivial}."


def _compared(difference: dict[str, Any], name: str, other: str) -> str:
    size = f"{number(name, difference['value'], True)} {LABELS[name]}"
    within = f"95 % interval {interval(name, difference)}"
    if difference["verdict"] == UNDEFINED:
        return f"not judged against {other}: {LABELS[name]} or its interval is undefined on {difference['rows']} rows"
    if difference["rows"] < FEWEST_ROWS:
        return f"not judged against {other}: {difference['rows']} rows are too few to tell ({size})"
    than = "from" if difference["verdict"] == "not distinguishable" else "than"
    return f"{difference['verdict']} {than} {other} ({size}, {within})"


def trivial_lines(evaluation: dict[str, Any]) -> list[str]:
    name = evaluation["main_metric"]
    return [f"{what} {number(name, scores[name])} {LABELS[name]}" for what, scores in evaluation["trivial"].items()]


def write_report(run: Path) -> Path:
    """Writes `report.html` of the run folder `run`: one file, readable without network."""
    config = read_yaml(run / "config.yaml")
    facts = read_json(run / "adapter" / "afina.json")
    events = read_events(run / "metrics.jsonl")
    steps = [e for e in events if isinstance(e, Step)]
    held_out = [e for e in events if isinstance(e, HeldOut)]
    done = end_of(events)
    evaluation = read_json(run / "evaluation.json") if (run / "evaluation.json").exists() else None
    predictions = read_jsonl(run / "predictions.jsonl") if (run / "predictions.jsonl").exists() else []
    text = page(
        "report.html",
        title=run.name,
        classes=facts.get("classes"),
        evaluation=evaluation,
        verdict=verdict(evaluation) if evaluation else "",
        table=list(table(evaluation)) if evaluation else [],
        trivial=trivial_lines(evaluation) if evaluation else [],
        details=list(_details(evaluation)) if evaluation else [],
        curve=loss_curve(steps, held_out),
        training=_training_line(done),
        examples=predictions[:_EXAMPLES],
        worst=[predictions[i] for i in evaluation["groups"]["worst"]] if evaluation else [],
        elsewhere=general_lines(evaluation) if evaluation else [],
        done=_done_line(config, facts),
        used=list(_used(config, facts)),
        reasons=facts["reasons"],
        commands=_commands(run, config["data"]["prompt"]),
    )
    write_atomic(run / "report.html", text)
    return run / "report.html"


def _done_line(config: dict[str, Any], facts: dict[str, Any]) -> str:
    """What was done, in a sentence."""
    rows, data = facts["rows"], Path(config["data"]["path"]).name
    run_in_process = f", {rows['test']} evaluated on in the end" if rows["test"] else ""
    return (
        f"{facts['base']['name']} ({facts['base']['parameters'] / 1e6:.0f} M parameters) was adapted to {data} with "
        f"{METHOD_NAMES[config['method']]}: {facts['trainable_parameters'] / 1e6:.2f} M parameters were trained on {rows['train']} rows, "
        f"watched on {rows['held_out']} rows held out{run_in_process}."
    )


def _training_line(done: Done | None) -> str:
    if done is None:
        return "Training did not come to its end."
    return (
        f"{done.steps} steps ({done.reason}), {done.tokens:,} tokens in {done.seconds / 60:.1f} minutes with evaluations: "
        f"{done.tokens_per_second:.0f} tokens/s in training, {done.peak_memory_gb:.1f} GB peak memory."
    )


def _details(evaluation: dict[str, Any]) -> Iterator[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Tables of where the errors are: heading, columns, lines."""
    base, adapted, main = evaluation["base"], evaluation["adapted"], evaluation["main_metric"]
    if "per_field" in adapted:
        rows = [
            (n, [number("accuracy", base["per_field"][n]), number("accuracy", v)])
            for n, v in adapted["per_field"].items()
        ]
        yield "Each field", ["base", "adapted"], rows
    if "per_class" in adapted:
        columns = ["count", "base F1", "adapted F1", "adapted precision", "adapted recall"]
        lines = [
            (
                n,
                [
                    f"{v['count']:.0f}",
                    *(number("accuracy", x) for x in (b["f1"], v["f1"], v["precision"], v["recall"])),
                ],
            )
            for (n, v), b in zip(adapted["per_class"].items(), base["per_class"].values(), strict=True)
        ]
        yield "Each label", columns, lines
        yield from _confusions(adapted["confusion"])
    if thirds := evaluation["groups"]["by_length"]:
        yield (
            f"{label(main)} by length of the row",
            ["rows", "base", "adapted"],
            [
                (
                    f"{g['from']} to {g['to']} tokens",
                    [str(g["rows"]), number(main, g["base"]), number(main, g["adapted"])],
                )
                for g in thirds
            ],
        )


def _confusions(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """The matrix of a few labels, or the most frequent mistakes among many."""
    labels, counts = found["labels"], found["counts"]
    columns = [*labels, "another answer"]
    if len(labels) <= _MATRIX:
        lines = [(f"is {name}", [str(n) for n in line]) for name, line in zip(labels, counts, strict=True)]
        yield "What was taken for what (adapted)", columns, lines
        return
    mistakes = [
        (n, f"{a} taken for {b}")
        for a, line in zip(labels, counts, strict=True)
        for b, n in zip(columns, line, strict=True)
        if a != b and n
    ]
    yield (
        "Most frequent mistakes (adapted)",
        ["rows"],
        [(text, [str(n)]) for n, text in sorted(mistakes, key=lambda each: -each[0])[:_EXAMPLES]],
    )


def _used(config: dict[str, Any], facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts["base"].items():
        if value is not None:
            yield f"base {name.replace('_', ' ')}", f"{value:,}" if isinstance(value, int) else str(value)
    for section in ("data", "lora", "train"):
        for name, value in config[section].items():
            if value not in (None, {}, ()):
                yield f"{section}.{name}", str(value)
    for name in ("seed", "precision"):
        yield name, str(config[name])


def try_command(run: Path, template: str | None) -> str:
    """How to ask the adapted model, with a prompt of the form that it was trained on."""
    prompt = re.sub(r"\{[^{}]*\}", "…", template) if template else "your prompt"
    return f"afina generate {run} {shlex.quote(prompt)} --base-too"


def _commands(run: Path, template: str | None) -> str:
    return (
        f"{try_command(run, template)}\n"
        f"afina eval {run} more.jsonl\n"
        f"afina train --config {run / 'config.yaml'} --out another-run"
    )
