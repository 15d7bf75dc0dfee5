"""Runs to export, for tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from adapters_made import made_on
from conftest import save_tiny, write_rows
from safetensors.torch import load_file, save_file

import afina
from afina.core.config import build
from afina.jobs.export import ExportResult, ExportSettings, export
from afina.models.load import load_base
from afina.runs.facts import save_tokenizer

RECORDED = Path(__file__).parents[1] / "recorded"


def recorded_run(folder: Path) -> Path:
    """A run that was trained before, with its base and data beside it, called `run`."""
    for name, new in (("finished", "run"), ("base", "base")):
        shutil.copytree(RECORDED / name, folder / new)
    shutil.copy(RECORDED / "colours.jsonl", folder)
    for file in (folder / "run").rglob("*"):
        if file.is_file() and b"@FOLDER@" in (content := file.read_bytes()):
            file.write_bytes(content.replace(b"@FOLDER@", str(folder).encode()))
    facts = json.loads((folder / "run" / "adapter" / "afina.json").read_text())
    facts["data"]["system"] = "One word."
    (folder / "run" / "adapter" / "afina.json").write_text(json.dumps(facts))
    return folder / "run"


def adapter_on(base: Path, folder: Path, quantize: Any = None, **lora: Any) -> Path:
    """The folder of an adapter on `base` that nobody trained."""
    found = load_base(str(base), precision="fp32", device="cpu", quantize=quantize)
    made_on(found, folder, size=0.05, facts={"quantize": quantize}, **lora)
    save_tokenizer(found, folder)
    return folder


def adapter_of(folder: Path, kind: str = "llama", **lora: Any) -> Path:
    """The same on a base of a family."""
    return adapter_on(save_tiny(folder / "base", kind), folder / "run", **lora)


def colours_of(folder: Path) -> Path:
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "a": "red" if i % 2 else "blue"} for i in range(60)]
    return write_rows(folder / "colours.jsonl", rows)


def train(folder: Path, base: Path, **settings: Any) -> Path:
    """A training on the colours into `folder`/run."""
    given: dict[str, Any] = {
        "base": str(base), "out": folder / "run", "precision": "fp32", "device": "cpu", "threads": 1,
        "data": {"path": colours_of(folder), "prompt": "{q}", "completion": "{a}"},
        "train": {"epochs": 1, "learning_rate": 0.01}, "lora": {"rank": 4},
    }  # fmt: skip
    return afina.train(build(afina.RunSettings, given | settings)).folder


def write(run: Path, to: str, out: Path, **settings: Any) -> ExportResult:
    given = {"run": run, "to": to, "out": out, "device": "cpu", "rows": 4} | settings
    return export(build(ExportSettings, given))


def change_adapter(run: Path, change: Any) -> None:
    """Writes the adapter's tensors as `change` makes them."""
    path = run / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file({name: value.contiguous() for name, value in state.items()}, path, {"format": "pt"})


def without_effect(state: dict[str, torch.Tensor]) -> None:
    for name, value in state.items():
        if "lora_B" in name:
            value.zero_()


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "export.json").read_text())
    return found
