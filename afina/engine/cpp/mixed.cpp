// The low-rank updates of several adapters in one batch, each for its own rows: mixed.py.
//
// Both products of an update, low = x · Aᵀ and y += low · (s·B)ᵀ, are made of the same small one: a few rows times a
// tile of TILE columns, in the order of k. So what a row gets does not depend on the rows beside it, nor on threads.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "packed.h"

namespace {

constexpr long TILE = 16;  // columns of a packed matrix (k, n), which lie as n / TILE matrices (k, TILE)
constexpr long VECTORS = TILE / LANES;
constexpr long MOST_ROWS = LANES == 16 ? 8 : 4;  // whose sums of a tile fit the registers

// What an adapter adds to the outputs `begin` to `end` of a joined product: `rank` of its low numbers from `low` on,
// times s·B in tiles of outputs (rank, TILE).
struct MixedSlice {
    long begin, end, low, rank;
    const void *b;
};
// What an adapter has for one joined product: A of all its slices in tiles of ranks (K, TILE), `ranks` in all tiles; 0
// where the adapter has nothing. With products by pairs, K and each slice's `low` and `rank` are even.
struct MixedProduct {
    long ranks;
    const void *a;
    long count;
    const MixedSlice *slices;
};

// acc (M rows of a tile) += left (M rows of k numbers) · tile (k, TILE)
template <int M, class T>
inline void add_tile(Floats *acc, const T *const *left, const T *tile, long k) {
    for (long i = 0; i < k; i++) {
        Floats right[VECTORS];
        for (long v = 0; v < VECTORS; v++) right[v] = load(tile + i * TILE + v * LANES);
        for (int m = 0; m < M; m++) {
            Floats x = splat(get(left[m][i]));
            for (long v = 0; v < VECTORS; v++) acc[m * VECTORS + v] += x * right[v];
        }
    }
}

#ifdef __AVX512BF16__

// The same by pairs of neighbours, which lie together in the tile (k / 2, TILE, 2).
template <int M>
inline void add_tile(Floats *acc, const bf16 *const *left, const bf16 *tile, long k) {
    for (long i = 0; i < k; i += 2) {
        Pairs right = pairs(tile + i * TILE);
        for (int m = 0; m < M; m++) acc[m] = dot(acc[m], repeated(left[m] + i), right);
    }
}

#endif

// f(M) for the smallest M rows at a time that are enough for m.
template <class F>
inline void with_rows(long m, F f) {
    if (m == 1) return f(std::integral_constant<int, 1>());
    if (m == 2) return f(std::integral_constant<int, 2>());
    if (m <= 4) return f(std::integral_constant<int, 4>());
    f(std::integral_constant<int, MOST_ROWS>());
}

// Rows of one adapter: `count` from `at` on, in the order of rows; their low numbers begin at `low`.
struct Part {
    const MixedProduct *product;
    long at, count, low;
};

// Tiles of a part, from `begin` to `end`: of its low numbers, or of the outputs of a slice.
struct Item {
    const Part *part;
    const MixedSlice *slice;
    long begin, end;
};

void add_items(std::vector<Item> &items, Item all, long size) {
    for (long end = all.end; all.begin < end; all.begin += size) {
        all.end = all.begin + size < end ? all.begin + size : end;
        items.push_back(all);
    }
}

// What all threads see: x (rows, K), y, the rows that have an adapter, by adapter, and their low numbers.
template <class T>
struct Pass {
    const T *x;
    T *y;
    long sx, sy, K;
    const long *order;
    T *low;

    long row(const Part &part, long m) const { return order[part.at + (m < part.count ? m : 0)]; }

    template <int M>
    void project(const Item &item) const {
        const Part &part = *item.part;
        const T *left[M];
        for (int m = 0; m < M; m++) left[m] = x + row(part, m) * sx;
        for (long tile = item.begin; tile < item.end; tile++) {
            Floats acc[M * VECTORS] = {};
            add_tile<M>(acc, left, (const T *)part.product->a + tile * TILE * K, K);
            T *to = low + part.low + tile * TILE;
            for (long m = 0; m < part.count; m++)
                for (long v = 0; v < VECTORS; v++)
                    store(to + m * part.product->ranks + v * LANES, acc[m * VECTORS + v]);
        }
    }

    template <int M>
    void add(const Item &item) const {
        const Part &part = *item.part;
        const MixedSlice &slice = *item.slice;
        const T *left[M];
        for (int m = 0; m < M; m++)
            left[m] = low + part.low + (m < part.count ? m : 0) * part.product->ranks + slice.low;
        for (long tile = item.begin; tile < item.end; tile++) {
            long column = slice.begin + tile * TILE, missing = slice.end - column;  // the last tile is cut
            Floats acc[M * VECTORS] = {};
            for (int m = 0; m < M; m++)
                for (long v = 0; v * LANES < missing && v < VECTORS; v++)
                    acc[m * VECTORS + v] = load(y + row(part, m) * sy + column + v * LANES, missing - v * LANES);
            add_tile<M>(acc, left, (const T *)slice.b + tile * TILE * slice.rank, slice.rank);
            for (long m = 0; m < part.count; m++)
                for (long v = 0; v * LANES < missing && v < VECTORS; v++)
                    store(y + row(part, m) * sy + column + v * LANES, acc[m * VECTORS + v], missing - v * LANES);
        }
    }
};

// y (rows, …) += for each row, where it has an adapter, x (rows, K) times the adapter's update number `which`.
template <class T>
void mixed_add(const T *x, long sx, T *y, long sy, const MixedProduct *const *adapters, long which, long rows, long K,
               int threads) {
    static thread_local std::vector<long> order;
    static thread_local std::vector<Part> parts;
    static thread_local std::vector<Item> projections, additions;
    static thread_local std::vector<T> low, even;
    order.clear(), parts.clear(), projections.clear(), additions.clear();
    for (long t = 0; t < rows; t++)
        if (adapters[t] && adapters[t][which].ranks) order.push_back(t);
    if (order.empty()) return;
    std::stable_sort(order.begin(), order.end(), [=](long a, long b) { return adapters[a] < adapters[b]; });
    long count = order.size(), numbers = 0;
    for (long at = 0, end; at < count; at = end) {
        const MixedProduct *product = adapters[order[at]] + which;
        for (end = at + 1; end < count && end < at + MOST_ROWS && adapters[order[end]] + which == product;) end++;
        parts.push_back({product, at, end - at, numbers});
        numbers += (end - at) * product->ranks;
    }
    for (const Part &part : parts) {
        add_items(projections, {&part, nullptr, 0, part.product->ranks / TILE}, 1);
        for (long p = 0; p < part.product->count; p++) {
            const MixedSlice &slice = part.product->slices[p];
            add_items(additions, {&part, &slice, 0, (slice.end - slice.begin + TILE - 1) / TILE}, 4);
        }
    }
    low.resize(numbers);
    if (PER<T> == 2 && K % 2) {  // the last number of a row has no neighbour
        even.assign(rows * (K + 1), T{});
        for (long t = 0; t < rows; t++) memcpy(&even[t * (K + 1)], x + t * sx, K * sizeof(T));
        x = even.data(), sx = ++K;
    }
    Pass<T> pass{x, y, sx, sy, K, order.data(), low.data()};
    const Item *project = projections.data(), *add = additions.data();
    long to_project = projections.size(), to_add = additions.size();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < to_project; i++)
            with_rows(project[i].part->count, [&](auto rows) { pass.template project<rows>(project[i]); });
#pragma omp for schedule(static)
        for (long i = 0; i < to_add; i++)
            with_rows(add[i].part->count, [&](auto rows) { pass.template add<rows>(add[i]); });
    }
}

}  // namespace

extern "C" {
void mixed_add_fp32(const float *x, long sx, float *y, long sy, const MixedProduct *const *adapters, long which,
                    long rows, long K, int threads) {
    mixed_add(x, sx, y, sy, adapters, which, rows, K, threads);
}
void mixed_add_bf16(const bf16 *x, long sx, bf16 *y, long sy, const MixedProduct *const *adapters, long which,
                    long rows, long K, int threads) {
    mixed_add(x, sx, y, sy, adapters, which, rows, K, threads);
}
}
