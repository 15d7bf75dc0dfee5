"""Tables of what was found out before training: forecasts and recommendations."""

import math
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from afina.core.events import minutes
from afina.measure.pages.summary import label, number
from afina.ui.common import size

if TYPE_CHECKING:
    from afina.jobs.choose import Choice
    from afina.jobs.fit import At, Fit

_NAMES = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning", "head": "trained head"}
_WIDEST = 160
_NOT_OF_TRAIN = ("data.path", "base", "out", "quantize")
_PARTS = (
    ("weights", ("weights", "copies")),
    ("trained", ("adapter", "gradients", "optimizer")),
    ("activ.", ("activations",)),
    ("logits", ("logits",)),
    ("cache", ("cache",)),
    ("other", ("overhead",)),
)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    console.width = max(console.width, _WIDEST)  # a table too wide for a terminal is better than one of broken words
    return console


def show_fit(found: "Fit", data: str, given: dict[str, Any]) -> None:
    """Prints the forecasts to standard output, and the command that trains; `given` are the settings of the command line."""
    console, base, work = _console(), found.base, found.workload
    console.print(
        f"{base.name}: {size(base.parameters)} parameters; {len(work.lengths):,} rows, {work.tokens:,} tokens "
        f"({work.counted}), the longest {int(max(work.lengths)):,}"
    )
    if not base.is_local:
        console.print(f"its files are not here: about {base.file_bytes / 1e9:.1f} GB to fetch")
    _machine(console, found.first, full=True)
    for each in found.others.values():
        _machine(console, each, full=False)
    console.print(
        "\nGB is the larger of two sums: training (all parts but the cache), and answering afterwards (weights, the trained numbers, "
        "cache and other).\ntrained: the numbers that are trained, with gradients, Adam's two moments, a copy in 32 bits and the best so far. "
        "Where gradients are more than activations, they count in their place.\ntraining: all epochs, and between them the looks at held-out rows "
        "and what is saved. answers: those of base and adapted model, after it."
    )
    for more, name in _fitting(found.first):
        kept = {path: value for path, value in given.items() if f"--{path} " not in f"{more} "}
        console.print(f"\nTrain it:  {_command(data, kept, name or base.name)}{more}")
        return
    console.print("\nNothing of this fits here.")


def _fitting(at: "At") -> Iterator[tuple[str, str]]:
    """What fits, first of all the plainest: the flags that it takes beside those given, and another base where it takes one."""
    own = {"lora": "", "qlora": " --quantize nf4", "full": " --method full", "head": " --method head"}
    ready = {method: seen.seconds for method, seen in at.methods.items() if not isinstance(seen, str) and seen.fits}
    if ready.get("qlora", math.inf) < ready.get("lora", 0):  # where plain LoRA has to compute its activations twice
        del ready["lora"]
    for method in ready:
        yield own[method], ""
    for method, changes in at.changes.items():
        for text, _ in changes:
            yield f"{own[method]} {text}" if "--method" not in text else f" {text}", ""
    for method, bases in at.bases.items():
        for name, _ in bases:
            yield own[method], name


def _command(data: str, given: dict[str, Any], base: str) -> str:
    """The training with the settings that were given."""
    flags = [f"--{path} {shlex.quote(str(value))}" for path, value in given.items() if path not in _NOT_OF_TRAIN]
    return " ".join(["afina train", shlex.quote(data), *flags, f"--base {shlex.quote(base)}"])


def _machine(console: Console, at: "At", full: bool) -> None:
    grid = Table(box=None, pad_edge=False)
    names = ["GB", *(name for name, _ in _PARTS if full), "epochs", "an epoch", "training", "answers", "disk", ""]
    grid.add_column("method")
    for name in names:
        grid.add_column(name, justify="left" if not name else "right", no_wrap=True)
    notes = []
    for method, seen in at.methods.items():
        if isinstance(seen, str):
            notes.append(f"{_NAMES[method]}: {seen}")
            continue
        memory = seen.memory.json()
        parts = [f"{sum(memory[each] for each in own):.2f}" for _, own in _PARTS] if full else []
        fits = "fits" if seen.fits else "does not fit"
        grid.add_row(
            _NAMES[method], f"{memory['total']:.2f}", *parts, f"{seen.plan.epochs:g}", minutes(seen.epoch_seconds), minutes(seen.seconds),
            minutes(seen.evaluation), f"{seen.disk / 1e9:.2f}", fits + (", activations twice" if seen.plan.checkpoint_activations else ""),
        )  # fmt: skip
        if not seen.fits:
            notes += _would_fit(at, method)
    console.print(f"\n{at.machine.name}: {at.machine.available / 1e9:.1f} GB free (sizes in GB)", style="bold")
    console.print(grid)
    for note in notes:
        console.print(note)


def _would_fit(at: "At", method: str) -> list[str]:
    changes, bases = at.changes[method], at.bases[method]  # type: ignore[index]
    if changes:
        word = "fits" if method == "lora" or "--method lora" not in changes[0][0] else "does not fit;"
        ways = [f"{text} ({each.memory.total / 1e9:.1f} GB, {minutes(each.seconds)})" for text, each in changes]
        return [f"{_NAMES[method]} {word} with {'; or '.join(ways)}"]
    if bases:
        ways = [f"{name} ({each.memory.total / 1e9:.1f} GB)" for name, each in bases]
        return [f"{_NAMES[method]} fits with a smaller base: {', '.join(ways)}"]
    return [f"{_NAMES[method]}: no change of the settings makes it fit"]


def show_choice(found: "Choice", data: str, given: dict[str, Any]) -> None:
    """Prints the ranking to standard output, and the command that trains the best; `given` are the settings of the command line."""
    console = _console()
    languages = f" in {', '.join(found.languages)}" if found.languages else ""
    console.print(
        f"{found.task}{languages}; each base was adapted on {found.share:.0%} of what a whole training would see\n"
    )
    grid = Table(box=None, pad_edge=False)
    grid.add_column("base")
    heads = (
        "parameters", "bits an answer", "before", label(found.metric), "zero-shot", "few-shot", "tokens a word", "bits a byte", "GB", "training",
    )  # fmt: skip
    for head in heads:
        grid.add_column(head, justify="right")
    for each in found.tried:
        seen = each.probe
        if seen is None:
            grid.add_row(each.name, size(each.parameters), f"failed: {str(each.failed).splitlines()[0]}")
            continue
        scores = (
            "–" if score is None else number(found.metric, score)
            for score in (seen.adapted, seen.zero_shot, seen.few_shot)
        )
        grid.add_row(
            each.name, size(each.parameters), _two_digits(seen.bits_after), _two_digits(seen.bits_before), *scores, _two_digits(seen.tokens_per_word),
            _two_digits(seen.bits_per_byte), f"{each.forecast.memory.total / 1e9:.1f}", minutes(each.forecast.seconds),
        )  # fmt: skip
    console.print(grid)
    console.print(
        "Ranked by what the right answers of held-out rows cost after the short adaptation (bits an answer: fewer are better), which all bases share."
    )
    console.print(_lead(found))
    if found.guess is not None:
        console.print(
            f"Guessing by how often each label occurs costs {found.guess:.2f} bits an answer; the commonest is right on "
            f"{number('accuracy', found.classes[0])} of the rows."
        )
    if not found.beats_guessing:
        more = "train longer (--minutes), or collect more rows, before you trust this order"
        console.print(f"No base has learned more than that for certain yet: {more}.", style="yellow")
    for each in found.tried:
        if each.unknown:
            console.print(f"{each.name}: the catalogue does not say that it knows {', '.join(each.unknown)}")
    if found.others:
        console.print(
            "\nNot tried (--download fetches and tries the first of them): they can do the task, know the language and fit"
        )
    for each in found.others:
        console.print(
            f"{each.name:32} {size(each.parameters):>7}  {each.forecast.memory.total / 1e9:5.1f} GB  {minutes(each.forecast.seconds):>8}  "
            f"{each.licence or ''}; {'; '.join(each.reasons)}"
        )
    if found.best and found.best.probe:
        pinned = f" --revision {found.best.probe.revision}" if found.best.probe.revision else ""
        whole = {path: value for path, value in given.items() if path != "data.limit"}
        every = "  (on all rows, without --limit)" if whole != given else ""
        console.print(f"\nTrain the best:  {_command(data, whole, found.best.name)}{pinned}{every}")


def _lead(found: "Choice") -> str:
    """How sure the first place is."""
    if found.best is None or found.best.probe is None:
        return ""
    lead, rows = found.lead, len(found.best.probe.bits)
    if lead is None:
        return f"{rows} held-out rows were looked at."
    second = [each.name for each in found.tried if each.probe][1]
    words = {
        "better": f"is better than {second}",
        "too few rows to tell": f"leads {second}, but so few rows do not settle it",
    }.get(lead.verdict, f"cannot be told from the next, {second}")
    return (
        f"On {rows} held-out rows {found.best.name} {words}: {lead.value:.2f} bits an answer between them "
        f"(95 % interval {lead.low:+.2f} to {lead.high:+.2f})."
    )


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
