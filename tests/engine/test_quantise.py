"""K-quants: the kernel and its twin against each other, against ggml's own bytes where that library is, and against
the numbers that went in."""

import ctypes
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from afina.core.device import cache_folder
from afina.engine import kernels
from afina.engine.blocks import GGML_FORMATS, Blocks
from afina.engine.ops.quantise import TYPES, bytes_of, numbers_in_block, quantised

K_QUANTS = {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
OLDER = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def hard_rows(columns: int = 768) -> torch.Tensor:
    """Rows as weights are, and rows that are none: of zeros, of one number, of one sign, very small, very large, with a
    number far from the rest, with whole sub-blocks of nothing beside others."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(40, columns, generator=generator)
    rows = [*plain * 0.02, torch.zeros(columns), torch.full((columns,), 0.3), torch.full((columns,), -0.3)]
    rows += [plain[0].abs(), -plain[1].abs(), plain[2] * 1e-7, plain[3] * 1e-12, plain[4] * 1e-30, plain[5] * 3000]
    rows += [plain[6].index_fill(0, torch.tensor([7, 300]), 50.0), plain[7].round(), plain[8] ** 5]
    sparse = plain[9].clone()
    sparse.view(-1, 32)[::3] = 0
    sparse.view(-1, 16)[::5] *= 1e-6
    sparse.view(-1, 16)[1::7] = 1e-16
    return torch.stack([*rows, sparse, torch.linspace(-1, 1, columns), plain[10].sign()])


def by_numpy(rows: torch.Tensor, type: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "loaded", lambda: None)
        return quantised(rows, type)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("type", K_QUANTS)
def test_the_kernel_writes_the_bytes_of_its_twin(type: str, dtype: torch.dtype, monkeypatch) -> None:
    if kernels.load(cache_folder()) is None:
        pytest.skip(kernels.why_not())
    rows = hard_rows().to(dtype)
    rows = rows if dtype != torch.float16 else rows.nan_to_num(posinf=0, neginf=0)
    found = quantised(rows, type)
    assert found.shape == (len(rows), 3 * GGML_FORMATS[K_QUANTS[type]][2])
    assert np.array_equal(found, by_numpy(rows, type, monkeypatch))
    assert np.array_equal(quantised(rows[:1, :256], type), found[:1, : found.shape[1] // 3])  # an odd number of blocks


def ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("xllamacpp, whose ggml writes the bytes to compare with, is not installed")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library


@pytest.mark.parametrize("type", [*K_QUANTS, *OLDER])
@pytest.mark.parametrize("how", ["compiled", "by hand"])
def test_the_bytes_are_those_of_ggml(type: str, how: str, monkeypatch) -> None:
    library, rows = ggml(), hard_rows()
    found = quantised(rows, type) if how == "compiled" else by_numpy(rows, type, monkeypatch)
    expected = np.zeros_like(found)
    number = int(gguf.GGMLQuantizationType[type])
    library.ggml_quantize_chunk(number, rows.data_ptr(), expected.ctypes.data, 0, len(rows), rows.shape[1], None)
    assert np.array_equal(found, expected), f"{(found != expected).mean():.2%} of the bytes differ"


# The root mean square error of normal numbers of variance 1: half as much by each bit.
@pytest.mark.parametrize(("type", "error"), [("Q4_K", 0.075), ("Q5_K", 0.0375), ("Q6_K", 0.019)])
def test_what_is_read_back_is_near_what_went_in(type: str, error: float) -> None:
    rows = torch.randn(32, 1024, generator=torch.Generator().manual_seed(1))
    data = quantised(rows, type)
    other = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[type]))
    own = Blocks(torch.from_numpy(data), K_QUANTS[type], 1024, torch.float32).dequantised()
    assert torch.allclose(own, other, atol=1e-6)
    assert 0.7 * error < (own - rows).square().mean().sqrt() < error


@pytest.mark.parametrize("type", TYPES)
def test_sizes_are_those_of_what_is_written(type: str) -> None:
    rows = torch.randn(3, 512)
    assert quantised(rows, type).nbytes == bytes_of(3 * 512, type)
    if numbers_in_block(type) > 1:
        with pytest.raises(ValueError, match="do not fill blocks"):
            quantised(rows[:, :100], type)


def test_whole_numbers_are_rounded_as_torch_rounds_them() -> None:
    rows = torch.randn(4, 33)
    for type, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        assert torch.equal(torch.from_numpy(quantised(rows, type)).view(dtype), rows.to(dtype))
