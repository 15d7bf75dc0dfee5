"""The page of a file: what is shown of good, bad, hostile and large ones, and what is said of how it is read."""

import html
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from studio_opened import PT, Visitor, opened
from studio_works import until

from afina.core.events import Progress, row
from afina.core.files import write_json
from afina.ui.studio.pages import data as data_page

SENTENCE = "The model reads <code>text</code> and answers <code>label</code>."
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
    assert SENTENCE in first
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
    assert "reads Say <code>y</code>: &lt;b&gt; and answers <code>z</code>." in text
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
    assert SENTENCE in text
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


def test_what_is_no_table_is_called_that_and_not_offered(page: Visitor) -> None:
    write(page, "photo.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    write(page, "films.csv", films())
    assert "Not looked at yet" in page.get("/data").text
    for headers in ({}, PT):
        text = shown(page, "photo.csv", **headers)
        assert "photo.csv is a PNG picture, not a table of examples" in text
        assert 'name="encoding"' not in text
        assert not re.search(r"\s--\w", words(text))
        assert str(page.studio.workspace.root) not in text
    assert "é outra coisa com esse nome" in text
    listed = page.get("/data").text
    assert re.search(
        r'Files that cannot be read.*photo\.csv</a>.*PNG picture.*action="/data/photo\.csv/delete"', listed, re.DOTALL
    )
    assert 'action="/data/films.csv/delete"' not in listed
    for address in ("/train", "/base"):
        offered = page.get(address).text
        assert ("?data=films.csv" in offered, "?data=photo.csv" in offered) == (True, False)
    write(page, "photo.csv", films())  # another file of that name is another file
    assert page.studio.workspace.refusal(page.studio.workspace.data / "photo.csv") is None
    assert SENTENCE in shown(page, "photo.csv")


def test_flags_are_called_as_the_page_calls_what_they_set(page: Visitor) -> None:
    write(page, "odd.csv", b"\x00\x01\x02\xff\xfe" * 99)
    text = words(shown(page, "odd.csv"))
    assert "odd.csv holds no text: it is a binary file" in text
    assert "name the right one with “Encoding of the file's text”, or save" in text
    assert "“Codificação do texto do arquivo”" in words(shown(page, "odd.csv", **PT))


def too_long(page: Visitor, name: str = "long.csv", **settings: str) -> None:
    """A file, and a check of it that found rows that are too long."""
    write(page, name, films())
    path = str(page.studio.workspace.data / name)
    data = {"path": path, "prompt": "{text}", "completion": "{label}", "kind": "classification"} | settings
    facts = {"most": 1024, "longest": 5210, "tokens": [5210, 1100], "done": settings.get("too_long", "error")}
    grave = "error" if facts["done"] == "error" else "note"
    found = {
        "code": "too long", "severity": grave, "text": "give --data.too_long cut", "count": 2,
        "rows": [f"{path}:3", f"{path}:9"], "facts": facts,
    }  # fmt: skip
    work = page.studio.queue.add("data check", {"data": data}, name)
    counts = {"rows_in": 60, "rows_kept": 60, "rows_reported": 0}
    lists = {"notes": [], "reasons": [], "lengths": {}, "answers": {}, "languages": {"en": 60}}
    write_json(work.folder / "result.json", {"ready": grave != "error", "findings": [found]} | counts | lists)


def test_rows_that_are_too_long_are_named_with_a_choice_where_they_stop_one(page: Visitor) -> None:
    too_long(page)
    for address in ("/data/long.csv", "/train?data=long.csv&base=starter", "/base?data=long.csv"):
        text = page.get(address).text
        told = words(text)
        assert "Rows are too long: 2. At most 1,024 tokens of a row are read, and the longest has 5,210." in told
        assert "long.csv:3 (5,210 tokens), long.csv:9 (1,100 tokens)" in told
        assert "--data" not in told
        assert '<button name="too_long" value="drop">Leave these rows out</button>' in text
        assert "Linhas" not in text
    assert "a mais comprida tem 5.210" in page.get("/train?data=long.csv&base=starter", headers=PT).text
    sent = page.fill("/data/long.csv/too-long", too_long="drop", to="train", base="starter")
    assert sent.headers["location"] == "/train?data=long.csv&base=starter"
    assert page.studio.workspace.reading("long.csv") == {"too_long": "drop"}
    again = page.studio.queue.of("long.csv", ("data check",))
    assert (again.settings["data"]["too_long"], again.settings["data"]["prompt"]) == ("drop", "{text}")
    assert SENTENCE in shown(page, "long.csv")
    assert page.studio.queue.of("long.csv", ("data check",)) == again
    assert page.fill("/data/long.csv/too-long", too_long="<x>", to="//x").headers["location"] == "/data/long.csv"


def test_what_became_of_rows_that_are_too_long_is_said(page: Visitor) -> None:
    too_long(page, too_long="cut")
    page.studio.workspace.keep_reading("long.csv", {"too_long": "cut"})
    text = shown(page, "long.csv")
    assert "Their questions are cut; the answers stay whole." in text
    assert 'value="drop"' in text
    assert 'value="cut"' not in text.replace('name="too_long" value="cut">', "", 1)  # kept with how it is read


def test_columns_of_lists_and_objects_are_shown_as_people_read_them(page: Visitor) -> None:
    rows = [
        {
            "utterance": f"a table for {i} on Sunday",
            "asked": ["people"] if i % 2 else [],
            "slots": {"people": str(i), "on": "Sunday"},
        }
        for i in range(40)
    ]
    write(page, "slots.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    page.fill("/data/slots.jsonl/reading", prompt="{asked[, ]} {utterance}", completion="{slots}")
    text = shown(page, "slots.jsonl")
    assert '<td class="text">people: 1; on: Sunday</td>' in text
    assert "[]" not in text
    assert "The model reads <code>asked</code> <code>utterance</code> and answers <code>slots</code>." in text
    assert "In the first row it reads a table for 0 on Sunday and answers {" in words(text)


def test_what_is_left_out_of_a_file_is_said_with_the_remedy(working: Visitor) -> None:
    rows = (
        films().replace("text,label", "text,label,who").replace("good\n", "good,Ana\n").replace("poor\n", "poor,Rui\n")
    )
    write(working, "report.csv", f"Films of the year\nby Ana\n{rows}")
    text = words(checked(working, "report.csv"))
    assert "Rows above the heading are left out: 2. They read: “Films of the year”, “by Ana”." in text
    assert "Columns are not used. They are: “who”. To use one, write its name in braces" in text
    assert "“Change it”" in text
    assert "The first of them: report.csv:1, report.csv:2" in text
    assert "report.csv%3A1#row" not in shown(working, "report.csv")  # it is no row to be looked at
    shown_pt = shown(working, "report.csv", **PT)
    assert "Linhas acima do cabeçalho ficam de fora: 2." in shown_pt
    assert "left out" not in shown_pt
    assert "not used" not in shown_pt


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([Progress("loading the tokenizer", 0, 0)], "First the vocabulary of a base is opened"),
        (
            [Progress("reading rows of /x/films.csv, per cent", 30, 100), Progress("rows looked at", 12_000, 0)],
            "Rows looked at so far: 12,000 Reading the file, per cent: 30 of 100",
        ),
        ([Progress("rows looked at", 12_000, 0), Progress("rows compared", 0, 0)], "All rows are read, and"),
    ],
)  # fmt: skip
def test_a_check_says_what_it_is_at(
    events: list[Progress], told: str, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(page, "films.csv", films())
    shown(page, "films.csv")
    check = page.studio.queue.of("films.csv", ("data check",))
    (check.folder / "events.jsonl").write_text("".join(json.dumps(row(each)) + "\n" for each in events))
    monkeypatch.setattr(type(check), "state", "running")
    text = words(page.get(f"/work/{check.id}/live").text)
    assert text.startswith(f"All rows are being looked at … {told}")
    assert "It runs." not in text


def test_letters_that_were_damaged_are_found(working: Visitor) -> None:
    rows = "".join(f"Eu moro em SÃ£o Paulo hÃ¡ {i} anos,sim\nNÃ£o moro lÃ¡ hÃ¡ {i} anos,nÃ£o\n" for i in range(30))
    write(working, "cities.csv", f"text,label\n{rows}")
    text = words(checked(working, "cities.csv"))
    assert "Letters are damaged in 60 rows" in text
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
    assert "Rows repeat others exactly: 19." in text
    assert "The same question has different answers in 3 rows." in words(text)
    assert "Questions are nearly those of other rows" in text
    assert "They look like e-mail addresses." in text
    assert '<a href="/data/copies.csv?at=copies.csv%3A62#row">copies.csv:62</a>' in text
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
    followed = shown(page, "films.csv?at=films.csv:5")
    assert '<p class="help">films.csv:5 ·' in followed
    assert 'name="row" min="1" value="4"' in followed
    assert "&lt;x&gt;&#39; is no row" in shown(page, "films.csv?at=<x>")
    for odd in ("0", "-1", "x", "9" * 20, ""):
        assert "films.csv:2" in shown(page, f"films.csv?row={odd}")


def _loaded(folder: Path):
    from afina.models.load import load_tokenizer

    return load_tokenizer(str(folder))


def test_it_speaks_portuguese(page: Visitor) -> None:
    write(page, "films.csv", films())
    text = shown(page, "films.csv", **PT)
    assert '<html lang="pt">' in text
    assert "O modelo lê <code>text</code> e responde <code>label</code>." in text
    assert "Todas as linhas estão sendo examinadas" in text
    for path in ("/", "/data"):
        assert '<html lang="pt">' in page.get(path, headers=PT).text
    assert "Dados" in page.get("/data", headers=PT).text


def test_a_file_that_runs_need_is_not_deleted(page: Visitor) -> None:
    write(page, "films.csv", films())
    path, queue = page.studio.workspace.data / "films.csv", page.studio.queue
    settings = {"base": "starter", "data": {"path": str(path)}}
    judged = {"run": str(page.studio.workspace.runs), "data": str(path)}
    asked = [("train", settings), ("compare", {"run": settings}), ("eval", judged)]
    for job, given in asked:
        work = queue.add(job, given, "films")
        refused = page.fill("/data/films.csv/delete", sure="yes")
        assert refused.status_code == 400
        assert "films.csv is in use: " in refused.text
        assert "· films" in refused.text
        queue.stop(work)
    run = page.studio.workspace.runs / "films"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"method": "lora"}))  # begun, and nothing more
    assert (
        "films.csv is needed: without it films cannot be finished"
        in page.fill("/data/films.csv/delete", sure="yes").text
    )
    assert path.exists()
    shutil.rmtree(run)
    assert page.fill("/data/films.csv/delete", sure="yes").headers["location"] == "/data"
    assert not path.exists()
