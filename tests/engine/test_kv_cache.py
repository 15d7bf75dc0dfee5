"""The cache's kernels against the same attention by torch."""

import pytest
import torch

from afina.core.device import cache_folder
from afina.engine.kv_cache import Cache
from afina.engine.ops import TORCH, AttentionSpec, Segments, chosen

SPECS = {
    "grouped by three": AttentionSpec(9, 3, 64, 64, 0.125),
    "grouped by five": AttentionSpec(10, 2, 32, 32, 0.2),
    "window and cap": AttentionSpec(4, 4, 64, 64, 0.125, window=7, cap=20.0),
    "narrow heads": AttentionSpec(6, 3, 20, 20, 0.2, window=40),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_reading_and_stepping_are_torchs(name: str, dtype: torch.dtype, tolerance: float) -> None:
    spec = SPECS[name]
    own = chosen(torch.device("cpu"), cache_folder())
    if own is TORCH:
        pytest.skip("no compiler here")
    caches = [Cache((spec,), 5, 120, type_, torch.device("cpu")) for type_ in (dtype, torch.float32)]
    generator = torch.Generator().manual_seed(0)

    def go(slots: list[int], lengths: list[int]) -> None:
        segments = Segments((0, *torch.tensor(lengths).cumsum(0).tolist()))
        width = spec.qk_size + spec.kv_size
        qkv = torch.randn(sum(lengths), width, generator=generator).to(dtype)
        found = []
        for cache, each, x in zip(caches, (own, TORCH), (qkv, qkv.float()), strict=True):
            cache.begin(slots, segments)
            found.append(cache.attend(0, x, spec, None, segments, each).float())
            cache.end(segments)
        assert (found[0] - found[1]).abs().max() <= tolerance * found[1].abs().max()

    go([4], [37])  # what later texts begin with
    for cache in caches:
        cache.copy(4, [0, 2, 1])
    go([0, 2, 1], [30, 1, 65])
    for _ in range(3):
        go([1, 0, 2], [1, 1, 1])
    for cache in caches:
        cache.cut(0, 0)
    go([0], [50])
    go([2, 0], [2, 0])  # as many tokens as texts, but not one of each
    go([2, 0], [1, 1])
    assert caches[0].positions(Segments((0, 1, 2))).tolist() == [43, 50]
