"""`data prepare`: DATA cleaned, without copies, split so that near copies stay on one side."""

from collections.abc import Sequence
from pathlib import Path

from afina.core.config import Result, Settings, section, setting
from afina.core.errors import DataError
from afina.core.events import Listener, Notice, ignore
from afina.core.files import write_atomic, write_json, write_jsonl
from afina.core.job import Job
from afina.data.mapping import Example, read_examples
from afina.data.quality.preparation import Prepared, PrepareSettings, rows_of, shares
from afina.data.quality.preparation import prepare as prepare_rows
from afina.data.read import read
from afina.data.rows import Notes, Record
from afina.data.settings import DataSettings
from afina.data.splits import sample
from afina.jobs.data._tokenizer import READING
from afina.runs.folder import check_new


class PrepareDataSettings(Settings):
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    data: DataSettings = section(only=READING)
    prepare: PrepareSettings = section(PrepareSettings())


class PrepareDataResult(Result):
    train: int
    """Rows in train.jsonl (or train.parquet)."""
    test: int
    done: dict[str, int]
    """What was done to how many rows."""


def prepare(settings: PrepareDataSettings, listener: Listener = ignore) -> PrepareDataResult:
    """Cleans and splits the data into `out`: training and test rows, a card, and rejected.jsonl.

    Raises `DataError`, `OutputError`.
    """
    data, how, out = settings.data, settings.prepare, settings.out
    check_new(out)
    examples, rejected, notes = read_examples(data, needs_completion=True)
    for line in notes.lines:
        listener(Notice(line))
    times = _times(data, how, examples)
    wanted, brought = len(examples), dict[str, int]()
    for path, share in shares(how.mix, "--mix"):
        if times:
            raise DataError("--mix brings rows that have no time", "leave --mix or --split time out")
        more = _some(path, share, wanted, how.seed)
        brought[f"mixed in from {path}"] = len(more)
        examples = examples + more
    result = prepare_rows(examples, how, times)
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
    write_atomic(out / "README.md", _card(data, how, result).encode())
    write_json(out / "prepared.json", {"source": str(data.path), **how.model_dump(mode="json"), "done": result.done})
    return PrepareDataResult(train=len(result.train), test=len(result.test), done=result.done)


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


def _times(data: DataSettings, how: PrepareSettings, examples: Sequence[Example]) -> list[str]:
    if how.split != "time":
        return []
    if how.by is None:
        raise DataError("a split by time needs the column that orders the rows", "give --by COLUMN")
    values = {r.location: r.values.get(how.by) for r in read(data, Notes()) if isinstance(r, Record)}
    absent = [e.location for e in examples if values.get(e.location) is None]
    if absent:
        raise DataError(
            f"{absent[0]} has no {how.by!r}, by which rows are ordered in time", "name another column with --by"
        )
    return [str(values[e.location]) for e in examples]


def _card(data: DataSettings, how: PrepareSettings, result: Prepared) -> str:
    done = [f"- {n} rows {what}" for what, n in result.done.items()] or ["- nothing had to be changed"]
    grouped = (
        ", rows that ask the same or nearly the same on one side" if not how.split_near and how.split != "time" else ""
    )
    lines = [
        f"# {data.path.name}, prepared", "",
        f"{len(result.train)} rows in train.{how.format}, {len(result.test)} in test.{how.format}, "
        f"from `{data.path.name}`.",
        f"Split: {how.split}{grouped}; seed {how.seed}.", "", "Done:", *done, "",
    ]  # fmt: skip
    return "\n".join(lines)


JOB = Job.of(prepare)
