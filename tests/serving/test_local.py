"""The service of a process: whose weights answer under a name, loading, replacing, unloading, limits, cancelling."""

import asyncio
import gc
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from adapters_made import alone, made, pieces, run, text
from safetensors.torch import load_file, save_file

from afina.core.errors import AdapterError
from afina.core.events import Notice
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.models import Base, batcher
from afina.models.sampling import Sampling
from afina.serving import adapters, engine
from afina.serving.engine import Limits
from afina.serving.local import LocalHandle, LocalService
from afina.serving.service import Conflict, NoMemory, QueueFull, ServiceFault, Stopping, TooLong, UnknownModel, Wanted

LIMITS = Limits(max_batch=8, max_queue=4, memory=50_000_000)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters that differ in what must be read right."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "lora": made(tiny_folder, root / "lora", 1, facts={}),
        "rslora": made(tiny_folder, root / "rslora", 2, rslora=True, rank=9, alpha=5),
        "patterns": made(
            tiny_folder, root / "patterns", 3, rank_pattern={"q_proj": 7}, alpha_pattern={"layers.1.*down_proj": 50.0}
        ),
        "head": made(tiny_folder, root / "head", 4, target_modules=("q_proj", "lm_head"), facts={}),
    }


@pytest.fixture
def service(tiny: Base, folders: dict[str, Path]) -> Iterator[LocalService]:
    found = LocalService(tiny, LIMITS, [folders["lora"].parent])
    found.start()
    run(found.look())
    yield found
    found.close()


async def opened(service: LocalService, name: str) -> LocalHandle:
    """A model as a request opens it."""
    await service.look(name)
    return service.open(name)


def prompt_of(base: Base, said: str = "what is it about?") -> list[int]:
    return base.tokenizer.encode(said)


def test_what_computes_takes_the_bases_device(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card that torch takes by itself is each thread's own: the engine's must be told, too."""
    told: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(engine, "use", lambda device: told.append((threading.current_thread().name, device)))
    service = LocalService(tiny, LIMITS)
    service.start()
    service.close()
    assert told == [("afina-engine", torch.device("cpu"))]


def test_every_name_answers_with_its_own_weights(service: LocalService, folders: dict[str, Path]) -> None:
    """Complaints 3, 8, 10, 14: forms of LoRA and the base in one batch, each as in place alone; loaded on first use."""
    base = service.base

    async def ask() -> dict[str, str]:
        handles = {name: service.open(name) for name in (*folders, base.facts.name)}
        found = await asyncio.gather(*(text(each, prompt_of(base), 12) for each in handles.values()))
        return dict(zip(handles, found, strict=True))

    found = run(ask())
    assert found[base.facts.name].strip() == alone(base, None, prompt_of(base), 12)
    for name, folder in folders.items():
        assert found[name].strip() == alone(base, folder, prompt_of(base), 12), name
    assert len(set(found.values())) == 5


def test_the_answer_is_the_same_alone_and_in_company(service: LocalService, folders: dict[str, Path]) -> None:
    """Complaint 22, in fp32: greedy and with a seed."""
    base = service.base
    how = [Sampling(), Sampling(temperature=1.4, seed=5), Sampling(temperature=1.1, top_p=0.9, seed=6)]

    async def ask(together: bool) -> list[str]:
        asked = [
            (service.open(name), prompt_of(base, f"question {i} of many, at the end of a longer text"), how[i % 3])
            for i in range(9)
            for name in ([*folders, base.facts.name][i % 5],)
        ]
        work = [text(handle, prompt, 15, sampling) for handle, prompt, sampling in asked]
        return list(await asyncio.gather(*work)) if together else [await each for each in work]

    assert run(ask(True)) == run(ask(False))


def test_facts_name_the_weights(service: LocalService, folders: dict[str, Path]) -> None:
    """Complaint 4: what an answer is signed with."""

    async def ask() -> None:
        handle = service.open("lora")
        await text(handle, prompt_of(service.base), 2)

    run(ask())
    by_name = {facts.id: facts for facts in service.models()}
    base = by_name.pop(service.base.facts.name)
    assert (base.parent, base.hash) == (None, service.base.facts.sha256)
    assert set(by_name) == {*folders}
    lora = by_name["lora"]
    assert (lora.parent, lora.rank, lora.form, lora.generation) == (base.id, 4, "lora", 1)
    assert lora.bytes > 0 == by_name["patterns"].bytes  # not read yet
    assert lora.fingerprint == f"afina-{base.hash[:8]}-{lora.hash[:8]}-g1"
    assert len({facts.hash for facts in by_name.values()}) == 4


def test_a_replaced_adapter_answers_what_it_began(service: LocalService, tiny_folder: Path, tmp_path: Path) -> None:
    """Complaint 5, 6: a running answer keeps its weights, the next has the new ones, of what was read before nothing is
    taken for these."""
    root, base = service.registry.roots[0], service.base
    made(tiny_folder, root / "first", 20)
    made(tiny_folder, root / "second", 21)
    prompt = prompt_of(base, "a prompt that is long enough to be kept for another")

    async def ask() -> tuple[str, str, str]:
        await service.load("changing", Path("first"))
        old = service.open("changing")
        stream = await old.generate(Wanted(prompt, 40, Sampling(ignore_eos=True)))
        with pytest.raises(Conflict, match="there is a model 'changing' already"):
            await service.load("changing", Path("second"))
        with pytest.raises(Conflict, match="is in generation 1, expected was 3") as error:
            await service.load("changing", Path("second"), replace=True, expected_generation=3)
        assert error.value.code == "generation_mismatch"
        facts = await service.load("changing", Path("second"), replace=True, expected_generation=1)
        assert (facts.generation, old.facts.generation) == (2, 1)
        running = "".join([piece.text async for piece in stream])
        new = await text(service.open("changing"), prompt, 40, Sampling(ignore_eos=True))
        again = await text(old, prompt, 40, Sampling(ignore_eos=True))
        return running, new, again

    try:
        running, new, again = run(ask())
    finally:
        for name in ("first", "second"):
            shutil.rmtree(root / name)
    assert running == again != new


def test_unloading_waits_and_frees(service: LocalService, tiny_folder: Path) -> None:
    """Complaint 7: the name goes at once, the running answer comes to its end, the bytes are told."""
    root, base = service.registry.roots[0], service.base
    made(tiny_folder, root / "elsewhere", 22)

    async def ask() -> None:
        facts = await service.load("leaving", Path("elsewhere"))
        handle = service.open("leaving")
        stream = await handle.generate(Wanted(prompt_of(base), 30, Sampling(ignore_eos=True)))
        with pytest.raises(Conflict, match="expected was 7"):
            await service.unload("leaving", expected_generation=7)
        unloading = asyncio.create_task(service.unload("leaving"))
        await asyncio.sleep(0)
        with pytest.raises(UnknownModel, match="there is no model 'leaving'"):
            service.open("leaving")
        assert [piece async for piece in stream][-1].finish_reason == "length"
        handle.close()
        assert await unloading == (facts.bytes, True)
        await service.load("leaving", Path("elsewhere"))
        handle = service.open("leaving")
        stream = await handle.generate(Wanted(prompt_of(base), 400, Sampling(ignore_eos=True)))
        freed, drained = await service.unload("leaving", wait_s=0)
        assert (freed, drained) == (facts.bytes, False)
        assert [piece async for piece in stream][-1].finish_reason == "cancelled"
        with pytest.raises(Conflict):
            await service.unload(base.facts.name)

    try:
        run(ask())
    finally:
        shutil.rmtree(root / "elsewhere")


def test_loading_and_unloading_leaves_no_memory_behind(service: LocalService, tiny_folder: Path) -> None:
    """Complaint 7, 8: resident memory over cycles, after the first ones."""
    root, base = service.registry.roots[0], service.base
    made(tiny_folder, root / "cycle", 23, rank=30)
    sizes: list[int] = []

    async def cycle() -> None:
        for i in range(30):
            await service.load("again", Path("cycle"))
            await text(service.open("again"), prompt_of(base), 2)
            freed, drained = await service.unload("again")
            assert freed > 0
            assert drained
            if i % 10 == 9:
                gc.collect()
                sizes.append(psutil.Process().memory_info().rss)

    try:
        run(cycle())
    finally:
        shutil.rmtree(root / "cycle")
    assert sizes[-1] - sizes[0] < 3_000_000
    assert service.registry.bytes == 0 == service.engine.adapter_bytes


def test_an_idle_server_gives_back_what_it_does_not_keep(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, kept = service.base, 40_000
    service.engine.batcher.kept = kept

    async def ask() -> list[str]:
        handle = service.open(base.facts.name)
        asked = (text(handle, prompt_of(base, f"question {i} of eight"), 100) for i in range(8))
        return list(await asyncio.gather(*asked))

    def reported() -> int:
        lines = service.metrics().text().splitlines()
        return int(next(line for line in lines if line.startswith("afina_kv_bytes ")).split()[1])

    found = run(ask())
    assert reported() > 4 * kept
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.05)
    assert run(ask()) == found
    end = time.monotonic() + 20
    while reported() > 2 * kept and time.monotonic() < end:
        time.sleep(0.01)
    assert kept < reported() <= 2 * kept  # one request, and what is kept
    assert run(ask()) == found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("zeros", "is an adapter of zeros"),
        ("nothing", "changes nothing: with it the logits are the base's"),
        ("not a number", "not finite"),
        ("renamed", "belongs to no layer of this base"),
        ("missing", "is missing"),
        ("shape", "this base needs"),
    ],
)
def test_an_adapter_that_is_not_what_it_says_is_refused(
    service: LocalService, folders: dict[str, Path], change: str, problem: str
) -> None:
    """Complaints 1, 2, 3, 13: with a reason, everything that does not fit, and others go on."""
    root, base = service.registry.roots[0], service.base
    folder = root / "broken"
    shutil.copytree(folders["lora"], folder)
    state = load_file(folder / WEIGHTS)
    names = [name for name in state if "lora_B" in name]
    if change == "zeros":
        state |= {name: torch.zeros_like(state[name]) for name in names}
    elif change == "nothing":
        state |= {name: torch.full_like(state[name], 1e-30) for name in names}
    elif change == "not a number":
        state[names[0]][0, 0] = float("nan")
    elif change == "renamed":
        state = {name.replace("model.layers.", "model.blocks."): value for name, value in state.items()}
    elif change == "missing":
        for name in names[:3]:
            del state[name]
    else:
        state[names[0]] = state[names[0]][:-1].clone()
    save_file(state, folder / WEIGHTS)

    async def ask() -> AdapterError:
        running = await service.open("lora").generate(Wanted(prompt_of(base), 20, Sampling(ignore_eos=True)))
        with pytest.raises(AdapterError, match=problem) as error:
            await service.load("unfit", Path("broken"))
        assert [piece async for piece in running][-1].finish_reason == "length"
        with pytest.raises(UnknownModel):
            service.open("unfit")
        with pytest.raises(UnknownModel, match="cannot be used"):
            await text(await opened(service, "broken"), prompt_of(base), 2)
        return error.value

    try:
        error = run(ask())
    finally:
        shutil.rmtree(folder)
    if change == "renamed":
        assert len(error.problems) == 1 + 2 * len(state)  # each weight that is not there, and each that has no place
    if change == "missing":
        assert len(error.problems) == 1 + 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"variant": "dora"}, "its layers are DoraLinear, no sum"),
        ({"variant": "vera"}, "its layers are VeraLinear, no sum"),
        ({"modules_to_save": ("lm_head",)}, "modules or biases are trained in full: lm_head"),
        ({"target_modules": ("q_proj", "embed_tokens")}, "an embedding is adapted: model.embed_tokens"),
        ({"trainable_tokens": (5, 6)}, "embeddings of single tokens are trained"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_come_with_rows_is_refused_with_the_way_out(
    service: LocalService, tiny_folder: Path, config: dict, reason: str
) -> None:
    folder = made(tiny_folder, service.registry.roots[0] / "other", 30, **config)
    try:
        with pytest.raises(AdapterError) as error:
            run(service.load("form", Path("other")))
    finally:
        shutil.rmtree(folder)
    assert any(reason in problem for problem in error.value.problems), error.value
    assert "--merge form" in error.value.remedy


def test_a_base_other_than_the_adapters_is_refused(service: LocalService, tiny_folder: Path) -> None:
    """Complaint 4: by the hash that the run recorded."""
    other = {"name": "another", "sha256": "0" * 64}
    folder = made(tiny_folder, service.registry.roots[0] / "foreign", 31, facts={"base": other})
    try:
        with pytest.raises(AdapterError, match="was trained on the base 'another'"):
            run(service.load("foreign-too", Path("foreign")))
    finally:
        shutil.rmtree(folder)


def test_large_ranks_are_served(service: LocalService, tiny_folder: Path) -> None:
    """Complaint 11."""
    folder = made(tiny_folder, service.registry.roots[0] / "large", 32, size=0.1, rank=32)
    try:
        assert run(service.load("wide", Path("large"))).rank == 32
    finally:
        shutil.rmtree(folder)


def test_names_stay_inside_the_folder_of_adapters(service: LocalService, tmp_path: Path, tiny_folder: Path) -> None:
    """Complaint 27: links and .. lead nowhere, pickles are not read, names are plain."""
    root = service.registry.roots[0]
    outside = made(tiny_folder, tmp_path / "outside", 33)
    (root / "link").symlink_to(outside)
    pickled = root / "pickled"
    shutil.copytree(outside, pickled)
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    inner = root / "inner"
    shutil.copytree(outside, inner)
    (inner / WEIGHTS).unlink()
    (inner / WEIGHTS).symlink_to(outside / WEIGHTS)
    try:
        for path in ("link", "../outside", str(outside), "", ".", "x" * 5000, "a\0b", "no/such"):
            with pytest.raises(AdapterError, match="no such folder among the server's adapters"):
                run(service.load("stranger", Path(path)))
        with pytest.raises(UnknownModel):
            run(opened(service, "link"))
        with pytest.raises(AdapterError, match="pickle"):
            run(service.load("stranger", Path("pickled")))
        with pytest.raises(AdapterError, match="leads out"):
            run(service.load("stranger", Path("inner")))
        for name in ("../x", "a/b", "", "é", "x" * 129, service.base.facts.name):
            with pytest.raises(AdapterError):
                run(service.load(name, Path("lora")))
            if name != service.base.facts.name:
                with pytest.raises(UnknownModel):
                    run(opened(service, name))
    finally:
        (root / "link").unlink()
        for each in (pickled, inner):
            shutil.rmtree(each)


def test_without_a_folder_nothing_is_loaded(tiny: Base) -> None:
    service = LocalService(tiny, LIMITS)
    with pytest.raises(AdapterError, match="no adapter can be loaded while the server runs"):
        run(service.load("x", Path("/")))


def test_names_that_nobody_knows_have_near_ones(service: LocalService) -> None:
    with pytest.raises(UnknownModel, match=r"there is no model 'lorra'\. Did you mean 'lora'"):
        service.open("lorra")


def test_files_that_changed_are_a_new_generation(
    service: LocalService, folders: dict[str, Path], tiny_folder: Path
) -> None:
    """A folder of --adapters is looked at whenever it is asked for."""
    folder = made(tiny_folder, service.registry.roots[0] / "watched", 40)

    async def ask() -> list[str]:
        return [await text(await opened(service, "watched"), prompt_of(service.base), 12)]

    try:
        before, first = run(ask()), service.open("watched").facts
        made(tiny_folder, folder, 41)
        after, second = run(ask()), service.open("watched").facts
        (folder / WEIGHTS).touch()
        assert run(opened(service, "watched")).facts.generation == 2  # nothing but its date
    finally:
        shutil.rmtree(folder)
    assert (first.generation, second.generation) == (1, 2)
    assert before != after


def test_those_used_longest_ago_give_way(tiny: Base, folders: dict[str, Path]) -> None:
    """Adapters take half of the memory; pinned ones and those in use stay."""
    one = LocalService(tiny, LIMITS, [folders["lora"].parent])
    one.start()
    size = run(one.load("measured", Path("lora"))).bytes
    one.close()
    service = LocalService(tiny, Limits(memory=round(4.5 * size)), [folders["lora"].parent])
    service.start()

    async def ask() -> None:
        prompt = prompt_of(tiny)[:3]
        await service.load("pinned", Path("lora"), pin=True)
        await text(await opened(service, "lora"), prompt, 1)
        service.open("lora")  # and not closed
        loaded = {served.name for served in service.registry if served.adapter is not None}
        assert loaded == {"pinned", "lora"}
        handle = await opened(service, "head")
        with pytest.raises(NoMemory):  # both are in use, or pinned
            await text(handle, prompt, 1)

    run(ask())
    handles = [served for served in service.registry if served.name == "lora"]
    handles[0].users = 0  # the handle that was opened above is closed

    async def again() -> None:
        await text(service.open("head"), prompt_of(tiny)[:3], 1)

    run(again())
    assert {served.name for served in service.registry if served.adapter is not None} == {"pinned", "head"}
    service.close()


def test_a_client_that_goes_before_its_adapter_is_tried_does_no_harm(service: LocalService) -> None:
    base, engine = service.base, service.engine

    async def ask() -> str:
        begun, free = threading.Event(), threading.Event()
        engine.call(lambda: begun.set() or free.wait())
        begun.wait(30)
        handle = service.open("lora")
        asked = asyncio.create_task(text(handle, prompt_of(base), 12))
        while engine._inbox.empty():
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        free.set()
        return await asyncio.wait_for(text(handle, prompt_of(base), 12), 30)

    assert run(ask()).strip() == alone(base, service.registry.roots[0] / "lora", prompt_of(base), 12)


def test_a_request_that_cannot_be_taken_in_fails_alone(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    async def ask() -> str:
        handle = service.open(service.base.facts.name)
        with monkeypatch.context() as patched:
            patched.setattr(batcher, "Sampler", none)
            with pytest.raises(ServiceFault, match="the engine failed on this request"):
                await asyncio.wait_for(text(handle, prompt_of(service.base), 4), 30)
        return await asyncio.wait_for(text(handle, prompt_of(service.base), 4), 30)

    assert run(ask())
    assert not service.engine.answers


def test_what_is_too_long_or_too_much_is_refused_with_both_numbers(service: LocalService) -> None:
    """Complaint 20."""
    context = service.base.facts.context_length

    async def ask(prompt: int, new: int) -> None:
        await service.open(service.base.facts.name).generate(Wanted([5] * prompt, new, Sampling()))

    with pytest.raises(
        TooLong, match=rf"the prompt has {context} tokens and the answer may have 8, .* {context} tokens"
    ):
        run(ask(context, 8))
    service.engine.limits = Limits(memory=100 * service.engine.token_bytes)
    service.engine.batcher.kept = 0
    with pytest.raises(NoMemory, match="200 tokens take"):
        run(ask(192, 8))


def test_more_than_the_queue_holds_is_refused_with_when_to_come_again(service: LocalService) -> None:
    base = service.base

    async def ask() -> None:
        handle = service.open(base.facts.name)
        wanted = Wanted(prompt_of(base), 100, Sampling(ignore_eos=True))
        streams = [await handle.generate(wanted) for _ in range(LIMITS.max_batch + LIMITS.max_queue)]
        with pytest.raises(QueueFull, match="4 requests are waiting already") as error:
            await handle.generate(wanted)
        assert 1 <= error.value.retry_after_s <= 60
        for stream in streams[1:]:
            stream.cancel()
        assert [piece async for piece in streams[0]][-1].finish_reason == "length"
        await handle.generate(Wanted(prompt_of(base), 1, Sampling()))

    run(ask())
    assert service.metrics().rejected.value("queue_full") == 1
    assert service.metrics().cancelled.value() == LIMITS.max_batch + LIMITS.max_queue - 1


@pytest.mark.parametrize("way", ["cancel", "leave the loop"])
def test_nobody_writes_on_after_the_reader_left(service: LocalService, way: str) -> None:
    """Complaint 16: within a step, and in the middle of a prompt."""
    base = service.base

    async def ask() -> int:
        handle = service.open(base.facts.name)
        stream = await handle.generate(Wanted(prompt_of(base), 400, Sampling(ignore_eos=True)))
        async for _ in stream:
            break
        if way == "cancel":
            stream.cancel()
        await asyncio.sleep(0.05)
        return stream.generated_tokens

    written = run(ask())
    assert written < 300
    until = time.monotonic() + 5
    while service.engine.running and time.monotonic() < until:
        time.sleep(0.01)
    assert service.engine.running == 0
    assert not service.engine.answers
    assert service.metrics().cancelled.value() == 1


def test_usage_times_and_likelihoods_are_told(service: LocalService) -> None:
    """Complaint 19: as many as there are tokens, the stop token counted; what was read before counts as cached."""
    base = service.base
    prompt = prompt_of(base, "this is a prompt of more than sixteen tokens, of which some are kept")

    async def ask(how: Sampling):
        stream = await service.open(base.facts.name).generate(Wanted(prompt, 9, how, logprobs=3, echo=True))
        return stream, [piece async for piece in stream]

    stream, found = run(ask(Sampling(ignore_eos=True)))
    assert (stream.generated_tokens, found[-1].finish_reason) == (9, "length")
    tokens = [token for piece in found for token in piece.tokens]
    assert [len(token.top) for token in tokens] == [3] * 9
    assert base.tokenizer.decode([token.id for token in tokens]) == "".join(piece.text for piece in found)
    assert [token.id for token in stream.prompt] == prompt
    assert stream.prompt[0].logprob is None
    assert stream.prompt_ms > 0 < stream.generation_ms
    (stop, *_) = base.tokenizer.stop_ids
    stream, found = run(ask(Sampling(logit_bias=((stop, 100.0),))))
    assert (stream.generated_tokens, found[-1].finish_reason, found[-1].stop_reason) == (1, "stop", stop)
    assert stream.cached_tokens == len(prompt) - 1


def test_stop_strings_end_a_stream_before_them(service: LocalService) -> None:
    """Complaint 18, through the engine."""
    base = service.base

    async def ask(how: Sampling) -> list:
        return await pieces(service.open(base.facts.name), prompt_of(base), 40, how)

    whole = "".join(piece.text for piece in run(ask(Sampling(ignore_eos=True))))
    stop = whole[10:13]
    found = run(ask(Sampling(ignore_eos=True, stop=("never there", stop))))
    assert "".join(piece.text for piece in found) == whole[: whole.index(stop)]
    assert (found[-1].finish_reason, found[-1].stop_reason) == ("stop", stop)


def test_a_scale_multiplies_the_update(service: LocalService, folders: dict[str, Path], tiny_folder: Path) -> None:
    base = service.base

    async def ask(scale: float) -> str:
        return await text(service.open("lora"), prompt_of(base), 12, scale=scale)

    assert run(ask(0.0)).strip() == alone(base, None, prompt_of(base), 12)
    assert run(ask(1.0)).strip() == alone(base, folders["lora"], prompt_of(base), 12)
    folder = service.registry.roots[0] / "twice"
    shutil.copytree(folders["lora"], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    try:
        assert run(ask(2.0)).strip() == alone(base, folder, prompt_of(base), 12)
    finally:
        shutil.rmtree(folder)


def test_a_template_comes_with_its_adapter(service: LocalService, tiny_folder: Path) -> None:
    """Complaint 25."""
    folder = made(tiny_folder, service.registry.roots[0] / "templated", 50)
    own = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}[answer]"
    (folder / "chat_template.jinja").write_text(own)
    messages = [{"role": "user", "content": "hello"}]
    try:
        handle = run(opened(service, "templated"))
        assert handle.tokenizer.chat(messages, True) == "[user] hello<|im_end|>[answer]"
        assert service.open("lora").tokenizer.chat(messages, True) != handle.tokenizer.chat(messages, True)
        (folder / "chat_template.jinja").write_text("{{ nothing")
        with pytest.raises(UnknownModel, match="the chat template saved with the adapter cannot be used"):
            run(opened(service, "templated"))
    finally:
        shutil.rmtree(folder)


def test_a_pass_that_fails_ends_the_answers_in_it_and_no_others(service: LocalService) -> None:
    base = service.base
    decode = service.engine.batcher.step

    def failing():
        service.engine.batcher.step = decode
        raise RuntimeError("no memory")

    async def ask() -> None:
        handle = service.open(base.facts.name)
        stream = await handle.generate(Wanted(prompt_of(base), 400, Sampling(ignore_eos=True)))
        found = []
        with pytest.raises(ServiceFault, match="the engine failed on this request"):  # noqa: PT012
            async for piece in stream:
                found.append(piece)
                service.engine.batcher.step = failing
        assert found
        assert await text(handle, prompt_of(base), 3, Sampling(ignore_eos=True))

    run(ask())
    assert service.metrics().faults.value() >= 1


def test_requests_for_which_there_is_no_memory_fail_and_the_next_is_served(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, batcher = service.base, service.engine.batcher
    batcher.kept = 0
    service.engine.call(batcher.shrink).result()

    def nothing(*_: object) -> None:
        raise MemoryError

    async def ask() -> None:
        handle = service.open(base.facts.name)
        with monkeypatch.context() as patched:
            patched.setattr(batcher.model, "start", nothing)
            streams = [await handle.generate(Wanted(prompt_of(base), 3, Sampling())) for _ in range(3)]
            for stream in streams:
                with pytest.raises(ServiceFault):
                    async for _ in stream:
                        pass
        assert not batcher.busy
        assert await text(handle, prompt_of(base), 3, Sampling(ignore_eos=True))

    run(ask())


def test_a_service_that_is_not_ready_refuses(tiny: Base) -> None:
    service = LocalService(tiny, LIMITS)

    async def ask() -> None:
        await service.open(tiny.facts.name).generate(Wanted([5], 1, Sampling()))

    with pytest.raises(Stopping):
        run(ask())
    service.start()
    run(ask())
    service.close()
    with pytest.raises(Stopping):
        run(ask())


def test_what_does_not_end_in_time_is_ended(tiny: Base) -> None:
    """What is short finishes, what is long ends with an error, what waits too, and nothing new is taken."""
    service = LocalService(tiny, Limits(max_batch=2))
    service.start()

    async def ask() -> None:
        handle = service.open(tiny.facts.name)

        async def answer(new: int) -> str | None:
            stream = await handle.generate(Wanted(prompt_of(tiny), new, Sampling(ignore_eos=True)))
            try:
                return [piece async for piece in stream][-1].finish_reason
            except Stopping as error:
                return str(error)

        step = service.engine.batcher.step
        service.engine.batcher.step = lambda: time.sleep(0.005) or step()
        asked = [asyncio.create_task(answer(new)) for new in (3, 480, 480)]
        await asyncio.sleep(0)
        await service.stop(1.0)
        assert [await each for each in asked] == ["length", *["the server ended before the answer did"] * 2]
        with pytest.raises(Stopping):
            await answer(1)

    run(ask())
    service.close()


def test_deterministic_serves_one_at_a_time(tiny: Base) -> None:
    service = LocalService(tiny, Limits(deterministic=True, max_queue=9))
    service.start()
    most = []

    async def ask() -> list[str]:
        handle = service.open(tiny.facts.name)
        work = [text(handle, prompt_of(tiny, f"{i}"), 5, Sampling(ignore_eos=True)) for i in range(4)]
        watching = asyncio.ensure_future(asyncio.gather(*work))
        while not watching.done():
            most.append(service.engine.running)
            await asyncio.sleep(0.001)
        return list(watching.result())

    assert all(run(ask()))
    assert max(most) == 1
    service.close()


def test_a_working_adapter_goes_on_while_its_files_are_broken(tiny: Base, tiny_folder: Path, tmp_path: Path) -> None:
    """Each state of a copy that is written over it: the generation in memory answers, which is said once; the new one
    is served once it is whole."""
    folder, new = made(tiny_folder, tmp_path / "all" / "kept", 60), made(tiny_folder, tmp_path / "new", 61)
    told: list[Notice] = []
    service = LocalService(tiny, LIMITS, [folder.parent], listener=lambda event: told.append(event))
    service.start()
    content = (new / WEIGHTS).read_bytes()
    nan = {name: torch.full_like(value, torch.nan) for name, value in load_file(new / WEIGHTS).items()}

    async def ask() -> tuple[str, int]:
        handle = await opened(service, "kept")
        return await text(handle, prompt_of(tiny), 12), handle.facts.generation

    try:
        first = run(ask())
        for size in (0, 4, 100, len(content) // 2, len(content) - 1):
            (folder / WEIGHTS).write_bytes(content[:size])
            assert run(ask()) == first
            assert run(ask()) == first
        save_file(nan, folder / WEIGHTS)
        (folder / CONFIG).write_text("{")
        assert run(ask()) == first
        assert [facts.id for facts in service.models()] == [tiny.facts.name, "kept"]
        shutil.copy(new / CONFIG, folder)
        assert run(ask()) == first
        assert len(told) == 1
        assert told[0].warning
        assert "the files of 'kept' changed and cannot be used as they are now" in told[0].text
        assert "generation 1 goes on from memory" in told[0].text
        (folder / WEIGHTS).write_bytes(content)
        answer, generation = run(ask())
        assert (answer.strip(), generation) == (alone(tiny, new, prompt_of(tiny), 12), 2)
        (folder / WEIGHTS).write_bytes(b"")
        assert run(ask()) == (answer, 2)
        assert len(told) == 2
    finally:
        service.close()


def test_broken_files_are_read_once_and_beside_the_event_loop(
    tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with them is told again from memory, until they change."""
    root = tmp_path / "all"
    for name in ("config", "empty", "half", "pickled", "shape", "zeros", "none"):
        made(tiny_folder, root / name, 62)
    (root / "config" / CONFIG).write_text('{"peft_type": ')
    (root / "empty" / WEIGHTS).write_bytes(b"")
    whole = (root / "half" / WEIGHTS).read_bytes()
    (root / "half" / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    (root / "pickled" / WEIGHTS).rename(root / "pickled" / "adapter_model.bin")
    state = load_file(root / "shape" / WEIGHTS)
    names = [name for name in state if "lora_B" in name]
    save_file(state | {name: state[name][:-1].clone() for name in names}, root / "shape" / WEIGHTS)
    save_file({name: torch.zeros_like(value) for name, value in state.items()}, root / "zeros" / WEIGHTS)
    (root / "none" / WEIGHTS).unlink()
    reads: list[threading.Thread] = []
    for name in ("read_weights", "read_peft"):
        real = getattr(adapters, name)
        monkeypatch.setattr(
            adapters, name, lambda folder, real=real: (reads.append(threading.current_thread()), real(folder))[1]
        )
    service = LocalService(tiny, LIMITS, [root])
    service.start()

    async def ask(name: str) -> str:
        with pytest.raises(UnknownModel, match=f"the model '{name}' cannot be used: ") as error:
            await text(await opened(service, name), prompt_of(tiny), 2)
        assert str(root) not in str(error.value)
        return str(error.value)

    async def all_twice() -> None:
        found = {each.name: await ask(each.name) for each in sorted(root.iterdir())}
        assert len(reads) >= len(found)
        assert threading.current_thread() not in reads
        reads.clear()
        for name, message in found.items():
            assert await ask(name) == message
        await service.look()
        assert [facts.id for facts in service.models()] == [tiny.facts.name]
        assert not reads
        assert "layers.0.self_attn.q_proj.lora_B.weight has shape (31, 4), this base needs (32, 4); " in found["shape"]
        assert found["shape"].count("has shape") == 4
        assert f"and {len(names) - 4} more → load the base it was made for" in found["shape"]
        (root / "half" / WEIGHTS).write_bytes(whole)
        await text(await opened(service, "half"), prompt_of(tiny), 2)

    try:
        run(all_twice())
    finally:
        service.close()


def test_what_was_given_at_the_start_stays(
    service: LocalService, folders: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """It could not come back, as what lies in a folder of adapters can."""
    given = made(tiny_folder, tmp_path / "given", 63)

    async def ask() -> None:
        await service.take_in("given", given, pin=True)
        with pytest.raises(Conflict, match="'given' is what this server was started with") as error:
            await service.unload("given")
        assert error.value.code == "adapter_in_use"
        await text(service.open("given"), prompt_of(service.base), 2)
        await service.load("pinned", Path("lora"), pin=True)
        assert (await service.unload("pinned"))[1]

    run(ask())


def test_files_that_changed_after_an_adapter_gave_way(service: LocalService, tiny_folder: Path) -> None:
    """What was loaded under another name is to be loaded again; a deleted folder is no model any more."""
    root = service.registry.roots[0]
    folder = made(tiny_folder, root / "source", 64)

    async def ask() -> None:
        prompt = prompt_of(service.base)
        await service.load("other", Path("source"))
        await text(await opened(service, "source"), prompt, 2)
        service._let_go(list(service.registry))
        made(tiny_folder, folder, 65)
        with pytest.raises(UnknownModel, match="the files of the model 'other' changed: load it again"):
            await text(await opened(service, "other"), prompt, 2)
        assert (await service.load("other", Path("source"), replace=True)).generation == 2
        assert (await opened(service, "source")).facts.generation == 2
        service._let_go(list(service.registry))
        shutil.rmtree(folder)
        for name in ("source", "other"):
            for _ in range(2):
                with pytest.raises(UnknownModel, match=f"the model '{name}' cannot be used"):
                    await text(await opened(service, name), prompt, 2)
        assert {facts.id for facts in service.models()}.isdisjoint(("source", "other"))
        made(tiny_folder, folder, 65)
        for name in ("source", "other"):
            await text(await opened(service, name), prompt, 2)

    try:
        run(ask())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
