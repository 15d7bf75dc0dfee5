"""The rules of the house that no linter knows (CONTRIBUTING.md), and the documents."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "afina"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "README.pt-BR.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_no_folder_holds_more_than_15_modules() -> None:
    crowded = {str(f): n for f in FOLDERS if (n := len([*f.glob("*.py")]) - (f / "__init__.py").exists()) > 15}
    assert not crowded


def test_modules_and_functions_are_short() -> None:
    long = [str(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= 60:
                long.append(f"{path.name}:{node.name}")
    assert not long


_TOUCHES = re.compile(
    r"(^|\.)(open|fdopen|read_bytes|memmap|safe_open|load_workbook|ParquetFile|from_file|http_get|snapshot_download)$"
    r"|^torch\.load$|^read_text$|^subprocess\.\w+$|^os\.(fork|exec\w*|spawn\w*|system|write|replace)$"
    r"|(^|\.)(import_module|exec_module|CDLL)$|^(exec|eval|compile|__import__)$"
    r"|(^|\.)(write_bytes|write_text|mkdtemp|mkstemp|rmtree|unlink|rename|savefig|save_file|TemporaryDirectory)$"
)
_NO_FILE = {"settings.open", "self.open", "opener.open", "trackers.open"}  # open models, parts of data, trackers
_NO_FILE |= {"call.open", "call.service.open", "self.service.open"}  # models by name


def test_whatever_opens_runs_or_writes_something_is_in_the_table_of_boundaries() -> None:
    """docs/security.md against a walk over the code."""
    table = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    absent = {}
    for path in MODULES:
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        touches = sorted(call for call in calls - _NO_FILE if _TOUCHES.search(call))
        name = path.relative_to(PACKAGE)
        if touches and not any(f"`{place}" in table for place in (name, f"{name.parent}/`")):
            absent[str(name)] = touches
    assert not absent
    for name in re.findall(r"`((?:afina/)?[a-z_]+/[\w/]+\.py)", table):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name


# The device's own room, and the backend of kernels for cards.
_CARDS = ("core/device/", "engine/ops/cards/")


def test_no_room_but_the_device_s_knows_kinds_of_cards() -> None:
    """In what a module does: texts that a user reads (docstrings of settings) name them."""
    kinds = re.compile("cuda|nvidia|rocm|(?<![a-z])(mps|hip)(?![a-z])", re.IGNORECASE)
    found = []
    for path in MODULES:
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")
        if name.startswith(_CARDS) or not kinds.search(text):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        read_by_users = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            said = [str(getattr(node, key)) for key in ("attr", "id", "arg", "value") if hasattr(node, key)]
            names = isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword | ast.Constant)
            if names and id(node) not in read_by_users and kinds.search(said[0]):
                found.append(f"{name}:{node.lineno}: {said[0]}")
    assert not found, "\n".join(found)


_COUNTED = re.compile(
    r" (rows|tokens|columns|files|steps|trials|bases|answers|prompts|questions|classes|layers|tensors|examples|texts|"
    r"items|lines|workers|adapters|weights|replies|conversations|seeds|groups|cores|characters|bytes|fields|names)\b"
)


def test_counts_agree_with_what_they_count() -> None:
    """A number before a plural is one by `core.errors.counted`, so that nothing is said of '1 rows'."""
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for value, after in pairwise(node.values if isinstance(node, ast.JoinedStr) else ()):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                count = ast.unparse(value.value)
                if _COUNTED.match(str(after.value)) and re.fullmatch(r"len\(.*\)|n|count|\w+\.count", count):
                    wrong.append(f"{path.name}:{value.lineno}: {ast.unparse(value)}{after.value}")
    assert not wrong, "\n".join(wrong)


def test_every_room_says_what_it_is_for() -> None:
    for folder in FOLDERS:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, folder
        assert len(text) > 60, folder


def test_the_readme_is_short() -> None:
    for name in ("README.md", "README.pt-BR.md"):
        assert len((ROOT / name).read_bytes()) <= 5120, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    for name in re.findall(r"`(afina/[\w/]+\.py|tests/[\w/]+\.py)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_every_decision_stands_in_the_index_with_a_date_and_a_status() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    index = re.findall(r"^- \[(.+)\]\(#", text, re.MULTILINE)
    entries = re.findall(r"^### (.+)\n(.*)$", text, re.MULTILINE)
    assert index == [heading for heading, _ in entries]
    for heading, line in entries:
        assert re.match(r"\d{4}-\d\d-\d\d · (in force|tried, not adopted|open|measurement)", line), heading
