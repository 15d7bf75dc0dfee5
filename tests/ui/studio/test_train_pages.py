"""The way from a file to a training: the base chosen, three questions answered, the forecast, and what is begun."""

import json
import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from studio_opened import PT, Visitor, opened

import afina
from afina.core.config import fields
from afina.core.device import processor
from afina.core.events import Answers, Notice, row
from afina.core.files import write_json
from afina.settings import RunSettings
from afina.ui.studio import forms, plans
from afina.ui.studio.pages import base as base_page
from afina.ui.studio.pages._preparing import Data, forecast, new_run
from afina.ui.studio.view import Call, link
from afina.ui.studio.words import Words
from afina.ui.studio.work import Work

BYTES = {"content-type": "application/octet-stream"}
ROWS = "text,label\n" + "".join(
    f"a {word} film number {i},{label}\n" for i in range(40) for word, label in (("great", "good"), ("bad", "poor"))
)
SEEN = {"fits": True, "seconds": 100.0, "evaluation_seconds": 20.0, "epoch_seconds": 30.0, "epochs": 3.0}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Visitor]:
    """A workspace in which nothing begins."""
    with opened(tmp_path / "workspace", works=False) as visitor:
        yield visitor


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def brought(page: Visitor, ready: bool = True) -> Path:
    """A file of the workspace whose rows were looked at."""
    path = page.studio.workspace.data / "films.csv"
    path.write_text(ROWS)
    data = {"path": str(path), "prompt": "{text}", "completion": "{label}", "kind": "classification"}
    work = page.studio.queue.add("data check", {"data": data}, "films.csv")
    write_json(work.folder / "result.json", {"ready": ready, "languages": {"en": 70, "?": 9, "pt": 1}})
    return path


def foreseen(page: Visitor, path: str, **more: object) -> Work:
    """Asks a page, and gives the forecast that it asked for what it would find."""
    assert page.get(path).status_code == 200
    work = page.studio.queue.of("films.csv", ("fit",))
    assert work is not None
    memory = {"total": 1.5}
    found = SEEN | {"memory_gb": memory, "available_gb": 4.0, "disk_gb": 0.1, "download_gb": 0.0, **more}
    write_json(work.folder / "result.json", {"work": {"rows": 100}, "methods": {"lora": found}})
    return work


def finished(page: Visitor, work: Work) -> Work:
    end = time.monotonic() + 240
    queue = page.studio.queue
    while (not work.ended or work.id in queue._started) and time.monotonic() < end:
        queue.look()
        time.sleep(0.1)
    assert work.state == "done", work.log
    return work


def test_from_a_file_to_a_run(tmp_path: Path, tiny_folder: Path, forked_work: None) -> None:
    with opened(tmp_path / "workspace") as page:
        told = page.post("/upload/films.csv", content=ROWS.encode(), headers=BYTES)
        assert page.get(told.json()["page"]).status_code == 200
        finished(page, page.studio.queue.of("films.csv", ("data check",)))
        asked = {"data": "films.csv", "base": str(tiny_folder), "quality": "look", "asked": "1"}
        asked |= {"precision": "fp32", "lora.rank": "4"}
        address = link("/train", **asked)
        shown = page.get(address)
        assert 'formaction="/train"' not in shown.text  # before the forecast nothing can be begun
        assert page.fill("/train", **asked).headers["location"] == address
        assert finished(page, page.studio.queue.of("films.csv", ("fit",))).result["methods"]["lora"]["fits"]
        told = text_of(page.get(address).text)
        assert "Start the training" in told
        assert "not in the catalogue" not in told  # no language matters
        begun = page.fill("/train", **asked)
        work = finished(page, page.studio.queue[begun.headers["location"].removeprefix("/work/")])
        assert (work.job, work.about) == ("train", "films")
        run = page.studio.workspace.run("films")
        config = (run / "config.yaml").read_text()
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        assert (run / "evaluation.json").is_file()
        assert {len(each.samples) for each in work.events() if isinstance(each, Answers)} == {3}
        assert re.search(r"^  rank: 4$", config, re.MULTILINE)
        assert work.settings["train"] == {
            "rows": 90,
            "samples": 3,
        }  # a quarter of the 72 rows that are not held out, five times
        assert f"afina train {page.studio.workspace.data / 'films.csv'}" in work.command


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("/train", "First choose the data"), ("/train?data=films.csv", "Nobody has looked at all the rows"),
        ("/train?data=../x", "There is no file ../x"), ("/base", "First choose the data"),
        ("/base?data=films.csv", "Nobody has looked"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_and_linked(address: str, told: str, page: Visitor) -> None:
    (page.studio.workspace.data / "films.csv").write_text(ROWS)
    shown = page.get(address)
    assert shown.status_code == 200
    assert told in text_of(shown.text)
    assert re.search(r'href="(/data/films\.csv|/data|\?data=films\.csv[^"]*)"', shown.text)
    assert 'formaction="/train"' not in shown.text


def test_the_last_data_and_base_are_remembered(page: Visitor) -> None:
    assert "verdict bad" not in page.get("/train").text  # who did nothing wrong
    path = brought(page)
    assert page.get("/train", follow_redirects=False).headers["location"] == "/train?data=films.csv"
    page.get("/train?data=films.csv&base=starter")
    assert page.get("/train", follow_redirects=False).headers["location"].startswith("/train?data=films.csv&base=start")
    path.unlink()
    assert "First choose the data" in text_of(page.get("/train").text)


def test_data_that_are_not_ready_are_not_trained_on(page: Visitor) -> None:
    brought(page, ready=False)
    assert "is not ready" in text_of(page.get("/train?data=films.csv&base=starter").text)
    page.fill("/train", data="films.csv", base="starter")
    assert page.studio.queue.of("films", ("train",)) is None


def test_a_check_of_the_file_as_it_was_is_none(page: Visitor) -> None:
    path = brought(page)
    assert "First choose the base" in text_of(page.get("/train?data=films.csv").text)
    time.sleep(0.05)
    path.write_text(ROWS + ROWS)
    assert "Nobody has looked" in text_of(page.get("/train?data=films.csv").text)


def test_an_address_holds_what_was_answered_alone(page: Visitor) -> None:
    brought(page)
    empty = {info.path: "" for info in fields(RunSettings)} | {"lora.rank": "16", "lora.alpha": " 8 ", "seed": "0"}
    answered = {"data": "films.csv", "base": "starter", "minutes": "", "quality": "best", "speaks.pt": "yes"}
    answered["asked"] = "1"
    found = page.get("/train", params=empty | answered, follow_redirects=False)
    assert found.status_code == 303
    asked = dict(parse_qsl(urlsplit(found.headers["location"]).query))
    assert asked == {
        "data": "films.csv", "base": "starter", "quality": "best", "asked": "1", "speaks.pt": "yes", "lora.alpha": "8"
    }  # fmt: skip
    assert page.get(found.headers["location"], follow_redirects=False).status_code == 200


def test_wrong_settings_are_shown_with_what_was_typed(page: Visitor) -> None:
    brought(page)
    wrong = {"data": "films.csv", "base": "starter", "lora.rank": "many", "train.warmup": "2", "asked": "1"}
    for shown in (page.get("/train", params=wrong), page.fill("/train", **wrong)):
        told = text_of(shown.text)
        assert "“Size of the adapter (rank)” is 'many'" in told
        assert "“Share of the steps to warm up” is 2" in told
        assert 'name="lora.rank" value="many"' in shown.text
    assert shown.status_code == 400
    assert page.studio.queue.of("films.csv", ("fit",)) is None


def test_what_the_base_and_the_data_lack_is_said(page: Visitor) -> None:
    brought(page)
    address = "/train?data=films.csv&base=starter"
    assert 'name="speaks.en" value="yes" checked' in page.get(address).text  # the language of the data
    told = text_of(page.get(f"{address}&quality=good&asked=1&speaks.pt=yes&speaks.ja=yes").text)
    assert "Portuguese: nobody says that SmolLM2-135M-Instruct (GGUF, Q4_1) knows this language" in told
    assert "Japanese: nobody says" in told
    assert "Portuguese: hardly any of your rows" in told
    assert "English: " not in told
    assert "Japonês: ninguém diz" in text_of(page.get(f"{address}&asked=1&speaks.ja=yes", headers=PT).text)


def test_what_does_not_fit_is_refused_with_ways_out(page: Visitor) -> None:
    brought(page)
    address = "/train?data=films.csv&base=starter&quality=good&asked=1"
    flags = "--train.tokens_per_pass 256 --quantize nf4"
    foreseen(
        page, address, fits=False, available_gb=1.0,
        remedies=[{"flags": flags, "memory_gb": 0.9, "seconds": 300.0}],
        bases=[{"base": "smollm2-135m", "memory_gb": 0.8, "seconds": 60.0}],
    )  # fmt: skip
    shown = page.get(address)
    assert "it needs about 1.5 GB of memory, and 1.0 GB are free" in text_of(shown.text)
    ways = [
        dict(parse_qsl(urlsplit(unescape(each)).query))
        for each in re.findall(r'class="button" href="([^"]+)"', shown.text)
    ]
    assert {"train.tokens_per_pass": "256", "quantize": "nf4"}.items() <= ways[0].items()
    assert ways[1]["base"] == "smollm2-135m"
    assert 'formaction="/train"' not in shown.text
    form = {"data": "films.csv", "base": "starter", "quality": "good", "asked": "1"}
    assert page.fill("/train", **form).headers["location"].startswith("/train?")
    assert page.studio.queue.of("films", ("train",)) is None
    foreseen(page, f"{address}&allow_swap=true", fits=False, available_gb=1.0)
    assert page.fill("/train", **form, allow_swap="true").headers["location"].startswith("/work/")


def test_each_button_begins_its_job_in_a_folder_of_its_own(page: Visitor) -> None:
    brought(page)
    form = {"data": "films.csv", "base": "starter", "asked": "1", "lora.rank": "4", "train.eval_steps": "7"}
    foreseen(page, link("/train", quality="good", **form))
    begun = []
    for path, more in (
        ("/train", {"minutes": "5"}), ("/train", {}), ("/train", {"quality": "best"}), ("/train/compare", {}),
    ):  # fmt: skip
        found = page.fill(path, **{"quality": "good", **form, **more})
        begun.append(page.studio.queue[found.headers["location"].removeprefix("/work/")])
    assert [(work.job, work.about) for work in begun] == [
        ("train", "films"), ("train", "films-2"), ("tune", "films-tune"), ("compare", "films-compare"),
    ]  # fmt: skip
    short, plain, search, comparison = (work.settings for work in begun)
    assert plain["lora"] == {"rank": 4}
    assert plain["train"] == {"eval_steps": 7, "samples": 3}
    assert plain["out"] == str(page.studio.workspace.runs / "films-2")
    assert plain["data"]["completion"] == "{label}"
    assert short["train"] == plain["train"]  # there is time for all of it
    assert search["minutes"] == 16.0
    assert "lora" not in search["run"]
    assert search["run"]["train"] == comparison["run"]["train"] == {"eval_steps": 7}
    assert comparison["run"]["lora"] == {"rank": 4}


def test_the_answers_become_rows_and_minutes() -> None:
    def planned(minutes: int | None, quality: plans.Quality, **seen: float) -> plans.Plan:
        return plans.plan(plans.Answers(minutes, quality, ()), SEEN | seen, 100)

    whole = planned(None, "good")
    assert (whole.settings, whole.seconds) == ({}, pytest.approx(120.0))
    assert planned(5, "good") == whole
    look = planned(None, "look")
    assert (look.settings, look.seconds) == ({"train.rows": 75}, pytest.approx(30 + 75 * 0.3))
    cut = planned(5, "good", seconds=1000.0, epoch_seconds=300.0)  # 100 + 20 s beside 3 s a row
    assert (cut.settings, cut.seconds) == ({"train.rows": 60}, pytest.approx(300.0))
    assert [key for key, _ in cut.told] == ["plan_cut", "plan_part"]
    least = planned(5, "good", evaluation_seconds=1000.0)
    assert (least.settings, [key for key, _ in least.told][1]) == ({"train.rows": 8}, "plan_least")
    search = planned(5, "best")
    assert (search.job, search.minutes, [key for key, _ in search.told]) == ("tune", 5.0, ["plan_search", "plan_short"])
    assert planned(None, "best").minutes == 16.0
    assert plans.plan(plans.Answers(5, "look", ()), None, 0).settings == {}


def test_each_setting_that_is_shown_can_be_read() -> None:
    shown = [field for group in forms.groups({}, Words("en")).values() for field in group]
    assert {"lora.rank", "train.epochs", "data.limit", "quantize", "seed"} <= {field.path for field in shown}
    assert not {"data.path", "data.prompt", "out", "base", "overwrite", "device", "track"} & {f.path for f in shown}
    assert all(field.help for field in shown)
    kinds = {field.path: (field.kind, field.default, field.choices) for field in shown}
    assert kinds["train.checkpoint_activations"] == ("choice", "", ("true", "false"))
    assert kinds["train.share"] == ("choice", "true", ("true", "false"))
    assert kinds["data.eval_path"][0] == "file"
    assert "nf4" in kinds["quantize"][2]
    assert forms.typed_in({field.path: field.default for field in shown}) == {}


def test_the_catalogue_is_filtered(page: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(page)
    plain = page.get("/base?data=films.csv&asked=1").text
    some = page.get("/base?data=films.csv&asked=1&language=pt&licence=apache-2.0&task=translation").text
    assert plain.count('<option value="de">') == 1
    assert plain.count('class="card"') > some.count('class="card"') > 5
    assert link("/train", data="films.csv", base="qwen3-0.6b").replace("&", "&amp;") in some
    assert "no task" in page.get("/base?task=nothing").text
    reckoned = page.studio.queue.of(processor(), ("models list",))
    assert reckoned is not None
    assert reckoned.settings == {"memory": True}
    write_json(reckoned.folder / "result.json", {"qwen3-0.6b": {"needs_gb": 3.5}, "qwen3-8b": {"needs_gb": 33.0}})
    monkeypatch.setattr("afina.ui.studio.pages.base.free_bytes", lambda _: int(4e9))
    fitting = text_of(page.get("/base?data=films.csv").text)
    assert "Needs about 3.5 GB of memory" in fitting
    assert "Qwen3 8B" not in fitting
    monkeypatch.setattr("afina.ui.studio.pages.base.free_bytes", lambda _: int(40e9))
    assert "Qwen3 8B" in text_of(page.get("/base?data=films.csv").text)  # memory is free again, nothing is reckoned
    assert [work.job for work in page.studio.queue.all()].count("models list") == 1


def test_afina_chooses(page: Visitor) -> None:
    path = brought(page)
    page.get("/base?data=films.csv")
    assert page.fill("/base/choose", data="films.csv", minutes="soon").status_code == 400
    assert page.fill("/base/choose", data="gone.csv", minutes="5").headers["location"] == "/base?data=gone.csv"
    begun = page.fill("/base/choose", data="films.csv", minutes="2,5", commercial="yes")
    work = page.studio.queue[begun.headers["location"].removeprefix("/work/")]
    assert (work.job, work.about, work.settings["minutes"], work.settings["licence"]) == (
        "choose", "films-choose", 2.5, "commercial",
    )  # fmt: skip
    assert work.settings["run"]["data"]["path"] == str(path)
    assert "It waits" in text_of(page.get("/base?data=films.csv").text)
    found = {"best": "qwen3-0.6b", "revision": "abc", "tried": [{}, {}], "share": 0.25, "lead": {"verdict": "better"}}
    write_json(work.folder / "result.json", found)
    shown = page.get("/base?data=films.csv").text
    assert "Afina chose Qwen3 0.6B, of 2 tried on your rows, each for 25 % of a training." in text_of(shown)
    assert "by more than chance" in text_of(shown)
    assert link("/train", data="films.csv", base="qwen3-0.6b", revision="abc").replace("&", "&amp;") in shown


def test_folders_and_forecasts_are_not_shared(page: Visitor) -> None:
    path = brought(page)
    call = Call(page.studio, None, {"data": "films.csv"})  # type: ignore[arg-type]
    data = Data.chosen(call)
    run = {"data": data.settings}
    first = forecast(call, data, "starter", "lora", run)
    assert forecast(call, data, "starter", "lora", run) is first
    assert forecast(call, data, "starter", "lora", run | {"seed": 1}) is not first
    assert new_run(call, "films").name == "films"
    page.studio.queue.add("train", afina.RunSettings(data={"path": path}), "films")
    assert new_run(call, "films").name == "films-2"
    (page.studio.workspace.runs / "films-2").mkdir()
    assert new_run(call, "films").name == "films-3"


def test_numbers_are_typed_as_the_reader_writes_them(page: Visitor) -> None:
    typed = {
        "train.learning_rate": "0,001", "train.rows": "1.000", "lora.layers": "1,2", "train.weight_decay": "0.01",
        "data.test": "1.234,5",
    }  # fmt: skip
    found = forms.values(typed, page.studio.workspace, Words("pt"))
    assert found == {
        "train.learning_rate": 0.001, "train.rows": 1000, "lora.layers": "1,2", "train.weight_decay": 0.01,
        "data.test": 1234.5,
    }  # fmt: skip
    assert forms.values(typed, page.studio.workspace, Words("en"))["train.learning_rate"] == "0,001"
    (warmup,) = (each for each in forms.groups({}, Words("pt"))["train"] if each.path == "train.warmup")
    assert warmup.default == "0,05"


def test_what_a_job_warns_of_stands_apart_in_the_readers_words(page: Visitor) -> None:
    brought(page)
    work = page.studio.queue.add("choose", {"minutes": 1, "run": {"data": {"path": "x.csv"}}}, "films-choose")
    told = [Notice("rank 16"), Notice("data: 32 rows are exact copies of others", warning=True)]
    (work.folder / "events.jsonl").write_text("".join(json.dumps(row(each)) + "\n" for each in told))
    shown = page.get(f"/work/{work.id}", headers=PT).text
    before, _, closed = shown.partition("<details>")
    assert "Atenção: dados: 32 linhas são cópias exatas de outras" in text_of(before)
    assert "rank 16" in closed
    assert "learned so far" not in page.get(f"/work/{work.id}").text  # nothing was learned


def test_one_base_is_no_choice(page: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(page)
    monkeypatch.setattr(base_page, "is_local", lambda name, *more: name == "starter")
    assert "Only one base is on this disk" in text_of(page.get("/base?data=films.csv").text)
    page.headers.update(PT)
    begun = page.fill("/base/choose", data="films.csv", minutes="2,5").headers["location"].removeprefix("/work/")
    assert page.studio.queue[begun].about == "films-escolha"
