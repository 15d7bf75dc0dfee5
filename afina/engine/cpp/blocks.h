// Rows of frozen weights that are quantised in blocks.

#pragma once

#include "vectors.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

typedef const uint8_t *Bytes;

// ggml's numbers of its formats (https://github.com/ggml-org/ggml), and ours beyond them.
enum Format {
    NUMBERS = -1,
    Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
    NF4 = 1000,
};

#ifdef __F16C__
inline float half(Bytes p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}
#else
// fp16 as fp32, exact but for infinities: the exponent's bias is made up for by a product.
inline float half(Bytes p) {
    uint16_t h;
    memcpy(&h, p, 2);
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float f;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    return h & 0x8000 ? -f : f;
}
#endif

// Dequantises `rows` rows of K numbers, `stride` apart, from rows of `row_bytes`.
void unpack(const uint8_t *blocks, long row_bytes, int format, bf16 *out, long stride, long rows, long K);
void unpack(const uint8_t *blocks, long row_bytes, int format, float *out, long stride, long rows, long K);

// A row times x, without unpacking it, in sums to be added up.
Floats dot_row(const uint8_t *row, int format, const float *x, long K);
