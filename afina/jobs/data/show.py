"""`data show`: a row of DATA as the model sees it: its tokens, the learned ones in colour."""

from afina.core.config import Result, section, setting
from afina.core.errors import DataError, counted
from afina.core.events import Listener, Notice, ignore
from afina.core.files import check_writable, write_atomic
from afina.core.job import Job
from afina.data.conversation import Remarks
from afina.data.mapping import Unusable, map_examples
from afina.data.rows import Notes, Rejected
from afina.data.settings import DataSettings
from afina.data.template import render
from afina.jobs.data._tokenizer import READING, PageSettings, find_tokenizer
from afina.measure.pages.data_pages import Rendered, rendered, row_page


class ShowRowSettings(PageSettings):
    row: int = setting(1, metavar="N", ge=1)
    """Number of the row."""
    at: str | None = setting(None, metavar="PLACE", instead_of="row")
    """Place of the row, as findings of `data check` name it: rows.csv:12."""
    data: DataSettings = section(only=(*READING, "learn"))


class ShowRowResult(Result):
    row: int
    """Its number, counted from 1."""
    where: str
    """File and line of the row."""
    tokens: tuple[tuple[str, bool], ...]
    """The text of each token, and whether it is learned."""
    learned: tuple[str, ...]
    """The text of each stretch of learned tokens, in order."""
    not_learned: tuple[str, ...]
    """The text of each stretch between them."""


def show(settings: ShowRowSettings, listener: Listener = ignore) -> ShowRowResult:
    """Renders one row as in training. Raises `DataError` where it cannot be used."""
    if settings.html:
        check_writable(settings.html)
    remarks = Remarks()
    number, found = _rendered(settings, remarks)
    for line in remarks.lines():
        listener(Notice(line))
    if settings.html:
        write_atomic(settings.html, row_page(found))
    return ShowRowResult(
        row=number,
        where=found.where,
        tokens=tuple(found.tokens),
        learned=tuple(found.texts(learned=True)),
        not_learned=tuple(found.texts(learned=False)),
    )


def _rendered(settings: ShowRowSettings, remarks: Remarks) -> tuple[int, Rendered]:
    """The row's number, and the row."""
    data, row, place = settings.data, settings.row, settings.at
    tokenizer, _ = find_tokenizer(settings, data, needed=True)
    assert tokenizer is not None
    for number, found in enumerate(map_examples(data, Notes(), needs_completion=True), 1):
        if number < row if place is None else found.location != place:
            continue
        if isinstance(found, Rejected):
            raise DataError(f"row {number} ({found.location}) cannot be used: {found.reason}", "fix it")
        try:
            return number, rendered(tokenizer, render(tokenizer, found, remarks))
        except Unusable as reason:
            raise DataError(f"row {number} ({found.location}) cannot be used: {reason}", "fix it") from reason
    if place is not None:
        raise DataError(f"{data.path} has no row at {place!r}", "give a place as `afina data check` names it")
    raise DataError(f"{data.path} has fewer than {counted(row, 'row')}", "give a smaller --row")


JOB = Job.of(show)
