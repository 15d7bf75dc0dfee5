"""The page over a workspace, as a browser that was let in sees it, and a run to look at."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import write_rows
from starlette.testclient import TestClient

import afina
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
            train={"rows": 800, "learning_rate": 2e-2, "batch_size": 8},
        )
    )  # fmt: skip
    return out
