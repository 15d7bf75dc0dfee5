"""Adapters of random numbers, as files and as they come with rows, and what asks a service for answers."""

import asyncio
import copy
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afina.core.config import build
from afina.core.updates import Factors
from afina.engine.decoder import Decoder
from afina.lora import LoraConfig, inject, load_adapter, save_adapter
from afina.models import Base, generate, load_base
from afina.models.sampling import GREEDY, Sampling
from afina.runs.facts import facts_of, write_facts
from afina.serving.local import LocalHandle
from afina.serving.service import Piece, Wanted


def made(base_folder: Path, folder: Path, seed: int = 0, size: float = 0.5, facts: dict | None = None, **lora) -> Path:
    return made_on(load_base(str(base_folder), precision="fp32", device="cpu"), folder, seed, size, facts, **lora)


def made_on(base: Base, folder: Path, seed: int = 0, size: float = 0.5, facts: dict | None = None, **lora) -> Path:
    """An adapter of random numbers beside the base, which stays as it is; with Afina's facts unless `facts` is None,
    changed by them."""
    module, config = copy.deepcopy(base.model.module), build(LoraConfig, {"rank": 4} | lora)
    inject(module, config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    save_adapter(module, config, folder, base.facts.path, base.task.task_type)
    if facts is not None:
        write_facts(folder, facts_of(base, base.facts.path) | facts)
    return folder


@dataclass(frozen=True, eq=False)
class RowAdapter:
    """An adapter that comes with rows (`core.updates.Updates`)."""

    key: str
    factors: dict[str, Factors]


def row_adapter(
    module: Decoder, key: str, rank: int = 4, scaling: float = 0.7, size: float = 0.2,
    paths: Iterable[str] | None = None,
) -> RowAdapter:  # fmt: skip
    """Of random factors, which the key decides, for the layers at `paths`, by default for every linear one."""
    generator = torch.Generator().manual_seed(sum(map(ord, key)))

    def random(*shape: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=generator)

    places = module.places()
    return RowAdapter(key, {
        path: Factors(random(rank, places[path].inputs), random(places[path].end - places[path].begin, rank), scaling)
        for path in paths or places
    })  # fmt: skip


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """In an event loop of its own, for no longer than a minute."""

    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


async def pieces(handle: LocalHandle, prompt: list[int], new: int, how: Sampling = GREEDY, **more: Any) -> list[Piece]:
    return [piece async for piece in await handle.generate(Wanted(prompt, new, how, **more))]


async def text(handle: LocalHandle, prompt: list[int], new: int, how: Sampling = GREEDY, **more: Any) -> str:
    """The whole answer; the handle is closed."""
    try:
        return "".join(piece.text for piece in await pieces(handle, prompt, new, how, **more))
    finally:
        handle.close()


def alone(base: Base, folder: Path | None, prompt: list[int], new: int) -> str:
    """What a model with the adapter in place writes, by itself."""
    fresh = load_base(base.facts.path, precision="fp32", device="cpu")
    if folder is not None:
        load_adapter(fresh.model.module, folder)
    return generate(fresh, [prompt], new)[0].text
