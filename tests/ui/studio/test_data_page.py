"""The page of a file: what is shown of good, bad, hostile and large ones, and what is said of how it is read."""

import html
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from studio_opened import PT, Visitor, opened
from studio_works import until

from afina.ui.studio.pages import data as data_page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e&amp;"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Visitor]:
    """No check ever begins."""
    with opened(tmp_path / "workspace", works=False) as visitor:
        yield visitor


@pytest.fixture
def working(tmp_path: Path, forked_work: None) -> Iterator[Visitor]:
    with opened(tmp_path / "workspace") as visitor:
        yield visitor


def write(page: Visitor, name: str, content: str | bytes) -> None:
    path = page.studio.workspace.data / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def shown(page: Visitor, name: str, **headers: str) -> str:
    found = page.get(f"/data/{name}", headers=headers)
    assert found.status_code == 200
    return found.text


def words(text: str) -> str:
    """What one reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def checked(page: Visitor, name: str) -> str:
    """The page once all rows were looked at."""
    page.get(f"/data/{name}")
    until(lambda: page.studio.queue.of(name, ("data check",)).ended)
    return shown(page, name)


def films(rows: int = 60) -> str:
    said = (("great", "good"), ("bad", "poor"))
    return "text,label\n" + "".join(
        f"this is a {said[i % 2][0]} film number {i},{said[i % 2][1]}\n" for i in range(rows)
    )


def test_a_good_file_is_shown_guessed_and_found_ready(working: Visitor) -> None:
    write(working, "films.csv", films())
    first = shown(working, "films.csv")
    assert '<td class="text">this is a great film number 0</td>' in first
    assert "The model reads “{text}” and answers “{label}”." in first
    assert "data-events=" in first
    text = words(checked(working, "films.csv"))
    assert "It is ready for training. 60 rows: 60 can be used, 0 cannot." in text
    assert 'href="/base?data=films.csv"' in shown(working, "films.csv")
    assert "The model reads" in text
    assert len(working.studio.queue.all()) == 1  # however often one looks


def test_what_is_said_of_the_columns_is_kept(working: Visitor) -> None:
    write(working, "odd.csv", "x,y,z\n" + "".join(f"{i},a{i},b{i}\n" for i in range(60)))
    sent = working.fill("/data/odd.csv/reading", prompt="Say {y}: <b>", completion="{z}", kind="generation", system=" ")
    assert (sent.status_code, sent.headers["location"]) == (303, "/data/odd.csv")
    assert working.studio.workspace.reading("odd.csv") == {
        "prompt": "Say {y}: <b>", "completion": "{z}", "kind": "generation"
    }  # fmt: skip
    text = shown(working, "odd.csv")
    assert "reads “Say {y}: &lt;b&gt;” and answers “{z}”" in text
    assert '<option value="generation" selected>' in text
    assert "can be used" in words(checked(working, "odd.csv"))
    check = working.studio.queue.of("odd.csv", ("data check",))
    assert check.settings["data"]["kind"] == "generation"
    working.fill("/data/odd.csv/reading")
    assert working.studio.workspace.reading("odd.csv") == {}


def test_an_encoding_alone_leaves_the_columns_as_they_were_found(page: Visitor) -> None:
    write(page, "films.csv", films().encode("cp1252"))
    page.fill("/data/films.csv/reading", encoding="cp1252")
    text = shown(page, "films.csv")
    assert "The model reads “{text}” and answers “{label}”." in text
    assert 'name="encoding" value="cp1252"' in text


def test_what_cannot_be_read_so_is_not_kept_and_shown_again(page: Visitor) -> None:
    write(page, "films.csv", films() + "ação,good\n")
    found = page.fill("/data/films.csv/reading", encoding="no-such", prompt="{text} <x>", completion="{label}")
    assert found.status_code == 400
    assert "no-such" in found.text
    assert 'name="prompt" value="{text} &lt;x&gt;"' in found.text
    assert page.studio.workspace.reading("films.csv") == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.csv", b"\x00\x01\x02\xff\xfe" * 99), ("bad.xlsx", b"this is no workbook"),
        ("bad.parquet", b"PAR1nothing"), ("bad.jsonl", b"{" * 5_000), ("bad.json", b"[1, 2"), ("empty.csv", b""),
        ("bad.csv.gz", b"no gzip"),
        ("head.csv", b"text,label\n"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(name: str, content: bytes, page: Visitor) -> None:
    write(page, name, content)
    text = shown(page, name)
    assert 'role="alert"' in text
    assert "Traceback" not in text
    assert "What to do:" in text or name == "head.csv"
    assert 'name="encoding"' in text
    assert not page.studio.queue.all()
    assert f'action="/data/{name}/delete"' in text


def test_letters_that_were_damaged_are_found(working: Visitor) -> None:
    rows = "".join(f"Eu moro em SÃ£o Paulo hÃ¡ {i} anos,sim\nNÃ£o moro lÃ¡ hÃ¡ {i} anos,nÃ£o\n" for i in range(30))
    write(working, "cities.csv", f"text,label\n{rows}")
    text = words(checked(working, "cities.csv"))
    assert "damaged by a wrong encoding" in text
    write(
        working, "latin.csv", "text,label\n" + "".join(f"ação número {i},é assim\nnão é {i},não\n" for i in range(60))
    )
    (working.studio.workspace.data / "latin.csv").write_bytes(
        (working.studio.workspace.data / "latin.csv").read_text().encode("cp1252")
    )
    assert "ação número 0" in shown(working, "latin.csv")


def test_duplicates_conflicts_and_leaks_are_found_the_gravest_first(working: Visitor) -> None:
    rows = films().splitlines(keepends=True)
    copies = [*rows, *rows[1:20], "this is a great film number 0,poor\n", "mail me at ana@example.org now,good\n"]
    near = [
        f"the very same words stand here in this long row again and again and again number {i},good\n" for i in range(9)
    ]
    write(working, "copies.csv", "".join([*copies, *near]))
    text = checked(working, "copies.csv")
    assert "exact copies of others" in text
    assert "different answers" in words(text) or "answer it differently" in words(text)
    assert "would leak from train to test" in text
    assert "e-mail address" in text
    assert '<a href="?at=copies.csv%3A62#row">copies.csv:62</a>' in text
    severities = re.findall(r'class="finding (error|warning|note)"', text)
    assert severities == sorted(severities, key=("error", "warning", "note").index)


def test_what_others_wrote_is_text(working: Visitor) -> None:
    """In cells and names of columns, in what is asked, in what is found and in rows as the model sees them."""
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    write(
        working,
        "hostile.csv",
        f"text{quoted[1:-1]},label\n" + "".join(f'"{HOSTILE}{i}",{"<b>" if i % 2 else "no"}\n' for i in range(60)),
    )
    working.fill("/data/hostile.csv/reading", prompt="{text" + HOSTILE + "} " + HOSTILE, completion="{label}")
    for text in (
        checked(working, "hostile.csv"),
        shown(working, "hostile.csv?row=1"),
        shown(working, "hostile.csv?row=" + quote(HOSTILE)),
        shown(working, "hostile.csv?at=" + quote(HOSTILE)),
    ):
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "<b>" not in text
        fields = re.compile('<textarea.*?</textarea>|value="[^"]*"', re.DOTALL)  # hold what was typed, letter by letter
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", fields.sub("", text))
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert r"\x1b[31m\u202e" in text
    for name in ("/", "/data", f"/work/{working.studio.queue.all()[0].id}"):
        assert "<script>alert" not in working.get(name).text


def test_a_file_without_a_head(page: Visitor) -> None:
    write(
        page,
        "headless.csv",
        "".join(f"this is a great film number {i},good\nthis is bad {i},poor\n" for i in range(30)),
    )
    text = shown(page, "headless.csv")
    assert "this is a great film number 1" in text
    assert 'id="prompt"' in text


def test_a_million_rows_are_shown_while_they_are_looked_at(working: Visitor) -> None:
    with (working.studio.workspace.data / "million.csv").open("w") as file:
        file.write("text,label\n")
        for i in range(0, 1_000_000, 1000):
            file.write("".join(f"row {j},{'ab'[j % 2]}\n" for j in range(i, i + 1000)))
    begun = time.monotonic()
    text = shown(working, "million.csv")
    seconds = time.monotonic() - begun
    assert "row 0" in text
    assert "All rows are being looked at" in text
    check = working.studio.queue.of("million.csv", ("data check",))
    assert not check.ended
    assert len(text) < 50_000
    assert seconds < 30  # all rows take longer than the first
    working.studio.queue.stop(check)
    until(lambda: check.state == "stopped")
    stopped = shown(working, "million.csv")
    assert "The check was stopped or killed before its end." in stopped
    assert 'action="/data/million.csv/check"' in stopped
    assert working.fill("/data/million.csv/check").headers["location"] == "/data/million.csv"
    again = working.studio.queue.of("million.csv", ("data check",))
    assert again.id != check.id
    working.studio.queue.stop(again)
    until(lambda: again.ended)


def test_a_check_is_of_the_file_as_it_is(page: Visitor) -> None:
    """A newer file, or another way to read it, is looked at anew, and nobody waits for the former check."""
    write(page, "films.csv", films())
    shown(page, "films.csv")
    first = page.studio.queue.of("films.csv", ("data check",))
    time.sleep(0.02)  # longer than a tick of the clock that dates files
    os.utime(page.studio.workspace.data / "films.csv", (2**32, 2**32))  # a copy from a machine of the future
    time.sleep(0.02)
    shown(page, "films.csv")
    second = page.studio.queue.of("films.csv", ("data check",))
    assert (first.id != second.id, first.state) == (True, "stopped")
    time.sleep(0.02)
    shown(page, "films.csv")
    assert page.studio.queue.of("films.csv", ("data check",)) == second
    page.fill("/data/films.csv/reading", prompt="{label}", completion="{text}")
    shown(page, "films.csv")
    third = page.studio.queue.of("films.csv", ("data check",))
    assert (third.id != second.id, second.state) == (True, "stopped")


def test_a_row_as_the_model_sees_it(page: Visitor, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afina.jobs.data import _tokenizer

    write(page, "films.csv", films())
    monkeypatch.setattr(data_page, "is_local", lambda name, cache: False)
    assert "a base has to be on this disk first" in words(shown(page, "films.csv?row=2"))
    monkeypatch.setattr(data_page, "is_local", lambda name, cache: True)
    monkeypatch.setattr(_tokenizer, "load_tokenizer", lambda base, **more: _loaded(tiny_folder))
    text = shown(page, "films.csv?row=2")
    assert 'class="learned">p<' in text
    assert '<p class="help">films.csv:3 ·' in text
    assert "fewer than 999 rows" in words(shown(page, "films.csv?row=999"))
    assert "films.csv:5" in shown(page, "films.csv?at=films.csv:5")
    assert "has no row at" in shown(page, "films.csv?at=<x>")
    for odd in ("0", "-1", "x", "9" * 20, ""):
        assert "films.csv:2" in shown(page, f"films.csv?row={odd}")


def _loaded(folder: Path):
    from afina.models.load import load_tokenizer

    return load_tokenizer(str(folder))


def test_it_speaks_portuguese(page: Visitor) -> None:
    write(page, "films.csv", films())
    text = shown(page, "films.csv", **PT)
    assert '<html lang="pt">' in text
    assert "O modelo lê “{text}” e responde “{label}”." in text
    assert "Todas as linhas estão sendo examinadas" in text
    for path in ("/", "/data"):
        assert '<html lang="pt">' in page.get(path, headers=PT).text
    assert "Dados" in page.get("/data", headers=PT).text
