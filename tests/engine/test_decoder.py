"""Our decoder against transformers, on a tiny random model of every family with its quirks."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, read
from torch.nn import functional as F

from afina.engine import families
from afina.engine.architecture import Unsupported
from afina.engine.decoder import Decoder
from afina.engine.families import Family, architecture_of
from afina.engine.ops import TORCH, Segments
from afina.lora import LoraConfig, inject, merge
from afina.models import causal
from afina.models.causal import DecoderModel, TransformersModel
from afina.models.load import load_base
from afina.models.model import IGNORE_INDEX, Packed, unshared

SMALL = {"vocab_size": 259, "max_position_embeddings": 256, "eos_token_id": 2, "bos_token_id": 2, "pad_token_id": 0}
WIDE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
GROUPED = {**SMALL, **WIDE, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0], "original_max_position_embeddings": 50,
}  # fmt: skip
FAMILIES = {
    "llama": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "llama with biases and scaled rotary": (
        "LlamaConfig", {**GROUPED, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "mistral with a window": ("MistralConfig", {**GROUPED, "sliding_window": 5, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {**GROUPED}),
    "qwen2 with windows": (
        "Qwen2Config", {**GROUPED, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {**GROUPED, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma2 with caps": (
        "Gemma2Config",
        {**GROUPED, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20, "final_logit_softcapping": 3.0,
         "attn_logit_softcapping": 0.5},
    ),
    "phi3": ("Phi3Config", {**GROUPED, "sliding_window": 9}),
    "phi3 with partial, long rotary": (
        "Phi3Config", {**GROUPED, "original_max_position_embeddings": 50, "rope_parameters": LONG},
    ),
    "olmo2": ("Olmo2Config", {**GROUPED}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 259, "n_positions": 256, "n_embd": 48, "n_layer": 3, "n_head": 4, "eos_token_id": 2,
         "bos_token_id": 2},
    ),
    "gpt-neox": ("GPTNeoXConfig", {**SMALL, **WIDE}),
    "gpt-neox, one after another": ("GPTNeoXConfig", {**SMALL, **WIDE, "use_parallel_residual": False}),
}  # fmt: skip
LENGTHS = (23, 1, 7, 70)


def twin(name: str):
    """A random model of transformers, with norms and biases that are not ones and zeros."""
    import transformers

    kind, arguments = FAMILIES[name]
    config = getattr(transformers, kind)(**arguments)
    config._attn_implementation = "eager"  # the only one that knows caps
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model.requires_grad_(False)


def ours(name: str, folder: Path, kernels: bool) -> DecoderModel:
    twin(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    model = load_base(str(folder), precision="fp32", device="cpu").model
    assert isinstance(model, DecoderModel)
    if kernels and model.module.ops is TORCH:
        pytest.skip("there is no C++ compiler here")
    model.module.ops = model.module.ops if kernels else TORCH
    return model


def alone(packed: Packed) -> list[Packed]:
    """The rows of a pack, each as a pack, where there is something to learn in them."""
    parts = (x.split(packed.segments.lengths) for x in (packed.ids_T, packed.labels_T))
    rows = [unshared(ids, labels, Segments((0, len(ids)))) for ids, labels in zip(*parts, strict=True)]
    return [row for row in rows if row.labelled]


def randomise(module: torch.nn.Module) -> None:
    """An adapter that does something, the same in every model with these names."""
    for name, parameter in sorted(module.named_parameters()):
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def batch(lengths: tuple[int, ...] = LENGTHS) -> Packed:
    generator = torch.Generator().manual_seed(1)
    bounds = [0]
    for n in lengths:
        bounds.append(bounds[-1] + n)
    ids = torch.randint(3, 259, (bounds[-1],), generator=generator)
    labels = torch.where(torch.rand(len(ids), generator=generator) < 0.4, ids.roll(-1), IGNORE_INDEX)
    labels[1] = 5
    return unshared(ids, labels, Segments(tuple(bounds)))


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_loss_and_gradients_are_those_of_transformers(name: str, kernels: bool, tmp_path: Path) -> None:
    model, other, packed = ours(name, tmp_path, kernels), twin(name), batch()
    expected = torch.cat([other(input_ids=row[None]).logits[0] for row in packed.ids_T.split(packed.segments.lengths)])[
        packed.at_N
    ]
    found = model.label_logits(packed)
    assert (found - expected).abs().max() < 1e-4
    # The same adapters in both, and their gradients.
    rows = TransformersModel(other)
    gradients = []
    for each in (model, rows):
        inject(each.module, LoraConfig(rank=4), seed=3)
        randomise(each.module)
        losses = [each.summed_loss(part) for part in ([packed] if each is model else alone(packed))]
        sum(losses).backward()
        found = {n: p.grad for n, p in each.module.named_parameters() if p.grad is not None}
        gradients.append((sum(losses).item(), found))
    (loss, ours_by_name), (their_loss, theirs_by_name) = gradients
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert ours_by_name.keys() == theirs_by_name.keys()
    for path, gradient in theirs_by_name.items():
        assert torch.allclose(ours_by_name[path], gradient, atol=1e-4 * gradient.abs().max().item() + 1e-6), path


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("shared", "slots", "room"), [(0, 3, 64), (20, 3, 64), (20, 1, 8)])  # the last has to grow
def test_step_by_step_is_the_same_as_all_at_once(
    name: str, shared: int, slots: int, room: int, kernels: bool, tmp_path: Path
) -> None:
    model = ours(name, tmp_path, kernels)
    prefix = list(range(40, 40 + shared))
    lengths = (9, 10 if shared else 30, 4)  # longrope's angles change with the 51st token
    texts = [prefix + row.tolist() for row in batch(lengths).ids_T.split(lengths)]

    def whole(text: list[int]) -> torch.Tensor:
        labels = torch.full((len(text),), IGNORE_INDEX)
        labels[-1] = 0
        return model.label_logits(unshared(torch.tensor(text), labels, Segments((0, len(text)))))[0]

    with torch.inference_mode():
        sequences = model.start(slots, room)
        logits = read(sequences, texts[:2])
        order = [0, 1]
        for step in range(12):
            for place, text in enumerate(order):
                assert torch.allclose(logits[place], whole(texts[text]), atol=1e-4), (step, text)
            new = [(7 * step + 3 + i) % 250 + 3 for i in range(len(order))]
            for text, token in zip(order, new, strict=True):
                texts[text].append(token)
            logits = sequences.decode(torch.tensor(new))
            if step == 3:  # a sequence enters
                logits = torch.cat([logits, read(sequences, [texts[2]])])
                order.append(2)
            if step == 6:  # another leaves, and the first enters again in its place
                sequences.retain([1, 2])
                order = [1, 2]
                logits = torch.cat([logits[1:], read(sequences, [texts[0]])])
                order.append(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_full_fine_tuning_has_the_gradients_of_transformers(name: str, tmp_path: Path) -> None:
    model, other, packed = ours(name, tmp_path, True), twin(name), batch()
    for each in (model, TransformersModel(other)):
        each.module.requires_grad_(True)
        for part in alone(packed):
            each.summed_loss(part).backward()
    theirs = dict(other.named_parameters())
    for path, parameter in model.module.named_parameters():
        expected = theirs[path].grad
        assert torch.allclose(parameter.grad, expected, atol=1e-4 * expected.abs().max().item() + 1e-6), path


def test_packed_equals_unpacked_and_checkpointed_equals_not(tmp_path: Path) -> None:
    model, packed = ours("qwen3", tmp_path, True), batch()
    inject(model.module, LoraConfig(rank=4, dropout=0.0), seed=1)
    randomise(model.module)
    trainable = [p for p in model.module.parameters() if p.requires_grad]

    def gradients(batches: list[Packed]) -> tuple[float, list[torch.Tensor]]:
        model.module.train()
        total = 0.0
        for p in trainable:
            p.grad = None
        for each in batches:
            loss = model.summed_loss(each)
            loss.backward()
            total += loss.item()
        return total, [p.grad.clone() for p in trainable]

    loss, expected = gradients([packed])
    model.checkpoint_activations()
    for batches in (alone(packed), [packed]):
        again, found = gradients(batches)
        assert again == pytest.approx(loss, rel=1e-6)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_logits_are_computed_again_with_the_same_random_numbers(
    dropout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose state is read, which is a wait for a card, only where some are drawn."""
    model, packed = ours("qwen2", tmp_path, True), batch()
    inject(model.module, LoraConfig(rank=4, dropout=dropout, target_modules=("lm_head",)))
    randomise(model.module)
    model.module.train()
    reads: list[int] = []
    state = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: reads.append(1) or state())
    found = []
    for again in (True, False):
        if not again:
            assert bool(reads) == bool(dropout)
            monkeypatch.setattr(causal, "checkpoint", lambda function, *of, **_: function(*of))
        torch.manual_seed(0)
        model.module.zero_grad()
        model.summed_loss(packed).backward()
        found.append([p.grad for p in model.module.parameters() if p.grad is not None])
    assert len(found[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_order_of_rows_in_a_pack_does_not_matter(tmp_path: Path) -> None:
    model = ours("llama", tmp_path, True)
    packed = batch((5, 40, 12))
    rows = list(zip(packed.ids_T.split([5, 40, 12]), packed.labels_T.split([5, 40, 12]), strict=True))
    turned = unshared(
        torch.cat([ids for ids, _ in rows[::-1]]),
        torch.cat([labels for _, labels in rows[::-1]]),
        Segments((0, 12, 52, 57)),
    )
    assert model.summed_loss(packed).item() == pytest.approx(model.summed_loss(turned).item(), rel=1e-6)


def test_adapters_on_some_layers_head_and_embedding(tmp_path: Path) -> None:
    """Targets that cannot be joined, or that change the head, give transformers' gradients too."""
    for targets in (("q_proj", "up_proj"), ("embed_tokens", "lm_head", "v_proj"), ("down_proj",)):
        model, other, packed = ours("qwen2", tmp_path, True), TransformersModel(twin("qwen2")), batch()
        found = []
        for each in (model, other):
            inject(each.module, LoraConfig(rank=3, target_modules=targets, alpha_pattern={targets[-1]: 5.0}), seed=3)
            randomise(each.module)
            each.summed_loss(packed).backward()
            found.append({n: p.grad for n, p in each.module.named_parameters() if p.grad is not None})
        assert found[0].keys() == found[1].keys()
        for path, gradient in found[1].items():
            assert torch.allclose(found[0][path], gradient, atol=1e-4 * gradient.abs().max().item()), path


def test_merging_and_copying_leave_joined_weights_right(tmp_path: Path) -> None:
    model, packed = ours("llama", tmp_path, True), batch()
    plain = model.label_logits(packed)
    inject(model.module, LoraConfig(rank=4), seed=3)
    for path, parameter in model.module.named_parameters():
        if "lora_b" in path:
            parameter.data += 0.1
    with torch.no_grad():
        adapted = model.label_logits(packed)
        assert (adapted - plain).abs().max() > 1e-2
        assert torch.allclose(DecoderModel(merge(model.module)).label_logits(packed), adapted, atol=1e-4)
        copied = copy.deepcopy(model.module)
        for path, parameter in copied.named_parameters():
            if "lora_b" in path:
                parameter.zero_()
        assert torch.allclose(DecoderModel(copied).label_logits(packed), plain, atol=1e-5)
        assert torch.equal(model.label_logits(packed), adapted)


def test_adapters_changed_after_use_are_seen(tmp_path: Path) -> None:
    model, packed = ours("llama", tmp_path, True), batch()
    inject(model.module, LoraConfig(rank=4), seed=3)
    with torch.no_grad():
        before = model.label_logits(packed)
        for path, parameter in model.module.named_parameters():
            if "lora_b" in path:
                parameter.add_(0.1)
        changed = model.label_logits(packed)
        for path, parameter in model.module.named_parameters():
            if "lora_a" in path:
                parameter.mul_(2.0)
        assert not torch.allclose(before, changed)
        assert not torch.allclose(changed, model.label_logits(packed))


def test_bf16_is_near_fp32(tmp_path: Path) -> None:
    exact, packed = ours("qwen3", tmp_path, True), batch()
    rounded = load_base(str(tmp_path), precision="bf16", device="cpu").model
    a, b = exact.label_logits(packed), rounded.label_logits(packed).float()
    assert b.dtype == torch.float32
    assert (a - b).abs().max() < 0.03 * a.abs().max()
    for each in (rounded.module.ops, TORCH):
        rounded.module.ops = each
        loss = rounded.summed_loss(packed).item()
        assert loss == pytest.approx(F.cross_entropy(a, packed.labels_N, reduction="sum").item(), rel=0.01)


def test_unknown_architectures_are_said_to_be_unsupported() -> None:
    import transformers

    with pytest.raises(Unsupported, match="opt"):
        architecture_of(transformers.OPTConfig())
    with pytest.raises(Unsupported, match="relu"):
        architecture_of(transformers.LlamaConfig(hidden_act="relu"))
    assert isinstance(Decoder, type)


def test_a_family_may_come_from_outside_the_package() -> None:
    import transformers

    class OwnConfig(transformers.LlamaConfig):
        model_type = "own"

    with pytest.raises(Unsupported, match="own"):
        architecture_of(OwnConfig(**GROUPED))
    with families.FAMILIES.added(Family("own", families.FAMILIES["llama"].architecture)):
        found = architecture_of(OwnConfig(**GROUPED))
    assert (found.model_type, len(found.specs), found.specs[0].kv_heads) == ("own", 3, 2)
