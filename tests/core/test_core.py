"""Settings, files, events, device."""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch

from afina.core import device
from afina.core.config import Settings, build, fields, merge, nest, read_yaml, setting
from afina.core.device import cache_folder
from afina.core.errors import AdapterError, OutputError, SettingsError
from afina.core.events import Done, HeldOut, MetricsFile, Notice, Step, parse
from afina.core.files import check_fetched, read_jsonl, sha256, write_atomic


class Inner(Settings):
    size: int = setting(3, "--size", ge=1)
    """How many."""


class Outer(Settings):
    name: str = "x"
    """What it is called."""
    fast: bool = False
    """Whether to hurry."""
    inner: Inner = Inner()


def test_settings_are_declared_once_and_derived() -> None:
    found = {f.path: f for f in fields(Outer)}
    assert list(found) == ["name", "fast", "inner.size"]
    assert found["inner.size"].flags == ("--inner.size", "--size")
    assert found["inner.size"].help == "How many."
    assert found["fast"].switch
    assert (found["name"].text, found["inner.size"].text) == (True, False)
    assert build(Outer, nest({"inner.size": "4"})).inner.size == 4
    assert merge({"inner": {"size": 2}, "name": "a"}, {"inner": {"size": 5}}) == {"inner": {"size": 5}, "name": "a"}


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        build(Outer, {"nam": "y", "inner": {"size": 0}})
    assert "2 problems" in str(caught.value)
    assert "unknown setting 'nam'. Did you mean 'name'?" in str(caught.value)
    assert "--size is 0" in str(caught.value)


def test_yaml_that_is_none(tmp_path: Path) -> None:
    for text, words in (("- a\n", "is a list"), ("a: [", "not valid YAML")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SettingsError, match=words):
            read_yaml(tmp_path / "c.yaml")


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0a' * 32}\nsize 48213377\n"


def test_git_lfs_pointers_are_told_from_files(tmp_path: Path) -> None:
    names = ("a.bin", "b.safetensors", "c.gguf", "d.json", "e")
    for name in names:
        (tmp_path / name).write_text(POINTER)
    files = [tmp_path / name for name in names]
    with pytest.raises(AdapterError, match=r"a\.bin is a git-lfs pointer: .*\n.*git lfs pull"):
        check_fetched(files[:1], AdapterError)
    with pytest.raises(OutputError, match=r"a\.bin, .*b\.safetensors, .*c\.gguf and 2 more are git-lfs pointers"):
        check_fetched(files, OutputError)
    (tmp_path / "quoted.md").write_text("A pointer begins so:\n" + POINTER)
    (tmp_path / "long.txt").write_text(POINTER + "and a text that speaks of it\n" * 99)
    (tmp_path / "empty").write_text("")
    others = [tmp_path / name for name in ("quoted.md", "long.txt", "empty", "absent")]
    check_fetched([*others, tmp_path], AdapterError)


def test_atomic_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_written_not_replaced() -> None:
    with pytest.raises(OutputError, match="no space left"):
        write_atomic(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device()


def test_metrics_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    events = [
        Step(1, 2, 0.5, 1.5, 1e-3, 0.7, 100.0, 1.0, 3.0, 3.0),
        HeldOut(1, {"loss": 1.25, "perplexity": 3.49}, True),
        Done(2, "completed", 6.0, 200, 100.0, 1.1),
    ]
    record = MetricsFile(path)
    for event in (*events, Notice("not recorded")):
        record(event)
    with path.open("a") as file:
        file.write('{"event": "st')  # killed in the middle of a line
    assert [parse(row) for row in read_jsonl(path)] == events


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_precision_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert device.pick_dtype("fp32", cpu, tmp_path)[0] == torch.float32
    assert device.pick_dtype("bf16", cpu, tmp_path)[0] == torch.bfloat16
    seconds = {torch.float32: 3.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(device.formats, "_product_seconds", lambda dtype: seconds[dtype])
    assert device.pick_dtype("auto", cpu, tmp_path)[0] == torch.bfloat16
    seconds[torch.bfloat16] = 3.0
    assert device.pick_dtype("auto", cpu, tmp_path)[0] == torch.bfloat16  # as kept
    assert json.loads((tmp_path / "bf16_speedup.json").read_text()).popitem()[1] == 3.0
    assert device.pick_dtype("auto", cpu, tmp_path / "other")[0] == torch.float32


def test_a_table_reads_its_package_once_and_takes_things_from_outside(tmp_path, monkeypatch) -> None:
    from types import SimpleNamespace
    from typing import Annotated

    from afina.core.config import Settings, build, changed, fields
    from afina.core.registry import OneOf, Registry

    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_shared.py").write_text("raise AssertionError('not a thing')")
    (package / "square.py").write_text("from types import SimpleNamespace\nSHAPE = SimpleNamespace(name='square')")
    monkeypatch.syspath_prepend(str(tmp_path))
    shapes = Registry("shapes", "SHAPE", "shape")

    class Drawing(Settings):
        shape: Annotated[str, OneOf(shapes)] = "square"
        """What is drawn."""

    assert shapes.names() == ("square",)
    assert next(fields(Drawing)).choices == ("square",)
    assert Drawing.model_json_schema()["properties"]["shape"]["enum"] == ["square"]
    with pytest.raises(SettingsError, match=r"no shape 'sqare'\. Did you mean 'square'"):
        build(Drawing, {"shape": "sqare"})
    with shapes.added(SimpleNamespace(name="circle")):
        assert changed(Drawing(), {"shape": "circle"}).shape == "circle"
        with pytest.raises(SettingsError, match="already"):
            shapes.add(SimpleNamespace(name="circle"))
    with pytest.raises(SettingsError, match="no shape 'circle'"):
        shapes["circle"]


def test_the_cache_is_the_given_folder_then_the_environments_then_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(Path("given")) == Path("given")
    monkeypatch.setenv("AFINA_CACHE", "from-the-environment")
    assert cache_folder(Path("given")) == Path("given")
    assert cache_folder() == Path("from-the-environment")
    monkeypatch.delenv("AFINA_CACHE")
    assert cache_folder() == Path(platformdirs.user_cache_dir("afina"))


def test_counts_with_what_they_count() -> None:
    from afina.core.errors import counted

    for count, one, said in (
        (1, "row", "1 row"), (0, "row", "0 rows"), (2, "row", "2 rows"), (1234, "held-out row", "1,234 held-out rows"),
        (1, "row is", "1 row is"), (3, "row is", "3 rows are"), (2, "text was", "2 texts were"),
    ):  # fmt: skip
        assert counted(count, one) == said
    assert counted(2, "copy", "copies") == "2 copies"
    assert counted(1, "copy", "copies") == "1 copy"


def test_a_table_is_read_once_by_many_threads() -> None:
    """A server's first adapters are read side by side."""
    from concurrent.futures import ThreadPoolExecutor

    from afina.core.registry import Registry

    for _ in range(50):
        table = Registry[Any]("afina.lora.variants", "VARIANT", "variant")
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _, table=table: table.names(), range(16)))
        assert len(set(found)) == 1
        assert "dora" in found[0]
