// Joined products with few rows, which are bound by reading the weights: ops/by_cpp.py.

#include <vector>

#include "blocks.h"
#include "dots.h"

namespace {

// Outputs `begin` to `end` of a joined product y = x · wᵀ + bias; their weights w (end − begin, K) as numbers or as
// rows of `row_bytes` of blocks; and their low-rank update: a (rank, K), and s·B in b (end − begin, wide(rank)), padded
// with zeros; rank 0 where there is none. K is a multiple of 32. All numbers are of one type.
struct OutputSlice {
    long begin, end, rank;
    const void *a, *b, *w;
    long row_bytes;
    int format;  // of blocks; NUMBERS where w are numbers
};

inline long wide(long rank) { return (rank + 31) / 32 * 32; }

// Ranks of all slices, as they lie side by side.
inline long all_ranks(const OutputSlice *slices, long count) {
    long ranks = 0;
    for (long p = 0; p < count; p++) ranks += wide(slices[p].rank);
    return ranks;
}

// What a product consists of, N rows of a or of w at a time or fewer (`width`): update(slice, n, width, low) for those
// of a from n on, to the place of the rank n in low; when all are there, outputs(slice, n, width, low) for those of w
// from n on, low being where the slice's ranks begin.
template <long N, class Low, class Update, class Outputs>
void over_slices(const OutputSlice *slices, long count, Low *low, int threads, Update update, Outputs outputs) {
    bool updated = all_ranks(slices, count);
#pragma omp parallel num_threads(threads)
    {
        Low *mine = low;
        for (long p = 0; p < count; mine += wide(slices[p++].rank)) {
            long rank = slices[p].rank;
#pragma omp for nowait schedule(static)
            for (long n = 0; n < rank; n += N) update(slices[p], n, rank - n < N ? rank - n : N, mine + n);
        }
        if (updated) {
#pragma omp barrier
        }
        mine = low;
        for (long p = 0; p < count; mine += wide(slices[p++].rank)) {
            long all = slices[p].end - slices[p].begin;
#pragma omp for nowait schedule(static)
            for (long n = 0; n < all; n += N) outputs(slices[p], n, all - n < N ? all - n : N, mine);
        }
    }
}

// The `width` rows from n on of a slice's blocks, as numbers of a thread's own memory.
template <class T>
const T *unpacked(const OutputSlice &slice, long n, long width, long K) {
    static thread_local std::vector<T> numbers;
    if ((long)numbers.size() < width * K) numbers.resize(width * K);
    unpack((const uint8_t *)slice.w + n * slice.row_bytes, slice.row_bytes, slice.format, numbers.data(), K, width, K);
    return numbers.data();
}

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
                for (long j = 0; j < n; j++)
                    set(y[(t + i) * sy + j], sum(acc[i * N + j]) + (shift ? get(shift[j]) : 0));
        }
    };
    auto update = [=](const OutputSlice &slice, long n, long width, float *to) {
        group((const T *)slice.a + n * K, width, nullptr, nullptr, 0, nullptr, to, ranks);
    };
    auto outputs = [=](const OutputSlice &slice, long n, long width, const float *mine) {
        long rank = wide(slice.rank), column = slice.begin + n;
        const T *b = (const T *)slice.b + n * rank, *shift = bias ? bias + column : nullptr;
        if (slice.format == NUMBERS)
            return group((const T *)slice.w + n * K, width, mine, b, rank, shift, y + column, sy);
        if (rows > 1) return group(unpacked<float>(slice, n, width, K), width, mine, b, rank, shift, y + column, sy);
        for (long j = 0; j < width; j++) {
            const float *left[1] = {mine};
            const T *right[1] = {b + j * rank};
            Floats acc[1] = {dot_row((const uint8_t *)slice.w + (n + j) * slice.row_bytes, slice.format, x, K)};
            dots<1, 1>(acc, left, right, rank);
            set(y[column + j], sum(acc[0]) + (shift ? get(shift[j]) : 0));
        }
    };
    over_slices<N>(slices, count, low, threads, update, outputs);
}

template <class T>
void few_rows(const T *x, long sx, const T *bias, T *y, long sy, const OutputSlice *slices, long count, long rows,
              long K, int threads) {
    static thread_local std::vector<float> left, low;
    long ranks = all_ranks(slices, count);
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
    auto update = [=](const OutputSlice &slice, long n, long width, bf16 *to) {
        group((const bf16 *)slice.a + n * K, width, nullptr, nullptr, 0, Floats{}, to, ranks, true);
    };
    auto outputs = [=](const OutputSlice &slice, long n, long width, const bf16 *mine) {
        long rank = wide(slice.rank), column = slice.begin + n;
        bool plain = slice.format == NUMBERS;
        Floats shift{};
        for (long i = 0; bias && i < LANES; i++) shift[i] = i % N < width ? get(bias[column + i % N]) : 0.0f;
        const bf16 *w = plain ? (const bf16 *)slice.w + n * K : unpacked<bf16>(slice, n, width, K);
        group(w, width, mine, (const bf16 *)slice.b + n * rank, rank, shift, y + column, sy, plain);
    };
    over_slices<N>(slices, count, low, threads, update, outputs);
}

void by_pairs(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const OutputSlice *slices, long count,
              long rows, long K, int threads) {
    static thread_local std::vector<bf16> low;
    long ranks = all_ranks(slices, count);
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
