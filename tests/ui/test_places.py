"""Commands in odd places: no traceback, the right exit code, JSON pure.

Each place gets a seventh of the quick commands, and one the slow ones; with `--every-place` each gets all of them, also
those that take long or measure this machine first.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import forked
import pytest

from afina.core.device import cache_folder
from afina.jobs import JOBS

RECORDED = Path(__file__).parents[1] / "recorded"
_DATA = "colours.jsonl --prompt {q} --completion {a}"
_FAST = "--base base --precision fp32 --device cpu --threads 1"


class Asked(NamedTuple):
    words: str
    code: int = 0
    writes: bool = False  # into the current folder
    json: bool = True
    pace: str = "quick"


# A row for each command; {out} is a new folder.
COMMANDS = {
    "adapters combine": Asked("finished finished --out {out}", writes=True, pace="slow"),
    "adapters convert": Asked("finished --out {out}", code=2),
    "adapters diff": Asked("finished finished"),
    "adapters list": Asked("."),
    "adapters merge": Asked("finished --base base --out {out}", writes=True, pace="slow"),
    "adapters rerank": Asked("finished --rank 1 --out {out}", writes=True),
    "adapters show": Asked("finished"),
    "choose": Asked(
        f"{_DATA} --bases base --minutes 0.05 --precision fp32 --device cpu --threads 1 --out {{out}}",
        writes=True,
        pace="long",
    ),
    "compare": Asked(
        f"{_DATA} {_FAST} --methods base,lora --epochs 1 --allow-swap --out {{out}}", writes=True, pace="long"
    ),
    "data check": Asked(f"{_DATA} --base base"),
    "data prepare": Asked(f"{_DATA} --base base --out {{out}}", writes=True, json=False),
    "data preview": Asked(_DATA),
    "data show": Asked(f"{_DATA} --base base --row 1"),
    "doctor": Asked("finished"),
    "eval": Asked("finished colours.jsonl --base base --limit 8 --device cpu", writes=True, pace="long"),
    "export": Asked("finished --to gguf-lora --base base --rows 4 --device cpu --out {out}", writes=True, pace="slow"),
    "fit": Asked(f"base {_DATA} --device cpu", pace="long"),
    "generate": Asked("finished ação日本 --base base --device cpu", json=False),
    "eval --tasks": Asked("finished --tasks none.yaml --base base", code=2),
    "eval --url": Asked("finished colours.jsonl --url http://127.0.0.1:1", code=2),
    "generate --url": Asked("finished ação日本 --url http://127.0.0.1:1", code=2, json=False),
    "models cache": Asked(""),
    "models list": Asked(""),
    "models pull": Asked("base"),
    "models show": Asked("base"),
    "train --resume": Asked("killed", writes=True, json=False, pace="long"),
    "runs diff": Asked("finished killed"),
    "runs forms": Asked("finished --base base"),
    "runs list": Asked("."),
    "runs show": Asked("finished"),
    "serve": Asked("finished --base base --host 0.0.0.0", code=2, json=False),
    "train": Asked(f"{_DATA} {_FAST} --epochs 1 --allow-swap --out {{out}}", writes=True, json=False, pace="slow"),
    "tune": Asked(f"{_DATA} {_FAST} --trials 1 --epochs 1 --allow-swap --out {{out}}", writes=True, pace="long"),
}


class Place(NamedTuple):
    """The environment (None: without it), what a process does before it runs the command, the folder's name."""

    environment: Mapping[str, str | None] = MappingProxyType({})
    before: str = ""
    folder: str = "place"
    may_write: bool = True
    unicode: bool = True  # of other names the libraries that open a base's files make an error


def _streams(encoding: str, errors: str = "strict") -> str:
    return "".join(
        f"sys.{name} = open({number}, 'w', encoding='{encoding}', errors='{errors}', buffering=1, closefd=False)\n"
        for number, name in ((1, "stdout"), (2, "stderr"))
    )


_NO_HOME: dict[str, str | None] = {"HOME": None, "AFINA_CACHE": None, "XDG_CACHE_HOME": None}
_NO_NAME = "import pwd\ndef unknown(user): raise KeyError(user)\npwd.getpwuid = pwd.getpwnam = unknown\n"
# Without its capabilities root may write no more than others.
_NO_POWERS = """import ctypes
version, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert not ctypes.CDLL(None).capset(version, none)
"""
_NO_UTF8 = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
_IN_ASCII = """import locale
locale.setlocale(locale.LC_ALL, "C")
sys.argv = [os.fsencode(word).decode("ascii", "surrogateescape") for word in sys.argv]
""" + _streams("ascii", "surrogateescape")
_NOWHERE = "http://127.0.0.1:1"
_ODD = "my 'dados' \"ação\" & $(x); 日本 👍"
PLACES = {
    "no home": Place({"HOME": None}),
    "empty home": Place({**_NO_HOME, "HOME": ""}),
    "a home that cannot be": Place({**_NO_HOME, "HOME": "/dev/null/home"}),
    "a home that cannot be written": Place({**_NO_HOME, "HOME": "/proc"}),
    "a cache that cannot be written": Place({"AFINA_CACHE": "/proc/cache"}),
    "no name and no home": Place(_NO_HOME, _NO_NAME),
    "nothing to write to": Place(_NO_HOME, _NO_NAME + _NO_POWERS, may_write=False),
    "cp1252": Place({"PYTHONIOENCODING": "cp1252"}, _streams("cp1252")),
    "latin-1": Place({"PYTHONIOENCODING": "latin-1"}, _streams("latin-1")),
    "ascii": Place({"PYTHONIOENCODING": "ascii"}, _streams("ascii")),
    "C locale": Place({"LC_ALL": "C", "LANG": "C"}, _streams("utf-8", "surrogateescape"), "maçã 日本"),
    "a locale of ASCII": Place(_NO_UTF8, _IN_ASCII, "maçã 日本", unicode=False),
    "spaces, accents, quotes": Place({}, "", _ODD),
    "lines and marks": Place({}, "", "a\nb\t[red]\x1b[31m%s{q}"),
    "a name that is no Unicode": Place({}, "", os.fsdecode(b"caf\xe9"), unicode=False),
    "closed files": Place({}, "os.close(0); sys.stdin = None\nos.close(2); sys.stderr = None\n"),
    "a network that leads nowhere": Place({"http_proxy": _NOWHERE, "https_proxy": _NOWHERE, "HF_ENDPOINT": _NOWHERE}),
    "an odd terminal": Place({"TERM": "dumb", "COLUMNS": "1", "LINES": "0", "NO_COLOR": "1"}),
    "all at once": Place({**_NO_HOME, "LC_ALL": "C", "COLUMNS": "1"}, _NO_NAME + _streams("ascii"), _ODD),
}
# Compiling the kernels again, or importing all again in processes of a command's own, would take longer than all else.
_RUN = """
import os, sys
from importlib import import_module
from pathlib import Path
from afina.engine import kernels
from afina.runs import worker
from afina.ui.cli import main

def here(target, arguments, listener):
    module, _, name = worker.TARGETS[target].partition(":")
    return getattr(import_module(module), name)(**arguments, listener=listener)

for name in ("choose", "compare", "tune"):
    import_module(f"afina.jobs.{{name}}").run_in_process = here
kernels._load = lambda cache, load=kernels._load: load(Path({cache!r}))
os.umask(0o022)
{before}
sys.exit(main())
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "as_json" not in metafunc.fixturenames:
        return
    chosen = []
    for i, place in enumerate(PLACES):
        for j, (name, asked) in enumerate(COMMANDS.items()):
            for as_json in (False, True) if asked.json else (False,):
                quick = (i + j) % 7 == 0 and as_json == (asked.json and i % 2 == 0)
                once = place == "all at once" and as_json == asked.json and asked.pace == "slow"
                if metafunc.config.getoption("--every-place") or once or (quick and asked.pace == "quick"):
                    chosen.append(pytest.param(place, name, as_json, id=f"{place}: {name}{' --json' * as_json}"))
    metafunc.parametrize(("place", "name", "as_json"), chosen, indirect=["place"], scope="module")


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """The recorded runs in a folder of this name, and the compiled kernels beside it."""
    with tempfile.TemporaryDirectory(prefix="afina-places-") as top:
        folder = Path(top) / name
        try:
            shutil.copytree(RECORDED, folder)
        except OSError as error:
            pytest.skip(f"no folder can have such a name here: {error}")
        for file in folder.rglob("*"):
            if file.is_file() and b"@FOLDER@" in (content := file.read_bytes()):
                file.write_bytes(content.replace(b"@FOLDER@", b"."))
        if (cache_folder() / "kernels").is_dir():
            shutil.copytree(cache_folder() / "kernels", Path(top) / "kernels")
        yield folder


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Place, Path]]:
    found = PLACES[request.param]
    with _folder(found.folder) as folder:
        folders = [folder, *(each for each in folder.rglob("*") if each.is_dir())]
        for each in folders:
            each.chmod(0o755 if found.may_write else 0o555)
        yield found, folder
        for each in filter(Path.exists, folders):
            each.chmod(0o755)


def _words(name: str, as_json: bool) -> list[str]:
    """The words of a command; columns are in braces, so no format is used."""
    out = f"out of {name}{as_json}"
    words = [out if word == "{out}" else word for word in COMMANDS[name].words.split()]
    return [*name.removesuffix(" --tasks").removesuffix(" --url").split(), *words, *["--json"] * as_json]


def test_commands_in_odd_places(name: str, as_json: bool, place: tuple[Place, Path], tmp_path: Path) -> None:
    found, folder = place
    asked = COMMANDS[name]
    code = _RUN.format(before=found.before, cache=str(folder.parent))
    done = forked.run(_words(name, as_json), tmp_path, cwd=folder, code=code, env=_with(found.environment))
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr + done.stdout, done.stderr
    codes = {asked.code if found.may_write or not asked.writes else 2, asked.code if found.unicode else 2}
    assert done.returncode in codes, done.stderr
    assert done.returncode != 2 or "afina: " in done.stderr or found is PLACES["closed files"]
    if as_json:
        json.loads(done.stdout)


def _with(environment: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in {**os.environ, **environment}.items() if value is not None}


def test_a_process_in_a_locale_of_ascii() -> None:
    """Python itself begins otherwise there: arguments and names of files are read as ASCII."""
    with _folder(_ODD) as folder:
        shutil.copyfile(folder / "colours.jsonl", folder / "ação 日本.jsonl")
        words = ["ação 日本.jsonl", *_DATA.split()[1:], "--html", "página 👍.html", "--json"]
        command = [sys.executable, "-P", "-m", "afina", "data", "check", *words]
        env = _with(_NO_UTF8 | {"AFINA_CACHE": str(folder.parent), "HOME": None})
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert os.fsencode(json.loads(done.stdout)["path"]) == "ação 日本.jsonl".encode()
        assert (folder / "página 👍.html").stat().st_size > 1000


def test_where_there_is_no_home_it_is_said(tmp_path: Path) -> None:
    code = _RUN.format(before=_NO_NAME, cache=str(tmp_path))
    done = forked.run(["models", "show", "starter"], tmp_path, cwd=tmp_path, code=code, env=_with(_NO_HOME))
    assert done.returncode == 0
    assert "nothing is kept for the next run, there is no home folder" in done.stderr
    assert "--cache-dir DIR" in done.stderr
    assert "AFINA_CACHE" in done.stderr


def test_every_command_is_in_the_table() -> None:
    assert set(COMMANDS) == set(JOBS.names())
