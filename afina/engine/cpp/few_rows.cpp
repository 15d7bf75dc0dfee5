// Joined products with few rows, in bf16 dot products: joined.py.

#include <vector>

#include "blocks.h"
#include "dots.h"

#ifdef __AVX512BF16__

namespace {

// Outputs `begin` to `end` of a joined product y = x · wᵀ + bias; their weights w (end − begin, K) as bf16 numbers or
// as rows of `row_bytes` of blocks; and their low-rank update: a (rank, K), and s·B in b (end − begin, wide(rank)),
// padded with zeros; rank 0 where there is none. K is a multiple of 2·LANES.
struct OutputSlice {
    long begin, end, rank;
    const bf16 *a, *b;
    const void *w;
    long row_bytes;
    int format;  // of blocks; NUMBERS where w are numbers
};

inline long wide(long rank) { return (rank + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }

template <int M, int N>
void few_rows_tiled(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
                    bf16 *low, long ranks, long rows, long K, int threads) {
    static_assert(M * N == LANES, "the sums of a tile fill a vector");
    long tiles = (rows + M - 1) / M;
    // y (rows, n ≤ N) = x · wᵀ + l · bᵀ + shift
    auto group = [=](const bf16 *w, long n, const bf16 *l, const bf16 *b, long rank, Floats shift, bf16 *y, long sy,
                     bool fetch) {
        const bf16 *left[M], *right[N];
        bf16 out[LANES];
        for (long tile = 0; tile < tiles; tile++) {
            long t = tile * M, m = rows - t < M ? rows - t : M, done = N * tile / tiles;
            Floats acc[LANES] = {};
            for (int i = 0; i < M; i++) left[i] = x + (t + (i < m ? i : 0)) * sx;
            for (int i = 0; i < N; i++) right[i] = w + (i < n ? i : 0) * K;
            // Each tile fetches its share of rows of w to come: memory is read while the processor computes.
            dots<M, N>(acc, left, right, K, w + (LANES + done) * K, fetch ? N * (tile + 1) / tiles - done : 0);
            if (rank) {
                for (int i = 0; i < M; i++) left[i] = l + (t + (i < m ? i : 0)) * ranks;
                for (int i = 0; i < N; i++) right[i] = b + (i < n ? i : 0) * rank;
                dots<M, N>(acc, left, right, rank, nullptr, 0);
            }
            store(out, sums(acc) + shift);
            for (long i = 0; i < m; i++) memcpy(y + (t + i) * sy, out + i * N, n * sizeof(bf16));
        }
    };
#pragma omp parallel num_threads(threads)
    {
        std::vector<bf16> unpacked;
        bf16 *mine = low;
        for (long p = 0; p < count; mine += wide(slices[p++].rank)) {
#pragma omp for nowait schedule(static)
            for (long n = 0; n < slices[p].rank; n += N)
                group(slices[p].a + n * K, slices[p].rank - n < N ? slices[p].rank - n : N, nullptr, nullptr, 0,
                      Floats{}, mine + n, ranks, true);
        }
        if (ranks) {
#pragma omp barrier
        }
        mine = low;
        for (long p = 0; p < count; mine += wide(slices[p++].rank)) {
            OutputSlice slice = slices[p];
            long rank = wide(slice.rank);
#pragma omp for nowait schedule(static)
            for (long n = slice.begin; n < slice.end; n += N) {
                long width = slice.end - n < N ? slice.end - n : N;
                Floats shift{};
                for (long i = 0; bias && i < LANES; i++) shift[i] = i % N < width ? get(bias[n + i % N]) : 0.0f;
                const bf16 *w = (const bf16 *)slice.w + (n - slice.begin) * K;
                if (slice.format != NUMBERS) {
                    unpacked.resize(N * K);
                    unpack((const uint8_t *)slice.w + (n - slice.begin) * slice.row_bytes, slice.row_bytes,
                           slice.format, unpacked.data(), K, width, K);
                    w = unpacked.data();
                }
                group(w, width, mine, slice.b + (n - slice.begin) * rank, rank, shift, y + n, sy,
                      slice.format == NUMBERS);
            }
        }
    }
}

void few_rows(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
              long rows, long K, int threads) {
    static thread_local std::vector<bf16> low;
    long ranks = 0;
    for (long p = 0; p < count; p++) ranks += wide(slices[p].rank);
    low.assign(rows * ranks, bf16{});
    auto run = rows == 1 ? few_rows_tiled<1, 16> : rows == 2 ? few_rows_tiled<2, 8> : few_rows_tiled<4, 4>;
    run(x, sx, bias, y, sy, slices, count, low.data(), ranks, rows, K, threads);
}

}  // namespace

extern "C" {
void few_rows_bf16(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
                   long rows, long K, int threads) {
    few_rows(x, sx, bias, y, sy, slices, count, rows, K, threads);
}
}

#endif
