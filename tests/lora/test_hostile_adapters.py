"""An adapter's configuration from anywhere: one message, whatever stands in it, and within a limit of time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_module
from safetensors.torch import load_file, save_file

from afina.core.config import build
from afina.core.errors import AdapterError, SettingsError
from afina.lora import targets
from afina.lora.arithmetic import read_factors
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.lora.peft_config import CONFIG, read_config
from afina.lora.peft_files import WEIGHTS, load_adapter, read_weights, save_adapter

BACKTRACKING = "re:(([a-z0-9_.]+)+)+!"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model, config = tiny_module(), LoraConfig(rank=2, target_modules=("q_proj",))
    inject(model, config)
    save_adapter(model, config, tmp_path / "adapter")
    return tmp_path / "adapter"


def change(adapter: Path, **values: Any) -> None:
    raw = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(raw | values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 0), ("r", -8), ("r", 10**12), ("r", "8"), ("r", 2.5), ("r", True), ("r", [8]), ("r", None),
        ("lora_alpha", -1), ("lora_alpha", "x"), ("lora_alpha", float("inf")), ("lora_alpha", float("nan")),
        ("lora_alpha", 1e308), ("lora_alpha", 1_000_001), ("lora_alpha", 0), ("alpha_pattern", {"q_proj": 1e300}),
        ("alpha_pattern", {"q_proj": -1.0}),
        ("lora_dropout", 1.5), ("lora_dropout", -0.1), ("lora_dropout", "0"),
        ("target_modules", 7), ("target_modules", {"a": 1}), ("target_modules", [1, 2]), ("target_modules", []),
        ("target_modules", ["x"] * 20_000), ("target_modules", "("), ("target_modules", "x" * 20_000),
        ("exclude_modules", 3.5), ("modules_to_save", [[]]), ("modules_to_save", 1),
        ("layers_to_transform", "all"), ("layers_to_transform", [-1]), ("layers_to_transform", list(range(5000))),
        ("layers_pattern", {"a": "b"}), ("bias", "some"), ("bias", []),
        ("rank_pattern", {"q_proj": "8"}), ("rank_pattern", {"q_proj": 0}), ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {f"p{i}": 2 for i in range(20_000)}), ("alpha_pattern", {"(": 1.0}),
        ("trainable_token_indices", "all"), ("trainable_token_indices", [-4]), ("trainable_token_indices", {"a": "b"}),
        ("peft_type", None), ("peft_type", "LOHA"), ("task_type", 3),
        ("init_lora_weights", {}), ("use_rslora", "yes"), ("use_dora", 2),
    ],
)  # fmt: skip
def test_a_value_that_means_nothing_is_named(name: str, value: Any, adapter: Path) -> None:
    change(adapter, **{name: value})
    with pytest.raises(AdapterError, match=CONFIG.replace(".", r"\.")) as error:
        read_config(adapter)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b'"x"', b"\xff\xfe", b"[" * 9000 + b"]" * 9000, b'{"peft_type": "LORA"}']
)
def test_a_file_that_is_no_configuration(content: bytes, adapter: Path) -> None:
    (adapter / CONFIG).write_bytes(content)
    with pytest.raises(AdapterError, match=CONFIG.replace(".", r"\.")):
        read_config(adapter)


@pytest.mark.parametrize(
    "change_of", [lambda b: b[:20], lambda b: b"", lambda b: b"\xff" * 8 + b[8:], lambda b: b[:-4]]
)
def test_weights_that_are_damaged(change_of: Any, adapter: Path) -> None:
    path = adapter / WEIGHTS
    path.write_bytes(change_of(path.read_bytes()))
    with pytest.raises(AdapterError, match="is damaged"):
        read_weights(adapter)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", BACKTRACKING.removeprefix("re:")),
        ("exclude_modules", BACKTRACKING.removeprefix("re:")),
        ("rank_pattern", {BACKTRACKING.removeprefix("re:"): 4}),
        ("alpha_pattern", {"((.*)*)*!": 4.0}),
    ],
)
def test_patterns_that_try_for_ever_are_stopped(
    name: str, value: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "PATTERN_SECONDS", 0.3)
    change(adapter, **{name: value})
    begun = time.monotonic()
    with pytest.raises(AdapterError, match="still tried after 0 s"):
        load_adapter(tiny_module(), adapter)
    assert time.monotonic() - begun < 5
    if name.endswith("pattern"):
        with pytest.raises(AdapterError, match="still tried"):
            read_factors(adapter)


def test_ones_own_patterns_are_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "PATTERN_SECONDS", 0.3)
    with pytest.raises(AdapterError, match="still tried"):
        inject(tiny_module(), LoraConfig(target_modules=BACKTRACKING))
    with pytest.raises(SettingsError, match="10,000 characters"):
        build(LoraConfig, {"target_modules": "re:" + "a" * 20_000})


def test_literal_names_are_no_patterns(adapter: Path) -> None:
    """A key that is a layer's own path has its value, even where as a pattern it would not match itself."""
    assert targets.ends_with("layers.0.q+proj", "model.layers.0.q+proj")
    assert targets.ends_with("q_proj", "model.layers.0.self_attn.q_proj")
    assert targets.ends_with(r"layers\.\d+\.q_proj", "model.layers.0.q_proj")
    assert not targets.ends_with("q_proj", "model.layers.0.self_attn.kq_proj")


def test_factors_that_do_not_fit(adapter: Path) -> None:
    state = load_file(adapter / WEIGHTS)
    for odd in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(0, 5)):
        first = next(name for name in state if "lora_A" in name)
        save_file(state | {first: odd}, adapter / WEIGHTS)
        with pytest.raises(AdapterError):
            load_adapter(tiny_module(), adapter)
        with pytest.raises(AdapterError, match="do not fit"):
            read_factors(adapter)
