"""Rows within one JSON object: in a list of it, or as columns, as pandas and other programs write tables."""

from collections.abc import Iterator
from typing import Any

from afina.core.errors import DataError, counted
from afina.data.rows import Notes

EXAMPLE = 'write it as [{"prompt": "…", "completion": "…"}, …], or as one such object per line'


def rows_within(value: dict[str, Any], name: str, notes: Notes, one_row: bool) -> Iterator[Any] | None:
    """What are rows in the only object of a file; None where it is a row itself, which it can be if `one_row`.

    Raises `DataError` where it is neither.
    """
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if _is_split(value):
        return _split(value, name)
    if _are_articles(value.get("data")):
        return _questions(value["data"], name)
    if len(lists) == 1 and not one_row and any(isinstance(item, dict) for item in next(iter(lists.values()))):
        return iter(next(iter(lists.values())))
    if lists and len({len(each) for each in lists.values()}) == 1 and _are_columns(value, lists, one_row):
        notes.say(f"{name} holds columns: the first items of {_named(lists)} are the first row, and so on")
        return (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
    if (
        value
        and all(isinstance(each, dict) for each in value.values())
        and (rows := _by_key(value, one_row)) is not None
    ):
        return rows
    if one_row:
        return None
    if len(lists) > 1:
        held = ", ".join(f"{key!r} with {counted(len(each), 'item')}" for key, each in list(lists.items())[:6])
        raise DataError(
            f"{name} is one object with {len(lists)} lists in it ({held}), expected a list of objects or one list",
            "write each list to a file of its own, such as train.json and test.json in one folder",
        )
    if not lists:
        raise DataError(f"{name} is one object without rows in it, expected a list of objects", EXAMPLE)
    return iter(next(iter(lists.values())))


def _named(columns: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(columns)[:6])) + (" …" if len(columns) > 6 else "")


def _are_columns(value: dict[str, Any], lists: dict[str, list[Any]], one_row: bool) -> bool:
    """Whether lists of one length are columns: not parts of the data, each a list of rows, nor the fields of one
    row."""
    if all(item and all(isinstance(each, dict) for each in item) for item in lists.values()):
        return False
    return not one_row or (len(lists) == len(value) and len(next(iter(lists.values()))) > 1)


def _is_split(value: dict[str, Any]) -> bool:
    """pandas' to_json(orient='split')."""
    columns, data = value.get("columns"), value.get("data")
    return (
        isinstance(columns, list) and isinstance(data, list) and value.keys() <= {"columns", "index", "data"}
        and all(isinstance(row, list) for row in data)
    )  # fmt: skip


def _are_articles(value: Any) -> bool:
    """SQuAD's form: articles of paragraphs, each with its questions and answers."""
    return isinstance(value, list) and any(isinstance(each, dict) and "paragraphs" in each for each in value)


def _questions(articles: list[Any], name: str) -> Iterator[Any]:
    """A row for each question of SQuAD's articles; `answers` are their texts. Raises `DataError`."""
    for number, article in enumerate(articles, 1):
        try:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [answer["text"] for answer in asked.get("answers") or []]
                    yield {"title": article.get("title"), "context": paragraph["context"], **asked, "answers": answers}
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name}: article {number} is not like SQuAD's (paragraphs, each with context and qas)", "fix it"
            ) from error


def _split(value: dict[str, Any], name: str) -> Iterator[Any]:
    columns = [str(each) for each in value["columns"]]
    for number, row in enumerate(value["data"], 1):
        if len(row) != len(columns):
            raise DataError(
                f"{name}, item {number}: {counted(len(row), 'value')} for {counted(len(columns), 'column')}", "fix it"
            )
        yield dict(zip(columns, row, strict=True))


def _by_key(value: dict[str, dict[str, Any]], one_row: bool) -> Iterator[Any] | None:
    """Objects of objects: rows by their index ('index'), or columns of values by index ('columns'), which the index
    tells: numbers, or else the more numerous of the two."""
    inner = list(dict.fromkeys(key for each in value.values() for key in each))
    outer_counts, inner_counts = (all(key.isdecimal() for key in keys) for keys in (value, inner))
    if one_row and not (outer_counts or inner_counts):
        return None
    if len(inner) <= 1 < len(value) or (outer_counts and not inner_counts):
        return iter(value.values())
    if len(value) == 1 and not inner_counts:
        return None
    if inner_counts or len(inner) >= len(value):
        return ({column: cells.get(key) for column, cells in value.items()} for key in inner)
    return iter(value.values())
