"""Where PEFT itself fails with a method: initialised, trained, saved, reloaded, merged, on tiny random models.

    python benchmarks/peft_alone.py [--write]

Each case is PEFT alone, without Afina. It fails where PEFT raises, or where the reloaded or merged model's outputs
differ from the trained one's by more than 1e-3 of the largest. With --write the failures go into docs/methods.md.
"""

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import peft
import torch
from conftest import tiny_module
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- list: benchmarks/peft_alone.py -->", "<!-- end of list -->"
IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))
KINDS = ["llama", "qwen3", "gemma3", "gpt2", "bert", "t5"]
NORMS = {"gpt2": "ln_f", "bert": "pooler", "t5": "final_layer_norm"}
WORDS = {"gpt2": "wte", "bert": "word_embeddings", "t5": "embed_tokens"}
QUERIES = {"gpt2": "c_attn", "bert": "query", "t5": "q"}
CASES: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "Gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "EVA": {"init_lora_weights": "eva"},
    "LoRA-GA": {"init_lora_weights": "lora_ga", "target_modules": ["QUERIES"]},
    "DoRA": {"use_dora": True},
    "VeRA": {"vera": True},
    "biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["NORM"]},
    "token rows": {"trainable_token_indices": [5, 7]},
    "adapted embedding": {"target_modules": ["WORDS"]},
}
STEPS = ("initialising", "forward", "training", "saving", "reloading", "merging")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the list into docs/methods.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines: list[str] = []
    passed = 0
    for name, settings in CASES.items():
        failures: dict[str, list[str]] = {}
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                said = attempt(kind, settings, Path(folder))
            if said is None:
                passed += 1
            else:
                failures.setdefault(said, []).append(kind)
        lines += [f"- {name}, {', '.join(kinds)}: {said}" for said, kinds in failures.items()]
        for line in lines[len(lines) - len(failures) :]:
            print(line, flush=True)
    head = f"PEFT {peft.__version__}: {passed} of {len(CASES) * len(KINDS)} cases pass; the others:"
    print(head)
    if options.write:
        text = PAGE.read_text()
        body = "\n".join([BEGIN, head, "", *lines, END])
        PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: body, text, flags=re.DOTALL))


def attempt(kind: str, settings: dict[str, Any], folder: Path) -> str | None:
    """What goes wrong first, in words; None where nothing does."""
    stages = run(kind, settings, folder)
    step = STEPS[0]
    outputs: dict[str, Tensor] = {}
    try:
        for step in STEPS:
            outputs[step] = next(stages)
    except Exception as error:  # whatever PEFT raises is what this is about
        return f"{step}: `{type(error).__name__}: {' '.join(str(error).split())[:160]}`"
    expected = outputs["training"]
    for step in ("reloading", "merging"):
        away = float((outputs[step] - expected).abs().max() / expected.abs().max())
        if away > 1e-3:
            return f"{step} gives other outputs (off by {away:.1%} of the largest)"
    return None


def run(kind: str, settings: dict[str, Any], folder: Path) -> Iterator[Tensor]:
    names = {
        "NORM": NORMS.get(kind, "norm"),
        "WORDS": WORDS.get(kind, "embed_tokens"),
        "QUERIES": QUERIES.get(kind, "q_proj"),
    }
    settings = {key: _named(value, names) for key, value in settings.items()}
    vera = settings.pop("vera", False)
    common: dict[str, Any] = {"r": 4, "target_modules": "all-linear"} | settings
    config = VeraConfig(**common) if vera else LoraConfig(lora_alpha=8, **common)
    torch.manual_seed(0)
    base = tiny_module(kind)
    if settings.get("init_lora_weights") == "lora_ga":
        config.lora_ga_config = peft.LoraGAConfig()
        peft.preprocess_loraga(base, config, lambda: output(base).square().mean().backward())
    model = get_peft_model(base, config)
    if settings.get("init_lora_weights") == "eva":
        rows = [{"input_ids": IDS} | ({"decoder_input_ids": IDS} if kind == "t5" else {}) for _ in range(4)]
        peft.initialize_lora_eva_weights(model, rows)
    yield output(model)
    yield output(model).detach()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output(model).square().mean().backward()
        optimizer.step()
    model.eval()
    trained = output(model).detach()
    yield trained
    model.save_pretrained(folder)
    yield trained
    yield output(PeftModel.from_pretrained(tiny_module(kind), folder).eval()).detach()
    yield output(model.merge_and_unload()).detach()


def _named(value: Any, names: dict[str, str]) -> Any:
    return [names.get(each, each) for each in value] if isinstance(value, list) else value


def output(model: nn.Module) -> Tensor:
    if getattr(model.config, "is_encoder_decoder", False):
        return model(input_ids=IDS, decoder_input_ids=IDS).logits
    found = model(input_ids=IDS)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


if __name__ == "__main__":
    main()
