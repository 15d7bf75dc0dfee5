"""`afina choose`."""

from typing import TYPE_CHECKING

from rich.table import Table

from afina.core.errors import counted
from afina.core.events import minutes
from afina.measure.pages.summary import label, number
from afina.ui.common import View, flags_of, plain_table, size, train_command, two_digits, wide_console
from afina.ui.output import Output

if TYPE_CHECKING:
    from afina.jobs.choose import ChooseResult, ChooseSettings


def _show(settings: "ChooseSettings", result: "ChooseResult") -> None:
    """Prints the ranking, how sure it is, and the command that trains the best."""
    out = wide_console()
    languages = f" in {', '.join(result.languages)}" if result.languages else ""
    out.print(f"{result.task}{languages}; each base was adapted on {result.share:.0%} of the rows of a full training\n")
    out.print(_ranking(result))
    out.print(
        "Ranked by what the expected answers of held-out rows cost after the short adaptation (bits per answer: fewer "
        "are better), which all bases share."
    )
    _certainty(out, result)
    for each in result.tried:
        if each.unknown_languages:
            out.print(f"{each.base}: the catalogue does not say that it knows {', '.join(each.unknown_languages)}")
    if result.others:
        out.print(
            "\nNot tried (--download fetches and tries the first of them): they can do the task, know the language, "
            "and fit"
        )
    for each in result.others:
        out.print(
            f"{each.base:32} {size(each.parameters):>7}  {each.memory_gb:5.1f} GB  {minutes(each.seconds):>8}  "
            f"{each.licence or ''}; {'; '.join(each.reasons)}"
        )
    if result.best:
        flags = flags_of(settings.run)
        whole = [each for each in flags if not each.startswith("--limit ")]
        pinned = f" --revision {result.revision}" if result.revision else ""
        every = "  (on all rows, without --limit)" if whole != flags else ""
        command = train_command(settings.run.data.path, whole, result.best)
        out.print(f"\nTrain the best:  {command}{pinned}{every}")


def _ranking(result: "ChooseResult") -> Table:
    grid = plain_table()
    grid.add_column("base")
    heads = (
        "parameters",
        "bits per answer",
        "before",
        label(result.metric),
        "zero-shot",
        "few-shot",
        "tokens per word",
    )
    for head in (*heads, "bits per byte", "GB", "training"):
        grid.add_column(head, justify="right")
    for each in result.tried:
        seen = each.probe
        if seen is None:
            grid.add_row(each.base, size(each.parameters), f"failed: {str(each.failed).splitlines()[0]}")
            continue
        scores = (
            "–" if score is None else number(result.metric, score)
            for score in (seen.adapted, seen.zero_shot, seen.few_shot)
        )
        grid.add_row(
            each.base, size(each.parameters), two_digits(seen.bits_after), two_digits(seen.bits_before), *scores,
            two_digits(seen.tokens_per_word), two_digits(seen.bits_per_byte), f"{each.memory_gb:.1f}",
            minutes(each.seconds),
        )  # fmt: skip
    return grid


def _certainty(out: Output, result: "ChooseResult") -> None:
    """Prints how sure the first place is, and whether the best beats guessing."""
    out.print(_lead(result))
    if result.guess is not None:
        out.print(
            f"Guessing by how often each label occurs costs {result.guess:.2f} bits per answer; the commonest is right "
            f"on {number('accuracy', result.classes[0])} of the rows."
        )
    if not result.beats_guessing:
        more = "train longer (--minutes), or collect more rows, before you trust this order"
        out.print(f"No base has learned more than that for certain yet: {more}.", style="yellow")


def _lead(result: "ChooseResult") -> str:
    seen = [(each.base, each.probe) for each in result.tried if each.probe]
    if not seen:
        return ""
    best, rows, lead = seen[0][0], len(seen[0][1].bits), result.lead
    if lead is None:
        return f"{counted(rows, 'held-out row was')} looked at."
    second = seen[1][0]
    words = {
        "better": f"is better than {second}",
        "too few rows to tell": f"leads {second}, but so few rows do not settle it",
    }.get(lead["verdict"], f"cannot be distinguished from the next, {second}")
    return (
        f"On {counted(rows, 'held-out row')} {best} {words}: {lead['value']:.2f} bits per answer between them "
        f"(95 % interval {lead['low']:+.2f} to {lead['high']:+.2f})."
    )


VIEWS = {"choose": View(_show)}
