"""Cards, of which there is none here: torch's answers are given by the tests, and what is made of them is looked at."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from afina.core.device import (
    HOST,
    cards,
    device_memory,
    fitting,
    forget_peak,
    formats,
    host_buffer,
    is_deterministic,
    later,
    memory,
    memory_free,
    memory_gb,
    memory_in_words,
    memory_limit,
    on_host,
    peak_memory_gb,
    pick_device,
    pick_dtype,
    random_states,
    rows_at_once,
    rows_within,
    sent,
    set_arithmetic,
    set_random_states,
    unused_card,
    usable_cards,
    widest,
)
from afina.core.errors import OutOfMemory, SettingsError
from afina.core.world import SINGLE
from afina.training import checkpoint

CUDA, SECOND, MPS = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("mps")
GB = 10**9


class Cards:
    """Two cards of NVIDIA's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.asked = patch, list[tuple[str, Any]]()
        self.capability, self.free = (9, 0), [40 * GB, 70 * GB]
        names = {"memory_allocated": 5 * GB, "memory_reserved": 8 * GB, "max_memory_reserved": 9 * GB}
        for name, value in names.items():
            self.answer(name, value)
        self.answer("is_available", True)
        self.answer("device_count", 2)
        self.answer("get_device_name", "NVIDIA Test")
        self.answer("get_rng_state", torch.zeros(16, dtype=torch.uint8))
        for name in ("set_rng_state", "empty_cache", "reset_peak_memory_stats", "set_device", "synchronize"):
            self.answer(name, None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free[torch.device(device).index or 0], 80 * GB))
        patch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        self._zeros = torch.zeros
        self.raised: Exception | None = None
        patch.setattr(torch, "zeros", self.zeros)

    def answer(self, name: str, value: Any) -> None:
        def asked(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            return value

        self.patch.setattr(torch.cuda, name, asked)

    def zeros(self, *shape: Any, device: Any = None, **more: Any) -> torch.Tensor:
        if device is not None and torch.device(device).type != "cpu" and self.raised:
            raise self.raised
        return self._zeros(*shape, **more)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    return Cards(monkeypatch)


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16")]
)
def test_the_number_format_of_a_card_is_that_of_its_generation(
    two_cards: Cards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """No product is timed for it, and nothing is kept."""
    monkeypatch.setattr(formats, "_product_seconds", lambda dtype: pytest.fail("a product was timed"))
    two_cards.capability = capability
    dtype, reason = pick_dtype("auto", CUDA, tmp_path)
    assert (formats.precision_of(dtype), list(tmp_path.iterdir())) == (expected, [])
    assert f"NVIDIA Test has compute capability {capability[0]}.{capability[1]}" in reason
    assert pick_dtype("fp32", CUDA, tmp_path) == (torch.float32, "as asked")
    assert pick_dtype("fp16", HOST, tmp_path) == (torch.float16, "as asked")


@pytest.mark.parametrize("known", [True, False])
def test_rocm_and_mps_are_asked(two_cards: Cards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    expected = torch.bfloat16 if known else torch.float16
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: known)
    assert pick_dtype("auto", CUDA, tmp_path)[0] == expected
    monkeypatch.setattr(formats, "_multiplies", lambda dtype, device: known)
    assert pick_dtype("auto", MPS, tmp_path)[0] == expected
    assert widest(MPS) == torch.float32  # it has no float64


def test_what_multiplies_is_tried() -> None:
    assert formats._multiplies(torch.bfloat16, HOST)
    assert not formats._multiplies(torch.bfloat16, MPS)


def test_a_card_is_picked_by_its_number(two_cards: Cards) -> None:
    assert pick_device("cuda:1") == SECOND
    assert two_cards.asked[-1] == ("set_device", (1,))
    assert pick_device() == torch.device("cuda")
    assert two_cards.asked[-1] == ("set_device", (0,))  # not the one that was taken before
    assert pick_device("cpu") == HOST


OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 80 GiB")
UNUSABLE: dict[str, tuple[str | None, Exception | None, tuple[str, ...]]] = {
    "no such card": ("cuda:2", None, ("2 cards: cuda:0 (NVIDIA Test), cuda:1 (NVIDIA Test)", "name one of these")),
    "full": ("cuda:0", FULL, ("the card is full", "72.0 GB are taken beside", "nvidia-smi", "use cpu")),
    "full, none named": (None, FULL, ("the card is full", "use cpu")),
    "driver too old": ("cuda", RuntimeError(OLD), ("driver is too old for this torch (CUDA 13.0)", "update")),
    "no driver": ("cuda", RuntimeError("Found no NVIDIA driver on your system."), ("no NVIDIA driver", "install")),
    "no code": ("cuda", RuntimeError("CUDA error: no kernel image is available"), ("its generation", "pytorch.org")),
    "taken": ("cuda", RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), ("itself", "end")),
    "another": ("cuda", RuntimeError("CUDA error: the bus is on fire\nmore"), ("the bus is on fire", "or use cpu")),
}


@pytest.mark.parametrize(("name", "raised", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_why_a_card_cannot_be_used_is_said(
    two_cards: Cards, monkeypatch: pytest.MonkeyPatch, name: str | None, raised: Exception | None,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    two_cards.raised, two_cards.free = raised, [0, 0]
    with pytest.raises(SettingsError) as error:
        pick_device(name)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(error.value.problems) == 1


def test_without_cards_a_card_is_refused_and_the_processor_taken() -> None:
    with pytest.raises(SettingsError, match="this torch is built without CUDA"):
        pick_device("cuda:1")
    with pytest.raises(SettingsError, match="no graphics of Apple's"):
        pick_device("mps")
    assert pick_device() == HOST


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cpu:7", "cpu"), ("cpu:300", "cpu"), ("0", "cuda:0"), ("12", "cuda:12"), ("rocm", "cuda"), ("HIP", "cuda"),
        ("CUDA", "cuda"), ("cuda:x", "cuda"), ("cuda:01", "cuda"), ("cuda:300", "cuda"), ("h100", ""), ("warp", ""),
        ("meta", ""), ("hpu", "cpu"), ("privateuseone", ""), ("vulkan", ""), ("opencl", ""), ("mkldnn", ""), ("²", ""),
    ],
)  # fmt: skip
def test_a_name_that_is_no_device_s_is_refused_before_torch_sees_it(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch knows more kinds, of which some need packages that are not there, and counts processors beyond 255 anew."""
    monkeypatch.setattr("afina.core.device.choice._tried", lambda device: pytest.fail("it was tried"))
    with pytest.raises(SettingsError) as error:
        pick_device(name)
    guess = f" Did you mean '{meant}'?" if meant else ""
    assert error.value.problems == [f"--device '{name}' is no device.{guess}"]
    assert "it takes cpu, cuda, cuda:N, mps; a card by its name (h100) only `afina fit` takes" in str(error.value)


def test_a_card_that_is_there_and_not_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unused_card() is None  # there is none
    monkeypatch.setattr(cards, "has_device_files", lambda: True)
    assert "built without CUDA" in unused_card().problem
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "hides it" in unused_card().problem
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def old() -> None:
        raise RuntimeError(OLD)

    monkeypatch.setattr(torch.cuda, "init", old)
    assert "too old for this torch (CUDA 13.0)" in unused_card().problem
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "graphics driver" in unused_card().remedy
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_card() is None


def test_the_cards_are_listed_with_what_they_have(two_cards: Cards) -> None:
    found = usable_cards()
    assert [(c.device, c.name, c.precision, c.free, c.memory) for c in found] == [
        ("cuda:0", "NVIDIA Test", "bf16", 40 * GB, 80 * GB), ("cuda:1", "NVIDIA Test", "bf16", 70 * GB, 80 * GB),
    ]  # fmt: skip


def test_memory_is_that_of_the_device(two_cards: Cards) -> None:
    assert device_memory(SECOND) == (5 * GB, 8 * GB, 9 * GB, 70 * GB, 80 * GB)
    assert (memory_gb(CUDA), peak_memory_gb(CUDA)) == (8, 9)
    assert memory_free(CUDA) == (40 + 8 - 5) * GB  # what torch keeps of tensors that are gone is free, too
    assert memory_limit(CUDA) == 80 * GB
    forget_peak(CUDA)
    assert two_cards.asked[-2:] == [("empty_cache", ()), ("reset_peak_memory_stats", (CUDA,))]
    assert memory_in_words(CUDA) == (
        "the memory of cuda:0 (NVIDIA Test: 80.0 GB, of which 32.0 GB are taken beside this run's tensors)"
    )
    message = r"a tensor does not fit into the memory of cuda:0 .*\n  → less"
    with pytest.raises(OutOfMemory, match=message), fitting(CUDA, "a tensor", "less"):
        raise FULL


def test_memory_of_the_host() -> None:
    """By what it is where no device is named."""
    now = device_memory()
    assert 0 < now.allocated == now.reserved <= now.most
    assert memory_gb() == pytest.approx(memory_gb(HOST), rel=0.1)
    assert peak_memory_gb() >= 0.9 * memory_gb()
    assert 0 < memory_free() <= memory_limit()
    assert memory_in_words(HOST) == "memory"
    forget_peak(HOST)
    with pytest.raises(RuntimeError, match="of its own"), fitting(HOST, "", ""):
        raise RuntimeError("an error of its own")
    with pytest.raises(OutOfMemory, match="a tensor does not fit into memory"), fitting(HOST, "a tensor", ""):
        torch.empty(1 << 62, dtype=torch.uint8)


def test_memory_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"current_allocated_memory": 2 * GB, "driver_allocated_memory": 3 * GB, "recommended_max_memory": 11 * GB}
    for name, value in of.items():
        monkeypatch.setattr(torch.mps, name, lambda value=value: value)
    monkeypatch.setattr("afina.core.device.memory.host_free", lambda: 100 * GB)
    forget_peak(MPS)
    assert device_memory(MPS) == (2 * GB, 3 * GB, 3 * GB, 8 * GB, 11 * GB)
    assert (memory_gb(MPS), peak_memory_gb(MPS), memory_free(MPS)) == (3, 3, 9 * GB)
    held = [5, 4]  # of two readings the largest is the peak, since MPS counts none
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: held[0] * GB)
    memory_gb(MPS)
    del held[0]
    assert (memory_gb(MPS), peak_memory_gb(MPS)) == (4, 5)
    forget_peak(MPS)
    assert peak_memory_gb(MPS) == 4


@pytest.fixture
def restored() -> Iterator[None]:
    before, workspace = torch.get_float32_matmul_precision(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    set_arithmetic(CUDA, before != "highest", False)
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_arithmetic_is_set_for_cards_alone(restored: None) -> None:
    set_arithmetic(HOST, True, True)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()
    assert is_deterministic(HOST)
    set_arithmetic(CUDA, True, True)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert is_deterministic(CUDA)
    for device, tf32, deterministic in ((CUDA, False, False), (HOST, True, True)):  # later in the same process
        set_arithmetic(CUDA, True, True)
        set_arithmetic(device, tf32, deterministic)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not is_deterministic(CUDA)
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert not torch.backends.cudnn.deterministic


def test_random_states_are_those_of_the_run_s_device(two_cards: Cards) -> None:
    before = torch.get_rng_state()
    found = checkpoint.random_states(SINGLE, SECOND)
    assert set(found) == {"cpu", "cuda"}
    assert two_cards.asked[-1] == ("get_rng_state", (SECOND,))
    torch.rand(3)
    checkpoint.set_random_state(found, SINGLE, CUDA)  # another card of the same kind
    assert torch.equal(torch.get_rng_state(), before)
    assert two_cards.asked[-1][0] == "set_rng_state"
    assert two_cards.asked[-1][1][1] == CUDA
    count = len(two_cards.asked)
    checkpoint.set_random_state(found, SINGLE, HOST)
    assert set(random_states(HOST)) == {"cpu"}
    set_random_states({"cpu": before}, CUDA)  # of a run that was on the processor
    assert len(two_cards.asked) == count


def test_numbers_on_the_processor_are_there_at_once() -> None:
    values = torch.arange(3.0)
    assert torch.equal(later(values)(), values)
    assert host_buffer([1, 2], HOST).tolist() == [1, 2]
    assert torch.equal(sent(values, HOST), values)


def test_numbers_from_a_card_are_waited_for_when_they_are_read(
    two_cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied into pinned memory, with an event after the copy, of the queue of that card."""
    done: list[str] = []

    class Event:
        def record(self, stream: Any) -> None:
            done.append(f"recorded in {stream}")

        def synchronize(self) -> None:
            done.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the queue of {device}")
    monkeypatch.setattr("afina.core.device.queue.overlaps", lambda device: True)
    empty = torch.empty

    def pinned(shape: Any, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        done.append(f"pinned: {pin_memory}")
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", pinned)
    read = later(torch.arange(3.0))
    assert done == ["pinned: True", "recorded in the queue of cpu"]
    assert read().tolist() == [0, 1, 2]
    assert done[-1] == "waited"
    done.clear()
    values = {"a": torch.ones(2), "b": torch.zeros(1)}
    found = on_host(values)
    assert not done  # nothing was pinned, which would stay so
    assert all(torch.equal(found[name], value) for name, value in values.items())


def test_rows_at_one_time_follow_the_free_memory_of_a_card(two_cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rows_within(free, 1000, 256) for free in (0, 10**6, 33 * 10**6, 70 * 10**6, 10**12)] == [
        256, 256, 512, 1024, 4096,
    ]  # fmt: skip
    memory._rows_on.cache_clear()
    words = 128_000 * 2
    assert rows_at_once(HOST, words, 256) == 256
    assert rows_at_once(SECOND, words, 256) == 4096  # 1 GB of the 73 GB that are free
    two_cards.free[1] = 20 * GB
    assert rows_at_once(SECOND, words, 256) == 4096  # asked once
    memory._rows_on.cache_clear()
    assert rows_at_once(SECOND, words, 256) == 1024
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert rows_at_once(SECOND, words, 256) == 256
    memory._rows_on.cache_clear()
