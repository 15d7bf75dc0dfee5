"""Dequantisation. Each format gives number i of a block, of whose bytes `p` is the address; the formats are ggml's, and
NF4, as ../../cpp/blocks.cpp has them. A program is some blocks of a row.

d is a block's scale, m its minimum, both in fp16; K-quants have sub-blocks with a scale and a minimum of their own.
"""

import triton
import triton.language as tl


@triton.jit
def _byte(p, mask):
    return tl.load(p, mask=mask, other=0).to(tl.int32)


@triton.jit
def _half(p, mask):
    """The fp16 number at an address that need not be even."""
    bits = _byte(p, mask) | _byte(p + 1, mask) << 8
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _single(p):
    """The fp32 number at an address that need not be a multiple of 4."""
    word = tl.load(p).to(tl.uint32) | tl.load(p + 1).to(tl.uint32) << 8
    word |= tl.load(p + 2).to(tl.uint32) << 16
    return (word | tl.load(p + 3).to(tl.uint32) << 24).to(tl.float32, bitcast=True)


@triton.jit
def _nibble(p, i, mask):
    """Of 32 numbers of four bits: the low halves of 16 bytes, then the high ones."""
    return _byte(p + i % 16, mask) >> i // 16 * 4 & 15


@triton.jit
def _fifth(p, i, mask):
    """Bit i of 32, in the place of a fifth."""
    return (_byte(p + i // 8, mask) >> i % 8 & 1) << 4


@triton.jit
def _simple(p, i, mask, KIND: tl.constexpr):
    """Blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0."""
    d = _half(p, mask)
    if KIND == 2:
        return (_nibble(p + 2, i, mask) - 8).to(tl.float32) * d
    if KIND == 3:
        return _nibble(p + 4, i, mask).to(tl.float32) * d + _half(p + 2, mask)
    if KIND == 6:
        return (_nibble(p + 6, i, mask) + _fifth(p + 2, i, mask) - 16).to(tl.float32) * d
    if KIND == 7:
        return (_nibble(p + 8, i, mask) + _fifth(p + 4, i, mask)).to(tl.float32) * d + _half(p + 2, mask)
    return (_byte(p + 2 + i, mask) << 24 >> 24).to(tl.float32) * d


@triton.jit
def _q2_k(p, i, mask):
    """16 sub-blocks of 16; scale and minimum have four bits each."""
    sub = i // 16
    both = _byte(p + sub, mask)
    q = _byte(p + 16 + sub // 8 * 32 + sub % 2 * 16 + i % 16, mask) >> sub % 8 // 2 * 2 & 3
    scale, least = (both & 15).to(tl.float32), (both >> 4).to(tl.float32)
    return _half(p + 80, mask) * scale * q.to(tl.float32) - _half(p + 82, mask) * least


@triton.jit
def _q3_k(p, i, mask):
    """16 sub-blocks of 16; two low bits in one place, the third in a mask; scales have six bits, four in one place and
    two in another."""
    sub = i // 16
    q = _byte(p + 32 + sub // 8 * 32 + sub % 2 * 16 + i % 16, mask) >> sub % 8 // 2 * 2 & 3
    third = _byte(p + sub % 2 * 16 + i % 16, mask) >> sub // 2 & 1
    low = _byte(p + 96 + sub % 8, mask) >> sub // 8 * 4 & 15
    high = _byte(p + 104 + sub % 4, mask) >> sub // 4 * 2 & 3
    return _half(p + 108, mask) * ((low | high << 4) - 32).to(tl.float32) * (q + third * 4 - 4).to(tl.float32)


@triton.jit
def _q4_q5_k(p, i, mask, FIFTH: tl.constexpr):
    """8 sub-blocks of 32: two in each 32 bytes, in their low and their high halves. Scale and minimum have six bits."""
    sub = i // 32
    first, s = sub < 4, p + 4
    here, there = _byte(s + sub, mask), _byte(s + sub + 4, mask & (sub < 8))
    before = _byte(s + sub - 4, mask & (sub >= 4))
    scale = tl.where(first, here & 63, there & 15 | before >> 6 << 4).to(tl.float32)
    least = tl.where(first, there & 63, there >> 4 | here >> 6 << 4).to(tl.float32)
    if FIFTH:
        q = _byte(p + 48 + sub // 2 * 32 + i % 32, mask) >> sub % 2 * 4 & 15
        q += (_byte(p + 16 + i % 32, mask) >> sub & 1) << 4
    else:
        q = _byte(p + 16 + sub // 2 * 32 + i % 32, mask) >> sub % 2 * 4 & 15
    return _half(p, mask) * scale * q.to(tl.float32) - _half(p + 2, mask) * least


@triton.jit
def _q6_k(p, i, mask):
    """Two halves of 128; in each, four runs of 32 whose low four bits lie in 64 bytes and whose high two in 32."""
    sub = i // 16
    run, at = sub % 8 // 2, sub % 2 * 16 + i % 16
    low = _byte(p + sub // 8 * 64 + run % 2 * 32 + at, mask) >> run // 2 * 4 & 15
    high = _byte(p + 128 + sub // 8 * 32 + at, mask) >> run * 2 & 3
    scale = (_byte(p + 192 + sub, mask) << 24 >> 24).to(tl.float32)
    return _half(p + 208, mask) * scale * ((low | high << 4) - 32).to(tl.float32)


@triton.jit
def unpack_blocks(
    data, row_bytes, out, out_stride, count, KIND: tl.constexpr, NUMBERS: tl.constexpr, BYTES: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Rows of `count` blocks of NUMBERS in BYTES each, by ggml's number of the format."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    i = tl.arange(0, NUMBERS)[None, :]
    mask = (block < count) & (i < NUMBERS)
    p = data + row * row_bytes + block * BYTES
    if KIND == 10:
        v = _q2_k(p, i, mask)
    elif KIND == 11:
        v = _q3_k(p, i, mask)
    elif KIND == 12:
        v = _q4_q5_k(p, i, mask, False)
    elif KIND == 13:
        v = _q4_q5_k(p, i, mask, True)
    elif KIND == 14:
        v = _q6_k(p, i, mask)
    else:
        v = _simple(p, i, mask, KIND)
    tl.store(out + row * out_stride + block * NUMBERS + i, v.to(out.dtype.element_ty), mask=mask)


@triton.jit
def unpack_nf4(data, row_bytes, out, out_stride, count, levels, BLOCKS: tl.constexpr):
    """Rows of NF4: lowest scale and step in fp32, a byte per block for its scale, and 32 bytes per block of 64, whose
    low halves are its first 32 numbers."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    i = tl.arange(0, 64)[None, :]
    mask = (block < count) & (i < 64)
    own = data + row * row_bytes
    scale = _single(own) + _single(own + 4) * _byte(own + 8 + block, block < count).to(tl.float32)
    q = _byte(own + 8 + count + block * 32 + i % 32, mask) >> i // 32 * 4 & 15
    v = tl.load(levels + q) * scale
    tl.store(out + row * out_stride + block * 64 + i, v.to(out.dtype.element_ty), mask=mask)
