"""The page in a browser, from a file to a judged model: what is seen, what survives, what leaves the machine (nothing).

`make check-page` runs the same on the starter model and holds the page to its figures (`--starter`); with
`--pictures DIR` each page is drawn there at two widths, light and dark, in both languages. `--walked DIR` keeps the
workspace there, and walks through it once only.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import USER_CACHE, own_cache
from forked import Forked
from studio_opened import english
from studio_works import gone, until

from afina.core.device import processor

sync_api = pytest.importorskip("playwright.sync_api", reason="needs afina[page] (Playwright)")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs afina[page] (axe)")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (apt-get install chromium)"),
    pytest.mark.timeout(1_800),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
MOST_BYTES = 150_000  # of a page with all that it fetches
FIRST_PAINT, LATEST_EVENT = 0.3, 0.5  # seconds; of other tests none depends on speed
ONE_THREAD = {"threads": "1"}  # for models this small threads only wait for each other
SLOW = 1_200_000  # milliseconds that a training may take


class Server:
    """`afina studio` on a workspace, as it is typed: at the same port each time that it starts. Where it is `typed`,
    it and its work import the libraries; else they have them."""

    def __init__(self, workspace: Path, cache: Path, typed: bool) -> None:
        self.workspace, self.cache, self.typed, self.port = workspace, cache, typed, 0
        self.start()

    def start(self) -> None:
        words = ["studio", "--workspace", str(self.workspace), "--port", str(self.port), "--no-browser"]
        own = {"AFINA_CACHE": str(self.cache)}
        ours, theirs = os.pipe()
        with open(theirs, "w") as stdout:
            if self.typed:  # the speed of this many threads is measured once
                env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | own
                self.process = subprocess.Popen([sys.executable, "-m", "afina", *words], stdout=stdout, env=env)
            else:
                code = "import studio_works; studio_works.serve()"
                self.process = Forked(words, stdout=stdout, code=code, env=dict(os.environ) | own)
        with open(ours) as said:
            self.entrance = said.readline().strip()
        self.address = self.entrance.partition("/?")[0]
        self.port = int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def work(self) -> Path:
        """The folder of the newest work."""
        return max((self.workspace / ".studio" / "work").glob("*/work.json")).parent

    def kill_worker(self) -> None:
        pid = json.loads((self.work() / "process.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))

    def end(self) -> None:
        self.kill()
        for told in (self.workspace / ".studio" / "work").glob("*/process.json"):
            if not {"result.json", "error.json"} & {*os.listdir(told.parent)}:
                pid = json.loads(told.read_text())["pid"]
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)


class Browser:
    """Its tabs note what they ask of others, and what goes wrong in them."""

    def __init__(self, chromium: Any, server: Server, **more: Any) -> None:
        self.server, self.foreign, self.wrong = server, list[str](), list[str]()
        self.context = chromium.new_context(**more)
        self.context.set_default_timeout(60_000)
        self.context.on("request", self._note)
        self.context.on("console", self._hear)
        self.context.on("weberror", lambda error: self.wrong.append(str(error.error)))
        self.tab(server.entrance.removeprefix(server.address)).close()

    def _note(self, request: Any) -> None:
        if not request.url.startswith(self.server.address):
            self.foreign.append(request.url)

    def _hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.wrong.append(f"{said.location} {said.text}")

    def tab(self, path: str) -> Any:
        page = self.context.new_page()
        page.goto(self.server.address + path)
        return page


@pytest.fixture(scope="module")
def on_starter(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--starter"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--walked")
    return Path(given) if given else tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory, on_starter: bool) -> Iterator[Server]:
    cache = USER_CACHE if on_starter else own_cache(tmp_path_factory.mktemp("cached") / "cache")
    if not on_starter:
        (cache / "models").unlink()  # nothing is forecast for bases that nobody chose
        _reckoned(folder / "workspace" / ".studio" / "work" / "0000000000000-000000")
    made = Server(folder / "workspace", cache, typed=on_starter)
    yield made
    made.end()


def _reckoned(work: Path) -> None:
    """What each base takes on this machine, of which one is known: to find it out of all takes twenty seconds."""
    work.mkdir(parents=True)
    (work / "work.json").write_text(
        json.dumps({"job": "models list", "about": processor(), "settings": {"memory": True}})
    )
    (work / "result.json").write_text(json.dumps({"qwen3-0.6b": {"needs_gb": 1.5}}))


@pytest.fixture(scope="module")
def browser(chromium: Any, server: Server) -> Iterator[Browser]:
    made = Browser(chromium, server, locale="en-GB", viewport={"width": 1280, "height": 900})
    yield made
    made.context.close()


def _tickets(folder: Path) -> Path:
    """A task that a small model learns."""
    kinds = (("O pacote não chegou", "entrega"), ("Fui cobrado duas vezes", "pagamento"), ("Como faço login", "conta"))
    rows = [f"{kinds[i % 3][0]} {i},{kinds[i % 3][1]}" for i in range(150)]
    (folder / "tickets.csv").write_text("message,category\n" + "\n".join(rows) + "\n")
    return folder / "tickets.csv"


Walked = dict[str, str]
_figures: dict[str, list[float]] = {}


@pytest.fixture(scope="module")
def walked(browser: Browser, folder: Path, on_starter: bool, tiny_folder: Path) -> Walked:
    """The addresses of the pages that one comes through from a file to a judged run."""
    kept = folder / "walked.json"
    if not kept.exists():
        shutil.copytree(tiny_folder, folder / "tiny-base", dirs_exist_ok=True)
        base = "starter" if on_starter else str(folder / "tiny-base")
        kept.write_text(json.dumps(_walk(browser, base, _tickets(folder), 80 if on_starter else 2400)))
    found: Walked = json.loads(kept.read_text())
    return found


def _walk(browser: Browser, base: str, rows: Path, steps: int) -> Walked:
    """As people do it. On the way the server is killed and started again, and the trainer is killed and resumed."""
    server = browser.server
    page, found = browser.tab("/"), {"home": "/"}

    def here(name: str) -> None:
        found[name] = page.url.removeprefix(server.address)

    page.click("text=Begin with the data")
    page.wait_for_url("**/data")
    here("data")
    page.set_input_files("input[type=file]", rows)
    page.wait_for_url("**/data/tickets.csv")
    page.wait_for_selector("text=It is ready for training.")
    assert "The model reads message and answers category" in page.inner_text("main")
    here("file")
    page.click("text=Go on to the base")
    page.wait_for_url("**/base?**")
    here("base")
    page.fill("input[name=base]", base)
    page.click("form[action='/train'] button")
    page.wait_for_url("**/train?**")
    page.wait_for_selector("button[formaction='/train']", timeout=SLOW)  # the page comes again with its forecast
    wanted = {"rows": 8 * steps, "batch_size": 8, "eval_steps": steps // 10, "early_stopping": 0}
    _set(
        page,
        {f"train.{name}": str(value) for name, value in wanted.items()} | ({} if base == "starter" else ONE_THREAD),
    )
    page.wait_for_selector("button[formaction='/train']", timeout=SLOW)
    here("train")
    page.click("button[formaction='/train']")
    page.wait_for_url("**/work/**")
    here("training")
    page.wait_for_selector("svg.chart", timeout=SLOW)
    _watched(page, browser, found["training"])
    page.click("button:has-text('Resume')")
    page.wait_for_url(lambda url: not url.endswith(found["training"]))
    here("resumed")
    page.wait_for_selector("svg.chart", timeout=SLOW)
    _goes_on(page, browser)
    page.wait_for_selector("text=It is finished.", timeout=SLOW)
    page.click("text=See the result")
    page.wait_for_url("**/runs/**")
    here("run")
    page.close()
    name = found["run"].removeprefix("/runs/")
    found |= {"runs": "/runs", "judge": "/judge", "ship": "/ship"}
    return found | {"ship_run": f"/ship/{name}", "chat": f"/runs/{name}/chat"}


def _set(page: Any, settings: dict[str, str]) -> None:
    """Fills in settings for experts, and asks for the forecast anew."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for path, value in settings.items():
        page.locator(f"[id='{path}']").fill(value)
    page.click("#answers button:not([formaction])")
    page.wait_for_load_state()


def _watched(page: Any, browser: Browser, address: str) -> None:
    """A training in two tabs, one of them loaded again in the midst of it, until its process is killed."""
    server = browser.server
    page.reload()
    page.wait_for_selector("svg.chart")
    second = browser.tab(address)
    second.wait_for_selector("svg.chart")
    assert second.inner_text("h1") == page.inner_text("h1")
    _figures["event"] = [_seconds_of_an_event(page, server, i) for i in range(7)]
    server.kill_worker()
    for each in (page, second):
        each.wait_for_selector("text=Its process is gone without a word")
    second.close()
    assert not browser.wrong


def _goes_on(page: Any, browser: Browser) -> None:
    """The server is killed and started again: training goes on meanwhile, and the tab afterwards, by itself."""
    server = browser.server
    events = server.work() / "events.jsonl"
    shown = page.inner_text("dl.numbers")
    server.kill()
    size = events.stat().st_size
    until(lambda: events.stat().st_size > size)
    server.start()
    page.wait_for_function("shown => document.querySelector('dl.numbers').innerText !== shown", arg=shown)
    browser.wrong.clear()  # that nobody answered was said


def _seconds_of_an_event(page: Any, server: Server, number: int) -> float:
    """From its line in the file until it stands on the page."""
    text = f"mark {number} of the test"
    page.bring_to_front()  # a tab that nobody sees is drawn once a second
    handle = os.open(server.work() / "events.jsonl", os.O_WRONLY | os.O_APPEND)
    os.write(handle, (json.dumps({"event": "notice", "text": text}) + "\n").encode())
    os.close(handle)
    begun = time.monotonic()
    page.wait_for_function("text => document.body.textContent.includes(text)", arg=text)
    return time.monotonic() - begun


def _weight(page: Any) -> int:
    """The bytes of a page with all that it fetched, but for streams."""
    return page.evaluate(
        """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
        .filter((each) => !each.name.endsWith("/events")).reduce((sum, each) => sum + each.decodedBodySize, 0)"""
    )


def test_the_run_is_judged(walked: Walked, browser: Browser) -> None:
    page = browser.tab(walked["run"])
    assert page.inner_text(".verdict")
    assert page.locator("table").count() > 1
    assert "tickets.csv" in page.inner_text("main")
    page.close()


def _faults(page: Any) -> list[str]:
    """What is wrong with a page for those who see, hear or hold it otherwise, and its weight."""
    found = axe.Axe().run(page).response["violations"]
    wrong = [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        wrong.append("it is wider than the window")
    if (weight := _weight(page)) > MOST_BYTES:
        wrong.append(f"{weight:,} bytes")
    return [f"{page.url}: {each}" for each in wrong]


@pytest.mark.parametrize(("width", "scheme", "language"), [(1280, "light", "en-GB"), (360, "dark", "pt-BR")])
def test_every_page_is_light_and_for_everybody(
    width: int, scheme: str, language: str, walked: Walked, chromium: Any, server: Server
) -> None:
    viewport = {"width": width, "height": 800}
    browser = Browser(chromium, server, locale=language, color_scheme=scheme, viewport=viewport)
    page, found = browser.tab("/"), []
    for address in walked.values():
        page.goto(server.address + address)
        assert page.get_attribute("html", "lang") == language[:2]
        if language == "pt-BR":
            found += [f"{page.url}: {each}" for each in english(page.content())]
        page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        _figures.setdefault("first paint", []).append(paint / 1000)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        found += _faults(page)
    browser.context.close()
    assert not found + browser.wrong + browser.foreign


def test_the_figures(walked: Walked, on_starter: bool, capsys: pytest.CaptureFixture[str]) -> None:
    told = {name: (statistics.median(values), max(values)) for name, values in _figures.items()}
    with capsys.disabled():
        for name, (middle, most) in told.items():
            print(f"\n{name}: median {middle:.3f} s, at most {most:.3f} s", end="")
    for name, bound in {"first paint": FIRST_PAINT, "event": LATEST_EVENT}.items() if on_starter else ():
        assert told[name][0] < bound


def test_a_chat_beside_the_base(walked: Walked, browser: Browser) -> None:
    page = browser.tab(walked["run"])
    page.click("text=Talk to it")
    page.wait_for_selector("textarea[name=prompt]", timeout=SLOW)
    page.evaluate(  # notes what is sent
        """() => { const real = window.fetch; window.sent = [];
        window.fetch = (url, how) => {
        if (how) window.sent.push(JSON.parse(how.body).messages);
        return real(url, how); } }"""
    )
    assert page.is_checked("[name=alone]")  # it learned from single questions
    page.uncheck("[name=alone]")
    for number, prompt in enumerate(("O pacote não chegou 12", "Fui cobrado duas vezes 12"), 1):
        page.fill("textarea[name=prompt]", prompt)
        page.click("button:has-text('Ask')")
        page.wait_for_selector(f"[data-turn='{number - 1}'] [data-prompt]")
        page.wait_for_selector("[data-leave]", state="hidden", timeout=SLOW)
        assert page.locator("[data-model]").count() == 2 * number
        assert page.input_value("textarea[name=prompt]") == ""
    answers = page.locator("[data-turn='0'] [data-answer]").all_inner_texts()
    sent = page.evaluate("window.sent")
    for said, answer in zip(sent[2:], answers, strict=True):  # each goes on from its own answer, if it gave one
        assert len(said) == (3 if answer else 1)
        assert said[-1] == {"role": "user", "content": "Fui cobrado duas vezes 12"}
    assert any(answers)
    assert not _faults(page)
    better = page.locator("[data-better]:visible")
    if better.count():
        better.first.locator("button").first.click()
        kept = page.get_attribute("[data-chat]", "data-kept")
        page.wait_for_function("kept => document.body.innerText.includes(kept)", arg=kept)
    page.reload()
    assert page.locator("[data-turn] [data-answer]").all_inner_texts()[: len(answers)] == answers
    page.click("text=Begin anew")
    page.wait_for_selector("[data-turn]", state="detached")
    page.click("text=Close the chat")
    page.wait_for_url(f"**{walked['run']}")
    page.close()
    assert not browser.wrong


def test_files_that_are_odd(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"\x00\x01\xff\xfe" * 99)
    (tmp_path / "cities.csv").write_text(
        "text,label\n"
        + "".join(f"Moro em SÃ£o Paulo hÃ¡ {i} anos,sim\nNÃ£o moro lÃ¡ hÃ¡ {i} anos,nÃ£o\n" for i in range(40))
    )
    (tmp_path / "copies.csv").write_text("text,label\n" + "a great film indeed,good\na bad film indeed,poor\n" * 40)
    with (tmp_path / "million.csv").open("w") as file:
        file.write("text,label\n")
        file.writelines(f"row {i},{'ab'[i % 2]}\n" for i in range(1_000_000))
    (tmp_path / "notes.exe").write_bytes(b"MZ")
    for name, said in {
        "bad.csv": "What to do:", "cities.csv": "Letters are damaged in", "copies.csv": "repeat others exactly",
        "million.csv": "All rows are being looked at", "notes.exe": "is no file of examples",
    }.items():  # fmt: skip
        page = browser.tab("/data")
        browser.wrong.clear()
        page.set_input_files("input[type=file]", tmp_path / name)
        page.wait_for_selector(f"text={said}")
        assert not _faults(page)
        assert [each for each in browser.wrong if "400" not in each] == []
        if name == "million.csv":
            _deleted(page, browser.server)
        page.close()
    browser.wrong.clear()


def _deleted(page: Any, server: Server) -> None:
    """The file, and the look at its rows that goes on."""
    check = server.work()
    page.click("summary:has-text('Delete this file')")
    page.check("input[name=sure]")
    page.click("details button.danger:visible")
    page.wait_for_url("**/data")
    until(lambda: (check / "error.json").exists())


def test_it_can_be_read_and_walked_without_script(walked: Walked, chromium: Any, server: Server) -> None:
    plain = Browser(chromium, server, java_script_enabled=False, locale="en-GB")
    (server.workspace / "data" / "by_hand.csv").write_text(
        "text,label\n" + "".join(f"a great film {i},good\na bad film {i},poor\n" for i in range(40))
    )
    page = plain.tab("/")
    for address in walked.values():
        page.goto(server.address + address)
        assert page.inner_text("h1")
    page.goto(f"{server.address}/data")
    page.click("text=by_hand.csv")
    page.click("text=Change it")
    page.fill("#prompt", "Film: {text}")
    page.click("text=Read it so")
    assert "Film: text" in page.inner_text(".verdict >> nth=0")
    page.wait_for_selector("text=Go on to the base")  # the page comes again by itself
    page.click("text=Go on to the base")
    assert "by_hand.csv" in page.inner_text("main")
    assert not plain.foreign
    plain.context.close()


def test_nothing_leaves_the_machine(walked: Walked, browser: Browser) -> None:
    assert not browser.foreign


def test_pictures(walked: Walked, chromium: Any, server: Server, request: pytest.FixtureRequest) -> None:
    folder = request.config.getoption("--pictures")
    if folder is None:
        pytest.skip("give --pictures DIR")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for language in ("en-GB", "pt-BR"):
        browser = Browser(chromium, server, locale=language)
        page = browser.tab("/")
        for name, address in (walked | {"wrong": "/data/none.csv", "row": "/data/tickets.csv?row=1"}).items():
            page.goto(server.address + address)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                for width in (360, 1280):
                    page.set_viewport_size({"width": width, "height": 800})
                    page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}-{language[:2]}.png", full_page=True)
        browser.context.close()
