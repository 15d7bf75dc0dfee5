"""The table of docs/methods.md: each method's size, and how far it is from its twin in forward pass and gradients.

    python benchmarks/methods.py [--write]

A tiny random model is adapted, trained for three steps and saved; PEFT loads the file, and logits and the gradients
of one more step are compared, as the largest difference over the largest value. Trainable parameters are the
starter's at rank 16.
"""

import argparse
import copy
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from conftest import tiny_module
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.errors import AfinaError
from afina.engine.blocks import quantise_linears
from afina.lora import LoraConfig, inject, save_adapter, trainable_parameters
from afina.lora.inits import INITS
from afina.lora.merging import dequantise
from afina.models import load_base

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- table: benchmarks/methods.py -->", "<!-- end of table -->"
IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))


class Method(NamedTuple):
    name: str
    paper: str
    settings: dict[str, Any]
    init: str  # the twin of A and B as they are initialised


METHODS = [
    Method("LoRA", "2106.09685", {}, "PEFT"),
    Method("rsLoRA", "2312.03732", {"rslora": True}, "PEFT"),
    Method("Gaussian init", "2106.09685", {"init": "gaussian"}, "closed form"),
    Method("orthogonal init", "datta0.github.io", {"init": "orthogonal"}, "closed form"),
    Method("PiSSA", "2404.02948", {"init": "pissa"}, "PEFT"),
    Method("OLoRA", "2406.01775", {"init": "olora"}, "PEFT"),
    Method("LoftQ, on int8", "2310.08659", {"init": "loftq"}, "closed form"),
    Method("EVA", "2410.07170", {"init": "eva"}, "closed form"),
    Method("EVA, ranks redistributed", "2410.07170", {"init": "eva", "eva_rho": 2.0}, "closed form"),
    Method("LoRA-GA", "2407.05000", {"init": "lora_ga"}, "closed form"),
    Method("DoRA", "2402.09353", {"variant": "dora"}, "PEFT"),
    Method("VeRA", "2310.11454", {"variant": "vera"}, "PEFT"),
    Method("LoRA-FA", "2308.03303", {"variant": "lora_fa"}, "closed form"),
    Method("attention only", "2106.09685", {"target_modules": "attention"}, "PEFT"),
    Method("MLP only", "2106.09685", {"target_modules": "mlp"}, "PEFT"),
    Method("modules_to_save", "PEFT", {"modules_to_save": ("model.norm",)}, "PEFT"),
    Method("trainable tokens", "PEFT", {"trainable_tokens": (5, 9)}, "PEFT"),
]
_THEIRS = {
    "lora_A.default.weight": "lora_a",
    "lora_B.default.weight": "lora_b",
    "lora_magnitude_vector.default.weight": "lora_magnitude",
    "vera_lambda_b.default": "vera_lambda_b",
    "vera_lambda_d.default": "vera_lambda_d",
    "token_adapter.trainable_tokens_delta.default": "rows",
    "modules_to_save.default.weight": "weight",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    options = parser.parse_args()
    starter = load_base("starter", precision="bf16").model.module
    lines = [
        "| method | paper | trainable parameters | twin of the init "
        "| largest difference, forward | gradients | loads in PEFT |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        size = parameters(starter, method.settings)
        with tempfile.TemporaryDirectory() as folder:
            forward, gradients, loads = compare(method.settings, Path(folder))
        lines.append(
            f"| {method.name} | {method.paper} | {size:,} | {method.init} | {forward:.1e} | {gradients:.1e} | {loads} |"
        )
        print(lines[-1], flush=True)
    if options.write:
        text = PAGE.read_text()
        table = "\n".join([BEGIN, *lines, END])
        PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: table, text, flags=re.DOTALL))


def parameters(starter: nn.Module, settings: dict[str, Any]) -> int:
    model = copy.deepcopy(starter)
    shape = {key: value for key, value in settings.items() if key not in ("init", "eva_rho")}  # inits add no parameters
    inject(model, LoraConfig(**shape))
    return trainable_parameters(model)


def loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(IDS).logits.flatten(0, 1), IDS.roll(1).flatten())


def compare(settings: dict[str, Any], folder: Path) -> tuple[float, float, str]:
    """Largest relative differences of logits and of gradients, and whether PEFT takes the file."""
    model, twin = tiny_module(), tiny_module()
    config = LoraConfig(rank=4, alpha=12.0, **settings)
    weights = {path: module.weight for path, module in tiny_module().named_modules() if isinstance(module, nn.Linear)}
    if config.init == "loftq":
        for each in (model, twin):
            quantise_linears(each, "int8", torch.float32)
        dequantise(twin)
    calibrate = lambda: loss(model).backward() if config.init == "lora_ga" else loss(model)  # noqa: E731
    inject(model, config, 0, calibrate, weights.__getitem__)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(own.values(), lr=0.02, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss(model).backward()
    save_adapter(model, config, folder)
    try:
        theirs = PeftModel.from_pretrained(twin, folder, is_trainable=True)
    except (AfinaError, ValueError, KeyError, RuntimeError) as error:
        return float("nan"), float("nan"), f"no: {error}"
    loss(theirs).backward()
    with torch.no_grad():
        logits = model(IDS).logits
        forward = ((logits - theirs(IDS).logits).abs().max() / logits.abs().max()).item()
    gradients, found = 0.0, 0
    for name, p in theirs.named_parameters():
        end = next((end for end in _THEIRS if name.endswith(end)), None)
        mine = own.get(name.removeprefix("base_model.model.").removesuffix(end or " ") + _THEIRS.get(end or "", ""))
        if mine is None or mine.grad is None or p.grad is None:
            continue
        ours, others = (_trained(grad, name, config) for grad in (mine.grad, p.grad))
        gradients = max(gradients, ((ours - others).abs().max() / p.grad.abs().max().clamp(min=1e-12)).item())
        found += 1
    assert found == len(own), (found, len(own))
    converted = config.saved() is not config
    return forward, gradients, f"yes, as LoRA of rank {2 * config.rank} for {config.rank}" if converted else "yes"


def _trained(grad: Tensor, name: str, config: LoraConfig) -> Tensor:
    """Without the ranks that an init from the base keeps frozen, and that PEFT would train."""
    if not INITS[config.init].from_base or "lora_" not in name:
        return grad
    return grad[: config.rank] if "lora_A" in name else grad[:, : config.rank]


if __name__ == "__main__":
    main()
