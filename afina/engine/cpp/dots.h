// Sums of products of rows; in bf16 by pairs of neighbours, where the processor multiplies these (AVX-512 BF16).

#pragma once

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512BF16__

typedef __m512bh Pairs;

inline Pairs pairs(const void *p) { return (Pairs)_mm512_loadu_si512(p); }
inline Pairs repeated(const void *p) {  // one pair in all lanes
    int32_t x;
    memcpy(&x, p, 4);
    return (Pairs)_mm512_set1_epi32(x);
}
inline Floats dot(Floats sum, Pairs a, Pairs b) { return (Floats)_mm512_dpbf16_ps((__m512)sum, a, b); }
// The sums of 16 vectors, side by side.
inline Floats sums(const Floats *v) {
    __m512 a[8], b[4];
    for (int i = 0; i < 8; i++) {
        __m512 x = (__m512)v[2 * i], y = (__m512)v[2 * i + 1];
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));  // in each quarter: x02 y02 x13 y13
    }
    for (int i = 0; i < 4; i++) {
        __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    // b[i] holds, in each of its quarters, quarter sums of the vectors 4i to 4i + 3.
    __m512 p = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
    __m512 q = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
    return (Floats)_mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x88), _mm512_shuffle_f32x4(p, q, 0xdd));
}

// acc (M·N) += x (M rows) times w (N rows), over k columns of both; row pointers may repeat. Fetches `rows` rows at
// `ahead`.
template <int M, int N>
inline void dots(Floats *acc, const bf16 *const *x, const bf16 *const *w, long k, const bf16 *ahead, long rows) {
    for (long i = 0; i < k; i += 2 * LANES) {
        Pairs right[N];
        for (int n = 0; n < N; n++) right[n] = pairs(w[n] + i);
        if (rows == N)
            for (int n = 0; n < N; n++) __builtin_prefetch(ahead + n * k + i);
        else
            for (long n = 0; n < rows; n++) __builtin_prefetch(ahead + n * k + i);
        for (int m = 0; m < M; m++) {
            Pairs left = pairs(x[m] + i);
            for (int n = 0; n < N; n++) acc[m * N + n] = dot(acc[m * N + n], left, right[n]);
        }
    }
}

#endif

// The same in fp32, without fetching; the columns fill vectors.
template <int M, int N, class W>
inline void dots(Floats *acc, const float *const *x, const W *const *w, long k) {
    for (long i = 0; i < k; i += LANES) {
        Floats right[N];
        for (int n = 0; n < N; n++) right[n] = load(w[n] + i);
        for (int m = 0; m < M; m++) {
            Floats left = load(x[m] + i);
            for (int n = 0; n < N; n++) acc[m * N + n] += left * right[n];
        }
    }
}

// out (4, 4) = x (4 rows) times w (4 rows) over n columns; row pointers may repeat.
template <class T>
inline void dots_4x4(float *out, const T *const *x, const T *const *w, long n) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            Floats acc{};
            for (long k = 0; k < n; k += LANES) acc += load(x[i] + k, n - k) * load(w[j] + k, n - k);
            out[i * 4 + j] = sum(acc);
        }
}
#ifdef __AVX512BF16__
__attribute__((always_inline)) inline void dots_4x4(float *out, const bf16 *const *x, const bf16 *const *w, long n) {
    if (n % (2 * LANES)) return dots_4x4<bf16>(out, x, w, n);
    Floats acc[LANES] = {};
    dots<4, 4>(acc, x, w, n, nullptr, 0);
    store(out, sums(acc));
}
#endif

}  // namespace
