// Attention within segments, in training and against the cache: ops/by_cpp.py.

#include <cmath>

#include "attention.h"
#include "functions.h"
#include "packed.h"

namespace {

// C (M, N) = or += A·B in fp32; element (i, k) of A lies at a[i·ai + k·ak]; B and C are row-major, N a multiple of
// LANES. An element is a number, or two neighbours along k: `Packed`.
template <int M, int V, class E>
inline void tile(long K, const E *a, long ai, long ak, const E *b, long ldb, float *c, long ldc, bool add) {
    Floats acc[M][V];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) acc[m][v] = add ? load(c + m * ldc + v * LANES) : Floats{};
    for (long k = 0; k < K; k++) {
        decltype(elements(b)) row[V];
        for (int v = 0; v < V; v++) row[v] = elements(b + k * ldb + v * LANES);
        for (int m = 0; m < M; m++) {
            auto x = repeated(a + m * ai + k * ak);
            for (int v = 0; v < V; v++) acc[m][v] = dot(acc[m][v], x, row[v]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) store(c + m * ldc + v * LANES, acc[m][v]);
}
template <int V, class E>
inline void column(long M, long K, const E *a, long ai, long ak, const E *b, long ldb, float *c, long ldc, bool add) {
    long m = 0;
    for (; m + 6 <= M; m += 6) tile<6, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
    for (; m + 4 <= M; m += 4) tile<4, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
    for (; m + 2 <= M; m += 2) tile<2, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
    for (; m < M; m++) tile<1, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
}
template <class E>
void product(long M, long N, long K, const E *a, long ai, long ak, const E *b, long ldb, float *c, long ldc, bool add) {
    long n = 0;
    if (LANES == 16)  // else there are but 16 vectors, of which 24 would be sums
        for (; n + 4 * LANES <= N; n += 4 * LANES) column<4>(M, K, a, ai, ak, b + n, ldb, c + n, ldc, add);
    for (; n + 2 * LANES <= N; n += 2 * LANES) column<2>(M, K, a, ai, ak, b + n, ldb, c + n, ldc, add);
    for (; n < N; n += LANES) column<1>(M, K, a, ai, ak, b + n, ldb, c + n, ldc, add);
}

constexpr long QUERIES = 48, BLOCK = 64;  // of a tile of scores: queries, and keys

// A head's rows are laid out in three ways for the products, `per` numbers to an element:
// rows (n, wide / per), neighbours in a row side by side, on the left of a product along the row;
template <class T>
void copy_rows(const T *x, long stride, long n, long D, Element<T> *to, long wide) {
    for (long t = 0; t < n; t++)
        for (long i = 0; i < wide; i += LANES)
            put(to + t * wide / PER<T>, i, i < D ? load(x + t * stride + i, D - i) : Floats{});
}
// beneath one another (n / per, wide), neighbours from one row and the next, from the row `at` on, on the right of a
// product along the rows: after an odd number of rows the one that is missing is zero;
template <class T>
void copy_beneath(const T *x, long stride, long n, long D, Element<T> *to, long wide, long at) {
    for (long t = 0; t < n; t++, at++)
        for (long i = 0; i < wide; i += LANES)
            put_beneath(to + at / PER<T> * wide + i, at % PER<T>, i < D ? load(x + t * stride + i, D - i) : Floats{});
}
// and as the columns of blocks (D / per, BLOCK), from the column `at` on, on the right of a product along the row.
template <class T>
void copy_columns(const T *x, long stride, long n, long D, Element<T> *blocks, long at) {
    long rows = packed<T>(D);
    for (long t = 0; t < n; t++, at++) {
        Element<T> *to = blocks + at / BLOCK * BLOCK * rows + at % BLOCK;
        for (long i = 0; i < rows; i++) pack(to[i * BLOCK], x + t * stride + i * PER<T>, D - i * PER<T>);
    }
}
inline long in_blocks(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// Scores of queries [i0, i0 + m) against keys [j0, j0 + keys): scaled, and −inf where a key may not be seen.
inline void mask_scores(float *S, long m, long i0, long j0, long keys, const Attention &a) {
    const float never = -INFINITY;
    for (long i = 0; i < m; i++) {
        float *row = S + i * BLOCK;
        for (long j = 0; j < keys; j += LANES) {
            Floats s = load(row + j) * a.scale;
            store(row + j, a.cap > 0 ? a.cap * tanh(s * (1.0f / a.cap)) : s);
        }
        for (long j = i0 + i - j0 + 1 > 0 ? i0 + i - j0 + 1 : 0; j < keys; j++) row[j] = never;
        if (a.window)
            for (long j = 0; j <= i0 + i - a.window - j0 && j < keys; j++) row[j] = never;
    }
}

// What n queries, after `before` tokens, see of the before + n keys and values in KT (columns) and V (beneath one
// another): heads 0 to `heads` of q. q and out are (n, H·D) from the first of these heads on; lse (n, H), log Σ exp of
// the scores, may be left out. The scratch memory is `queries_size` numbers.
long queries_size(long wide) { return QUERIES * (2 * wide + 2 * BLOCK + 2); }
template <class T>
void attend_queries(const T *q, long sq, const Element<T> *KT, const Element<T> *V, T *out, float *lse, long heads,
                    long n, long before, const Attention &a, Scratch memory) {
    long D = a.heads.width, wide = padded(D), depth = packed<T>(D);
    auto *Q = memory.take<Element<T>>(QUERIES * wide), *P = memory.take<Element<T>>(QUERIES * BLOCK);
    float *O = memory.take(QUERIES * wide), *S = memory.take(QUERIES * BLOCK);
    float *top = memory.take(QUERIES), *total = memory.take(QUERIES);
    for (long h = 0; h < heads; h++)
        for (long i0 = 0; i0 < n; i0 += QUERIES) {
            long m = n - i0 < QUERIES ? n - i0 : QUERIES, at = before + i0;
            copy_rows(q + i0 * sq + h * D, sq, m, D, Q, wide);
            for (long i = 0; i < m; i++) top[i] = -INFINITY, total[i] = 0;
            memset(O, 0, m * wide * 4);
            long j = a.window && at - a.window + 1 > 0 ? (at - a.window + 1) / BLOCK * BLOCK : 0;
            for (; j < at + m; j += BLOCK) {
                long keys = at + m - j < BLOCK ? at + m - j : BLOCK, across = padded(keys);
                product(m, across, depth, Q, wide / PER<T>, 1, KT + j * depth, BLOCK, S, BLOCK, false);
                mask_scores(S, m, at, j, across, a);
                for (long i = 0; i < m; i++) {
                    float *row = S + i * BLOCK;
                    Element<T> *seen = P + i * BLOCK / PER<T>;
                    Floats peak = splat(top[i]);
                    for (long x = 0; x < across; x += LANES) {
                        Floats s = load(row + x);
                        peak = s > peak ? s : peak;
                    }
                    float now = largest(peak);
                    if (now == -INFINITY) {  // nothing to see in this block yet
                        memset(seen, 0, BLOCK / PER<T> * sizeof *seen);
                        continue;
                    }
                    Floats sums{};
                    for (long x = 0; x < across; x += LANES) {
                        Floats s = load(row + x), p = exp(s - now);
                        p = s == -INFINITY ? Floats{} : p;
                        sums += p;
                        put(seen, x, p);
                    }
                    float shrink = std::exp(top[i] - now);
                    total[i] = total[i] * shrink + sum(sums);
                    if (now != top[i])
                        for (long x = 0; x < wide; x += LANES) store(&O[i * wide + x], load(&O[i * wide + x]) * shrink);
                    top[i] = now;
                }
                product(m, wide, packed<T>(keys), P, BLOCK / PER<T>, 1, V + j / PER<T> * wide, wide, O, wide, true);
            }
            for (long i = 0; i < m; i++) {
                T *o = out + (i0 + i) * a.heads.q * D + h * D;
                for (long x = 0; x < D; x += LANES) store(o + x, load(&O[i * wide + x]) * (1.0f / total[i]), D - x);
                if (lse) lse[(i0 + i) * a.heads.q + h] = top[i] + std::log(total[i]);
            }
        }
}

// How many heads of queries one piece of work takes. A tree's segments stay together, since its branches see the same
// keys; where one tree has most of the work, its heads are divided further, until all threads have enough to do.
long heads_of_a_piece(const Attention &a) {
    long group = a.heads.q / a.heads.kv, heads = group;
    double largest = 0, all = 0;  // keys that the queries of a head see without a window
    for (long tree = 0; tree < a.trees; tree++) {
        double seen = 0;
        for (long s = a.roots[tree]; s < a.roots[tree + 1]; s++) {
            double n = a.bounds[s + 1] - a.bounds[s];
            seen += n * (a.starts[s] + n / 2);
        }
        all += seen, largest = seen > largest ? seen : largest;
    }
    for (long parts = 2; parts <= group && largest * heads * 2 * a.threads > all * a.heads.q; parts++)
        if (group % parts == 0) heads = group / parts;
    return heads;
}

// The longest row of a tree.
long deepest(const Attention &a, long tree) {
    long most = 0;
    for (long s = a.roots[tree]; s < a.roots[tree + 1]; s++) {
        long end = a.starts[s] + a.bounds[s + 1] - a.bounds[s];
        most = end > most ? end : most;
    }
    return most;
}

// Keys and values of the segments on the way to the one that is read lie where their tokens stand in the row: a segment
// takes the place of the branch before it, and finds its ancestors there.
template <class T>
void attention_forward(const T *q, long sq, const T *k, long sk, const T *v, long sv, T *out, float *lse, Attention a) {
    long D = a.heads.width, wide = padded(D), H = a.heads.q, heads = heads_of_a_piece(a), pieces = H / heads;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
    for (long piece = 0; piece < a.trees * pieces; piece++) {
        long tree = piece / pieces, head = piece % pieces * heads, kv = head / (H / a.heads.kv);
        long longest = deepest(a, tree), columns = packed<T>(D) * in_blocks(longest);
        Scratch memory(columns + packed<T>(longest) * wide + queries_size(wide));
        auto *KT = memory.take<Element<T>>(columns), *V = memory.take<Element<T>>(packed<T>(longest) * wide);
        for (long s = a.roots[tree]; s < a.roots[tree + 1]; s++) {
            long first = a.bounds[s], n = a.bounds[s + 1] - first, before = a.starts[s];
            copy_columns(k + first * sk + kv * D, sk, n, D, KT, before);
            copy_beneath(v + first * sv + kv * D, sv, n, D, V, wide, before);
            attend_queries(q + first * sq + head * D, sq, KT, V, out + (first * H + head) * D, lse + first * H + head,
                           heads, n, before, a, memory);
        }
    }
}

// The same against the cache: segment s follows the `lengths[s]` tokens in slot `slots[s]`, to which its keys and
// values are added.
template <class T>
void attention_read(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room, const int32_t *slots,
                    const int32_t *lengths, T *out, Attention a) {
    long D = a.heads.width, group = a.heads.q / a.heads.kv;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
    for (long piece = 0; piece < a.segments * a.heads.kv; piece++) {
        long s = piece / a.heads.kv, kv = piece % a.heads.kv, first = a.bounds[s], n = a.bounds[s + 1] - first;
        long slot = (slots[s] * a.heads.kv + kv) * room * D, before = lengths[s], head = kv * group;
        T *K = keys + slot, *V = values + slot;
        for (long t = 0; t < n; t++) {
            memcpy(K + (before + t) * D, qk + (first + t) * sqk + (a.heads.q + kv) * D, D * sizeof(T));
            memcpy(V + (before + t) * D, v + (first + t) * sv + kv * D, D * sizeof(T));
        }
        long all = before + n, columns = packed<T>(D) * in_blocks(all), wide = padded(D);
        Scratch memory(columns + packed<T>(all) * wide + queries_size(wide));
        auto *KT = memory.take<Element<T>>(columns), *rows = memory.take<Element<T>>(packed<T>(all) * wide);
        copy_columns(K, D, all, D, KT, 0);
        copy_beneath(V, D, all, D, rows, wide, 0);
        attend_queries(qk + first * sqk + head * D, sqk, KT, rows, out + (first * a.heads.q + head) * D,
                       (float *)nullptr, group, n, before, a, memory);
    }
}

// Numbers that stand on the left of one product and on the right of another, as rows and beneath one another: where
// elements hold one number, that is the same.
template <class T>
struct Both {
    Element<T> *rows, *beneath;
    long wide;
    Both(Scratch &memory, long n, long wide) : rows(memory.take<Element<T>>(n * wide)), beneath(rows), wide(wide) {
        if (PER<T> > 1) beneath = memory.take<Element<T>>(n * wide);
    }
    void copy(const T *x, long stride, long n, long D) {
        copy_rows(x, stride, n, D, rows, wide);
        if (PER<T> > 1) copy_beneath(x, stride, n, D, beneath, wide, 0);
    }
    void put(long i, long at, Floats x) {
        ::put(rows + i * wide / PER<T>, at, x);
        if (PER<T> > 1) put_beneath(beneath + i / PER<T> * wide + at, i % PER<T>, x);
    }
};

// P = exp(S − lse); dV = Pᵀ dO; dP = dO Vᵀ; dS = P ∘ (dP − rowsum(dO ∘ O)); dQ = dS K; dK = dSᵀ Q (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135, appendix B). With a cap, dS is multiplied by 1 − (S / cap)².
//
// Keys and values lie as in the forward pass, and beside them their gradients. Segments come in the opposite order, so
// that a segment has the gradients of all that descends from it when it comes itself, always summed in the same order.
template <class T>
struct Backward {
    const T *q, *k, *v, *out, *dout;
    const float *lse;
    T *dq, *dk, *dv;
    long sq, sk, sv, sd;
    const Attention &a;

    // Of one segment, to whose keys and values, and its ancestors', the gradients are added.
    void segment(long s, long head, long heads, const Element<T> *KT, const Element<T> *VT, const Element<T> *K,
                 float *dK, float *dV, Scratch memory) const {
        long D = a.heads.width, wide = padded(D), H = a.heads.q, depth = packed<T>(D), row = wide / PER<T>;
        long first = a.bounds[s], n = a.bounds[s + 1] - first, before = a.starts[s];
        Both<T> Q(memory, QUERIES, wide), dO(memory, QUERIES, wide), dS(memory, QUERIES, BLOCK);
        auto *P = memory.take<Element<T>>(QUERIES * BLOCK);
        float *dQ = memory.take(QUERIES * wide), *S = memory.take(QUERIES * BLOCK), *dP = memory.take(QUERIES * BLOCK);
        for (long h = head; h < head + heads; h++)
            for (long i0 = 0; i0 < n; i0 += QUERIES) {
                long m = n - i0 < QUERIES ? n - i0 : QUERIES, row0 = first + i0, at = before + i0;
                Q.copy(q + row0 * sq + h * D, sq, m, D);
                dO.copy(dout + (row0 * H + h) * D, H * D, m, D);
                memset(dQ, 0, m * wide * 4);
                long j = a.window && at - a.window + 1 > 0 ? (at - a.window + 1) / BLOCK * BLOCK : 0;
                for (; j < at + m; j += BLOCK) {
                    long keys = at + m - j < BLOCK ? at + m - j : BLOCK, across = padded(keys);
                    product(m, across, depth, Q.rows, row, 1, KT + j * depth, BLOCK, S, BLOCK, false);
                    mask_scores(S, m, at, j, across, a);
                    product(m, across, depth, dO.rows, row, 1, VT + j * depth, BLOCK, dP, BLOCK, false);
                    for (long i = 0; i < m; i++) {
                        const T *o = out + ((row0 + i) * H + h) * D, *g = dout + ((row0 + i) * H + h) * D;
                        Floats dots{};
                        for (long x = 0; x < D; x += LANES) dots += load(o + x, D - x) * load(g + x, D - x);
                        float l = lse[(row0 + i) * H + h], delta = sum(dots);
                        for (long x = 0; x < across; x += LANES) {
                            Floats s = load(&S[i * BLOCK + x]), p = exp(s - l),
                                c = s * (a.cap > 0 ? 1.0f / a.cap : 0.0f);
                            p = s == -INFINITY ? Floats{} : p;
                            Floats ds = p * (load(&dP[i * BLOCK + x]) - delta) * (1.0f - c * c);
                            put_beneath(P + i / PER<T> * BLOCK + x, i % PER<T>, p);
                            dS.put(i, x, s == -INFINITY ? Floats{} : ds);
                        }
                    }
                    product(keys, wide, packed<T>(m), P, 1, BLOCK, dO.beneath, wide, dV + j * wide, wide, true);
                    product(m, wide, packed<T>(keys), dS.rows, BLOCK / PER<T>, 1, K + j / PER<T> * wide, wide, dQ, wide,
                            true);
                    product(keys, wide, packed<T>(m), dS.beneath, 1, BLOCK, Q.beneath, wide, dK + j * wide, wide,
                            true);
                }
                for (long i = 0; i < m; i++)
                    for (long x = 0; x < D; x += LANES)
                        store(dq + (row0 + i) * sd + h * D + x, load(&dQ[i * wide + x]) * a.scale, D - x);
            }
    }

    // Of one tree, for some heads that share one of keys and values; their gradients go into dk and dv, or where other
    // pieces have other heads, into `parts`: (T, 2, wide) of this piece.
    void tree(long tree, long head, long heads, float *parts) const {
        long D = a.heads.width, wide = padded(D), kv = head / (a.heads.q / a.heads.kv);
        long longest = deepest(a, tree), columns = packed<T>(D) * in_blocks(longest);
        Scratch memory(2 * columns + 3 * longest * wide + QUERIES * (5 * wide + 5 * BLOCK));
        auto *KT = memory.take<Element<T>>(columns), *VT = memory.take<Element<T>>(columns);
        auto *K = memory.take<Element<T>>(packed<T>(longest) * wide);
        float *dK = memory.take(longest * wide), *dV = memory.take(longest * wide);
        std::vector<long> way, more;  // the segments whose keys and values are there, and those that are to come
        for (long s = a.roots[tree + 1] - 1; s >= a.roots[tree]; s--) {
            for (long t = s; t >= 0 && (way.empty() || t != way.back()); t = a.parents[t]) more.push_back(t);
            for (; !more.empty(); more.pop_back()) {
                long t = more.back(), first = a.bounds[t], n = a.bounds[t + 1] - first, at = a.starts[t];
                copy_beneath(k + first * sk + kv * D, sk, n, D, K, wide, at);
                copy_columns(k + first * sk + kv * D, sk, n, D, KT, at);
                copy_columns(v + first * sv + kv * D, sv, n, D, VT, at);
                memset(dK + at * wide, 0, n * wide * 4);
                memset(dV + at * wide, 0, n * wide * 4);
                way.push_back(t);
            }
            segment(s, head, heads, KT, VT, K, dK, dV, memory);
            way.pop_back();
            for (long t = 0; t < a.bounds[s + 1] - a.bounds[s]; t++) {
                long token = a.bounds[s] + t;
                const float *own[2] = {dK + (a.starts[s] + t) * wide, dV + (a.starts[s] + t) * wide};
                for (long x = 0; x < wide; x += LANES)
                    if (parts) {
                        store(parts + token * 2 * wide + x, load(own[0] + x) * a.scale);
                        store(parts + (token * 2 + 1) * wide + x, load(own[1] + x));
                    } else if (x < D) {
                        store(dk + token * sd + kv * D + x, load(own[0] + x) * a.scale, D - x);
                        store(dv + token * sd + kv * D + x, load(own[1] + x), D - x);
                    }
            }
        }
    }
};

template <class T>
void attention_backward(const T *q, long sq, const T *k, long sk, const T *v, long sv, const T *out, const float *lse,
                        const T *dout, T *dq, T *dk, T *dv, long sd, Attention a) {
    long D = a.heads.width, wide = padded(D), heads = heads_of_a_piece(a), pieces = a.heads.q / heads;
    long each = pieces / a.heads.kv, tokens = a.bounds[a.segments];  // pieces that share a head of keys and values
    static thread_local std::vector<float> kept;  // fresh pages would take a third of the time of the work
    long size = pieces * tokens * 2 * wide;
    float *parts = each > 1 ? Scratch(size, kept).take(size) : nullptr;
    Backward<T> work{q, k, v, out, dout, lse, dq, dk, dv, sq, sk, sv, sd, a};
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
    for (long piece = 0; piece < a.trees * pieces; piece++)
        work.tree(piece / pieces, piece % pieces * heads, heads,
                  parts ? parts + piece % pieces * tokens * 2 * wide : nullptr);
    if (!parts) return;
#pragma omp parallel for num_threads(a.threads)
    for (long t = 0; t < tokens; t++)
        for (long kv = 0; kv < a.heads.kv; kv++)
            for (long which = 0; which < 2; which++)
                for (long x = 0; x < D; x += LANES) {
                    Floats total{};
                    for (long p = kv * each; p < (kv + 1) * each; p++)
                        total += load(&parts[((p * tokens + t) * 2 + which) * wide + x]);
                    store((which ? dv : dk) + t * sd + kv * D + x, total, D - x);
                }
}

}  // namespace

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                   \
    extern "C" {                                                                                                       \
    void attention_forward_##S(const T *q, long sq, const T *k, long sk, const T *v, long sv, T *out, float *lse,      \
                               const Attention *a) {                                                                   \
        attention_forward(q, sq, k, sk, v, sv, out, lse, *a);                                                          \
    }                                                                                                                  \
    void attention_backward_##S(const T *q, long sq, const T *k, long sk, const T *v, long sv, const T *out,           \
                                const float *lse, const T *dout, T *dqkv, long sd, const Attention *a) {               \
        long nq = a->heads.q * a->heads.width, nk = a->heads.kv * a->heads.width;                                      \
        attention_backward(q, sq, k, sk, v, sv, out, lse, dout, dqkv, dqkv + nq, dqkv + nq + nk, sd, *a);              \
    }                                                                                                                  \
    void attention_read_##S(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room,                 \
                            const int32_t *slots, const int32_t *lengths, T *out, const Attention *a) {                \
        attention_read(qk, sqk, v, sv, keys, values, room, slots, lengths, out, *a);                                   \
    }                                                                                                                  \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
