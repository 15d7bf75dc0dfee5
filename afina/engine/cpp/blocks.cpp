// Dequantisation. Each function reads one block and gives its numbers in fp32. The formats are ggml's, and NF4; each is
// tested against the gguf package's reading of it.
//
// d is a block's scale, m its minimum, both in fp16; K-quants have sub-blocks with a scale and a minimum of their own.

#include "blocks.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

typedef const uint8_t *Bytes;

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

typedef uint8_t Few __attribute__((vector_size(LANES)));

inline Ints widen(Bytes p) {
#ifdef __AVX512F__  // the compiler takes its conversion apart
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    Few x;
    memcpy(&x, p, LANES);
    return __builtin_convertvector(x, Ints);
#endif
}
inline Ints widen_signed(Bytes p) { return widen(p) << 24 >> 24; }
inline Floats floats(Ints x) { return __builtin_convertvector(x, Floats); }

// 32 numbers of four bits: the low halves of 16 bytes, then the high ones; with a fifth bit each from `fifth`.
inline void nibbles(Bytes q, float d, float m, float *out) {
    for (int i = 0; i < 16; i += LANES) {
        Ints both = widen(q + i);
        store(out + i, floats(both & 15) * d + m);
        store(out + i + 16, floats(both >> 4) * d + m);
    }
}
inline void five_bits(Bytes q, uint32_t fifth, float d, float m, float *out) {
    for (int i = 0; i < 16; i++) out[i] = d * (int)((q[i] & 15) | (fifth >> i & 1) << 4) + m;
    for (int i = 0; i < 16; i++) out[i + 16] = d * (int)((q[i] >> 4) | (fifth >> (i + 16) & 1) << 4) + m;
}
inline uint32_t word(Bytes p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}

void q4_0(Bytes b, float *out) { nibbles(b + 2, half(b), -8 * half(b), out); }
void q4_1(Bytes b, float *out) { nibbles(b + 4, half(b), half(b + 2), out); }
void q5_0(Bytes b, float *out) { five_bits(b + 6, word(b + 2), half(b), -16 * half(b), out); }
void q5_1(Bytes b, float *out) { five_bits(b + 8, word(b + 4), half(b), half(b + 2), out); }
void q8_0(Bytes b, float *out) {
    float d = half(b);
    for (int i = 0; i < 32; i += LANES) store(out + i, floats(widen_signed(b + 2 + i)) * d);
}

// 16 sub-blocks of 16; scale and minimum have four bits each.
void q2_k(Bytes b, float *out) {
    float d = half(b + 80), m = half(b + 82);
    for (int sub = 0; sub < 16; sub++) {
        Bytes q = b + 16 + sub / 8 * 32 + sub % 2 * 16;
        int shift = sub % 8 / 2 * 2;
        float scale = d * (b[sub] & 15), least = m * (b[sub] >> 4);
        for (int i = 0; i < 16; i += LANES) store(out + sub * 16 + i,
                                                  floats(widen(q + i) >> shift & 3) * scale - least);
    }
}

// 16 sub-blocks of 16; two low bits in `q`, the third in the mask; scales have six bits, four in one place and two in
// another.
void q3_k(Bytes b, float *out) {
    Bytes scales = b + 96;
    float d = half(b + 108);
    for (int sub = 0; sub < 16; sub++) {
        Bytes q = b + 32 + sub / 8 * 32 + sub % 2 * 16, mask = b + sub % 2 * 16;
        int shift = sub % 8 / 2 * 2, bit = sub / 2;
        int low = sub < 8 ? scales[sub] & 15 : scales[sub - 8] >> 4;
        int high = scales[8 + sub % 4] >> (sub / 4 * 2) & 3;
        float scale = d * ((low | high << 4) - 32);
        for (int i = 0; i < 16; i += LANES) {
            Ints low_bits = widen(q + i) >> shift & 3, third = widen(mask + i) >> bit & 1;
            store(out + sub * 16 + i, floats(low_bits + third * 4 - 4) * scale);
        }
    }
}

// Scale and minimum, six bits each, of sub-block `i` among the eight of q4_k and q5_k.
inline void six_bits(Bytes s, int i, int &scale, int &least) {
    scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
    least = i < 4 ? s[i + 4] & 63 : (s[i + 4] >> 4) | (s[i] >> 6) << 4;
}

// 8 sub-blocks of 32: two in each 32 bytes, in their low and their high halves.
void q4_k(Bytes b, float *out) {
    float d = half(b), m = half(b + 2);
    for (int sub = 0; sub < 8; sub++) {
        int scale, least, shift = sub % 2 * 4;
        six_bits(b + 4, sub, scale, least);
        Bytes q = b + 16 + sub / 2 * 32;
        float step = d * scale, from = m * least;
        for (int i = 0; i < 32; i += LANES) store(out + sub * 32 + i,
                                                  floats(widen(q + i) >> shift & 15) * step - from);
    }
}
void q5_k(Bytes b, float *out) {
    float d = half(b), m = half(b + 2);
    for (int sub = 0; sub < 8; sub++) {
        int scale, least, shift = sub % 2 * 4;
        six_bits(b + 4, sub, scale, least);
        Bytes q = b + 48 + sub / 2 * 32, fifth = b + 16;
        float step = d * scale, from = m * least;
        for (int i = 0; i < 32; i += LANES) {
            Ints low = widen(q + i) >> shift & 15, high = widen(fifth + i) >> sub & 1;
            store(out + sub * 32 + i, floats(low + high * 16) * step - from);
        }
    }
}

// Two halves of 128; in each, four runs of 32 whose low four bits lie in 64 bytes and whose high two in 32.
void q6_k(Bytes b, float *out) {
    float d = half(b + 208);
    for (int sub = 0; sub < 16; sub++) {
        int in_half = sub % 8, run = in_half / 2, at = in_half % 2 * 16;
        Bytes low = b + sub / 8 * 64 + run % 2 * 32 + at, high = b + 128 + sub / 8 * 32 + at;
        float scale = d * (int8_t)b[192 + sub];
        for (int i = 0; i < 16; i += LANES) {
            Ints both = (widen(low + i) >> (run / 2 * 4) & 15) + (widen(high + i) >> (run * 2) & 3) * 16 - 32;
            store(out + sub * 16 + i, floats(both) * scale);
        }
    }
}

template <class T>
inline void put(T *out, const float *numbers, long count) {
    for (long i = 0; i < count; i += LANES) {
#ifdef __AVX512BF16__
        if constexpr (sizeof(T) == 2) {
            __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(numbers + i));
            memcpy(out + i, &rounded, sizeof rounded);
            continue;
        }
#endif
        store(out + i, load(numbers + i));
    }
}

template <void (*block)(Bytes, float *), long size, long bytes, class T>
void rows_of(Bytes from, long row_bytes, T *out, long stride, long rows, long K) {
    float numbers[256];
    for (long r = 0; r < rows; r++)
        for (long k = 0, at = 0; k < K; k += size, at += bytes) {
            block(from + r * row_bytes + at, numbers);
            put(out + r * stride + k, numbers, size);
        }
}

// The levels of NF4 (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E).
constexpr float levels[16] = {
    -1.0f, -0.69619292f, -0.525073051f, -0.394917488f,
    -0.284441352f, -0.18477343f, -0.0910499915f, 0.0f,
    0.0795803294f, 0.160930172f, 0.246112287f, 0.337915182f,
    0.4407098f, 0.562616944f, 0.722956717f, 1.0f,
};

// A row of NF4: lowest scale and step in fp32, a byte per block for its scale, and 32 bytes per block of 64, whose low
// halves are its first 32 numbers.
template <class T>
void nf4(Bytes from, long row_bytes, T *out, long stride, long rows, long K) {
    long blocks = K / 64;
    for (long r = 0; r < rows; r++) {
        Bytes row = from + r * row_bytes, q = row + 8 + blocks;
        float least, step, numbers[64];
        memcpy(&least, row, 4);
        memcpy(&step, row + 4, 4);
        for (long k = 0; k < blocks; k++, q += 32) {
            float scale = least + step * row[8 + k];
            for (int i = 0; i < 64; i += LANES) {
#ifdef __AVX512F__
                __m512i words = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(q + i % 32)));
                if (i >= 32) words = _mm512_srli_epi32(words, 4);
                __m512 level = _mm512_permutexvar_ps(words, _mm512_loadu_ps(levels));  // reads the low four bits alone
                _mm512_storeu_ps(numbers + i, _mm512_mul_ps(level, _mm512_set1_ps(scale)));
#else
                for (int j = i; j < i + LANES; j++) numbers[j] = scale * levels[j < 32 ? q[j] & 15 : q[j - 32] >> 4];
#endif
            }
            put(out + r * stride + k * 64, numbers, 64);
        }
    }
}

template <class T>
void write(Bytes from, long row_bytes, int format, T *out, long stride, long rows, long K) {
    switch (format) {
        case Q4_0: return rows_of<q4_0, 32, 18>(from, row_bytes, out, stride, rows, K);
        case Q4_1: return rows_of<q4_1, 32, 20>(from, row_bytes, out, stride, rows, K);
        case Q5_0: return rows_of<q5_0, 32, 22>(from, row_bytes, out, stride, rows, K);
        case Q5_1: return rows_of<q5_1, 32, 24>(from, row_bytes, out, stride, rows, K);
        case Q8_0: return rows_of<q8_0, 32, 34>(from, row_bytes, out, stride, rows, K);
        case Q2_K: return rows_of<q2_k, 256, 84>(from, row_bytes, out, stride, rows, K);
        case Q3_K: return rows_of<q3_k, 256, 110>(from, row_bytes, out, stride, rows, K);
        case Q4_K: return rows_of<q4_k, 256, 144>(from, row_bytes, out, stride, rows, K);
        case Q5_K: return rows_of<q5_k, 256, 176>(from, row_bytes, out, stride, rows, K);
        case Q6_K: return rows_of<q6_k, 256, 210>(from, row_bytes, out, stride, rows, K);
        case NF4: return nf4(from, row_bytes, out, stride, rows, K);
    }
}

template <class T>
void shared(Bytes from, long row_bytes, int format, T *out, long stride, long rows, long K, int threads) {
    constexpr long at_once = 4;
#pragma omp parallel for num_threads(threads)
    for (long r = 0; r < rows; r += at_once)
        write(from + r * row_bytes, row_bytes, format, out + r * stride, stride,
              rows - r < at_once ? rows - r : at_once, K);
}

}  // namespace

void unpack(Bytes blocks, long row_bytes, int format, bf16 *out, long stride, long rows, long K) {
    write(blocks, row_bytes, format, out, stride, rows, K);
}
void unpack(Bytes blocks, long row_bytes, int format, float *out, long stride, long rows, long K) {
    write(blocks, row_bytes, format, out, stride, rows, K);
}

extern "C" {
void unpack_bf16(Bytes blocks, long row_bytes, int format, bf16 *out, long stride, long rows, long K, int threads) {
    shared(blocks, row_bytes, format, out, stride, rows, K, threads);
}
void unpack_fp32(Bytes blocks, long row_bytes, int format, float *out, long stride, long rows, long K, int threads) {
    shared(blocks, row_bytes, format, out, stride, rows, K, threads);
}
}
