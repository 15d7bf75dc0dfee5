"""The page over a workspace, as a browser that was let in sees it, and a run to look at."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

from conftest import write_rows
from starlette.testclient import TestClient

import afina
from afina.models.sources.catalogue import known_models
from afina.ui.studio.app import make_app
from afina.ui.studio.guard import Keys
from afina.ui.studio.view import Studio
from afina.ui.studio.work import Queue
from afina.ui.studio.workspace import Workspace

ADDRESS = "http://127.0.0.1:8090"
PT = {"accept-language": "pt-BR,pt;q=0.9"}


class Visitor(TestClient):
    """`studio` is what is behind the pages; `fill` fills in a form."""

    studio: Studio

    def fill(self, path: str, **fields: str):
        return self.post(path, data={"form_token": self.studio.keys.form, **fields}, follow_redirects=False)


@contextmanager
def opened(root: Path, works: bool = True) -> Iterator[Visitor]:
    """Unless it `works`, what is to be done waits for ever."""
    workspace = Workspace(root)
    queue = Queue(workspace.work)
    if not works:
        queue.look = lambda: None  # type: ignore[method-assign]
    studio = Studio(workspace, queue, Keys(workspace.secret(), "the-token"))
    try:
        with Visitor(make_app(studio), base_url=ADDRESS) as visitor:
            visitor.studio = studio
            assert visitor.get("/?token=the-token").status_code == 200
            yield visitor
    finally:
        if workspace._lock is not None:
            os.close(workspace._lock)


class _Read(HTMLParser):
    """The words of a page that are in its own language: neither marked as English, nor names, nor what is typed."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self._passed = list[str](), list[str]()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag not in _VOID and (
            self._passed or given.get("lang") == "en" or given.get("translate") == "no" or tag in _TYPED
        ):
            self._passed.append(tag)
        if not self._passed:
            self._take(" ".join(given.get(name) or "" for name in ("aria-label", "title", "alt")))
            self._take(
                " ".join(value for name, value in attributes if name.startswith("data-") and value and " " in value)
            )

    def handle_endtag(self, tag: str) -> None:
        if self._passed and tag not in _VOID:
            self._passed.pop()

    def handle_data(self, data: str) -> None:
        if not self._passed:
            self._take(data)

    def _take(self, text: str) -> None:
        plain = re.sub(r"\S*[/.]\S+", "", text.lower())  # names of files and folders
        self.words += [
            f"{each} in {text.strip()!r}" for each in re.findall(r"[^\W\d_]+", plain) if _ENGLISH.fullmatch(each)
        ]


_VOID = ("meta", "link", "input", "br", "line", "circle", "polyline")
_TYPED = ("pre", "code", "script", "textarea", "option")
_ENGLISH = re.compile(
    r"the|of|and|is|are|was|were|with|from|not|its?|this|that|these|your?|rows?|held|split|steps?|loss|answer(s|ed)?|for"
    r"|ha(s|ve|d)|by|on|in|at|be|to|wh(ich|at|ere|en)|t?here|th[ae]n|they|cannot|file|run|train(ing|ed)|models?|settings"
    r"|scores?|better|worse|all|none|show|start|stop|delete|about|before|after|more|less"
)


def english(html: str) -> set[str]:
    """English words on a page in another language."""
    reader = _Read()
    for title in sorted((entry.title for entry in known_models().values()), key=len, reverse=True):
        html = html.replace(title, "")
    reader.feed(html)
    assert not reader._passed
    return {*reader.words}


def tidy(root: Path) -> None:
    """Takes out of a workspace all runs but `colours`, and all work."""
    for folder in (root / "runs", root / ".studio" / "work"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name != "colours":
                shutil.rmtree(path)


def trained(root: Path, base: Path, name: str = "colours") -> Path:
    """A run in the workspace at `root`, of a task that is learned in seconds."""
    data = root.resolve() / "data"
    data.mkdir(parents=True, exist_ok=True)
    colours = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "a": "red" if i % 2 else "blue"} for i in range(80)]
    write_rows(data / "colours.jsonl", colours)
    out = root.resolve() / "runs" / name
    afina.train(
        afina.RunSettings(
            base=str(base), out=out, precision="fp32", device="cpu", lora={"rank": 4},
            data={"path": data / "colours.jsonl", "prompt": "{q}", "completion": "{a}", "held_out": 0.2},
            train={"rows": 800, "learning_rate": 1e-2, "batch_size": 8, "samples": 3},
        )
    )  # fmt: skip
    return out
