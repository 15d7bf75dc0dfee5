// Quantisation into ggml's K-quants (https://github.com/ggml-org/ggml), by the search of its reference without an
// importance matrix. Sums are formed in its order and without fused multiplications, so that the bytes are its own: not
// the numbers of a sub-block lie side by side in a vector, but sub-blocks do, a lane each.
//
// A block is 256 numbers. Q4_K, Q5_K: eight sub-blocks of 32 codes from 0 to `top`, x ≈ step · code − from. Q6_K:
// sixteen of 16 codes from −32 to 31, x ≈ step · code. Steps and froms are themselves codes of the block's two scales.

#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <cmath>

#include "blocks.h"

namespace {

constexpr int SIZE = 256;

inline uint16_t to_half(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | 0x7c00;
    if (bits < 0x38800000) {  // below the normal numbers halves lie 2^-24 apart, as do floats from 0.5 to 1
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return sign | (bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (bits - 0x38000000) >> 13;
}
inline void put_half(uint8_t *to, float x) {
    uint16_t h = to_half(x);
    memcpy(to, &h, 2);
}

constexpr float SHIFT = 12582912.0f;  // 1.5 · 2^23: a sum with it is a whole number, in its low bits
inline Floats rounded(Floats x) { return (x + SHIFT) - SHIFT; }
inline Floats clamped(Floats x, float least, float most) {
    x = x < least ? splat(least) : x;
    return x > most ? splat(most) : x;
}
inline int whole(float x) {
    float shifted = x + SHIFT;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    return (int)(bits & 0x7fffff) - 0x400000;
}
inline Floats magnitude(Floats x) { return x < 0.0f ? -x : x; }

// What the search found for a lane's sub-block. `inverse` and `origin` give its codes again: those of x are
// (x − origin) · inverse. They are needed only where its step is rounded to zero.
struct Found {
    Floats scale, least, inverse, origin;
};

// x ≈ scale · code + least, code from 0 to `top`, least ≤ 0: the best of `tries` ranges by weighted squares.
inline Found fit_range(const Floats *x, float top, float start, int tries) {
    Floats low = x[0], high = x[0], squares = {}, weights = {}, weighted = {}, w[32], codes[32];
    for (int i = 0; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        squares += x[i] * x[i];
    }
    Floats mean = squares / 32.0f;
    for (int lane = 0; lane < LANES; lane++) mean[lane] = sqrtf(mean[lane]);
    for (int i = 0; i < 32; i++) {
        w[i] = mean + magnitude(x[i]);
        weights += w[i];
        weighted += w[i] * x[i];
    }
    low = low > 0.0f ? Floats{} : low;
    Ints flat = high == low;
    Floats least = low, inverse = top / (high - least), scale = 1.0f / inverse, origin = least, best = {};
    Found found = {scale, least, inverse, origin};
    for (int i = 0; i < 32; i++) {
        Floats code = clamped(rounded(inverse * (x[i] - least)), 0.0f, top);
        Floats off = scale * code + least - x[i];
        best += w[i] * (off * off);
    }
    for (int t = 0; t <= tries; t++) {
        Floats least = found.least, inverse = (start + 0.1f * t + top) / (high - least);
        Floats sum = {}, sum_of_squares = {}, product = {};
        for (int i = 0; i < 32; i++) {
            Floats code = clamped(rounded(inverse * (x[i] - least)), 0.0f, top), wc = w[i] * code;
            codes[i] = code;
            sum += wc;
            sum_of_squares += wc * code;
            product += wc * x[i];
        }
        Floats determinant = weights * sum_of_squares - sum * sum;
        Floats s = (weights * product - weighted * sum) / determinant;
        Floats m = (sum_of_squares * weighted - sum * product) / determinant;
        Ints above = m > 0.0f;
        s = above ? product / sum_of_squares : s;
        m = above ? Floats{} : m;
        Floats error = {};
        for (int i = 0; i < 32; i++) {
            Floats off = s * codes[i] + m - x[i];
            error += w[i] * (off * off);
        }
        Ints better = (determinant > 0.0f) & (error < best);
        best = better ? error : best;
        found.scale = better ? s : found.scale;
        found.inverse = better ? inverse : found.inverse;
        found.origin = better ? least : found.origin;
        found.least = better ? m : found.least;
    }
    found.scale = flat ? Floats{} : found.scale;
    found.inverse = flat ? Floats{} : found.inverse;
    found.origin = flat ? Floats{} : found.origin;
    found.least = flat ? low : found.least;
    return found;
}

// x ≈ scale · code, code from −32 to 31: the best of nineteen scales by squares that are weighted with squares.
inline Found fit_signed(const Floats *x) {
    Floats peak = {}, height = {}, best = {};
    for (int i = 0; i < 16; i++) {
        Floats a = magnitude(x[i]);
        Ints higher = a > height;
        height = higher ? a : height;
        peak = higher ? x[i] : peak;
    }
    Found found = {};
    for (int t = -10; t <= 9; t++) {  // first the plain one, then those beside it
        if (t == 0) continue;
        int by = t == -10 ? 0 : t;
        Floats inverse = -(32 + 0.1f * by) / peak, product = {}, squares = {};
        for (int i = 0; i < 16; i++) {
            Floats code = clamped(rounded(inverse * x[i]), -32.0f, 31.0f), w = x[i] * x[i];
            product += w * x[i] * code;
            squares += w * code * code;
        }
        Ints better = by == 0 ? Ints{} - 1 : (squares > 0.0f) & (product * product > best * squares);
        Floats scale = product / squares;
        scale = squares == 0.0f ? Floats{} : scale;
        best = better ? scale * product : best;
        found.scale = better ? scale : found.scale;
        found.inverse = better ? inverse : found.inverse;
    }
    Ints nothing = height < 1e-15f;
    found.scale = nothing ? Floats{} : found.scale;
    found.inverse = nothing ? Floats{} : found.inverse;
    return found;
}

// Sub-blocks as lanes: `to[i]` holds the number i of each of LANES sub-blocks of `size`.
template <int N>
inline void turned(const float *from, Floats *to) {
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < N; i++) to[i][lane] = from[lane * N + i];
}

// The codes of the sub-blocks of x once their steps are known, each sub-block's after another.
template <int N>
inline void encode(const Floats *x, const Found &found, Floats step, Floats from, float least, float most, uint8_t *to) {
    Ints unstepped = step == 0.0f;
    for (int i = 0; i < N; i++) {
        Floats fine = clamped(rounded((x[i] + from) / step), least, most);
        Floats rough = clamped(rounded(found.inverse * (x[i] - found.origin)), least, most);
        Floats code = (unstepped ? rough : fine) - least;
        for (int lane = 0; lane < LANES; lane++) to[lane * N + i] = (uint8_t)(int)code[lane];
    }
}

// Eight sub-blocks, found as lanes `first` and on: the block's scales, and each lane's step and from.
inline void put_scales(const Found &found, int first, uint8_t *block, Floats &step, Floats &from) {
    float largest = 0, deepest = 0;
    for (int i = first; i < first + 8; i++) {
        if (found.scale[i] > largest) largest = found.scale[i];
        if (-found.least[i] > deepest) deepest = -found.least[i];
    }
    float per_scale = largest > 0 ? 63.0f / largest : 0, per_least = deepest > 0 ? 63.0f / deepest : 0;
    put_half(block, largest / 63.0f);
    put_half(block + 2, deepest / 63.0f);
    float d = half(block), m = half(block + 2);
    uint8_t *packed = block + 4;
    memset(packed, 0, 12);
    for (int i = 0; i < 8; i++) {
        int scale = whole(per_scale * found.scale[first + i]) & 255, least = whole(per_least * -found.least[first + i]);
        least &= 255;
        scale = scale > 63 ? 63 : scale;
        least = least > 63 ? 63 : least;
        if (i < 4) {
            packed[i] = scale;
            packed[i + 4] = least;
        } else {
            packed[i + 4] = (scale & 15) | (least & 15) << 4;
            packed[i - 4] |= scale >> 4 << 6;
            packed[i] |= least >> 4 << 6;
        }
        step[first + i] = d * scale;
        from[first + i] = m * least;
    }
}

constexpr int AT_ONCE = LANES / 8;  // blocks of q4_k and q5_k whose sub-blocks fill a vector

template <int BITS>
inline void range_blocks(const float *numbers, uint8_t *out, int blocks) {
    constexpr int bytes = BITS == 4 ? 144 : 176;
    float top = (1 << BITS) - 1;
    Floats x[32], step = {}, from = {};
    turned<32>(numbers, x);
    Found found = BITS == 4 ? fit_range(x, top, -1.0f, 20) : fit_range(x, top, -0.5f, 15);
    uint8_t codes[AT_ONCE * SIZE];
    for (int k = 0; k < blocks; k++) put_scales(found, k * 8, out + k * bytes, step, from);
    encode<32>(x, found, step, from, 0.0f, top, codes);
    for (int k = 0; k < blocks; k++) {
        const uint8_t *code = codes + k * SIZE;
        uint8_t *high = out + k * bytes + 16, *low = high + (BITS == 5 ? 32 : 0);
        for (int pair = 0; pair < 4; pair++)
            for (int i = 0; i < 32; i++)
                low[pair * 32 + i] = (code[pair * 64 + i] & 15) | (code[pair * 64 + 32 + i] & 15) << 4;
        if (BITS == 5)
            for (int i = 0; i < 32; i++) {
                int bits = 0;
                for (int sub = 0; sub < 8; sub++) bits |= (code[sub * 32 + i] >> 4) << sub;
                high[i] = bits;
            }
    }
}

inline void signed_block(const float *numbers, uint8_t *out) {
    constexpr int groups = 16 / LANES;
    Floats x[groups][16];
    Found found[groups];
    float scales[16], largest = 0;
    for (int g = 0; g < groups; g++) {
        turned<16>(numbers + g * LANES * 16, x[g]);
        found[g] = fit_signed(x[g]);
        store(scales + g * LANES, found[g].scale);
    }
    for (float scale : scales)
        if (fabsf(scale) > fabsf(largest)) largest = scale;
    memset(out, 0, 210);
    if (fabsf(largest) < 1e-15f) return;
    float per_scale = -128.0f / largest, steps[16];
    put_half(out + 208, 1 / per_scale);
    float d = half(out + 208);
    for (int i = 0; i < 16; i++) {
        int code = whole(per_scale * scales[i]);
        code = code > 127 ? 127 : code;
        out[192 + i] = (uint8_t)code;
        steps[i] = d * (int8_t)code;
    }
    uint8_t codes[SIZE];
    for (int g = 0; g < groups; g++) {
        Floats step = load(steps + g * LANES);
        encode<16>(x[g], found[g], step, Floats{}, -32.0f, 31.0f, codes + g * LANES * 16);
        for (int lane = 0; lane < LANES; lane++)  // what is nothing at all has the code of nothing, not the middle one
            if (step[lane] == 0 && found[g].inverse[lane] == 0) memset(codes + (g * LANES + lane) * 16, 0, 16);
    }
    for (int part = 0; part < 2; part++) {
        const uint8_t *code = codes + part * 128;
        uint8_t *low = out + part * 64, *high = out + 128 + part * 32;
        for (int i = 0; i < 32; i++) {
            low[i] = (code[i] & 15) | (code[i + 64] & 15) << 4;
            low[i + 32] = (code[i + 32] & 15) | (code[i + 96] & 15) << 4;
            high[i] = code[i] >> 4 | code[i + 32] >> 4 << 2 | code[i + 64] >> 4 << 4 | code[i + 96] >> 4 << 6;
        }
    }
}

template <class T>
void blocks_of(const T *x, int format, uint8_t *out, long blocks, int threads) {
    long bytes = format == Q4_K ? 144 : format == Q5_K ? 176 : 210, at_once = format == Q6_K ? 1 : AT_ONCE;
#pragma omp parallel for num_threads(threads)
    for (long first = 0; first < blocks; first += at_once) {
        long count = blocks - first < at_once ? blocks - first : at_once;
        float numbers[AT_ONCE * SIZE] = {};
        for (long i = 0; i < count * SIZE; i++) numbers[i] = get(x[first * SIZE + i]);
        uint8_t *to = out + first * bytes;
        if (format == Q4_K) range_blocks<4>(numbers, to, count);
        if (format == Q5_K) range_blocks<5>(numbers, to, count);
        if (format == Q6_K) signed_block(numbers, to);
    }
}

}  // namespace

extern "C" {
void quantise_fp32(const float *x, int format, uint8_t *out, long blocks, int threads) {
    blocks_of(x, format, out, blocks, threads);
}
void quantise_bf16(const bf16 *x, int format, uint8_t *out, long blocks, int threads) {
    blocks_of(x, format, out, blocks, threads);
}
}
