"""The words of the page: each there in both languages, used, filled in alike, and none outside of the catalogue."""

import ast
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from string import Formatter

import pytest
from jinja2 import Environment, nodes

from afina.core.config import fields
from afina.core.errors import AfinaError
from afina.settings import RunSettings
from afina.ui.studio import view
from afina.ui.studio.words import HERE, LANGUAGES, Words, language_of, texts

TEMPLATES = sorted((HERE / "templates").glob("*.html"))
MODULES = sorted(HERE.rglob("*.py"))
# What is no word of a language: names, units, what is typed.
NAMES = {"Afina", "GB", "curl", "Python", "SHA"}
SAID = ("aria-label", "placeholder", "title", "alt", "label", "data-failed")  # attributes that people meet


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def _called(template: Path) -> Iterator[tuple[str, bool, set[str] | None]]:
    """Each use of a text: its key, whether that is only how the key begins, and what is filled in (None: unknown)."""
    tree = Environment(extensions=[]).parse(template.read_text(encoding="utf-8"))
    for call in tree.find_all(nodes.Call):
        name = call.node
        if (
            isinstance(name, nodes.Getattr)
            and isinstance(name.node, nodes.Name)
            and (name.node.name, name.attr) == ("t", "has")
        ):
            given = None
        elif isinstance(name, nodes.Name) and name.name == "t":
            given = None if call.dyn_kwargs else {each.key for each in call.kwargs}
        elif isinstance(name, nodes.Name) and name.name == "english":
            given = None
        else:
            continue
        for key, is_beginning in _keys(call.args[name.name == "english" if isinstance(name, nodes.Name) else 0]):
            yield key, is_beginning, given


def _keys(node: nodes.Node) -> Iterator[tuple[str, bool]]:
    if isinstance(node, nodes.Const):
        yield node.value, False
    elif isinstance(node, nodes.CondExpr):
        yield from _keys(node.expr1)
        if node.expr2:
            yield from _keys(node.expr2)
    elif isinstance(node, nodes.Concat) and isinstance(node.nodes[0], nodes.Const):
        yield node.nodes[0].value, True


def _in_python() -> Iterator[tuple[str, bool]]:
    """What looks like a key in the modules: text with a file of texts before its dot, whole or a beginning."""
    files = {key.partition(".")[0] for key in texts()}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
                text, is_beginning = str(node.values[0].value), True
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text, is_beginning = node.value, False
            else:
                continue
            if re.fullmatch(r"[a-z]+\.[\w]*", text) and text.partition(".")[0] in files:
                yield text, is_beginning
                yield text, True


def test_each_text_is_there_in_each_language_and_filled_in_alike() -> None:
    for key, said in texts().items():
        assert {*said} - {"is"} == {*LANGUAGES}, key
        fields = {language: _fields(text) for language, text in said.items()}
        assert fields["en"] == fields["pt"] <= fields.get("is", fields["en"]), key
        ends = {text.replace(text.strip(), "…") for text in said.values()}
        assert len(ends) == 1, key  # some go on in the midst of a line
        for text in said.values():
            assert text, key
            assert not re.search(r"[<>]|&\w+;", text), key


def test_what_jobs_say_is_what_the_catalogue_knows() -> None:
    """How the longest stretch of each sentence begins or ends stands in the code that says it."""
    code = " ".join(_said_by(path) for path in HERE.parents[1].rglob("*.py"))
    for key, said in texts().items():
        if "is" in said:
            longest = max((text for text, *_ in Formatter().parse(said["is"])), key=len)
            assert longest.strip()[:20] in code or longest.strip()[-12:] in code, key


def _said_by(path: Path) -> str:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return " ".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize(
    ("told", "en", "pt"),
    [
        (
            "2 rows: the completion is empty (a.csv:3, a.csv:9)", "2 rows: the answer is empty (a.csv:3, a.csv:9)",
            "2 linhas: a resposta está vazia (a.csv:3, a.csv:9)",
        ),
        ("2 rows: it is odd (a.csv:3)", "", ""), ("x" * 9_000, "", ""),
        (
            "not used: 1 row: the prompt is empty (a.csv:3)", "not used: 1 row: the question is empty (a.csv:3)",
            "não usado: 1 linha: a pergunta está vazia (a.csv:3)",
        ),
    ],
)  # fmt: skip
def test_what_jobs_say_is_said_in_the_pages_words(told: str, en: str, pt: str) -> None:
    assert (Words("en").said(told), Words("pt").said(told)) == (en, pt)


def test_what_was_forgotten_is_said_in_the_readers_language() -> None:
    told = (
        "It has forgotten: the loss on general Portuguese text rose by 0.77 nats per token (4.50 → 5.27). A lower "
        "learning rate, fewer epochs, a lower rank or `afina data prepare --replay` preserves more; for this task "
        "alone it does not matter."
    )
    assert (
        Words("pt")
        .said(told)
        .startswith("Ele esqueceu: a perda em textos gerais em português subiu 0,77 (4,50 → 5,27).")
    )
    assert "Portuguese text rose by 0.77 (4.50" in Words("en").said(told)
    assert "--" not in Words("en").said(told)


def test_no_text_was_left_as_it_was() -> None:
    """A long text that is the same in both languages was forgotten."""
    same = [key for key, said in texts().items() if said["en"] == said["pt"] and len(said["en"].split()) > 2]
    assert not same


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_templates_use_texts_that_there_are(template: Path) -> None:
    for key, is_beginning, given in _called(template):
        matching = [known for known in texts() if (known.startswith(key) if is_beginning else known == key)]
        assert matching, key
        for known in matching:
            needed = _fields(texts()[known]["en"])
            assert given is None or key.endswith(".") or needed <= given, known
            assert given is None or is_beginning or given <= needed, known


def test_every_text_is_used() -> None:
    used = {(key, is_beginning) for template in TEMPLATES for key, is_beginning, _ in _called(template)} | {
        *_in_python()
    }
    whole = {key for key, is_beginning in used if not is_beginning}
    beginnings = tuple(key for key, is_beginning in used if is_beginning and not key.endswith("."))
    by_steps = {f"{name}.{step}" for name in ("layout", "home") for step in view.STEPS}
    terms = {f"terms.{name}{end}" for name in _terms() for end in ("", "_means")}
    open_files = {key.removesuffix(".") for key, is_beginning in used if is_beginning and key.endswith(".")}
    words = _words_of_the_code()

    def is_loose(key: str) -> bool:
        """`t("judge." ~ each ~ "_help")` is used for whatever word of the code begins the rest."""
        file, _, name = key.partition(".")
        return file in open_files and any(name == word or name.startswith(f"{word}_") for word in words)

    labels = {f"settings.{info.path}" for info in fields(RunSettings)}
    known = (
        whole
        | by_steps
        | terms
        | labels
        | {f"found.{code}" for code in _codes()}
        | {f"kinds.{name}" for name in _errors()}
    )
    ours = (key for key, said in texts().items() if "is" not in said)
    assert not [key for key in ours if key not in known and not key.startswith(beginnings) and not is_loose(key)]


def _terms() -> set[str]:
    found = set[str]()
    for template in TEMPLATES:
        found |= {*re.findall(r'term\(t, "(\w+)"\)', template.read_text(encoding="utf-8"))}
    return found


def _codes() -> set[str]:
    """What data checks find, by its codes."""
    begin = r"DataFinding\(\s*|\.warn\(\s*|_PAIRED: |Told\(\s*|doubt\([^)]*?,\s*"
    found = set[str]()
    for path in (HERE.parents[1] / "data").rglob("*.py"):
        found |= {*re.findall(rf'(?:{begin})"([a-z_ ]+)"', path.read_text(encoding="utf-8"))}
    return {code.replace(" ", "_") for code in found | {"one word", "damaged", "personal"}}


def _errors() -> set[str]:
    found = [AfinaError]
    for each in found:
        found += each.__subclasses__()
    return {each.__name__ for each in found if each.__module__ == AfinaError.__module__} - {"AfinaError"}


def test_each_finding_and_each_kind_of_error_has_words() -> None:
    assert {key for key in texts() if key.startswith("kinds.")} == {f"kinds.{name}" for name in _errors()}
    assert not {f"found.{code}" for code in _codes()} - {*texts()} - {"found.no_tokenizer"}


def _words_of_the_code() -> set[str]:
    """Words in quotes, of which keys may be made: `t("judge." ~ each)`."""
    found = set[str]()
    for path in [*TEMPLATES, *MODULES]:
        found |= {*re.findall(r'"(\w+)"', path.read_text(encoding="utf-8"))}
    return found


def test_the_terms_that_pages_explain_are_there() -> None:
    for name in _terms():
        assert {f"terms.{name}", f"terms.{name}_means"} <= {*texts()}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_templates_have_no_text_of_their_own(template: Path) -> None:
    source = re.sub(r"\{#.*?#\}|\{%.*?%\}", "", template.read_text(encoding="utf-8"), flags=re.DOTALL)
    source = re.sub(r"\{\{.*?\}\}", "", source, flags=re.DOTALL)
    shown = [unescape(re.sub(r"<[^>]*>", " ", source))]
    shown += [value for name, value in re.findall(r'([\w-]+)="([^"]*)"', source) if name in SAID]
    words = {word for text in shown for word in re.findall(r"\w+", text) if re.fullmatch(r"[^\W\d_]{2,}", word)}
    assert not words - NAMES


def test_the_script_has_no_words() -> None:
    """It shows what the page gave it."""
    source = (HERE / "static" / "studio.js").read_text(encoding="utf-8")
    source = re.sub(r"^\s*//.*|\s// .*|/\*.*?\*/", "", source, flags=re.MULTILINE)
    assert not re.search(r"textContent = [^;]*[\"'`][A-Za-z]{2}", source)
    assert ".lang " not in source


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"), ("pt-BR,pt;q=0.9,en;q=0.8", "pt"), ("en-GB, pt; q=0.9", "en"), ("de, pt;q=0.5, en;q=0.4", "pt"),
        ("fr", "en"), ("*", "en"), ("pt;q=0", "en"), ("pt;q=0.1,en;q=0.10", "pt"), ("PT", "pt"), ("pt;q=x", "pt"),
        (";q=1,,", "en"), ("\x00", "en"), ("en;q=0.1,pt;q=1", "pt"),
    ],
)  # fmt: skip
def test_the_language_is_the_browsers(accepted: str, language: str) -> None:
    assert language_of(accepted) == language


def test_numbers_times_and_sizes_are_written_as_the_language_does() -> None:
    en, pt = Words("en"), Words("pt")
    assert (en.number(12345.678, 2), pt.number(12345.678, 2)) == ("12,345.68", "12.345,68")
    assert [en.time(seconds) for seconds in (42, 210, 7560, 400_000)] == ["42 s", "3.5 min", "2.1 h", "5 days"]
    assert [pt.time(seconds) for seconds in (42, 210, 7560, 400_000)] == ["42 s", "3,5 min", "2,1 h", "5 dias"]
    assert [en.bytes(count) for count in (0, 999, 1500, 2_340_000, 5e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.3 MB",
        "5.0 GB",
    ]
    assert pt.bytes(1500) == "1,5 kB"
    assert (en.date("2026-11-30 09:22"), pt.date("2026-11-30 09:22")) == ("2026-11-30 09:22", "30/11/2026 09:22")


def test_each_setting_of_a_run_has_a_label() -> None:
    wanted = {f"settings.{info.path}" for info in fields(RunSettings)}
    assert {key for key in texts() if key.startswith("settings.")} == wanted
    assert Words("en").setting("lora.rank") == "Size of the adapter (rank)"
    assert Words("en").setting("no.such") == "no.such"


def test_values_of_settings_are_written_as_people_read_them() -> None:
    en, pt = Words("en"), Words("pt")
    values = (1.2518518518518518, False, 1e-05, 1600, "drop", None, [1, 0.5], {"a": 2.0}, 0.1)
    assert [en.value(each) for each in values] == [
        "1.25",
        "no",
        "0.00001",
        "1,600",
        "drop",
        "—",
        "1, 0.5",
        "a: 2",
        "0.1",
    ]
    assert pt.value("classification", "data.kind") == "Classificação: um de alguns rótulos"
    assert [pt.value(each) for each in values[:4]] == ["1,25", "não", "0,00001", "1.600"]


def test_what_is_filled_in_shows_what_would_act() -> None:
    assert Words("en")("data.sentence", prompt="\x1b[31m{x}", completion="\u202e") == (
        r"The model reads \x1b[31m{x} and answers \u202e. What is set apart is a column."
    )
