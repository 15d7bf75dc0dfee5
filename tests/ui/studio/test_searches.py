"""A search for settings that is begun on the page and done: its page shows what it really wrote."""

from html import unescape
from pathlib import Path

import pytest
from studio_opened import PT, english, opened, tidy
from studio_works import forking, until

from afina.core.files import read_json


def test_a_search_is_done_and_shown(coloured: Path) -> None:
    pytest.importorskip("optuna", reason="needs afina[tune]")
    with forking(), opened(coloured) as page:
        begun = page.fill("/runs/colours/tune", minutes="0.1").headers["location"]
        work = page.studio.queue[begun.removeprefix("/work/")]
        until(lambda: page.studio.queue.look() or work.ended)
        assert work.state == "done", work.log
        assert not english(page.get(begun, headers=PT).text)
        folder = coloured / "runs" / "colours-tune"
        found = read_json(folder / "tuning.json")
        html = unescape(page.get("/runs/colours-tune").text)
        assert all(line.split("`")[0] in html for line in found["words"])
        assert not english(page.get("/runs/colours-tune", headers=PT).text)
        for path in folder.glob("*/config.yaml"):  # trained in full, where there was time
            assert f'href="/runs/colours-tune/{path.parent.name}"' in html
            assert "95 %" in page.get(f"/runs/colours-tune/{path.parent.name}").text
        assert page.get("/runs/colours-tune/report.html").content == (folder / "tuning.html").read_bytes()
        assert "Search for settings" in page.get("/runs").text
    tidy(coloured)
