// Low-rank updates, in bf16 dot products: ops/by_cpp.py.
//
// Products with one side of 16 or so, for which a matrix library's blocks are too large. Pairs of neighbours are
// multiplied and added at once, so one operand of each product is laid out in pairs. Ranks are multiples of LANES,
// widths of 2·LANES.

#include <vector>

#include "dots.h"

#ifdef __AVX512BF16__

namespace {

// s·B, B (n, r) in fp32, in pairs of ranks (r/2, n, 2) and in pairs of outputs (n/2, r, 2).
void low_rank_pack(const float *b, float scale, bf16 *by_rank, bf16 *by_output, long n, long r) {
    std::vector<bf16> rows(2 * r);
    bf16 *first = rows.data(), *second = first + r;
    for (long o = 0; o < n; o += 2) {
        for (long i = 0; i < r; i += LANES) {
            store(first + i, load(b + o * r + i) * scale);
            store(second + i, load(b + (o + 1) * r + i) * scale);
        }
        for (long i = 0; i < r; i++) {
            bf16 *to = by_output + (o / 2 * r + i) * 2;
            to[0] = first[i], to[1] = second[i];
        }
        for (long i = 0; i < r; i += 2) {
            bf16 *to = by_rank + (i / 2 * n + o) * 2;
            to[0] = first[i], to[1] = first[i + 1], to[2] = second[i], to[3] = second[i + 1];
        }
    }
}

// y (rows, n) += low (rows, r) · (s·B)ᵀ
void low_rank_add(bf16 *y, long sy, const bf16 *low, long sl, const bf16 *by_rank, long rows, long n, long r,
                  int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t0 = 0; t0 < rows; t0 += 4) {
        long m = rows - t0 < 4 ? rows - t0 : 4;
        for (long o = 0; o < n; o += 2 * LANES) {
            Floats acc[4][2];
            for (long t = 0; t < 4; t++)
                for (long v = 0; v < 2; v++) acc[t][v] = load(y + (t0 + (t < m ? t : 0)) * sy + o + v * LANES);
            for (long i = 0; i < r; i += 2) {
                Pairs b0 = pairs(by_rank + (i / 2 * n + o) * 2), b1 = pairs(by_rank + (i / 2 * n + o + LANES) * 2);
                for (long t = 0; t < 4; t++) {
                    Pairs a = repeated(low + (t0 + (t < m ? t : 0)) * sl + i);
                    acc[t][0] = dot(acc[t][0], a, b0);
                    acc[t][1] = dot(acc[t][1], a, b1);
                }
            }
            for (long t = 0; t < m; t++)
                for (long v = 0; v < 2; v++) store(y + (t0 + t) * sy + o + v * LANES, acc[t][v]);
        }
    }
}

// dlow (rows, r) = dy (rows, n) · s·B
void low_rank_project(const bf16 *dy, long sdy, const bf16 *by_output, bf16 *dlow, long sdl, long rows, long n, long r,
                      int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t0 = 0; t0 < rows; t0 += 8) {
        long m = rows - t0 < 8 ? rows - t0 : 8;
        for (long i = 0; i < r; i += LANES) {
            Floats acc[8] = {};
            for (long o = 0; o < n; o += 2) {
                Pairs b = pairs(by_output + (o / 2 * r + i) * 2);
                for (long t = 0; t < 8; t++) acc[t] = dot(acc[t], repeated(dy + (t0 + (t < m ? t : 0)) * sdy + o), b);
            }
            for (long t = 0; t < m; t++) store(dlow + (t0 + t) * sdl + i, acc[t]);
        }
    }
}

// V vectors of columns of `out` at o, in fp32: pairs of rows of x lie side by side, a block of them at a time, so that
// they are read from the cache once for every eight ranks.
template <int V>
void outer_columns(const bf16 *x, long sx, const uint32_t *paired, float *out, long so, long si, float scale, long rows,
                   long o, long r) {
    constexpr long BLOCK = 128, RANKS = 8;
    alignas(64) Words both[BLOCK][V];
    std::vector<Floats> sums(r * V, Floats{});
    long half = (rows + 1) / 2;
    for (long t0 = 0; t0 < half; t0 += BLOCK) {
        long count = half - t0 < BLOCK ? half - t0 : BLOCK;
        for (long t = 0; t < count; t++) {
            const bf16 *first = x + 2 * (t0 + t) * sx + o, *second = 2 * (t0 + t) + 1 < rows ? first + sx : first;
            for (int v = 0; v < V; v++) {
                Words a = __builtin_convertvector((Halves) * (const HalvesAnywhere *)(first + v * LANES), Words);
                Words b = __builtin_convertvector((Halves) * (const HalvesAnywhere *)(second + v * LANES), Words);
                both[t][v] = a | b << 16;
            }
        }
        for (long i = 0; i < r; i += RANKS) {
            Floats acc[RANKS][V];
            for (long k = 0; k < RANKS; k++)
                for (int v = 0; v < V; v++) acc[k][v] = sums[(i + k) * V + v];
            for (long t = 0; t < count; t++)
                for (long k = 0; k < RANKS; k++)
                    for (int v = 0; v < V; v++)
                        acc[k][v] = dot(acc[k][v], repeated(paired + (t0 + t) * r + i + k), (Pairs)both[t][v]);
            for (long k = 0; k < RANKS; k++)
                for (int v = 0; v < V; v++) sums[(i + k) * V + v] = acc[k][v];
        }
    }
    for (long i = 0; i < r; i++)
        for (long v = 0; v < V; v++) {
            Floats found = sums[i * V + v] * scale;
            float *to = out + (o + v * LANES) * so + i * si;
            if (so == 1)
                store(to, found);
            else
                for (long l = 0; l < LANES; l++) to[l * so] = found[l];
        }
}

// out (n, r) in fp32, with any strides = scale · xᵀ (n, rows) · low (rows, r)
void low_rank_outer(const bf16 *x, long sx, const bf16 *low, long sl, float *out, long so, long si, float scale,
                    long rows, long n, long r, int threads) {
    long half = (rows + 1) / 2;
    std::vector<uint32_t> paired(half * r);
    for (long t = 0; t < half; t++)
        for (long i = 0; i < r; i++) {
            uint32_t second = 2 * t + 1 < rows ? low[(2 * t + 1) * sl + i].bits : 0;
            paired[t * r + i] = low[2 * t * sl + i].bits | second << 16;
        }
#pragma omp parallel for num_threads(threads)
    for (long o = 0; o < n; o += 2 * LANES)
        if (n - o < 2 * LANES)
            outer_columns<1>(x, sx, paired.data(), out, so, si, scale, rows, o, r);
        else
            outer_columns<2>(x, sx, paired.data(), out, so, si, scale, rows, o, r);
}

}  // namespace

extern "C" {
void low_rank_pack_bf16(const float *b, float scale, bf16 *by_rank, bf16 *by_output, long n, long r) {
    low_rank_pack(b, scale, by_rank, by_output, n, r);
}
void low_rank_add_bf16(bf16 *y, long sy, const bf16 *low, long sl, const bf16 *b, long rows, long n, long r,
                       int threads) {
    low_rank_add(y, sy, low, sl, b, rows, n, r, threads);
}
void low_rank_project_bf16(const bf16 *dy, long sdy, const bf16 *b, bf16 *dlow, long sdl, long rows, long n, long r,
                           int threads) {
    low_rank_project(dy, sdy, b, dlow, sdl, rows, n, r, threads);
}
void low_rank_outer_bf16(const bf16 *x, long sx, const bf16 *low, long sl, float *out, long so, long si, float scale,
                         long rows, long n, long r, int threads) {
    low_rank_outer(x, sx, low, sl, out, so, si, scale, rows, n, r, threads);
}
}

#endif
