"""Data before training: checked, shown as the model sees it, cleaned and split."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from afina.core.config import fields
from afina.core.device import cache_folder
from afina.core.errors import DataError
from afina.core.files import check_writable, write_atomic, write_json, write_jsonl
from afina.data.fitting import DEFAULT_MAX_LENGTH
from afina.data.mapping import Example, Unusable, map_examples, read_examples
from afina.data.quality.checks import Check, DataFinding, check
from afina.data.quality.preparation import Prepared, PrepareSettings, prepare, rows_of, shares
from afina.data.read import read
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings
from afina.data.splits import sample
from afina.data.template import render
from afina.measure.pages.data_pages import Rendered, check_page, rendered, row_page
from afina.models.load import load_tokenizer
from afina.models.sources.source import is_local
from afina.models.tokenizer import Tokenizer
from afina.runs.folder import check_new

_SHOWN = 3


def check_data(
    settings: DataSettings, *, base: str = "starter", page: Path | None = None, cache_dir: Path | None = None
) -> Check:
    """What a careful person would find in the data (see `afina.data.quality.checks`); with `page`, also as a page with plots.

    Lengths are those of `base`'s tokenizer; where a base of the catalogue is not on this disk, nothing is said of them. Raises
    `DataError` where a file cannot be decoded.
    """
    if page:
        check_writable(page)
    tokenizer, limit = _tokenizer(base, settings, cache_dir)
    found = check(settings, tokenizer, limit, base)
    if tokenizer is None:
        text = f"lengths, masks and control tokens were not looked at, for {base} is not on this disk: `afina models pull {base}`"
        found = replace(
            found,
            findings=[*found.findings, DataFinding("no tokenizer", "warning", text)],
            verdict=f"{found.verdict} ({text})",
        )
    if page:
        rows = _first_rows(settings, tokenizer) if tokenizer and found.rows_kept else []
        write_atomic(page, check_page(found, rows, limit, following(found, settings)).encode())
    return found


def following(found: Check, settings: DataSettings) -> str:
    """The command that comes next, in words that can be typed."""
    if not found.ready:
        return "mend what is named above, then check again"
    given = {field.path: field for field in fields(DataSettings, "data.") if field.path != "data.path"}
    values = {path: getattr(settings, path.removeprefix("data.")) for path in given}
    flags = {
        path: f" {given[path].flags[-1]} {shlex.quote(str(value))}"
        for path, value in values.items()
        if value != given[path].default
    }
    data = shlex.quote(str(settings.path))
    again = any(finding.code in ("duplicates", "near copies") for finding in found.findings)
    if not again or settings.eval_path is not None:
        return f"afina train {data}{''.join(flags.values())}"
    later = {"data.learn", "data.kind", "data.max_length"}  # what does not change the rows that are written
    reading = "".join(text.replace("--data.", "--") for path, text in flags.items() if path not in later)
    kept = "".join(text for path, text in flags.items() if path in later)
    return (
        f"afina data prepare {data}{reading} --out clean\n"
        f"afina train clean/train.jsonl --eval-data clean/test.jsonl{kept}"
    )


def show_row(
    settings: DataSettings, row: int, *, base: str = "starter", page: Path | None = None, cache_dir: Path | None = None
) -> Rendered:
    """Row number `row` (from 1) as tokens, each with whether it is learned. Raises `DataError` where it cannot be used."""
    found = _row(settings, row, base, cache_dir)
    if page:
        check_writable(page)
        write_atomic(page, row_page(found).encode())
    return found


def _row(settings: DataSettings, row: int, base: str, cache_dir: Path | None) -> Rendered:
    tokenizer, _ = _tokenizer(base, settings, cache_dir, needed=True)
    assert tokenizer is not None
    for number, found in enumerate(map_examples(settings, Notes(), needs_completion=True), 1):
        if number < row:
            continue
        if isinstance(found, Rejected):
            raise DataError(f"row {row} ({found.location}) cannot be used: {found.reason}", "mend it")
        try:
            return rendered(tokenizer, render(tokenizer, found))
        except Unusable as reason:
            raise DataError(f"row {row} ({found.location}) cannot be used: {reason}", "mend it") from reason
    raise DataError(f"{settings.path} has fewer than {row} rows", "give a smaller --row")


def prepare_data(settings: DataSettings, how: PrepareSettings, out: Path) -> Prepared:
    """Cleans and splits the data into `out`: train.jsonl, test.jsonl, a card, and rejected.jsonl. Raises `DataError`, `OutputError`."""
    check_new(out)
    examples, rejected, _ = read_examples(settings, needs_completion=True)
    times = _times(settings, how, examples)
    wanted, brought = len(examples), dict[str, int]()
    for path, share in shares(how.mix, "--mix"):
        if times:
            raise DataError("--mix brings rows that have no time", "leave --mix or --split time out")
        more = _some(path, share, wanted, how.seed)
        brought[f"mixed in from {path}"] = len(more)
        examples = examples + more
    result = prepare(examples, how, times)
    trained = len(result.train)
    for path, share in shares(how.replay, "--replay"):
        more = _some(path, share, trained, how.seed)
        brought[f"replayed from {path}"] = len(more)
        result.train.extend(more)
    left_out = {f"left out: {reason}": n for reason, n in rejected.counts().items()}
    result.done.update(brought | left_out)
    _write(out / f"train.{how.format}", result.train)
    if result.test:
        _write(out / f"test.{how.format}", result.test)
    if rejected:
        write_jsonl(out / "rejected.jsonl", [{"where": r.location, "reason": r.reason} for r in rejected])
    write_atomic(out / "README.md", _card(settings, how, result).encode())
    write_json(
        out / "prepared.json", {"source": str(settings.path), **how.model_dump(mode="json"), "done": result.done}
    )
    return result


def _some(path: Path, share: float, count: int, seed: int) -> list[Example]:
    """`share` times `count` rows of another file, drawn by seed. Raises `DataError` where it has not as many."""
    examples, _, _ = read_examples(DataSettings(path=path), needs_completion=True)
    wanted = max(1, round(share * count))
    if wanted > len(examples):
        raise DataError(
            f"{path}: {wanted} rows are wanted ({share:g} times {count}), {len(examples)} can be used",
            f"give at most {path}={len(examples) / count:.3g}",
        )
    return [e for e, taken in zip(examples, sample(len(examples), wanted, seed), strict=True) if taken]


def _write(path: Path, examples: Sequence[Example]) -> None:
    rows = rows_of(examples)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
        return
    import pyarrow
    import pyarrow.parquet

    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = pyarrow.BufferOutputStream()
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    pyarrow.parquet.write_table(table, buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())


def _times(settings: DataSettings, how: PrepareSettings, examples: Sequence[Example]) -> list[str]:
    if how.split != "time":
        return []
    if how.by is None:
        raise DataError("a split by time needs the column that orders the rows", "give --by COLUMN")
    values = {r.location: r.values.get(how.by) for r in read(settings, Notes()) if isinstance(r, Record)}
    absent = [e.location for e in examples if values.get(e.location) is None]
    if absent:
        raise DataError(
            f"{absent[0]} has no {how.by!r}, by which rows are ordered in time", "name another column with --by"
        )
    return [str(values[e.location]) for e in examples]


def _card(settings: DataSettings, how: PrepareSettings, result: Prepared) -> str:
    done = [f"- {n} rows {what}" for what, n in result.done.items()] or ["- nothing had to be changed"]
    grouped = (
        ", rows that ask the same or nearly the same on one side" if not how.split_near and how.split != "time" else ""
    )
    lines = [
        f"# {settings.path.name}, prepared", "",
        f"{len(result.train)} rows in train.{how.format}, {len(result.test)} in test.{how.format}, from `{settings.path.name}`.",
        f"Split: {how.split}{grouped}; seed {how.seed}.", "", "Done:", *done, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _tokenizer(
    base: str, settings: DataSettings, cache_dir: Path | None, needed: bool = False
) -> tuple[Tokenizer | None, int]:
    """The base's tokenizer and the longest row; none where the default base would have to be fetched first."""
    if not needed and not is_local(base, cache_folder(cache_dir)):
        return None, settings.max_length or DEFAULT_MAX_LENGTH
    tokenizer, context = load_tokenizer(base, cache_dir=cache_dir)
    return tokenizer, min(settings.max_length or DEFAULT_MAX_LENGTH, context)


def _first_rows(settings: DataSettings, tokenizer: Tokenizer) -> list[Rendered]:
    rows: list[Rendered] = []
    for found in map_examples(settings, Notes(), needs_completion=True):
        if isinstance(found, Example):
            try:
                rows.append(rendered(tokenizer, render(tokenizer, found)))
            except Unusable:
                continue
        if len(rows) == _SHOWN:
            break
    return rows
