"""Adapters as things: listed, shown, compared, combined, cut to a lower rank, merged into their base."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from afina.core.errors import AdapterError
from afina.core.files import read_json, read_jsonl, storing, write_atomic, write_json
from afina.data.template import prompt_ids
from afina.engine.ops import Segments
from afina.lora.arithmetic import Factors, Kind, check_one_base, combine, read_factors, rerank
from afina.lora.merging import merge
from afina.lora.peft_files import CONFIG, WEIGHTS, read_config, read_weights
from afina.models.model import IGNORE_INDEX, Model, Packed
from afina.models.through_transformers import as_transformers, quiet
from afina.runs.facts import adapter_folder, facts_of, is_merged, read_facts, save_tokenizer
from afina.runs.folder import check_new
from afina.runs.opening import open_run

_PROBES = 8  # prompts on which a merged model is compared with the adapted one


def list_adapters(folder: Path) -> list[dict[str, Any]]:
    """What lies in `folder` and below it, an entry an adapter, as `show_adapter` describes it."""
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such folder", "give the folder to look in")
    return [show_adapter(path.parent) for path in sorted(folder.rglob(CONFIG))]


def show_adapter(run: Path) -> dict[str, Any]:
    """Path, base, size and settings of an adapter. Raises `AdapterError`."""
    folder = adapter_folder(run)
    config, facts = read_config(folder), read_facts(folder)
    base = facts.get("base", {})
    name = base.get("name") or read_json(folder / CONFIG).get("base_model_name_or_path")
    return {
        "path": str(folder),
        "base": name,
        "base_sha256": base.get("sha256"),
        "kind": facts.get("kind"),
        "quantize": facts.get("quantize"),
        "parameters": sum(value.numel() for value in read_weights(folder).values()),
        "size_mb": round((folder / WEIGHTS).stat().st_size / 1e6, 2),
        **config.model_dump(mode="json"),
    }


def diff_adapters(first: Path, second: Path) -> dict[str, Any]:
    """Settings that differ, and how far the updates ΔW = s·BA are apart, by layer and in all.

    `cosine` of the updates (1: the same direction), and `distance` ‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖. Raises `AdapterError`.
    """
    shown = [show_adapter(run) for run in (first, second)]
    settings = {key: [shown[0][key], shown[1][key]] for key in shown[0] if shown[0][key] != shown[1][key]}
    one, other = (read_factors(adapter_folder(run)) for run in (first, second))
    both = [path for path in one if path in other]
    for path in both:
        check_one_base(path, [one[path], other[path]])
    products = {path: _products(one[path], other[path]) for path in both}
    layers = [{"layer": path.split(".lora_")[0], **_apart(*products[path])} for path in both]
    sums = [sum(values) for values in zip(*products.values(), strict=True)] or [0.0, 0.0, 0.0]
    return {
        "settings": settings,
        **_apart(*sums),
        "only_in_one": sorted(p.split(".lora_")[0] for p in one.keys() ^ other.keys()),
        "layers": layers,
    }


def combine_adapters(
    runs: Sequence[Path], weights: Sequence[float], out: Path, *, kind: Kind = "svd", rank: int | None = None,
    density: float = 0.5, seed: int = 0,
) -> Path:  # fmt: skip
    """Writes the weighted sum of adapters (see `afina.lora.combine`) to `out`, ready for `generate`, asked as the first one is."""
    folders = [adapter_folder(run) for run in runs]
    check_new(out)
    combine(folders, weights, out, kind=kind, rank=rank, density=density, seed=seed)
    _bring_along(folders[0], out)
    return out


def rerank_adapter(run: Path, rank: int, out: Path) -> float:
    """Writes the adapter cut to `rank` to `out`; the share of the update that is lost."""
    folder = adapter_folder(run)
    check_new(out)
    lost = rerank(folder, rank, out)
    _bring_along(folder, out)
    return lost


def merge_adapter(
    run: Path, out: Path, *, device: str | None = None, cache_dir: Path | None = None, base: str | None = None,
    force: bool = False,
) -> float:  # fmt: skip
    """Writes the base with the adapter folded in to `out`, in transformers' format; the largest difference of logits from the
    adapted model over the largest logit, on prompts of the run. A base that was quantised in training is taken whole."""
    check_new(out)
    if is_merged(run):
        raise AdapterError(f"{run} is merged already: there is no adapter in it", "give the run it came from")
    opening: dict[str, Any] = {"device": device, "cache_dir": cache_dir, "base": base, "force": force}
    adapted = open_run(run, **opening)
    model = adapted.base
    module: Any = model.model.module
    quantised = bool(adapted.facts.get("quantize"))
    into = open_run(run, **opening, dequantise=True).base if quantised else model
    merged: Any = merge(into.model.module)
    predictions = run / "predictions.jsonl"
    texts = [row["prompt"] for row in read_jsonl(predictions)[:_PROBES]] if predictions.exists() else ["Hello."]
    rows = [prompt_ids(model.tokenizer, [{"role": "user", "content": text}]) for text in texts]
    difference = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row, device=next(module.parameters()).device)
            labels = ids.clone()
            if not model.task.continues_text:  # the last token stands for what is to be written
                labels[:-1] = IGNORE_INDEX
            packed = Packed(ids, labels, Segments((0, len(row))))
            before, after = (_with(model.model, each).label_logits(packed).float() for each in (module, merged))
            difference = max(difference, float((before - after).abs().max() / before.abs().max()))
    plain = as_transformers(merged)
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as temporary, quiet():
            plain.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                file.chmod(0o644)
                file.replace(out / file.name)
    save_tokenizer(model, out)
    facts = adapted.facts or facts_of(into, str(run))  # how it is asked
    write_json(out / "afina.json", facts | {"base": into.facts.card(), "quantize": None, "merged_from": str(run)})
    return difference


def _with(model: Model, module: Any) -> Model:
    other = copy.copy(model)
    other.module = module
    return other


def _products(a: Factors, b: Factors) -> tuple[float, float, float]:
    """⟨ΔW₁, ΔW₂⟩, ‖ΔW₁‖² and ‖ΔW₂‖² from the factors: ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ)."""

    def product(x: Factors, y: Factors) -> float:
        return x.scaling * y.scaling * float(((x.b.T @ y.b) * (x.a @ y.a.T)).sum())

    return product(a, b), product(a, a), product(b, b)


def _apart(product: float, first: float, second: float) -> dict[str, float | None]:
    if not first or not second:
        return {"cosine": None, "distance": None}
    return {
        "cosine": product / (first * second) ** 0.5,
        "distance": (max(0.0, first + second - 2 * product) / first) ** 0.5,
    }


def _bring_along(folder: Path, out: Path) -> None:
    """What makes an adapter ready to be asked: its tokenizer, its template and Afina's facts."""
    for file in folder.iterdir():
        if file.name not in (CONFIG, WEIGHTS, "README.md") and file.is_file():
            write_atomic(out / file.name, file.read_bytes())
