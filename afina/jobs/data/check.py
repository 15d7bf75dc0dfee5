"""`data check`: what a careful person would find in DATA; exits with 0 ready, 1 not ready, 2 unreadable."""

from dataclasses import replace
from typing import Any

from pydantic import Field

from afina.core.config import Result, fields, section
from afina.core.events import Listener, Progress, ignore
from afina.core.files import check_writable, write_atomic
from afina.core.job import Job
from afina.core.text import command_line, shell_word
from afina.data.mapping import Example, Unusable, map_examples
from afina.data.parts import parted
from afina.data.quality.checks import Check
from afina.data.quality.checks import check as check_rows
from afina.data.quality.findings import DataFinding
from afina.data.rows import Notes
from afina.data.settings import DataSettings
from afina.data.template import render
from afina.jobs.data._tokenizer import READING, PageSettings, find_tokenizer, given_flags
from afina.measure.pages.data_pages import Rendered, check_page, rendered
from afina.models.tokenizer import Tokenizer

_SHOWN = 3


class CheckDataSettings(PageSettings):
    data: DataSettings = section(only=(*READING, "learn", "kind", "eval_path", "max_length", "too_long"))


class CheckDataResult(Result):
    """`rows_in` = `rows_kept` + `rows_reported`."""

    path: str
    rows_in: int
    rows_kept: int
    rows_reported: int
    layout: str | None
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why rows cannot be used, with their number."""
    findings: tuple[DataFinding, ...]
    verdict: str
    ready: bool
    lengths: dict[str, int]
    """Percentiles of the tokens per row."""
    answers: dict[str, int]
    """Percentiles of the learned tokens per row."""
    samples: tuple[dict[str, str], ...]
    labels: dict[str, int]
    languages: dict[str, int]
    following: str = Field(exclude=True)
    """The command that comes next."""


def check(settings: CheckDataSettings, listener: Listener = ignore) -> CheckDataResult:
    """Looks for what a careful person would find in the data (see `afina.data.quality.checks`).

    Lengths are those of `base`'s tokenizer; where a base of the catalogue is not on this disk, nothing is said of them.
    Raises `DataError` where a file cannot be decoded.
    """
    if settings.html:
        check_writable(settings.html)
    data = settings.data
    listener(Progress("loading the tokenizer", 0, 0))
    tokenizer, limit = find_tokenizer(settings, data)
    found = check_rows(data, tokenizer, limit, settings.base, listener)
    if tokenizer is None:
        text = (
            f"lengths, masks and control tokens were not looked at, for {settings.base} is not on this disk: "
            f"`{command_line('models', 'pull', settings.base)}`"
        )
        found = replace(
            found,
            findings=[*found.findings, DataFinding("no tokenizer", "warning", text)],
            verdict=f"{found.verdict} ({text})",
        )
    following = _following(found, data, given_flags(settings))
    if settings.html:
        rows = _first_rows(data, tokenizer) if tokenizer and found.rows_kept else []
        write_atomic(settings.html, check_page(found, rows, limit, following))
    values: dict[str, Any] = found.json()
    return CheckDataResult(**values, following=following)


def _following(found: Check, settings: DataSettings, of_base: str) -> str:
    """The command that comes next, ready to be typed, with the flags `of_base`."""
    if not found.ready:
        return "fix what is named above, then check again"
    given = {field.path: field for field in fields(DataSettings, "data.") if field.path != "data.path"}
    values = {path: getattr(settings, path.removeprefix("data.")) for path in given}
    flags = {
        path: f" {given[path].flags[-1]} {shell_word(str(value))}"
        for path, value in values.items()
        if value != given[path].default
    }
    data = shell_word(str(settings.path))
    again = any(finding.code in ("duplicates", "near copies") for finding in found.findings)
    if not again or _has_parts(settings):
        return f"afina train {data}{''.join(flags.values())}{of_base}"
    later = {"data.learn", "data.kind", "data.max_length", "data.too_long"}  # which change no row that is written
    reading = "".join(text.replace("--data.", "--") for path, text in flags.items() if path not in later)
    kept = "".join(text for path, text in flags.items() if path in later)
    return (
        f"afina data prepare {data}{reading}{of_base} --out clean\n"
        f"afina train clean/train.jsonl --eval-data clean/test.jsonl{kept}{of_base}"
    )


def _has_parts(settings: DataSettings) -> bool:
    """Whether the data are divided already: `prepare` would divide them anew."""
    parts = parted(settings)
    return bool(parts.eval_path or parts.test_path)


def _first_rows(settings: DataSettings, tokenizer: Tokenizer) -> list[Rendered]:
    rows: list[Rendered] = []
    for found in map_examples(settings, Notes(doubts=[]), needs_completion=True):
        if isinstance(found, Example):
            try:
                rows.append(rendered(tokenizer, render(tokenizer, found)))
            except Unusable:
                continue
        if len(rows) == _SHOWN:
            break
    return rows


JOB = Job.of(check)
