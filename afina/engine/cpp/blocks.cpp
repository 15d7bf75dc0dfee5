// Dequantisation. Each format reads one block, and gives its numbers in fp32, a vector at a time, to whoever wants
// them: to memory, or to a product. The formats are ggml's, and NF4; each is tested against the gguf package's reading
// of it.
//
// d is a block's scale, m its minimum, both in fp16; K-quants have sub-blocks with a scale and a minimum of their own.

#include "blocks.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

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
inline uint32_t word(Bytes p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}
// Each lane's number.
inline Ints lanes() {
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}
// Each lane's own bit of `bits`, from bit `first` on, in the place of a fifth.
inline Ints fifth(uint32_t bits, int first) { return ((Ints{} + (int32_t)(bits >> first)) >> lanes() & 1) << 4; }
#ifdef __AVX512F__
// The one of 16 numbers that each lane's low four bits say.
inline Floats picked(Floats from, Ints at) { return (Floats)_mm512_permutexvar_ps((__m512i)at, (__m512)from); }
#endif

// give(i, slot, v): the vector v holds the numbers of the block from i on. Neighbours have different slots, 0 to 3.

// d · n + m for each n of four bits: with AVX-512 looked up, after one product for all that there are.
struct Scaled {
#ifdef __AVX512F__
    Floats all;
    Scaled(float d, float m) : all(floats(lanes()) * d + m) {}
    Floats operator()(Ints n) const { return picked(all, n); }
#else
    float d, m;
    Floats operator()(Ints n) const { return floats(n) * d + m; }
#endif
};

// 32 numbers of four bits: the low halves of 16 bytes, then the high ones; with a fifth bit each from `more`.
template <class Give>
inline void nibbles(Bytes q, float d, float m, Give give) {
    Scaled scaled{d, m};
    for (int i = 0, slot = 0; i < 16; i += LANES, slot += 2) {
        Ints both = widen(q + i);
        give(i, slot, scaled(both & 15));
        give(i + 16, slot + 1, scaled(both >> 4));
    }
}
template <class Give>
inline void five_bits(Bytes q, uint32_t more, float d, float m, Give give) {
    for (int i = 0, slot = 0; i < 16; i += LANES, slot += 2) {
        Ints both = widen(q + i);
        give(i, slot, floats((both & 15) + fifth(more, i)) * d + m);
        give(i + 16, slot + 1, floats((both >> 4) + fifth(more, i + 16)) * d + m);
    }
}

template <class Give>
inline void q4_0(Bytes b, Give give) { nibbles(b + 2, half(b), -8 * half(b), give); }
template <class Give>
inline void q4_1(Bytes b, Give give) { nibbles(b + 4, half(b), half(b + 2), give); }
template <class Give>
inline void q5_0(Bytes b, Give give) { five_bits(b + 6, word(b + 2), half(b), -16 * half(b), give); }
template <class Give>
inline void q5_1(Bytes b, Give give) { five_bits(b + 8, word(b + 4), half(b), half(b + 2), give); }
template <class Give>
inline void q8_0(Bytes b, Give give) {
    float d = half(b);
    for (int i = 0; i < 32; i += LANES) give(i, i / LANES, floats(widen_signed(b + 2 + i)) * d);
}

// 16 sub-blocks of 16; scale and minimum have four bits each.
template <class Give>
inline void q2_k(Bytes b, Give give) {
    float d = half(b + 80), m = half(b + 82);
    for (int sub = 0; sub < 16; sub++) {
        Bytes q = b + 16 + sub / 8 * 32 + sub % 2 * 16;
        int shift = sub % 8 / 2 * 2;
        float scale = d * (b[sub] & 15), least = m * (b[sub] >> 4);
        for (int i = 0; i < 16; i += LANES)
            give(sub * 16 + i, i / LANES, floats(widen(q + i) >> shift & 3) * scale - least);
    }
}

// 16 sub-blocks of 16; two low bits in `q`, the third in the mask; scales have six bits, four in one place and two in
// another.
template <class Give>
inline void q3_k(Bytes b, Give give) {
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
            give(sub * 16 + i, i / LANES, floats(low_bits + third * 4 - 4) * scale);
        }
    }
}

// Scale and minimum, six bits each, of sub-block `i` among the eight of q4_k and q5_k.
inline void six_bits(Bytes s, int i, int &scale, int &least) {
    scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
    least = i < 4 ? s[i + 4] & 63 : (s[i + 4] >> 4) | (s[i] >> 6) << 4;
}

// 8 sub-blocks of 32: two in each 32 bytes, in their low and their high halves.
template <class Give>
inline void q4_k(Bytes b, Give give) {
    float d = half(b), m = half(b + 2);
    for (int sub = 0; sub < 8; sub++) {
        int scale, least, shift = sub % 2 * 4;
        six_bits(b + 4, sub, scale, least);
        Bytes q = b + 16 + sub / 2 * 32;
        Scaled scaled{d * scale, -m * least};
        for (int i = 0; i < 32; i += LANES) give(sub * 32 + i, i / LANES, scaled(widen(q + i) >> shift & 15));
    }
}
template <class Give>
inline void q5_k(Bytes b, Give give) {
    float d = half(b), m = half(b + 2);
    for (int sub = 0; sub < 8; sub++) {
        int scale, least, shift = sub % 2 * 4;
        six_bits(b + 4, sub, scale, least);
        Bytes q = b + 48 + sub / 2 * 32, high_bits = b + 16;
        float step = d * scale, from = m * least;
        for (int i = 0; i < 32; i += LANES) {
            Ints low = widen(q + i) >> shift & 15, high = widen(high_bits + i) >> sub & 1;
            give(sub * 32 + i, i / LANES, floats(low + high * 16) * step - from);
        }
    }
}

// Two halves of 128; in each, four runs of 32 whose low four bits lie in 64 bytes and whose high two in 32.
template <class Give>
inline void q6_k(Bytes b, Give give) {
    float d = half(b + 208);
    for (int sub = 0; sub < 16; sub++) {
        int in_half = sub % 8, run = in_half / 2, at = in_half % 2 * 16;
        Bytes low = b + sub / 8 * 64 + run % 2 * 32 + at, high = b + 128 + sub / 8 * 32 + at;
        float scale = d * (int8_t)b[192 + sub];
        for (int i = 0; i < 16; i += LANES) {
            Ints both = (widen(low + i) >> (run / 2 * 4) & 15) + (widen(high + i) >> (run * 2) & 3) * 16 - 32;
            give(sub * 16 + i, i / LANES, floats(both) * scale);
        }
    }
}

// The levels of NF4 (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E).
constexpr float levels[16] = {
    -1.0f, -0.69619292f, -0.525073051f, -0.394917488f,
    -0.284441352f, -0.18477343f, -0.0910499915f, 0.0f,
    0.0795803294f, 0.160930172f, 0.246112287f, 0.337915182f,
    0.4407098f, 0.562616944f, 0.722956717f, 1.0f,
};
inline Floats level(Ints at) {  // by the low four bits
#ifdef __AVX512F__
    return picked(load(levels), at);
#elif defined(__AVX2__)
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), (__m256i)at);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels + 8), (__m256i)at);
    return (Floats)_mm256_blendv_ps(low, high, (__m256)(at << 28));  // by the sign, which is the fourth bit
#else
    Floats found;
    for (int i = 0; i < LANES; i++) found[i] = levels[at[i] & 15];
    return found;
#endif
}

// A row of NF4: lowest scale and step in fp32, a byte per block for its scale, and 32 bytes per block of 64, whose low
// halves are its first 32 numbers.
template <class Give>
inline void nf4(Bytes row, long K, Give give) {
    long blocks = K / 64;
    Bytes q = row + 8 + blocks;
    float least, step;
    memcpy(&least, row, 4);
    memcpy(&step, row + 4, 4);
    for (long k = 0; k < blocks; k++, q += 32) {
        float scale = least + step * row[8 + k];
        for (int i = 0; i < 32; i += LANES) {
            Ints both = widen(q + i);
            give(k * 64 + i, i / LANES % 2 * 2, level(both) * scale);
            give(k * 64 + i + 32, i / LANES % 2 * 2 + 1, level(both >> 4) * scale);
        }
    }
}

// A row of K numbers: give(k, slot, v) as above, k from the row's start.
template <class Give>
inline void read_row(Bytes row, int format, long K, Give give) {
    auto blocks = [&](long size, long bytes, auto block) {
        for (long k = 0; k < K; k += size, row += bytes)
            block(row, [&](int i, int slot, Floats v) { give(k + i, slot, v); });
    };
    switch (format) {
        case Q4_0: return blocks(32, 18, [](Bytes b, auto to) { q4_0(b, to); });
        case Q4_1: return blocks(32, 20, [](Bytes b, auto to) { q4_1(b, to); });
        case Q5_0: return blocks(32, 22, [](Bytes b, auto to) { q5_0(b, to); });
        case Q5_1: return blocks(32, 24, [](Bytes b, auto to) { q5_1(b, to); });
        case Q8_0: return blocks(32, 34, [](Bytes b, auto to) { q8_0(b, to); });
        case Q2_K: return blocks(256, 84, [](Bytes b, auto to) { q2_k(b, to); });
        case Q3_K: return blocks(256, 110, [](Bytes b, auto to) { q3_k(b, to); });
        case Q4_K: return blocks(256, 144, [](Bytes b, auto to) { q4_k(b, to); });
        case Q5_K: return blocks(256, 176, [](Bytes b, auto to) { q5_k(b, to); });
        case Q6_K: return blocks(256, 210, [](Bytes b, auto to) { q6_k(b, to); });
        case NF4: return nf4(row, K, give);
    }
}

inline void put(float *out, Floats v) { store(out, v); }
inline void put(bf16 *out, Floats v) {
#ifdef __AVX512BF16__
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    memcpy(out, &rounded, sizeof rounded);
#else
    store(out, v);
#endif
}

template <class T>
void unpack_rows(Bytes from, long row_bytes, int format, T *out, long stride, long rows, long K) {
    for (long r = 0; r < rows; r++)
        read_row(from + r * row_bytes, format, K, [=](long k, int, Floats v) { put(out + r * stride + k, v); });
}

template <class T>
void shared(Bytes from, long row_bytes, int format, T *out, long stride, long rows, long K, int threads) {
    constexpr long at_once = 4;
#pragma omp parallel for num_threads(threads)
    for (long r = 0; r < rows; r += at_once)
        unpack_rows(from + r * row_bytes, row_bytes, format, out + r * stride, stride,
                    rows - r < at_once ? rows - r : at_once, K);
}

}  // namespace

void unpack(Bytes blocks, long row_bytes, int format, bf16 *out, long stride, long rows, long K) {
    unpack_rows(blocks, row_bytes, format, out, stride, rows, K);
}
void unpack(Bytes blocks, long row_bytes, int format, float *out, long stride, long rows, long K) {
    unpack_rows(blocks, row_bytes, format, out, stride, rows, K);
}

Floats dot_row(Bytes row, int format, const float *x, long K) {
    Floats sums[4] = {};
    read_row(row, format, K, [&](long k, int slot, Floats v) { sums[slot] += v * load(x + k); });
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

extern "C" {
void unpack_bf16(Bytes blocks, long row_bytes, int format, bf16 *out, long stride, long rows, long K, int threads) {
    shared(blocks, row_bytes, format, out, stride, rows, K, threads);
}
void unpack_fp32(Bytes blocks, long row_bytes, int format, float *out, long stride, long rows, long K, int threads) {
    shared(blocks, row_bytes, format, out, stride, rows, K, threads);
}
}
