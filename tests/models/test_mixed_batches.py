"""Batches of several adapters and the bare base: as PEFT's mixed batches, what is reused, prompts read in parts,
memory."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapters_made import RowAdapter, row_adapter
from conftest import read, save_tiny, tiny_module

from afina.core.errors import AdapterError
from afina.core.updates import Factors
from afina.engine.decoder import Decoder
from afina.models import Base, load_base
from afina.models.causal import TransformersModel
from afina.models.model import Writer

BASE = "__base__"  # PEFT's name of it
CONFIGS = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rslora": {"r": 9, "lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {
        "r": 3, "lora_alpha": 4, "rank_pattern": {r".*\.1\..*": 7}, "alpha_pattern": {r".*\.0\.mlp.*": 20},
        "target_modules": "all-linear",
    },
}  # fmt: skip


def peft_model(kind: str):
    """The tiny model with an adapter of random numbers for each of `CONFIGS`."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    configs = {
        name: peft.LoraConfig(**own, init_lora_weights=False, task_type="CAUSAL_LM") for name, own in CONFIGS.items()
    }
    model = peft.get_peft_model(tiny_module(kind), configs["lora"], adapter_name="lora")
    for name in ("rslora", "patterns"):
        model.add_adapter(name, configs[name])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 3  # so that each adapter changes tokens
    return model.eval()


def adapter_of(model, name: str) -> RowAdapter:
    """What PEFT holds, by our paths."""
    factors = {
        path.removeprefix("base_model.model."): Factors(
            layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach(), layer.scaling[name]
        )
        for path, layer in model.named_modules()
        if name in getattr(layer, "lora_A", {})
    }
    return RowAdapter(name, factors)


@torch.inference_mode()
def written(model: Writer, prompts: list[list[int]], updates: list, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (steps, B, V) while the tokens (B, steps) are appended."""
    sequences = model.start(len(prompts), 80)
    found = [read(sequences, prompts, updates)]
    return torch.stack(found + [sequences.decode(column) for column in tokens.T[:-1]])


def base_of(kind: str, folder: Path) -> Base:
    base = load_base(str(save_tiny(folder / kind, kind)), precision="fp32", device="cpu")
    assert isinstance(base.model.module, Decoder)
    base.model.module.eval()
    return base


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_mixed_batch_is_pefts(kind: str, tmp_path: Path) -> None:
    """Complaints 9 and 10: LoRA, rsLoRA, patterns of ranks and alphas, and the base between them."""
    theirs = peft_model(kind)
    names = ["lora", BASE, "rslora", "patterns", "lora", BASE, "patterns"]
    prompts = torch.randint(3, 259, (len(names), 13), generator=torch.Generator().manual_seed(3))
    prompts[5] = prompts[0]  # the same prompt with an adapter and without
    out = theirs.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), adapter_names=names, do_sample=False,
        max_new_tokens=12, min_new_tokens=12, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens, expected = out.sequences[:, prompts.shape[1] :], torch.stack(out.logits)
    adapters = {name: adapter_of(theirs, name) for name in CONFIGS}
    model = base_of(kind, tmp_path).model
    found = written(model, prompts.tolist(), [adapters.get(name) for name in names], tokens).clone()
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()
    found[..., 2] = -float("inf")  # the stop token, which was not to come
    assert torch.equal(found.argmax(-1).T, tokens)
    rows = {name: i for i, name in enumerate(names)}
    for a, b in ((0, 5), (rows["rslora"], rows["patterns"])):
        assert not torch.equal(tokens[a], tokens[b])  # adapters differ, so that a mix-up would show


def test_a_prompt_gets_the_same_greedy_tokens_in_any_company(tmp_path: Path) -> None:
    """Complaint 22, in fp32: alone, with others of its adapter, with others of any, read whole or in parts."""
    theirs = peft_model("qwen3")
    adapters = [None, *(adapter_of(theirs, name) for name in CONFIGS)]
    model = base_of("qwen3", tmp_path).model
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 259, (n,), generator=generator).tolist() for n in range(5, 69, 2)]

    @torch.inference_mode()
    def greedy(which: list[int], most: int) -> list[list[int]]:
        sequences = model.start(len(which), 100)
        logits = read(sequences, [prompts[i] for i in which], [adapters[i % 4] for i in which], most)
        tokens = [logits.argmax(-1)]
        for _ in range(10):
            tokens.append(sequences.decode(tokens[-1]).argmax(-1))
        return torch.stack(tokens, 1).tolist()

    alone = [greedy([i], 10**6)[0] for i in range(len(prompts))]
    for size, most in ((2, 10**6), (5, 20), (32, 10**6), (32, 64)):
        for at in range(0, len(prompts), size):
            which = list(range(at, min(at + size, len(prompts))))
            assert greedy(which, most) == [alone[i] for i in which], (size, most)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass over prompts."""
    found: list[int] = []
    forward = Decoder.forward

    def counted(self, ids_T, *others):
        found.append(len(ids_T))
        return forward(self, ids_T, *others)

    monkeypatch.setattr(Decoder, "forward", counted)
    return found


@pytest.fixture
def model(tiny: Base) -> Iterator[Writer]:
    tiny.model.module.eval()
    with torch.inference_mode():
        yield tiny.model


PROMPT = list(range(60, 120))


def test_what_is_kept_serves_no_other_adapter(model: Writer, passes: list[int]) -> None:
    """Complaint 6: an adapter's keys and values serve that adapter's content alone, whatever object has it."""
    one, same = row_adapter(model.module, "one"), row_adapter(model.module, "one")
    other = row_adapter(model.module, "other", scaling=2.0)
    expected = {}
    for own in (None, one, other):
        expected[own and own.key] = read(model.start(1, 80), [PROMPT], [own])[0]
    sequences = model.start(4, 80)
    passes.clear()
    for own, there in ((None, 0), (one, 0), (other, 0), (same, 59), (None, 59), (other, 59), (one, 59)):
        assert sequences.add([PROMPT], [own]) == [there]
        before = sum(passes)
        whole, logits = sequences.read(1000)
        assert sum(passes) - before == 60 - there
        assert whole == [0]
        assert torch.allclose(logits[0], expected[own and own.key], atol=1e-4)
        sequences.retain([])


def test_prompts_of_one_adapter_share_what_they_begin_with(model: Writer, passes: list[int]) -> None:
    one, other = row_adapter(model.module, "one"), row_adapter(model.module, "other", scaling=2.0)
    prompts = [[*PROMPT, i, i + 1] for i in range(5, 11)]
    updates = [one, None, other, one, None, one]
    together = read(model.start(6, 80), prompts, updates)
    assert sum(passes) == 3 * 60 + 6 * 2
    for i, logits in enumerate(together):
        assert torch.allclose(read(model.start(1, 80), [prompts[i]], [updates[i]])[0], logits, atol=1e-4)


def test_prompts_are_read_in_parts_and_no_short_one_waits_for_a_long_one(model: Writer, passes: list[int]) -> None:
    own = row_adapter(model.module, "own")
    long, short, late = [i % 200 + 3 for i in range(150)], [9, 8, 7], [i % 100 + 50 for i in range(40)]
    expected = [read(model.start(1, 200), [p], [own])[0] for p in (long, short, late)]
    sequences = model.start(3, 200)
    passes.clear()
    assert sequences.add([short], [own]) == [0]
    assert (sequences.read(64)[0], sum(passes)) == ([0], 3)
    sequences.add([long, late], [own, own])
    found = {}
    for tokens, whole, going_on in ((64, [], 1), (64, [2], 1), (62, [1], 2)):
        assert len(sequences.decode(torch.full((going_on,), 5))) == going_on  # meanwhile
        passes.clear()
        places, after = sequences.read(64)
        assert (sum(passes), places) == (tokens, whole)
        found |= zip(places, after, strict=True)
    assert torch.allclose(found[1], expected[0], atol=1e-4)
    assert torch.allclose(found[2], expected[2], atol=1e-4)


def test_a_long_sequence_beside_a_new_prompt_needs_no_more_room(model: Writer) -> None:
    """Neither the end of the one nor the whole of the other passes the room: it is not their sum that counts."""
    long, new = [i % 200 + 3 for i in range(76)], [*range(50, 90)]
    sequences = model.start(2, 80, kept=0)
    size = sequences.bytes
    sequences.add([long], [None])
    sequences.read(70)
    sequences.add([new], [None])
    assert sorted(sequences.read(1000)[0]) == [0, 1]
    assert sequences.bytes == size


def test_what_begins_alike_goes_on_together_in_parts(model: Writer, passes: list[int]) -> None:
    trunk = [i % 150 + 20 for i in range(100)]
    prompts = [[*trunk, *([i] * 20)] for i in range(3, 9)]
    sequences = model.start(6, 200)
    logits = read(sequences, prompts, None, most=32)
    assert sum(passes) <= 100 + 6 * (20 + 16)  # a few tokens that all go on with are read by each
    assert max(passes) <= 32
    for prompt, own in zip(prompts, logits, strict=True):
        assert torch.allclose(read(model.start(1, 200), [prompt])[0], own, atol=1e-4)


def test_a_prompt_is_given_up_in_its_middle(model: Writer, passes: list[int]) -> None:
    long, other = [i % 200 + 3 for i in range(150)], [*range(50, 90)]
    sequences = model.start(2, 200)
    sequences.add([long, other], [None, None])
    assert sequences.read(64)[0] == []
    sequences.retain([1])
    passes.clear()
    places, _ = sequences.read(64)
    assert (places, passes) == ([0], [8])
    assert sequences.read(64)[0] == []
    assert sequences.add([long], [None]) == [32]  # what was read of it is still there
    assert sequences.read(1000)[0] == [1]


def test_what_is_kept_stays_within_its_memory_and_the_oldest_leaves(model: Writer) -> None:
    slot = model.start(1, 64).bytes
    assert slot == 2 * 2 * 2 * 8 * 64 * 4  # layers, keys and values, heads, width, tokens, bytes
    sequences = model.start(1, 64, kept=2 * slot + slot // 2)
    assert sequences.bytes == 3 * slot
    prompts = [[i] * 40 for i in range(5, 9)]

    def cached(prompt: list[int]) -> int:
        (n,) = sequences.add([prompt], [None])
        sequences.read(1000)
        sequences.retain([])
        return n

    assert [cached(p) for p in prompts[:3]] == [0, 0, 0]
    assert [cached(p) for p in prompts[:3]] == [39, 39, 39]
    assert cached(prompts[0]) == 39
    assert cached(prompts[3]) == 0  # in the place of 1, which was used longest ago
    assert [cached(p) for p in (prompts[0], prompts[2], prompts[3])] == [39] * 3
    assert cached(prompts[1]) == 0
    assert sequences.bytes == 3 * slot
    long = [70] * 100  # more room for each leaves place for one beside it
    assert cached(long) == 0
    assert sequences.bytes == 2 * 2 * slot
    assert cached(long) == 99
    assert cached(prompts[1]) == 39
    sequences.add([long, prompts[0], prompts[1]], [None] * 3)
    assert sequences._cache.slots == 4 + 1
    assert sequences.read(1000)[0] == [0, 1, 2]


def test_what_is_held_without_requests_is_what_is_kept(model: Writer) -> None:
    slot = model.start(1, 64).bytes
    sequences = model.start(8, 200, kept=2 * slot)  # 128 tokens
    prompts = [[i] * 40 for i in range(5, 12)]
    sequences.add([*prompts, [70] * 150], [None] * 8)  # the last is more than may be kept
    sequences.read(1000)
    sequences.retain([])
    assert sequences.bytes >= 8 * 200 * slot // 64
    for _ in range(2):  # the second time nothing is left to be freed
        assert sequences.shrink() == 128
        assert sequences.bytes == 2 * 2 * slot
    asked = [prompts[6], [70] * 150, prompts[5], prompts[0]]
    sequences.reserve(4, 160)
    assert sequences.bytes == 4 * 160 * slot // 64
    assert sequences.add(asked, [None] * 4) == [39, 0, 39, 0]
    fresh = model.start(4, 160)
    fresh.add(asked, [None] * 4)
    (places, logits_NV), (_, expected_NV) = sequences.read(1000), fresh.read(1000)
    assert places == [0, 1, 2, 3]
    torch.testing.assert_close(logits_NV, expected_NV, rtol=1e-4, atol=1e-5)
    nothing = model.start(2, 64)
    nothing.add([[5] * 40], [None])
    nothing.read(1000)
    nothing.retain([])
    assert nothing.shrink() == 0


def test_memory_comes_back(model: Writer) -> None:
    """Complaint 7, of the packed factors: many adapters, one after the other, on the same sequences."""
    sequences = model.start(2, 40)
    before = len(model.module._prepared)
    for i in range(6):
        own = row_adapter(model.module, f"adapter {i}", scaling=float(i))
        assert model.prepare(own) > 0
        read(sequences, [[1, 2, 3], [4, 5]], [own, None])
        for _ in range(3):
            sequences.decode(torch.tensor([6, 7]))
        sequences.retain([])
        del own
        gc.collect()
        assert len(model.module._prepared) == before


def test_models_of_transformers_refuse_them() -> None:
    model = TransformersModel(tiny_module())
    own = RowAdapter("own", {})
    with pytest.raises(AdapterError, match=r"llama runs through transformers[\s\S]*--merge"):
        model.prepare(own)
    sequences = model.start(2, 10)
    with pytest.raises(AdapterError, match="through transformers"):
        sequences.add([[1], [2]], [None, own])
    assert sequences.read(10)[0] == []
    sequences.add([[1, 5], [2], [3]], [None] * 3)
    sequences.retain([0, 2])
    with torch.inference_mode():
        places, logits = sequences.read(10)
        assert places == [0, 1]
        assert logits.shape == (2, 259)
        assert sequences.bytes > 0
