"""Runs listed, judged, compared and deleted on the page; comparisons and searches shown; reports given as they are."""

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from studio_opened import PT, Visitor, english, opened, tidy

from afina.core.files import read_json, read_jsonl, write_json, write_jsonl
from afina.core.process.locks import alone
from afina.core.text import json_text
from afina.ui.studio import scores
from afina.ui.studio.words import Words

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture
def page(coloured: Path) -> Iterator[Visitor]:
    """A workspace with the run `colours`; nothing that a test adds to it stays."""
    with opened(coloured, works=False) as visitor:
        yield visitor
    tidy(coloured)


def text_of(html: str) -> str:
    """What is read on a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_no_english_is_left_for_those_who_read_portuguese(page: Visitor, coloured: Path) -> None:
    """But for what jobs say, which is marked as English: on a run and its list, on searches, on work of each state, on
    a file with findings, and on refusals."""
    search(page, "tune", tuning={"words": ["The best beats the defaults."], "next_hour": ["more rows"]})
    tried = [{"base": "tiny", "probe": None, "failed": "too large"}]
    search(page, "choose", choice={"metric": "accuracy", "best": None, "tried": tried})
    lora = {"metric": "accuracy", "quality": 0.9, "interval": [0.8, 0.95], "seconds": 90, "peak_memory_gb": 1.5}
    compared = {"methods": {"lora": lora, "full": {"failed": "it is too large"}}, "metric": "accuracy"}
    search(page, "compare", comparison=compared | {"recommended": "lora", "words": ["Use lora."]})
    run = second(page)
    evaluation = read_json(run / "evaluation.json")
    write_json(run / "evaluation.json", evaluation | {"findings": ["It is not what it was."]})
    (second(page, "broken") / "evaluation.json").write_text("{")
    queue, told = page.studio.queue, (coloured / "runs" / "colours" / "metrics.jsonl").read_text()
    progress = {"event": "progress", "stage": "answers of the adapted model", "done": 1, "total": 2}
    notice = {"event": "notice", "text": "what the rows say", "warning": True}
    settings = {"base": "x", "data": {"path": "rows.csv"}}
    works = [queue.add("train", settings, f"treino{i}") for i in range(3)]
    write_json(works[0].folder / "process.json", {"pid": 1, "began": 1})
    write_json(works[1].folder / "error.json", {"kind": "OutOfMemory", "problems": ["large"], "remedy": "be less"})
    for each in works:
        (each.folder / "events.jsonl").write_text("".join(f"{json_text(e)}\n" for e in (progress, notice)) + told)
    pages = ["/runs", "/judge", "/runs/colours", "/runs/again", "/runs/broken", "/runs/tune", "/runs/choose",
             "/runs/compare", "/runs/colours/chat", "/ship", "/ship/colours", "/runs-diff?first=colours&second=again",
             "/runs-diff?first=colours&second=colours", "/runs/nada", "/nowhere", "/", "/data", "/data/colours.jsonl",
             "/data/nada.csv", "/base?data=colours.jsonl", "/train?data=colours.jsonl&base=x",
             *(f"/work/{each.id}" for each in works)]  # fmt: skip
    left = {path: found for path in pages if (found := english(page.get(path, headers=PT).text))}
    assert not left
    assert "linhas reservadas" in page.get("/runs/colours", headers=PT).text
    assert "Faltou memória." in page.get(f"/work/{works[1].id}", headers=PT).text
    assert "Resposta certa:" in page.get(f"/work/{works[0].id}", headers=PT).text


def second(page: Visitor, name: str = "again") -> Path:
    found = page.studio.workspace.runs / name
    shutil.copytree(page.studio.workspace.run("colours"), found)
    return found


def test_a_run_is_judged_in_a_sentence_of_the_readers_language(page: Visitor, coloured: Path) -> None:
    found = page.get("/runs/colours")
    assert found.status_code == 200
    told = text_of(found.text)
    evaluation = read_json(coloured / "runs" / "colours" / "evaluation.json")
    difference = evaluation["difference"]["accuracy"]
    assert difference["verdict"] == "better"
    shown = f"{100 * evaluation['adapted']['accuracy']:.1f} % accuracy instead of 0.0 % (+"
    assert f"The adapted model is better than its base: {shown}" in told
    assert f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f} points" in told
    for part in ("What is taken for what", "Each label", "What it forgot", "Settings that are not the usual ones",
                 "Loss while it learns", "Learning rate", "Talk to it beside its base"):  # fmt: skip
        assert part in told, part
    told = text_of(page.get("/runs/colours", headers=PT).text)
    assert "O modelo adaptado é melhor que a base:" in told
    assert f"{100 * evaluation['adapted']['accuracy']:.1f} % de acerto em vez de 0,0 %".replace(".", ",") in told
    assert " pontos" in told
    assert "Inglês" in told


def test_the_worst_rows_are_shown_as_text(page: Visitor) -> None:
    run = second(page)
    rows = read_jsonl(run / "predictions.jsonl")
    rows[2] |= {"prompt": HOSTILE, "base": HOSTILE, "adapted": HOSTILE}
    write_jsonl(run / "predictions.jsonl", rows)
    evaluation = read_json(run / "evaluation.json")
    evaluation["groups"]["worst"] = [2, 10_000]
    evaluation["findings"] = [f"It is `{HOSTILE}`."]
    write_json(run / "evaluation.json", evaluation)
    html = page.get("/runs/again").text
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e") == 4
    assert "alert(1)</script>" not in html
    assert 'href="/runs/again/chat?row=3"' in html


def test_a_report_is_given_as_it_is_under_its_own_policy(page: Visitor, coloured: Path) -> None:
    found = page.get("/runs/colours/report.html")
    assert found.content == (coloured / "runs" / "colours" / "report.html").read_bytes()
    policy = found.headers["content-security-policy"]
    own = re.search(r"style-src ('sha256-[^']+')", found.text)
    assert own
    assert f"style-src {own[1]};" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "sandbox" in policy
    run = second(page)
    (run / "report.html").unlink()
    assert page.get("/runs/again/report.html").status_code == 400
    (run / "report.html").symlink_to(coloured / "data" / "colours.jsonl")
    assert page.get("/runs/again/report.html").status_code == 400


@pytest.mark.parametrize("name", ["none", "%2e%2e", "%2e%2e/data", "/etc", ".studio", "colours/adapter/%2e%2e", "a%00"])
def test_what_is_no_run_is_not_found(page: Visitor, name: str) -> None:
    for path in (f"/runs/{name}", f"/runs/{name}/report.html", f"/runs/{name}/chat"):
        assert page.get(path).status_code in (400, 404), path
    assert page.fill(f"/runs/{name}/delete", sure="yes").status_code in (400, 404)


def test_better_than_the_base_alone_is_no_praise(page: Visitor) -> None:
    run = second(page, "constant")
    evaluation = read_json(run / "evaluation.json")
    assert evaluation["difference"][evaluation["main_metric"]]["verdict"] == "better"
    same = evaluation["over_trivial"] | {"verdict": "not distinguishable"}
    write_json(run / "evaluation.json", evaluation | {"over_trivial": same})
    assert "perhaps not than a constant answer" in page.get("/runs").text


def test_only_files_with_the_columns_are_offered(page: Visitor, coloured: Path) -> None:
    alike, other = coloured / "data" / "more.jsonl", coloured / "data" / "aaa.jsonl"
    write_jsonl(alike, read_jsonl(coloured / "data" / "colours.jsonl")[:3])
    write_jsonl(other, [{"other": "x", "third": "y"}] * 3)
    offered = re.findall(r'<option value="(\w+\.jsonl)"', page.get("/runs/colours").text)
    alike.unlink()
    other.unlink()
    assert offered == ["more.jsonl"]


def test_runs_are_listed_with_their_state(page: Visitor) -> None:
    run = second(page, "cut")
    (run / "evaluation.json").unlink()
    events = [row for row in read_jsonl(run / "metrics.jsonl") if row["event"] != "done"]
    write_jsonl(run / "metrics.jsonl", events)
    told = text_of(page.get("/runs").text)
    assert "accuracy 0.0 % →" in told
    assert "Cut off Resume" in told
    assert "has not been evaluated yet" in text_of(page.get("/runs/cut").text)
    assert "Cut off" in text_of(page.get("/judge").text)
    found = page.fill("/runs/cut/resume")
    (work,) = page.studio.queue.all()
    assert (found.headers["location"], work.job, work.about) == (f"/work/{work.id}", "train --resume", "cut")
    assert page.fill("/runs/cut/resume").headers["location"] == f"/work/{work.id}"  # not twice
    html = page.get("/runs").text
    assert f'<a href="/work/{work.id}">At work</a>' in html
    assert "Resume" not in text_of(html)


def test_a_run_that_has_written_nothing_yet_leads_to_its_work(page: Visitor) -> None:
    work = page.studio.queue.add("train", {"data": {"path": "x.csv"}}, "young")
    assert page.get("/runs/young", follow_redirects=False).headers["location"] == f"/work/{work.id}"


def test_two_runs_are_compared(page: Visitor) -> None:
    run = second(page)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["lora"]["rank"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = text_of(page.get("/runs-diff?first=colours&second=again").text)
    assert "The two cannot be told apart: +0.0 points accuracy may be chance" in told
    assert "Size of the adapter (rank) 4 8" in told
    (run / "predictions.jsonl").unlink()
    assert "Their answers are missing" in text_of(page.get("/runs-diff?first=colours&second=again").text)
    assert page.get("/runs-diff?first=colours&second=colours").status_code == 400
    assert page.get("/runs-diff?first=colours&second=../data").status_code == 400


def test_a_run_is_deleted_only_when_asked_and_free(page: Visitor) -> None:
    run = second(page)
    assert page.fill("/runs/again/delete").status_code == 400
    with alone(run):
        assert "is being written" in page.fill("/runs/again/delete", sure="yes").text
    work = page.studio.queue.add("eval", {"run": run, "data": "more.csv"}, "again")
    assert "is in use" in page.fill("/runs/again/delete", sure="yes").text
    page.studio.queue.stop(work)
    assert run.is_dir()
    assert page.fill("/runs/again/delete", sure="yes").headers["location"] == "/runs"
    assert not run.exists()
    inside = second(page, "sweep/lora")
    with alone(inside):
        assert "is being written" in page.fill("/runs/sweep/delete", sure="yes").text
    with alone(inside.parent):
        assert "is being written" in page.fill("/runs/sweep/lora/delete", sure="yes").text
    assert page.fill("/runs/sweep/lora/delete", sure="yes").status_code == 303
    assert [path.name for path in page.studio.workspace.runs.iterdir() if path.name != "sweep"] == ["colours"]


def test_what_to_do_next_is_put_into_the_queue(page: Visitor, coloured: Path) -> None:
    (coloured / "more.csv").write_text("q,a\na1,red\n")
    try:
        page.studio.workspace.keep_reading("more.csv", {"encoding": "cp1252"})
        assert "more.csv" in page.get("/runs/colours").text
        page.fill("/runs/colours/evaluate", file="more.csv")
        work = page.studio.queue.of("colours", ("eval",))
        assert work is not None
        run = str(coloured.resolve() / "runs" / "colours")
        assert work.settings == {"run": run, "data": str(coloured.resolve() / "more.csv"), "encoding": "cp1252"}
        assert page.fill("/runs/colours/evaluate", file="../x.csv").status_code == 400
    finally:
        (coloured / "more.csv").unlink()
    for job in ("compare", "tune"):
        assert page.fill(f"/runs/colours/{job}", minutes="many").status_code == 400
        found = page.fill(f"/runs/colours/{job}", minutes="2,5")
        work = page.studio.queue.of(f"colours-{job}", (job,))
        assert work is not None
        assert found.headers["location"] == f"/work/{work.id}"
        assert work.settings["minutes"] == 2.5
        assert work.settings["run"]["data"]["prompt"] == "{q}"
        assert work.settings["run"]["out"] == str(coloured.resolve() / "runs" / f"colours-{job}")
        assert "--minutes 2.5" in work.command


def test_without_its_data_a_run_is_not_compared(page: Visitor, coloured: Path) -> None:
    data = coloured / "data" / "colours.jsonl"
    data.rename(coloured / "colours.hidden")
    try:
        assert "is not in the workspace any more" in page.get("/runs/colours").text
        assert page.fill("/runs/colours/tune", minutes="2").status_code == 400
    finally:
        (coloured / "colours.hidden").rename(data)


def search(page: Visitor, job: str, finished: bool = True, **files: Any) -> Path:
    """A folder such as a search makes."""
    folder = page.studio.workspace.runs / job
    folder.mkdir()
    plan = {"settings": {"base": "b", "method": "lora", "data": {"path": "/x/rows.csv"}}}
    record = {"search": job, "command": f"afina {job} rows.csv", "finished": finished, "plan": plan}
    (folder / "search.yaml").write_text(yaml.safe_dump(record))
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    return folder


def test_comparisons_and_searches_have_a_page(page: Visitor) -> None:
    lora = {"metric": "accuracy", "quality": 0.9, "interval": [0.8, 0.95], "seconds": 90, "peak_memory_gb": 1.5}
    compared = {"methods": {"lora": lora, "full": {"failed": HOSTILE}}, "metric": "accuracy", "recommended": "lora"}
    folder = search(page, "compare", comparison=compared | {"words": ["Use lora: `it` is best."]})
    (folder / "comparison.html").write_text("<style>p {}</style><p>all of it</p>")
    shutil.copytree(page.studio.workspace.run("colours"), folder / "lora")
    html = page.get("/runs/compare").text
    told = text_of(html)
    for part in (
        "Use lora: it is best.",
        "Adapter (LoRA) 90.0 % 80.0 % – 95.0 % 90 s 1.50 GB",
        "compare/lora : accuracy",
    ):
        assert part in told, part
    assert "alert(1)</script>" not in html
    assert "all of it" in page.get("/runs/compare/report.html").text
    assert page.get("/runs/compare/lora").status_code == 200
    search(page, "tune", tuning={"words": ["The best beats the defaults."], "next_hour": ["more rows"]})
    assert "The best beats the defaults." in page.get("/runs/tune").text
    probe = {"zero_shot": None, "adapted": 0.5, "bits_after": 0.7}
    tried = [{"base": "tiny", "probe": probe, "failed": None}, {"base": "other", "probe": None, "failed": "too large"}]
    search(page, "choose", choice={"metric": "accuracy", "best": "tiny", "tried": tried})
    html = page.get("/runs/choose").text
    assert "tiny learns them best" in html
    assert 'href="/train?data=rows.csv&amp;base=tiny"' in html
    assert "Comparison of methods" in page.get("/runs").text


def test_a_search_that_was_cut_off_goes_on_as_it_was_begun(page: Visitor) -> None:
    search(page, "tune", finished=False)
    assert "There is no result yet." in page.get("/runs/tune").text
    assert "afina tune rows.csv" in unescape(page.fill("/runs/tune/resume").text)  # it was begun in a terminal
    settings = {"minutes": 3, "run": {"data": {"path": "rows.csv"}}}
    page.studio.queue.stop(page.studio.queue.add("tune", settings, "tune"))
    page.fill("/runs/tune/resume")
    work = page.studio.queue.of("tune", ("tune",))
    assert work is not None
    assert (work.state, work.settings["minutes"]) == ("waiting", 3)


def test_a_damaged_run_is_said_to_be_so_and_can_be_deleted(page: Visitor) -> None:
    run = second(page)
    (run / "evaluation.json").write_text("{")
    found = page.get("/runs/again")
    assert found.status_code == 200
    assert "is not valid JSON" in unescape(found.text)
    assert "/runs/again/delete" in found.text
    assert "Cannot be read" in page.get("/runs").text


@pytest.mark.parametrize("language", ["en", "pt"])
def test_each_verdict_has_its_sentence(language: str) -> None:
    words = Words(language)
    said = set()
    for verdict in ("better", "worse", "not distinguishable", "too few rows to tell", "undefined"):
        value = None if verdict == "undefined" else 0.25
        difference = {"value": value, "low": value, "high": value, "rows": 1234, "verdict": verdict}
        evaluation = {
            "base": {"accuracy": 0.5}, "adapted": {"accuracy": 0.75}, "main_metric": "accuracy",
            "difference": {"accuracy": difference}, "over_trivial": difference,
        }  # fmt: skip
        said |= {scores.verdict(words, evaluation), scores.trivial(words, evaluation)}
        said.add(scores.sentence(words, "runs.diff", "accuracy", difference, first="a", second="b"))
    assert len(said) == 15
    assert any(("1.234" if language == "pt" else "1,234") in each for each in said)


def test_structured_answers_are_told_field_by_field() -> None:
    scored = {"field_accuracy": 0.5, "per_field": {"name": 0.25, HOSTILE: 1.0}}
    evaluation = {"base": scored, "adapted": scored, "main_metric": "field_accuracy"}
    (table,) = scores.details(Words("pt"), evaluation)
    assert (table.heading, table.lines[0]) == ("Cada campo", ("name", ["25,0 %", "25,0 %"]))
    many = [f"l{i}" for i in range(13)]
    counts = [[0] * 14 for _ in many]
    counts[3][13] = 7
    confusion = {"confusion": {"labels": many, "counts": counts}}
    (table,) = scores.details(Words("en"), {"base": {}, "adapted": confusion, "main_metric": "accuracy"})
    assert table.lines == [("l3", ["something else", "7"])]
