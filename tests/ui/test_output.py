"""What others wrote is text: on a terminal, in a table, in JSON, on a page, in a plot, in a command to copy."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from conftest import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.core.config import json_object
from afina.core.events import HeldOut, Notice, Progress, Step
from afina.core.text import command_line, json_text, shown_streams, visible
from afina.jobs.runs.show import ShowRunSettings, show
from afina.measure.pages import plots
from afina.measure.pages.rendering import _code, render_page
from afina.ui.cli import main
from afina.ui.commands import eval as eval_view
from afina.ui.commands import runs as runs_view
from afina.ui.common import console, plain_table
from afina.ui.output import Output
from afina.ui.progress import Display

ACTING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = {
    "colours": "\x1b[31mred\x1b[0m",
    "title of the window": "\x1b]0;OWNED\x07",
    "clipboard": "\x1b]52;c;ZWNobw==\x1b\\",
    "cleared screen": "\x1b[2J\x1b[H",
    "controls of one byte": "\x9b31m\x9dtitle\x9c\x84",
    "bell, backspace, delete": "abc\x07\x08\x08\x7f",
    "return over the line": "afina: all is well\rafina: error",
    "form feed and shift": "\x0b\x0c\x0e\x0f",
    "turned writing": "gpj.\u202eexe.\u2066x\u2069",
    "half a character": "\ud83d \udcff",
    "markup": "[bold]x[/bold] [/nonsense] [red]",
    "a link": "[link=http://x]y[/link]",
    "an emoji's name": ":smile: :boom:",
    "nothing": "\0\0",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_text_is_shown_with_marks(text: str) -> None:
    found = visible(text)
    assert not ACTING.search(found)
    assert visible(found) == found
    for char in set(ACTING.findall(text)):
        assert ascii(char)[1:-1] in found
    assert visible("tab\tand\nline, ação 日本語 عربى 👍") == "tab\tand\nline, ação 日本語 عربى 👍"


@given(st.text(st.characters(), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_shown_and_any_json_is_read(text: str) -> None:
    assert not ACTING.search(visible(text))
    for encoding in ("utf-8", "ascii", "cp1252", "latin-1"):
        line = json_text({"a": [text, 1.5]}, encoding)
        assert json.loads(line) == {"a": [text, 1.5]}
        assert not ACTING.search(line)
        assert line.isascii() or encoding == "utf-8"


def test_any_text_can_be_typed_in_a_command() -> None:
    chars = [chr(code) for code in range(1, 0x300)]
    texts = [*HOSTILE.values(), "it's\n\\n\t$HOME", *chars, *(f"{char}9a'\\" for char in chars), ""]
    texts = [text.replace("\0", "") for text in texts]
    line = command_line("train", *texts)
    assert "\n" not in line
    assert not ACTING.search(line)
    script = f"export LC_ALL=C.UTF-8; printf '%s\\0' {line}".encode()
    printed = subprocess.run(["bash"], input=script, capture_output=True, check=True).stdout
    assert printed.decode(errors="surrogatepass").split("\0")[:-1] == ["afina", "train", *texts]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_command_names_its_files_in_any_output(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["café's.jsonl", "日本 語", "a\\né", "plain", "👍\n\x1b"]
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    stream.write(command_line("train", *names))
    stream.flush()
    monkeypatch.undo()
    for locale in ("C", "C.UTF-8"):
        text = raw.getvalue().decode(encoding)
        assert "?" not in text
        script = f"export LC_ALL={locale}; printf '%s\\0' {text}".encode()
        printed = subprocess.run(["bash"], input=script, capture_output=True, check=True).stdout
        assert printed.decode().split("\0")[2:-1] == names


def test_what_stands_in_backticks_is_code() -> None:
    assert str(_code("`a <b>` & `c")) == "<code>a &lt;b&gt;</code> &amp; `c"


def test_json_has_no_number_that_is_none() -> None:
    found = json_text({"a": float("nan"), "b": [float("inf"), (1.0, float("-inf"))], "c": "NaN"})
    assert json.loads(found) == {"a": None, "b": [None, [1.0, None]], "c": "NaN"}


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A terminal of standard output and error, 80 columns wide."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "25"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    with shown_streams(screen, screen):
        yield screen


_STYLES = re.compile(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]|\x1b\[\d*[AK]|\r|\x1b\[2K")  # rich's own


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_terminal_is_not_acted_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        out = console()
        out.print(text)
        grid = plain_table(title=text)
        grid.add_column(text)
        grid.add_column("b", justify="right")
        grid.add_row(text, "1")
        out.print(grid)
        out.print("warning ", style="yellow", end="")
        with Display() as display:
            display(Notice(text, warning=True))
            display(Progress(text, 1, 2))
            display(Step(1, 2, 0.5, 1.0, 0.1, 1.0, 10.0, 1.0, 1.0, 1.0))
            display(HeldOut(1, {text: 1.0}, True, measure=text))
            display._live.refresh()
        print(text)
        print(text, file=sys.stderr)
    shown = screen.getvalue()
    assert "\x1b[33m" in shown  # our own colours are there
    left = _STYLES.sub("", shown)
    assert not ACTING.search(left), ascii(left)
    if text.startswith(("[", ":")):
        assert left.count(text) >= 5
    assert "\x1b[31m" not in shown


def test_bars_of_libraries_are_still_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        sys.stderr.write("\r 50%\n\x1b[A\x1b[B\x1b]0;x\x07")
        sys.stdout.write("\r\x1b[A")
    assert screen.getvalue() == "\r 50%\n\x1b[A\\x1b[B\\x1b]0;x\\x07\\r\\x1b[A"


@pytest.mark.parametrize("columns", ["1", "20", "0", "-5", "x"])
@pytest.mark.parametrize("term", ["dumb", "", "unknown", "xterm"])
def test_any_terminal_will_do(columns: str, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERM", term)
        assert main(["models", "list"]) == 0
        assert main(["models", "show", "starter"]) == 0
        assert main(["models", "show", "nothing"]) == 2
    assert "starter" in screen.getvalue()


@pytest.mark.parametrize("name", ["ansi.jsonl", "html.jsonl"])
def test_shared_cases_are_shown(name: str, shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = shared.parent / "cases" / "hostile" / name
    if not case.is_file():
        pytest.skip("the hostile cases are not beside this checkout")
    _check_and_show(case, tmp_path, capfd)


@pytest.mark.parametrize("kind", ["rows", "labels", "columns", "names"])
def test_hostile_data_are_shown(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = [text for name, text in HOSTILE.items() if name != "half a character"]
    rows = [{"prompt": f"{i} {text}", "completion": f"{text} {i % 2}"} for i, text in enumerate(texts * 3)]
    name = "d.jsonl"
    if kind == "labels":
        rows = [{"prompt": f"number {i}", "completion": texts[i % 4] or "x"} for i in range(40)]
    if kind == "columns":
        rows = [{**row, "[/x]\x1b[31m\u202e": "$x^{$", "\x9b5m": 1} for row in rows]
    if kind == "names":
        name = "[red]\x1b[31m$x^{$ '\u202e[nonsense].jsonl"
    _check_and_show(write_rows(tmp_path / name, rows), tmp_path, capfd)


def _check_and_show(data: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    columns = ["--prompt", "{prompt}", "--completion", "{completion}", "--base", str(RECORDED.parent / "base")]
    assert main(["data", "check", str(data), *columns, "--html", str(folder / "check.html")]) in (0, 1)
    assert main(["data", "show", str(data), *columns, "--row", "1", "--html", str(folder / "row.html")]) == 0
    assert main(["data", "check", str(data), "--prompt", "{nothing}", "--completion", "{completion}"]) == 2
    told = capfd.readouterr()
    for text in (told.out, told.err):
        assert not ACTING.search(text), ascii(text)
    assert main(["data", "check", str(data), *columns, "--json"]) in (0, 1)
    out = capfd.readouterr().out
    assert json.loads(out)["path"] == str(data)
    assert not ACTING.search(out)
    for page in ("check.html", "row.html"):
        check_page((folder / page).read_text(encoding="utf-8"))


class _Page(HTMLParser):
    """The elements and attributes of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        for name in ("href", "xlink:href"):
            assert (values.get(name) or "#").startswith("#")


def check_page(text: str) -> None:
    """A page runs nothing, fetches nothing, and forbids both."""
    page = _Page(text)
    assert page.policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in page.policy
    assert "unsafe" not in page.policy
    assert not ACTING.search(text), ascii(text)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "a"}
    assert not {
        name for name in page.attributes if name.startswith("on") or name in ("src", "srcset", "action", "style")
    }
    assert text.index("Content-Security-Policy") < text.index("<style")  # it holds for what comes after it
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)


def test_every_page_has_the_policy() -> None:
    """All templates but the first extend it, and none of them brings what the policy forbids."""
    folder = Path(plots.__file__).parent / "templates"
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "page.html" or text.startswith('{% extends "page.html" %}')
        assert not re.search(r"<script|<img|<link|<iframe|https?://|\son\w+=", text), path


RECORDED = Path(__file__).parents[1] / "recorded" / "finished"


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a folder with a hostile name, with hostile texts in its files."""
    folder = tmp_path_factory.mktemp("x") / "[x] \x1b[31m$y^{$ 'q' <b>\u202e"
    shutil.copytree(RECORDED, folder)
    for file in ("evaluation.json", "predictions.jsonl", "config.yaml"):
        path = folder / file
        text = path.read_text(encoding="utf-8").replace("@FOLDER@", "/x/[/x]/$y^{$")
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_run_with_a_hostile_name_is_shown(hostile_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", "show"], ["runs", "list"], ["doctor"], ["adapters", "show"], ["adapters", "list"]):
        folder = hostile_run / "adapter" if words[0] == "adapters" else hostile_run
        code = main([*words, str(folder)])
        told = capfd.readouterr()
        assert code in (0, 1), told.err
        assert "[x]" in told.out or words == ["doctor"]
        assert not ACTING.search(told.out + told.err), ascii(told.out)
    assert main(["runs", "diff", str(hostile_run), str(hostile_run)]) == 0
    assert main(["generate", str(hostile_run / "none"), "x"]) == 2
    told = capfd.readouterr()
    assert not ACTING.search(told.out + told.err)


def test_views_take_any_text(hostile_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluation = json.loads((hostile_run / "evaluation.json").read_text())
    for text in HOSTILE.values():
        told = evaluation | {"data": text, "findings": [text], "signatures": {text: text}}
        with shown_streams(sys.stdout, sys.stderr):
            eval_view.show_evaluation(told, {text: Path(text.replace("\0", ""))})
            asked = ShowRunSettings(run=hostile_run)
            result = show(asked).model_copy(update={"verdict": text, "settings": {text: text}})
            runs_view._show_run(asked, result)
            assert json_object(result)
    assert not ACTING.search(capfd.readouterr().out)


DRAWN: dict[str, Callable[[str], str]] = {
    "bars": lambda text: plots.bars([(each, 3) for each in (*FORMULAS, *HOSTILE.values())], text),
    "histogram": lambda text: plots.histogram([1, 2, 3], text, 3),
    "loss": lambda text: plots.loss_curve(
        [Step(1, 2, 0.5, 1.0, 0.1, 1.0, 10.0, 1.0, 1.0, 1.0)], [HeldOut(1, {text: 0.5}, True, text, False)]
    ),
    "cost": lambda text: plots.quality_against_cost(
        {f"a {text}": (1.0, 2.0, (1.0, 3.0))}, {f"b {text}": 1.0}, text, text
    ),
    "history": lambda text: plots.search_history([(0, 1.0, True), (1, 2.0, False)]),
    "rates": lambda text: plots.search_rates([(1e-3, 1.0), (1e-2, 0.9)], 1e-3),
}
FORMULAS = ["$x^{$", "$\\frac{x$", "$$", "\\$ 5 $", "_hidden", "日本語 👍 ℵ", "</svg><script>alert(1)</script>", "-->"]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_plots_read_no_formulas(draw: Callable[[str], str]) -> None:
    """Warnings are errors here: a letter without a glyph is drawn as a box, in silence."""
    svg = draw(" ".join([*FORMULAS, *HOSTILE.values()]))
    assert svg.startswith("<svg")
    page = _Page(svg)
    assert not page.tags & {"script", "img", "foreignobject", "image"}


def test_labels_that_begin_alike_are_bars_of_their_own() -> None:
    """As many bars as labels: each is a path that is clipped to the axes."""
    labels = [(f"{'the same forty letters at the beginning of it'} {i}", 5 + i) for i in range(4)]
    alike, others = (plots.bars(each, "rows") for each in (labels, [(str(i), n) for i, (_, n) in enumerate(labels)]))
    assert alike.count("patch_") == others.count("patch_")


def test_the_users_settings_of_plots_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plots.bars([("a", 1)], "rows")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "svg.fonttype": "none"}):
        found = plots.bars([("a", 1)], "rows")
        assert matplotlib.rcParams["font.size"] == 30  # what was set is left as it was
    strip = re.compile(r'(id|href|clip-path)="[^"]*"')
    assert strip.sub("", found) == strip.sub("", expected)


def test_a_file_of_plot_settings_beside_the_data_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True\n\xff\xfe\0")
    code = "from afina.measure.pages.plots import bars; print(bars([('$x$', 1)], 'rows')[:4])"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "<svg\n", "")


def test_commands_that_are_shown_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine & theirs; $(x) 'ação' \"q\""
    folder.mkdir()
    data = write_rows(folder / "a b.jsonl", [{"q": f"{i} {i * i}", "a": str(i % 2)} for i in range(60)])
    assert main(["data", "check", str(data), "--prompt", "{q} it's", "--completion", "{a}"]) == 0
    line = capsys.readouterr().out.split("next:\n  ")[1].splitlines()[0]
    words = shlex.split(line)
    assert words[:3] == ["afina", "train", str(data)]
    assert words[words.index("--prompt") + 1] == "{q} it's"
    tuning = {"words": ["see `afina x`"], "importances": {}, "next_hour": ["`<y>`"], "trial_rows": 3}
    empty: dict[str, Any] = {"runs": {}, "plots": [], "names": [], "lines": []}
    page = render_page("tuning.html", config=folder / "c.yaml", tuning=tuning, few=3, **empty)
    assert "see <code>afina x</code>" in page
    assert "<li><code>&lt;y&gt;</code></li>" in page
    shown: list[str] = []

    class Commands(HTMLParser):
        def handle_data(self, text: str) -> None:
            shown.extend([text] if text.startswith("afina train") else [])

    Commands().feed(page)
    assert shlex.split(shown[0]) == ["afina", "train", "--config", str(folder / "c.yaml"), "--out", "my-run"]


def test_output_is_a_console_for_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        out: Any = Output(sys.stdout)
        out.print("plain [b]", style="bold")
    assert screen.getvalue() == "\x1b[1mplain [b]\x1b[0m\n"
