"""Pages of one file: their stylesheet is the one that their policy allows, nothing else styles or runs, and what rows,
answers and names hold is text on each of them."""

import json
import re
import shutil
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afina.core.events import HeldOut, Step
from afina.data.quality.checks import Check
from afina.data.quality.findings import DataFinding
from afina.measure.pages import plots
from afina.measure.pages.data_pages import Rendered, check_page, row_page
from afina.measure.pages.rendering import TEMPLATES, render_page
from afina.measure.pages.report import write_report

RECORDED = Path(__file__).parents[1] / "recorded" / "finished"
HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e\r\0 \' style="color: red" `<b>`'
SHOWN = '<script>alert(1)</script><img src=x onerror=alert(2)>\\x1b[31m\\u202e\\r\\x00 \' style="color: red" '
ACTING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
STEPS = [Step(n, 3, 1.0, 1.0 / n, 0.1, 1.0, 10.0, 1.0, 1.0, 1.0) for n in (1, 2, 3)]
DRAWN: dict[str, Callable[[], str]] = {
    "histogram": lambda: plots.histogram([1, 2, 3], HOSTILE, 3),
    "bars": lambda: plots.bars([(HOSTILE, 3), ("b", 1)], HOSTILE),
    "loss_curve": lambda: plots.loss_curve(STEPS, [HeldOut(1, {"f1": 0.5}, True, "f1", False)]),
    "quality_against_cost": lambda: plots.quality_against_cost(
        {HOSTILE: (1.0, 2.0, (1.0, 3.0))}, {HOSTILE: 1.0, "b": 2.0}, HOSTILE, HOSTILE
    ),
    "search_history": lambda: plots.search_history([(0, 1.0, True), (1, 2.0, False)]),
    "search_rates": lambda: plots.search_rates([(1e-3, 1.0), (1e-2, 0.9)], 1e-3),
}


class Page(HTMLParser):
    """What a browser makes of a page: elements, attributes, text, and the content of its stylesheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.styles: list[str] = []
        self.policy, self.text = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.styles.append(data)
        else:
            self.text += data


def check(text: str, times: int) -> Page:
    """A page under its policy, which shows the hostile text `times` times or more."""
    page = Page(text)
    style = "".join(page.styles)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert page.policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert style == (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert page.tags.count("style") == 1
    assert not {"script", "img", "b", "link", "iframe"} & {*page.tags}
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert not ACTING.search(text)
    assert page.text.count(SHOWN) >= times, page.text
    return page


@pytest.mark.parametrize("name", DRAWN)
def test_plots_have_attributes_in_the_place_of_styles(name: str) -> None:
    """A page's policy allows its stylesheet alone; lines and colours are there all the same."""
    svg = DRAWN[name]()
    page = Page(svg)
    assert not {"style", "script"} & {*page.tags}
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert {"stroke", "fill", "stroke-width"} <= page.attributes
    elements = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for element in re.findall(r"<\w[^>]*>", elements):
        names = re.findall(r'([\w:-]+)="', element)
        assert len(names) == len({*names}), element  # an attribute that comes twice is read once


def test_every_plot_is_among_those_of_this_test() -> None:
    """`_plot` wraps each function that draws."""
    assert {name for name, each in vars(plots).items() if hasattr(each, "__wrapped__")} - {"_plain"} == {*DRAWN}


def test_a_report_shows_texts(tmp_path: Path) -> None:
    run = tmp_path / "run <b>\x1b"
    shutil.copytree(RECORDED, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("@FOLDER@", "/x"))
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"prompt": HOSTILE, "references": [HOSTILE], "base": HOSTILE, "adapted": HOSTILE}
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation |= {"data": HOSTILE, "findings": [HOSTILE], "signatures": {HOSTILE: HOSTILE}}
    for model in ("base", "adapted"):
        evaluation[model]["per_class"] = {HOSTILE: evaluation[model]["per_class"]["red"]}
        evaluation[model]["confusion"]["labels"] = [HOSTILE, "red"]
    page = check(write_report(run, evaluation).read_text(encoding="utf-8"), 4 * len(rows) + 3)
    assert {"svg", "table"} <= {*page.tags}


def test_a_check_and_a_row_show_texts() -> None:
    row = Rendered(HOSTILE, [(HOSTILE, True), (HOSTILE, False)])
    check(row_page(row), 4)
    found = Check(
        path=HOSTILE, rows_in=3, rows_kept=2, rows_reported=1, layout=HOSTILE, notes=[HOSTILE], reasons=[HOSTILE],
        findings=[DataFinding("x", "error", HOSTILE, 2, [HOSTILE, HOSTILE])], verdict=HOSTILE, ready=False,
        lengths=[3, 4], answers=[1, 2], samples=[], labels={HOSTILE: 2, "b": 1}, languages={},
    )  # fmt: skip
    check(check_page(found, [row], 10, HOSTILE), 13)


def test_a_comparison_and_a_search_show_texts() -> None:
    found = {"data": HOSTILE, "rows": 3, "words": [HOSTILE, HOSTILE], "recommended": HOSTILE}
    plot = DRAWN["quality_against_cost"]()
    values: dict[str, Any] = {
        "trained": [Path("/x") / HOSTILE.replace("/", "")], "heads": ["method", HOSTILE], "lines": [[HOSTILE, HOSTILE]],
        "plots": [plot], "examples": [(HOSTILE, HOSTILE, [HOSTILE])], "names": [HOSTILE],
        "failures": {HOSTILE: HOSTILE},
    }  # fmt: skip
    check(render_page("comparison.html", comparison=found, **values), 12)
    tuning = {"words": [HOSTILE], "importances": {}, "next_hour": [HOSTILE], "trial_rows": 3}
    runs = {"a": SimpleNamespace(folder=HOSTILE)}
    lines = [["0", "1.0", HOSTILE, HOSTILE]]
    more = {"config": Path("c.yaml"), "few": 3, "plots": [(HOSTILE, plot)], "names": [HOSTILE]}
    check(render_page("tuning.html", tuning=tuning, lines=lines, runs=runs, **more), 7)


def test_the_stylesheet_leaves_lines_as_the_plots_say() -> None:
    """A rule for all parts of an SVG would win over the attributes of each."""
    rules = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert not re.search(r"(^|[\s,}])(svg\s+)?\*[^{]*\{[^}]*(stroke|fill)", rules)
