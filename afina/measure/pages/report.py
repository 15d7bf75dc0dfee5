"""The report of a run, `report.html`, from the files of its folder."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afina.core.config import read_yaml
from afina.core.errors import counted
from afina.core.events import Done, HeldOut, Step, end_of, read_events
from afina.core.files import read_json, read_jsonl, write_atomic
from afina.core.text import command_line
from afina.measure.metric import Table
from afina.measure.metrics import described
from afina.measure.pages.plots import loss_curve
from afina.measure.pages.rendering import render_page
from afina.measure.pages.summary import general_lines, label, number, table, trivial_lines, verdict
from afina.training.settings import METHOD_NAMES

_EXAMPLES = 12


def write_report(run: Path, evaluation: dict[str, Any] | None = None) -> Path:
    """Writes `report.html` of the run folder `run`: one file, readable without a network; `evaluation` is by default
    the one in the folder, if any."""
    config = read_yaml(run / "config.yaml")
    facts = read_json(run / "adapter" / "afina.json")
    events = read_events(run / "metrics.jsonl")
    steps = [e for e in events if isinstance(e, Step)]
    held_out = [e for e in events if isinstance(e, HeldOut)]
    done = end_of(events)
    if evaluation is None and (run / "evaluation.json").exists():
        evaluation = read_json(run / "evaluation.json")
    predictions = read_jsonl(run / "predictions.jsonl") if (run / "predictions.jsonl").exists() else []
    text = render_page(
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
        forgetting=general_lines(evaluation) if evaluation else [],
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
    test = f" and tested on {rows['test']}" if rows["test"] else ""
    return (
        f"{facts['base']['name']} ({facts['base']['parameters'] / 1e6:.0f} M parameters) was adapted to {data} with "
        f"{METHOD_NAMES[config['method']]}: {facts['trainable_parameters'] / 1e6:.2f} M parameters were trained on "
        f"{counted(rows['train'], 'row')}, validated on {counted(rows['held_out'], 'held-out row')}{test}."
    )


def _training_line(done: Done | None) -> str:
    if done is None:
        return "Training did not finish."
    return (
        f"{counted(done.steps, 'step')} ({done.reason}), "
        f"{counted(done.tokens, 'token')} in {done.seconds / 60:.1f} minutes including "
        f"evaluation: {done.tokens_per_second:.0f} tokens/s in training, {done.peak_memory_gb:.1f} GB peak memory."
    )


def _details(evaluation: dict[str, Any]) -> Iterator[Table]:
    """Tables of where the errors are."""
    base, adapted, main = evaluation["base"], evaluation["adapted"], evaluation["main_metric"]
    for name, value in adapted.items():
        if isinstance(value, dict) and (tables := described(name).tables):
            yield from tables(base[name], value)
    if thirds := evaluation["groups"]["by_length"]:
        lines = [
            (
                f"{g['from']} to {g['to']} tokens",
                [str(g["rows"]), number(main, g["base"]), number(main, g["adapted"])],
            )
            for g in thirds
        ]
        yield f"{label(main)} by row length", ["rows", "base", "adapted"], lines


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
    """The command that prompts the adapted model, with a prompt of the form that it was trained on."""
    prompt = re.sub(r"\{[^{}]*\}", "…", template) if template else "your prompt"
    return command_line("generate", run, prompt, "--base-too")


def _commands(run: Path, template: str | None) -> str:
    return (
        f"{try_command(run, template)}\n"
        f"{command_line('eval', run, 'more.jsonl')}\n"
        f"{command_line('train', '--config', run / 'config.yaml', '--out', 'another-run')}"
    )
