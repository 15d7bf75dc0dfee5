"""`data prepare`: a file of examples cleaned, without copies, split so that near copies stay on one side."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from afina.core.config import Result, section, setting
from afina.core.errors import DataError, counted, writing
from afina.core.events import Listener, Notice, ignore
from afina.core.files import jsonl_writer, write_atomic, write_json, write_jsonl
from afina.core.job import Job
from afina.core.process.temporary import new_folder, replacing
from afina.core.text import command_line
from afina.data.conversation import check_texts
from afina.data.mapping import Example
from afina.data.quality.preparation import Part, Preparation, PrepareSettings, is_plain, row_of, shares
from afina.data.read import OpenFiles
from afina.data.rows import Rejections
from afina.data.settings import DataSettings
from afina.data.splits import sample
from afina.jobs.data._tokenizer import READING, TokenizerSettings, find_tokenizer
from afina.models.tokenizer import Tokenizer
from afina.runs.folder import check_new

_AT_ONCE = 10_000  # rows of a Parquet file that are converted at one time
Write = Callable[[dict[str, Any]], None]


class PrepareDataSettings(TokenizerSettings):
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

    Rows that hold a control token of `base` are rejected, as training on it would; where a base of the catalogue is not
    on this disk, that is not looked at. Raises `DataError`, `OutputError`.
    """
    data, how, out = settings.data, settings.prepare, settings.out
    check_new(out)
    tokenizer, _ = find_tokenizer(settings, data)
    if tokenizer is None:
        listener(
            Notice(
                f"control tokens were not looked at, for {settings.base} is not on this disk: "
                f"`{command_line('models', 'pull', settings.base)}`",
                warning=True,
            )
        )
    opener = _Opener(tokenizer)
    parts, brought = [opener.open(data)], dict[str, int]()
    if mixed := shares(how.mix, "--mix"):
        count = sum(1 for _ in parts[0])
        for path, share in mixed:
            part, brought[f"mixed in from {path}"] = opener.some(path, share, count, how.seed)
            parts.append(part)
    found = Preparation(parts, how)
    for line in parts[0].notes.lines:
        listener(Notice(line))
    train, test = found.counts()
    replayed = []
    for path, share in shares(how.replay, "--replay"):
        part, brought[f"replayed from {path}"] = opener.some(path, share, train, how.seed)
        replayed.append(part)
    plain = found.plain and all(is_plain(example) for part in replayed for example in part)
    with new_folder(out) as folder:
        with ExitStack() as stack:
            to_train = stack.enter_context(_writer(folder / f"train.{how.format}"))
            to_test = stack.enter_context(_writer(folder / f"test.{how.format}")) if test else to_train
            for example, is_test in found.written():
                (to_test if is_test else to_train)(row_of(example, plain))
            for part in replayed:
                for example in part:
                    to_train(row_of(example, plain))
                    train += 1
        done = {what: n for what, n in found.done.items() if n} | brought
        done |= {f"left out: {reason}": n for reason, n in opener.rejected.counts().items()}
        if opener.rejected:
            write_jsonl(folder / "rejected.jsonl", ({"where": r.location, "reason": r.reason} for r in opener.rejected))
        result = PrepareDataResult(train=train, test=test, done=done)
        write_atomic(folder / "README.md", _card(data, how, result))
        written = {"source": str(data.path), **how.model_dump(mode="json"), "done": done}
        write_json(folder / "prepared.json", written)
    return result


class _Opener:
    """Opens files whose rows the base can learn, and knows all that it cannot."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.rejected = Rejections()
        self._tokenizer, self._files = tokenizer, OpenFiles()

    def open(self, data: DataSettings) -> Part:
        return Part(data, self.rejected, self._check, self._files)

    def _check(self, example: Example) -> None:
        if self._tokenizer is not None:
            check_texts(self._tokenizer, [*example.messages, example.answer], example.tools)

    def some(self, path: Path, share: float, count: int, seed: int) -> tuple[Part, int]:
        """`share` times `count` rows of another file, drawn by seed, and how many these are. Raises `DataError` where
        it has not as many."""
        part = self.open(DataSettings(path=path))
        usable, wanted = sum(1 for _ in part), max(1, round(share * count))
        if wanted > usable:
            raise DataError(
                f"{path}: {counted(wanted, 'row is')} wanted ({share:g} times {count}), {usable} can be used",
                f"give at most {path}={usable / count:.3g}",
            )
        part.taken = sample(usable, wanted, seed)
        return part, wanted


@contextmanager
def _writer(path: Path) -> Iterator[Write]:
    """What writes a row into `path`, which is there, whole, when the block ends well."""
    if path.suffix == ".jsonl":
        with jsonl_writer(path) as write:
            yield write
        return
    with writing(path):
        folder = TemporaryDirectory(dir=path.parent, prefix=".")
    with folder:
        lines = Path(folder.name) / "rows.jsonl"
        with jsonl_writer(lines) as write:
            yield write
        _to_parquet(lines, path)


def _to_parquet(lines: Path, path: Path) -> None:
    """Writes the rows of a JSONL file as Parquet, some at a time; their columns are known when all were seen."""
    import pyarrow
    import pyarrow.parquet

    def batches() -> Iterator[list[dict[str, Any]]]:
        with lines.open(encoding="utf-8") as file:
            while rows := [json.loads(line) for line in islice(file, _AT_ONCE)]:
                yield rows

    schemas = []
    for rows in batches():
        names = dict.fromkeys(name for row in rows for name in row)
        schemas.append(pyarrow.table({name: [row.get(name) for row in rows] for name in names}).schema)
    schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    with writing(path), replacing(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for rows in batches():
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _card(data: DataSettings, how: PrepareSettings, result: PrepareDataResult) -> str:
    done = [f"- {what}: {counted(n, 'row')}" for what, n in result.done.items()] or ["- nothing had to be changed"]
    grouped = (
        ", rows that ask the same or nearly the same on one side" if not how.split_near and how.split != "time" else ""
    )
    lines = [
        f"# {data.name}, prepared", "",
        f"{counted(result.train, 'row')} in train.{how.format}, {result.test} in test.{how.format}, "
        f"from `{data.path.name}`.",
        f"Split: {how.split}{grouped}; seed {how.seed}.", "", "Done:", *done, "",
    ]  # fmt: skip
    return "\n".join(lines)


JOB = Job.of(prepare)
