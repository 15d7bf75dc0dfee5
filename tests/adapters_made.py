"""Adapters of random numbers on the tiny base, as files, and what asks a service for answers."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import torch

from afina.lora import LoraConfig, inject, save_adapter
from afina.models import Base, load_base
from afina.models.sampling import GREEDY, Sampling
from afina.runs.facts import facts_of, write_facts
from afina.serving.local import LocalHandle
from afina.serving.service import Piece, Wanted


def made(
    base_folder: Path, folder: Path, seed: int = 0, size: float = 0.5, facts: dict | None = None, **config
) -> Path:
    """An adapter of random numbers, with Afina's facts unless `facts` is None, changed by them."""
    base = load_base(str(base_folder), precision="fp32", device="cpu")
    lora = LoraConfig(**{"rank": 4, **config})
    inject(base.model.module, lora, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in base.model.module.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    save_adapter(base.model.module, lora, folder, str(base_folder), "CAUSAL_LM")
    if facts is not None:
        write_facts(folder, facts_of(base, str(base_folder)) | facts)
    return folder


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
    from afina.lora import load_adapter
    from afina.models import generate

    fresh = load_base(base.facts.path, precision="fp32", device="cpu")
    if folder is not None:
        load_adapter(fresh.model.module, folder)
    return generate(fresh, [prompt], new)[0].text
