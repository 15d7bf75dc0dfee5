"""What good adapters of PEFT hold, read against PEFT's own model; and what is said of those that are not."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config, tiny_module
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from afina.core.errors import AdapterError
from afina.core.events import Notice
from afina.lora import LoraConfig, inject, load_adapter, lora_layers, merge, save_adapter
from afina.lora.config import LoraConfig as Config
from afina.lora.modules_to_save import trained_copies

IDS = torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(1))
IDS[0, :4] = torch.tensor([5, 9, 6, 250])


@pytest.fixture(autouse=True)
def _without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's model cards take as long as all the rest."""
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda self, folder: None)


def base(kind: str = "llama", tied: bool = True) -> Any:
    config = tiny_config(kind)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.15 * torch.randn(parameter.shape)
    return model


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise.to(parameter.dtype))  # in place: what is tied stays so


def peft_adapter(model: Any, folder: Path, **settings: Any) -> Any:
    twin = get_peft_model(copy.deepcopy(model), PeftConfig(r=4, lora_alpha=8, **settings))
    randomise(twin)
    twin.save_pretrained(folder)
    return twin.eval()


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def same(model: Any, folder: Path, twin: Any, **options: Any) -> Any:
    """Reads the adapter: it must give the twin's logits, before and after merging and saving anew; what was read."""
    plain, ours = output(model), copy.deepcopy(model)
    config = load_adapter(ours, folder, **options)
    expected = output(twin)
    assert torch.allclose(output(ours), expected, atol=1e-5 * expected.abs().max())
    assert (expected - plain).abs().max() > 0.01 * expected.abs().max()
    assert torch.allclose(output(merge(ours)), expected, atol=1e-4 * expected.abs().max())
    save_adapter(ours, config, folder / "again")
    again = copy.deepcopy(model)
    load_adapter(again, folder / "again")
    assert torch.equal(output(again), output(ours))
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), folder / "again")
    assert torch.allclose(output(theirs), expected, atol=1e-5 * expected.abs().max())
    return ours


def load_with(model: Any, folder: Path) -> Any:
    ours = copy.deepcopy(model)
    load_adapter(ours, folder)
    return ours


HEADS = [
    {"modules_to_save": ["embed_tokens", "lm_head"]},
    {"modules_to_save": ["lm_head", "model.embed_tokens"]},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["lm_head"], "ensure_weight_tying": True, "modules_to_save": ["norm"]},
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", HEADS, ids=range(len(HEADS)))
def test_heads_and_embeddings(settings: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    if settings.get("ensure_weight_tying") and not tied:
        pytest.skip("there is nothing to tie")
    model = base(tied=tied)
    twin = peft_adapter(model, tmp_path, **{"target_modules": ["q_proj"]} | settings)
    same(model, tmp_path, twin)


def test_copies_that_part_in_the_file_part_in_the_model(tmp_path: Path) -> None:
    model = base()
    peft_adapter(model, tmp_path / "apart", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    load_adapter(model, tmp_path / "apart")
    one, other = (each.trained.weight for each in trained_copies(model))
    assert one is not other
    assert not torch.equal(one, other)
    ours = base()
    config = LoraConfig(rank=4, target_modules=("q_proj",), modules_to_save=("embed_tokens", "lm_head"))
    inject(ours, config)
    randomise(ours)
    save_adapter(ours, config, tmp_path / "together")
    state = load_file(tmp_path / "together" / "adapter_model.safetensors")
    names = ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"]
    assert torch.equal(*(state[name] for name in names))  # PEFT needs both
    for absent in (None, *names):  # one is enough for us
        kept = {name: value for name, value in state.items() if name != absent}
        save_file(kept, tmp_path / "together" / "adapter_model.safetensors")
        again = base()
        load_adapter(again, tmp_path / "together")
        assert torch.equal(output(again), output(ours))
        one, other = (each.trained.weight for each in trained_copies(again))
        assert one is other  # and are trained as one
    save_file({n: v for n, v in state.items() if n not in names}, tmp_path / "together" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"lm_head\.weight is missing"):
        load_adapter(base(), tmp_path / "together")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("theirs", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ours", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_copy_of_the_base_is_known_in_any_precision(
    kind: str, ours: torch.dtype, theirs: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    """PEFT saves the weights of adapted heads and embeddings, as it held them."""
    names = {"llama": ["lm_head", "embed_tokens"], "gpt2": ["lm_head", "wte"]}[kind]
    model = base(kind).to(stored)
    model.get_input_embeddings().weight.data[7] *= 1e-6  # where fp16 has fewer digits
    peft_adapter(copy.deepcopy(model).to(theirs), tmp_path, target_modules=names)
    assert any("base_layer" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = copy.deepcopy(model).to(ours)
    load_adapter(loaded, tmp_path)
    assert len(list(lora_layers(loaded))) == 2
    state = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in state if "base_layer" in name)
    for wrong in (state[name] * 1.05, state[name].roll(1, 0), state[name] + 0.01):
        save_file(state | {name: wrong.contiguous()}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match="is a copy of the weights of another base than this one"):
            load_adapter(copy.deepcopy(model).to(ours), tmp_path)
    save_file(state | {name: torch.cat([state[name], state[name][:3]])}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"another base than this one: \(262, 32\), not \(259, 32\)"):
        load_adapter(copy.deepcopy(model).to(ours), tmp_path)


def test_a_copy_that_is_adapted_by_nothing_says_nothing_new(tmp_path: Path) -> None:
    """`save_embedding_layers=True`, as some trainers have it."""
    model = base(tied=False)
    twin = get_peft_model(copy.deepcopy(model), PeftConfig(r=4, target_modules=["q_proj"]))
    randomise(twin)
    twin.save_pretrained(tmp_path, save_embedding_layers=True)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter_model.safetensors")
    same(model, tmp_path, twin)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target_modules": ["q_proj", "q_prj"]}, "target 'q_prj' matches no layer. Did you mean 'q_proj'"),
        ({"target_modules": ["q_proj", "c_attn", "query_key_value"]}, "'query_key_value' matches no layer"),
        ({"target_modules": ["q_proj", "mlp"]}, "'mlp' matches LlamaMLP layers, which cannot be adapted"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 8}}, "pattern 'v_proj'"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"layers.7.*": 3}}, "pattern 'layers.7.*'"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["score", "classifier"]}, "matches no module"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 5]}, "there is no layer 5"),
    ],
)
def test_what_matches_nothing_is_said_and_left_out(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = base()
    twin = peft_adapter(model, tmp_path, target_modules=["q_proj"])
    change(tmp_path, **values)
    told: list[Any] = []
    same(model, tmp_path, twin, listener=told.append)
    assert [type(each) for each in told] == [Notice]
    assert words in told[0].text
    assert "which is ignored, as in PEFT" in told[0].text


def test_options_that_are_not_known_are_named(tmp_path: Path) -> None:
    model = base()
    twin = peft_adapter(model, tmp_path, target_modules=["q_proj"])
    change(tmp_path, use_new_scaling=True, new_config={"a": 1}, not_used=None, nor_this=False)
    told: list[Any] = []
    same(model, tmp_path, twin, listener=told.append)
    assert [(each.text, each.warning) for each in told] == [
        (f"adapter {tmp_path} has options that are not known here, and not used: use_new_scaling, new_config", True)
    ]
    change(tmp_path, lora_bias=True)
    with pytest.raises(AdapterError, match="lora_bias = True") as caught:
        load_adapter(base(), tmp_path)
    assert "merge it into its base with PEFT" in caught.value.remedy


def test_where_nothing_matches_the_base_is_wrong(tmp_path: Path) -> None:
    peft_adapter(base(), tmp_path, target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="'q_proj' matches no layer"):
        load_adapter(base("gpt2"), tmp_path)
    change(tmp_path, layers_to_transform=[7])
    with pytest.raises(AdapterError, match="leaves no layer to adapt"):
        load_adapter(base(), tmp_path)


LAYERS = [
    ("llama", {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]}),
    ("llama", {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": 1}),
    ("llama", {"target_modules": ["q_proj", "model.embed_tokens"], "layers_to_transform": [1]}),
    ("llama", {"target_modules": ["q_proj", "embed_tokens"], "layers_to_transform": [1]}),  # PEFT leaves it out
    ("llama", {"target_modules": ["q_proj", "model.layers.1.mlp.up_proj"], "layers_to_transform": [0]}),
    ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    ("llama", {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1], "layers_pattern": ["layers"]}),
    ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [0], "layers_pattern": ["layers", "h"]}),
    ("gpt2", {"target_modules": ["c_attn", "lm_head"], "layers_to_transform": [1], "layers_pattern": "h"}),
    ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [1], "exclude_modules": ["mlp.c_fc"]}),
]


@pytest.mark.parametrize(("kind", "settings"), LAYERS, ids=range(len(LAYERS)))
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_layers_to_transform(kind: str, settings: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = base(kind, tied)
    twin = peft_adapter(model, tmp_path, **settings)
    ours = same(model, tmp_path, twin)
    adapted = {path for path, _ in lora_layers(ours)}
    end = ".lora_A"
    names = [name for name, _ in twin.named_modules() if name.endswith((end, "lora_embedding_A"))]
    assert adapted == {
        name.removeprefix("base_model.model.").rpartition(".")[0]
        for name in names
        if dict(twin.named_modules())[name.rpartition(".")[0]].r
    }


def test_layers_are_counted_in_the_lists_that_are_named(tmp_path: Path) -> None:
    """In T5 a block is of a list, and so are the parts of each."""
    model = tiny_module("t5")
    inner = {"target_modules": ["q", "wi"], "layers_to_transform": [1], "layers_pattern": "layer"}
    for settings in (inner, inner | {"layers_pattern": "block"}, inner | {"layers_pattern": ["encoder.block"]}):
        twin = peft_adapter(model, tmp_path, **settings)
        ours = copy.deepcopy(model)
        load_adapter(ours, tmp_path)
        expected = {n.removeprefix("base_model.model.") for n, m in twin.named_modules() if hasattr(m, "lora_A")}
        assert {path for path, _ in lora_layers(ours)} == expected
        assert 0 < len(expected) < 12
    with pytest.raises(ValueError, match="layers_pattern is read with layers only"):
        Config(layers_pattern="h")


TOKENS: list[Any] = [
    [5, 9],
    {"embed_tokens": [5, 9]},
    {"embed_tokens": [5, 9], "lm_head": [5, 9]},
    {"embed_tokens": [5, 9], "lm_head": [6, 250, 7]},
    {"lm_head": [5, 9, 30]},
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("tokens", TOKENS, ids=["list", "embedding", "both", "differing", "head"])
def test_trainable_tokens(tokens: Any, kind: str, tied: bool, tmp_path: Path) -> None:
    model = base(kind, tied)
    layer = "c_attn" if kind == "gpt2" else "q_proj"
    if kind == "gpt2" and isinstance(tokens, dict):
        tokens = {name.replace("embed_tokens", "wte"): ids for name, ids in tokens.items()}
    twin = peft_adapter(model, tmp_path, target_modules=[layer], trainable_token_indices=tokens)
    same(model, tmp_path, twin)


def test_trainable_tokens_of_a_head_with_a_bias(tmp_path: Path) -> None:
    config = tiny_config("bert")
    config.is_decoder = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for settings in (
        {"trainable_token_indices": {"word_embeddings": [5, 9]}},
        {"trainable_token_indices": {"decoder": [5, 9]}},
        {"bias": "all"},
    ):
        folder = tmp_path / next(iter(settings))
        twin = peft_adapter(model, folder, target_modules=["query"], **settings)
        same(model, folder, twin)
        # PEFT forgets the head's own bias beside trained rows, until it merges them.
        other, bias = copy.deepcopy(model), torch.randn(259, generator=torch.Generator().manual_seed(0))
        other.cls.predictions.decoder.bias.data.copy_(bias)
        plain = output(load_with(model, folder))
        if "bias" not in settings:
            assert torch.allclose(output(load_with(other, folder)), plain + bias, atol=1e-5)


def test_tokens_on_the_command_line() -> None:
    assert Config(trainable_tokens="5-7,9").trainable_tokens == (5, 6, 7, 9)
    both = Config(trainable_tokens="{embed_tokens: 5-7, lm_head: [5, 9]}")
    assert both.trainable_tokens == {"embed_tokens": (5, 6, 7), "lm_head": (5, 9)}
    for wrong in ("{embed_tokens: 5-", "{embed_tokens: x}", "x"):
        with pytest.raises(ValueError, match="trainable_tokens"):
            Config(trainable_tokens=wrong)
    for tokens, words in (
        ({"embed_tokens": (5, 259)}, "numbers from 0 to 258"),
        ({"lm_hed": (5,)}, "'lm_hed' is no embedding and no linear layer. Did you mean 'lm_head'"),
    ):
        with pytest.raises(AdapterError, match=words):
            inject(base(), LoraConfig(rank=2, trainable_tokens=tokens))


def test_a_pattern_may_stand_among_names(tmp_path: Path) -> None:
    model = base()
    config = LoraConfig(rank=2, target_modules=("v_proj", r"re:.*\.1\..*q_proj"))
    paths = [f"model.layers.{layer}" for layer in ("0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj")]
    assert inject(model, config) == paths
    save_adapter(model, config, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(paths)
    saved = LoraConfig(modules_to_save="re:.*norm").saving(["lm_head"])  # as a classifier's head is added
    inject(model := base(), saved)
    assert len(trained_copies(model)) == 6
