// Joined products with few rows, which are bound by reading the weights: joined.py.

#include <vector>

#include "blocks.h"
#include "dots.h"

namespace {

// Outputs `begin` to `end` of a joined product y = x · wᵀ + bias; their weights w (end − begin, K) as numbers or as rows
// of `row_bytes` of blocks; and their low-rank update: a (rank, K), and s·B in b (end − begin, wide(rank)), padded with
// zeros; rank 0 where there is none. K is a multiple of 32. All numbers are of one type.
struct OutputSlice {
    long begin, end, rank;
    const void *a, *b, *w;
    long row_bytes;
    int format;  // of blocks; NUMBERS where w are numbers
};

inline long wide(long rank) { return (rank + 31) / 32 * 32; }

// In fp32, M rows of x (rows, K) and N of the weights at a time. Blocks become fp32 in the nearest cache just before.
template <class T, int M, int N>
void in_fp32(const float *x, const T *bias, T *y, long sy, const OutputSlice *slices, long count, float *low,
             long ranks, long rows, long K, int threads) {
    // y (rows, n ≤ N) = x · wᵀ + l · bᵀ + shift
    auto group = [=](const auto *w, long n, const float *l, const T *b, long rank, const T *shift, auto *y, long sy) {
        const float *left[M];
        const T *low_right[N];
        decltype(w) right[N];
        for (long t = 0; t < rows; t += M) {
            long m = rows - t < M ? rows - t : M;
            Floats acc[M * N] = {};
            for (int i = 0; i < M; i++) left[i] = x + (t + (i < m ? i : 0)) * K;
            for (int i = 0; i < N; i++) right[i] = w + (i < n ? i : 0) * K;
            dots<M, N>(acc, left, right, K);
            if (rank) {
                for (int i = 0; i < M; i++) left[i] = l + (t + (i < m ? i : 0)) * ranks;
                for (int i = 0; i < N; i++) low_right[i] = b + (i < n ? i : 0) * rank;
                dots<M, N>(acc, left, low_right, rank);
            }
            for (long i = 0; i < m; i++)
                for (long j = 0; j < n; j++) set(y[(t + i) * sy + j], sum(acc[i * N + j]) + (shift ? get(shift[j]) : 0));
        }
    };
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> unpacked(N * K);
        float *mine = low;
        for (long p = 0; p < count; mine += wide(slices[p++].rank)) {
#pragma omp for nowait schedule(static)
            for (long n = 0; n < slices[p].rank; n += N)
                group((const T *)slices[p].a + n * K, slices[p].rank - n < N ? slices[p].rank - n : N, nullptr, nullptr,
                      0, nullptr, mine + n, ranks);
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
                long width = slice.end - n < N ? slice.end - n : N, at = n - slice.begin;
                const T *b = (const T *)slice.b + at * rank, *shift = bias ? bias + n : nullptr;
                const uint8_t *row = (const uint8_t *)slice.w + at * slice.row_bytes;
                if (slice.format == NUMBERS) {
                    group((const T *)slice.w + at * K, width, mine, b, rank, shift, y + n, sy);
                } else if (rows == 1) {
                    for (long j = 0; j < width; j++) {
                        const float *left[1] = {mine};
                        const T *right[1] = {b + j * rank};
                        Floats update[1] = {};
                        dots<1, 1>(update, left, right, rank);
                        float own = dot_row(row + j * slice.row_bytes, slice.format, x, K) + sum(update[0]);
                        set(y[n + j], own + (shift ? get(shift[j]) : 0));
                    }
                } else {
                    unpack(row, slice.row_bytes, slice.format, unpacked.data(), K, width, K);
                    group((const float *)unpacked.data(), width, mine, b, rank, shift, y + n, sy);
                }
            }
        }
    }
}

template <class T>
void few_rows(const T *x, long sx, const T *bias, T *y, long sy, const OutputSlice *slices, long count, long rows,
              long K, int threads) {
    static thread_local std::vector<float> left, low;
    long ranks = 0;
    for (long p = 0; p < count; p++) ranks += wide(slices[p].rank);
    low.assign(rows * ranks, 0.0f);
    left.resize(rows * K);
    for (long t = 0; t < rows; t++)
        for (long k = 0; k < K; k += LANES) store(&left[t * K + k], load(x + t * sx + k));
    auto run = rows == 1 ? in_fp32<T, 1, 4> : rows == 2 ? in_fp32<T, 2, 4> : in_fp32<T, 4, 2>;
    run(left.data(), bias, y, sy, slices, count, low.data(), ranks, rows, K, threads);
}

#ifdef __AVX512BF16__

// In bf16 dot products by pairs. Blocks become bf16 just before.
template <int M, int N>
void in_pairs(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
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
                group((const bf16 *)slices[p].a + n * K, slices[p].rank - n < N ? slices[p].rank - n : N, nullptr, nullptr, 0,
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
                group(w, width, mine, (const bf16 *)slice.b + (n - slice.begin) * rank, rank, shift, y + n, sy,
                      slice.format == NUMBERS);
            }
        }
    }
}

void by_pairs(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
              long rows, long K, int threads) {
    static thread_local std::vector<bf16> low;
    long ranks = 0;
    for (long p = 0; p < count; p++) ranks += wide(slices[p].rank);
    low.assign(rows * ranks, bf16{});
    auto run = rows == 1 ? in_pairs<1, 16> : rows == 2 ? in_pairs<2, 8> : in_pairs<4, 4>;
    run(x, sx, bias, y, sy, slices, count, low.data(), ranks, rows, K, threads);
}

// Blocks of a few rows are not worth rounding to bf16.
bool suits_pairs(const OutputSlice *slices, long count, long rows) {
    for (long p = 0; p < count; p++)
        if (slices[p].format != NUMBERS && rows <= 4) return false;
    return true;
}

#endif

}  // namespace

extern "C" {
void few_rows_fp32(const float *x, long sx, const float *bias, float *y, long sy, const OutputSlice *slices, long count,
                   long rows, long K, int threads) {
    few_rows(x, sx, bias, y, sy, slices, count, rows, K, threads);
}
void few_rows_bf16(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
                   long rows, long K, int threads) {
#ifdef __AVX512BF16__
    if (suits_pairs(slices, count, rows)) return by_pairs(x, sx, bias, y, sy, slices, count, rows, K, threads);
#endif
    few_rows(x, sx, bias, y, sy, slices, count, rows, K, threads);
}
}
