// Fused passes over rows of activations, for the processor. kernels.py compiles, loads and documents them, and holds the
// same computations in torch, with which each is tested.
//
// Everything is computed in fp32 and rounded once on storing. T is the storage type: float or bf16. Rows may be
// strided; the elements of a row are adjacent. Written with the compiler's vectors, so that any processor can run it.

#include <cmath>
#include <vector>

#include "blocks.h"
#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

// e^x to about 1e-7: 2^k · p(r) with |r| ≤ ln 2 / 2, k taken from the low bits of x·log2(e) + 1.5·2^23.
inline Floats exp(Floats x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
    Floats shifted = x * 1.44269504f + 12582912.0f;
    Floats k = shifted - 12582912.0f;
    Floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
    Floats p = splat(1.3888889e-3f);
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (Floats)(((Ints)shifted << 23) + (127 << 23));
}
inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }
inline Floats tanh(Floats x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// ---------------------------------------------------------------- RMSNorm of a sum

template <class T>
void rms_forward(const T *x, long sx, const T *r, long sr, const float *w, T *h, T *y, float *rstd, long rows, long n, float eps,
                 int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        const T *from = r ? h + t * n : x + t * sx;
        Floats squares{};
        for (long i = 0; i < n; i += LANES) {
            Floats v = load(x + t * sx + i, n - i);
            if (r) {
                store(h + t * n + i, v + load(r + t * sr + i, n - i), n - i);
                v = load(from + i, n - i);  // as it was rounded
            }
            squares += v * v;
        }
        float s = 1.0f / std::sqrt(sum(squares) / n + eps);
        rstd[t] = s;
        for (long i = 0; i < n; i += LANES) store(y + t * n + i, load(from + i, n - i) * s * load(w + i, n - i), n - i);
    }
}

// y = w ∘ h·s, s = (mean h² + eps)^−½:  dx = s·(w ∘ dy) − h·s³·mean(w ∘ dy ∘ h), plus dh where the sum is used again.
template <class T>
void rms_backward(const T *dy, const T *dh, long sdh, const T *h, long sh, const float *w, const float *rstd, T *dx, long sdx,
                  long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        float s = rstd[t];
        Floats dots{};
        for (long i = 0; i < n; i += LANES)
            dots += load(dy + t * n + i, n - i) * load(w + i, n - i) * load(h + t * sh + i, n - i);
        float c = sum(dots) * s * s * s / n;
        for (long i = 0; i < n; i += LANES) {
            Floats g = load(dy + t * n + i, n - i) * load(w + i, n - i) * s - load(h + t * sh + i, n - i) * c;
            if (dh) g += load(dh + t * sdh + i, n - i);
            store(dx + t * sdx + i, g, n - i);
        }
    }
}

// ---------------------------------------------------------------- gated activations

// kind 0: SiLU, g·σ(g); kind 1: GELU's tanh form, g·σ(2a), a = √(2/π)(g + 0.044715 g³).
inline Floats gate_argument(Floats g, int kind) {
    return kind ? 1.5957691216f * (g + 0.044715f * g * g * g) : g;
}
inline Floats gate_slope(Floats g, int kind) { return kind ? 1.5957691216f * (1.0f + 0.134145f * g * g) : splat(1.0f); }

template <class T>
void gated_forward(const T *gate_up, long stride, T *out, long rows, long n, int kind, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        const T *g = gate_up + t * stride, *u = g + n;
        for (long i = 0; i < n; i += LANES) {
            Floats gi = load(g + i, n - i);
            store(out + t * n + i, gi * sigmoid(gate_argument(gi, kind)) * load(u + i, n - i), n - i);
        }
    }
}

template <class T>
void gated_backward(const T *gate_up, long stride, const T *dout, T *d, long rows, long n, int kind, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        const T *g = gate_up + t * stride, *u = g + n;
        T *dg = d + t * stride, *du = dg + n;
        for (long i = 0; i < n; i += LANES) {
            Floats gi = load(g + i, n - i), ui = load(u + i, n - i), o = load(dout + t * n + i, n - i);
            Floats s = sigmoid(gate_argument(gi, kind));
            store(du + i, o * gi * s, n - i);
            store(dg + i, o * ui * (s + gi * s * (1.0f - s) * gate_slope(gi, kind)), n - i);
        }
    }
}

// ---------------------------------------------------------------- norms and rotation of queries and keys

struct Heads {
    long q, kv, width, rotated;
};

struct Rotary {
    const float *cosines, *sines;  // (positions, rotated / 2)
    const int32_t *positions;
    const float *wq, *wk;
    Heads heads;
    int norm;
    float eps;
};

// norm 0: none; 1: RMS over each head; 2: RMS over all heads of q, and of k.
inline float head_rstd(const float *x, long n, float eps) {
    float s = 0;
    for (long i = 0; i < n; i++) s += x[i] * x[i];
    return 1.0f / std::sqrt(s / n + eps);
}

// Rotates the heads of one token by the angles of its position, or back by them.
inline void turn(float *x, const Rotary &r, long position, float direction) {
    long half = r.heads.rotated / 2;
    const float *c = r.cosines + position * half, *s = r.sines + position * half;
    for (float *p = x; p < x + (r.heads.q + r.heads.kv) * r.heads.width; p += r.heads.width)
        for (long i = 0; i < half; i++) {
            float a = p[i], b = p[i + half], sine = direction * s[i];
            p[i] = a * c[i] - b * sine;
            p[i + half] = b * c[i] + a * sine;
        }
}

template <class T>
void rotary_forward(const T *qkv, long stride, T *out, Rotary r, long rows, int threads) {
    Heads heads = r.heads;
    long D = heads.width, all = (heads.q + heads.kv) * D;
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        std::vector<float> x(all);
        for (long i = 0; i < all; i++) x[i] = get(qkv[t * stride + i]);
        for (int part = 0; r.norm && part < 2; part++) {
            float *p = x.data() + (part ? heads.q * D : 0);
            const float *w = part ? r.wk : r.wq;
            long n = (part ? heads.kv : heads.q) * D, group = r.norm == 1 ? D : n;
            for (long g = 0; g < n; g += group) {
                float s = head_rstd(p + g, group, r.eps);
                for (long i = 0; i < group; i++) p[g + i] *= s * w[r.norm == 1 ? i : g + i];
            }
        }
        turn(x.data(), r, r.positions[t], 1.0f);
        T *o = out + t * all;
        for (long i = 0; i < all; i += LANES) store(o + i, load(x.data() + i, all - i), all - i);
    }
}

// In place: d holds the gradients of the rotated q and k, and becomes those of qkv's.
template <class T>
void rotary_backward(T *d, const T *qkv, long stride, Rotary r, long rows, int threads) {
    Heads heads = r.heads;
    long D = heads.width, all = (heads.q + heads.kv) * D;
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        std::vector<float> g(all);
        for (long i = 0; i < all; i++) g[i] = get(d[t * stride + i]);
        turn(g.data(), r, r.positions[t], -1.0f);
        for (int part = 0; r.norm && part < 2; part++) {
            long begin = part ? heads.q * D : 0;
            const float *w = part ? r.wk : r.wq;
            long n = (part ? heads.kv : heads.q) * D, group = r.norm == 1 ? D : n;
            std::vector<float> x(group);
            for (long k = 0; k < n; k += group) {
                float *p = g.data() + begin + k, dot = 0;
                for (long i = 0; i < group; i++) x[i] = get(qkv[t * stride + begin + k + i]);
                float rs = head_rstd(x.data(), group, r.eps);
                for (long i = 0; i < group; i++) {
                    p[i] *= w[r.norm == 1 ? i : k + i];
                    dot += p[i] * x[i];
                }
                for (long i = 0; i < group; i++) p[i] = rs * p[i] - x[i] * (dot * rs * rs * rs / group);
            }
        }
        for (long i = 0; i < all; i += LANES) store(d + t * stride + i, load(g.data() + i, all - i), all - i);
    }
}

// ---------------------------------------------------------------- attention within segments

// C (M, N) = or += A·B in fp32; element (i, k) of A lies at a[i·ai + k·ak]; B and C are row-major, N a multiple of LANES.
template <int M, int V>
inline void tile(long K, const float *a, long ai, long ak, const float *b, long ldb, float *c, long ldc, bool add) {
    Floats acc[M][V];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) acc[m][v] = add ? load(c + m * ldc + v * LANES) : Floats{};
    for (long k = 0; k < K; k++) {
        Floats row[V];
        for (int v = 0; v < V; v++) row[v] = load(b + k * ldb + v * LANES);
        for (int m = 0; m < M; m++) {
            float x = a[m * ai + k * ak];
            for (int v = 0; v < V; v++) acc[m][v] += x * row[v];
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) store(c + m * ldc + v * LANES, acc[m][v]);
}
template <int V>
inline void column(long M, long K, const float *a, long ai, long ak, const float *b, long ldb, float *c, long ldc, bool add) {
    long m = 0;
    for (; m + 6 <= M; m += 6) tile<6, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
    for (; m + 2 <= M; m += 2) tile<2, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
    for (; m < M; m++) tile<1, V>(K, a + m * ai, ai, ak, b, ldb, c + m * ldc, ldc, add);
}
void product(long M, long N, long K, const float *a, long ai, long ak, const float *b, long ldb, float *c, long ldc, bool add) {
    long n = 0;
    for (; n + 4 * LANES <= N; n += 4 * LANES) column<4>(M, K, a, ai, ak, b + n, ldb, c + n, ldc, add);
    for (; n + 2 * LANES <= N; n += 2 * LANES) column<2>(M, K, a, ai, ak, b + n, ldb, c + n, ldc, add);
    for (; n < N; n += LANES) column<1>(M, K, a, ai, ak, b + n, ldb, c + n, ldc, add);
}

inline long padded(long n) { return (n + LANES - 1) / LANES * LANES; }

// Rows of one head as fp32, (n, wide), and transposed, (wide, ld).
template <class T>
void copy_rows(const T *x, long stride, long n, long D, float *to, long wide, float scale = 1.0f) {
    for (long t = 0; t < n; t++)
        for (long i = 0; i < wide; i += LANES)
            store(to + t * wide + i, i < D ? load(x + t * stride + i, D - i) * scale : Floats{});
}
template <class T>
void copy_columns(const T *x, long stride, long n, long D, float *to, long ld) {
    for (long t = 0; t < n; t++)
        for (long i = 0; i < D; i++) to[i * ld + t] = get(x[t * stride + i]);
}

constexpr long QUERIES = 32, BLOCK = 64;  // of a tile of scores: queries, and keys

// Memory of a thread, kept from call to call and cut into parts; what is in it is not defined.
struct Scratch {
    float *next;
    explicit Scratch(long size) {
        static thread_local std::vector<float> pool;
        if ((long)pool.size() < size) pool.resize(size);
        next = pool.data();
    }
    float *take(long n) {
        float *part = next;
        next += n;
        return part;
    }
};

struct Attention {
    long segments;
    const int32_t *bounds;  // segment s holds the rows bounds[s] to bounds[s + 1]
    Heads heads;
    float scale;
    long window;  // 0: none; else a query sees this many keys, itself included
    float cap;    // 0: none; else scores become cap·tanh(score / cap)
    int threads;
};

// Scores of queries [i0, i0 + m) against keys [j0, j0 + keys), −inf where a key may not be seen.
inline void mask_scores(float *S, long m, long i0, long j0, long keys, long window, float cap) {
    const float never = -INFINITY;
    for (long i = 0; i < m; i++) {
        float *row = S + i * BLOCK;
        if (cap > 0)
            for (long j = 0; j < keys; j += LANES) store(row + j, cap * tanh(load(row + j) * (1.0f / cap)));
        for (long j = i0 + i - j0 + 1 > 0 ? i0 + i - j0 + 1 : 0; j < keys; j++) row[j] = never;
        if (window)
            for (long j = 0; j <= i0 + i - window - j0 && j < keys; j++) row[j] = never;
    }
}

// What n queries see of `before` + n keys and values, of which the last n are their own: the heads of q that share one head of k
// and v. q and out are (n, H·D) from the first of these heads on; lse (n, H), log Σ exp of the scores, may be left out.
template <class T>
void attend_group(const T *q, long sq, const T *k, long sk, const T *v, long sv, T *out, float *lse, long n, long before,
                  const Attention &a) {
    long D = a.heads.width, wide = padded(D), all = before + n, ld = (all + BLOCK - 1) / BLOCK * BLOCK;
    Scratch memory(D * ld + all * wide + QUERIES * (2 * wide + BLOCK + 2));
    float *KT = memory.take(D * ld), *V = memory.take(all * wide), *Q = memory.take(QUERIES * wide);
    float *O = memory.take(QUERIES * wide), *S = memory.take(QUERIES * BLOCK);
    float *top = memory.take(QUERIES), *total = memory.take(QUERIES);
    copy_columns(k, sk, all, D, KT, ld);
    copy_rows(v, sv, all, D, V, wide);
    for (long h = 0; h < a.heads.q / a.heads.kv; h++)
        for (long i0 = 0; i0 < n; i0 += QUERIES) {
            long m = n - i0 < QUERIES ? n - i0 : QUERIES, at = before + i0;
            copy_rows(q + i0 * sq + h * D, sq, m, D, Q, wide, a.scale);
            for (long i = 0; i < m; i++) top[i] = -INFINITY, total[i] = 0;
            memset(O, 0, m * wide * 4);
            long j = a.window && at - a.window + 1 > 0 ? (at - a.window + 1) / BLOCK * BLOCK : 0;
            for (; j < at + m; j += BLOCK) {
                long keys = at + m - j < BLOCK ? at + m - j : BLOCK, across = padded(keys);
                product(m, across, D, Q, wide, 1, KT + j, ld, S, BLOCK, false);
                mask_scores(S, m, at, j, across, a.window, a.cap);
                for (long i = 0; i < m; i++) {
                    float *row = S + i * BLOCK;
                    Floats peak = splat(top[i]);
                    for (long x = 0; x < across; x += LANES) {
                        Floats s = load(row + x);
                        peak = s > peak ? s : peak;
                    }
                    float now = largest(peak);
                    if (now == -INFINITY) {  // nothing to see in this block yet
                        memset(row, 0, across * 4);
                        continue;
                    }
                    Floats sums{};
                    for (long x = 0; x < across; x += LANES) {
                        Floats s = load(row + x), p = exp(s - now);
                        p = s == -INFINITY ? Floats{} : p;
                        sums += p;
                        store(row + x, p);
                    }
                    float shrink = std::exp(top[i] - now);
                    total[i] = total[i] * shrink + sum(sums);
                    if (now != top[i])
                        for (long x = 0; x < wide; x += LANES) store(&O[i * wide + x], load(&O[i * wide + x]) * shrink);
                    top[i] = now;
                }
                product(m, wide, keys, S, BLOCK, 1, V + j * wide, wide, O, wide, true);
            }
            for (long i = 0; i < m; i++) {
                T *o = out + (i0 + i) * a.heads.q * D + h * D;
                for (long x = 0; x < D; x += LANES) store(o + x, load(&O[i * wide + x]) * (1.0f / total[i]), D - x);
                if (lse) lse[(i0 + i) * a.heads.q + h] = top[i] + std::log(total[i]);
            }
        }
}

template <class T>
void attention_forward(const T *q, long sq, const T *k, long sk, const T *v, long sv, T *out, float *lse, Attention a) {
    long D = a.heads.width, group = a.heads.q / a.heads.kv;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
    for (long piece = 0; piece < a.segments * a.heads.kv; piece++) {
        long first = a.bounds[piece / a.heads.kv], n = a.bounds[piece / a.heads.kv + 1] - first, kv = piece % a.heads.kv;
        long head = kv * group;
        attend_group(q + first * sq + head * D, sq, k + first * sk + kv * D, sk, v + first * sv + kv * D, sv,
                     out + (first * a.heads.q + head) * D, lse + first * a.heads.q + head, n, 0, a);
    }
}

// The same against the cache: segment s is what comes after the `lengths[s]` tokens in slot `slots[s]`. Its keys and values join them.
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
        attend_group(qk + first * sqk + head * D, sqk, K, D, V, D, out + (first * a.heads.q + head) * D, (float *)nullptr, n, before, a);
    }
}

// P = exp(S − lse); dV = Pᵀ dO; dP = dO Vᵀ; dS = P ∘ (dP − rowsum(dO ∘ O)); dQ = dS K; dK = dSᵀ Q (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135, appendix B). With a cap, dS is multiplied by 1 − (S / cap)².
template <class T>
void attention_backward(const T *q, long sq, const T *k, long sk, const T *v, long sv, const T *out, const float *lse,
                        const T *dout, T *dq, T *dk, T *dv, long sd, Attention a) {
    long D = a.heads.width, wide = padded(D), group = a.heads.q / a.heads.kv;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic)
    for (long piece = 0; piece < a.segments * a.heads.kv; piece++) {
        long first = a.bounds[piece / a.heads.kv], n = a.bounds[piece / a.heads.kv + 1] - first, kv = piece % a.heads.kv;
        long ld = (n + BLOCK - 1) / BLOCK * BLOCK;
        Scratch memory(2 * D * ld + 3 * n * wide + QUERIES * (3 * wide + 2 * BLOCK));
        float *KT = memory.take(D * ld), *VT = memory.take(D * ld), *K = memory.take(n * wide), *dK = memory.take(n * wide);
        float *dV = memory.take(n * wide), *Q = memory.take(QUERIES * wide), *dO = memory.take(QUERIES * wide);
        float *dQ = memory.take(QUERIES * wide), *P = memory.take(QUERIES * BLOCK), *dS = memory.take(QUERIES * BLOCK);
        copy_rows(k + first * sk + kv * D, sk, n, D, K, wide);
        copy_columns(k + first * sk + kv * D, sk, n, D, KT, ld);
        copy_columns(v + first * sv + kv * D, sv, n, D, VT, ld);
        memset(dK, 0, 2 * n * wide * 4);  // and dV, which follows it
        for (long h = kv * group; h < (kv + 1) * group; h++)
            for (long i0 = 0; i0 < n; i0 += QUERIES) {
                long m = n - i0 < QUERIES ? n - i0 : QUERIES, row0 = first + i0;
                copy_rows(q + row0 * sq + h * D, sq, m, D, Q, wide, a.scale);
                copy_rows(dout + (row0 * a.heads.q + h) * D, a.heads.q * D, m, D, dO, wide);
                memset(dQ, 0, m * wide * 4);
                long j = a.window && i0 - a.window + 1 > 0 ? (i0 - a.window + 1) / BLOCK * BLOCK : 0;
                for (; j < i0 + m; j += BLOCK) {
                    long keys = i0 + m - j < BLOCK ? i0 + m - j : BLOCK, across = padded(keys);
                    product(m, across, D, Q, wide, 1, KT + j, ld, P, BLOCK, false);
                    mask_scores(P, m, i0, j, across, a.window, a.cap);
                    product(m, across, D, dO, wide, 1, VT + j, ld, dS, BLOCK, false);
                    for (long i = 0; i < m; i++) {
                        const T *o = out + ((row0 + i) * a.heads.q + h) * D;
                        Floats dots{};
                        for (long x = 0; x < D; x += LANES) dots += load(o + x, D - x) * load(&dO[i * wide + x]);
                        float l = lse[(row0 + i) * a.heads.q + h], delta = sum(dots);
                        for (long x = 0; x < across; x += LANES) {
                            Floats s = load(&P[i * BLOCK + x]), p = exp(s - l), c = s * (a.cap > 0 ? 1.0f / a.cap : 0.0f);
                            p = s == -INFINITY ? Floats{} : p;
                            Floats g = p * (load(&dS[i * BLOCK + x]) - delta) * (1.0f - c * c);
                            store(&P[i * BLOCK + x], p);
                            store(&dS[i * BLOCK + x], s == -INFINITY ? Floats{} : g);
                        }
                    }
                    product(keys, wide, m, P, 1, BLOCK, dO, wide, &dV[j * wide], wide, true);
                    product(m, wide, keys, dS, BLOCK, 1, &K[j * wide], wide, dQ, wide, true);
                    product(keys, wide, m, dS, 1, BLOCK, Q, wide, &dK[j * wide], wide, true);
                }
                for (long i = 0; i < m; i++)
                    for (long x = 0; x < D; x += LANES)
                        store(dq + (row0 + i) * sd + h * D + x, load(&dQ[i * wide + x]) * a.scale, D - x);
            }
        for (long t = 0; t < n; t++)
            for (long x = 0; x < D; x += LANES) {
                store(dk + (first + t) * sd + kv * D + x, load(&dK[t * wide + x]), D - x);  // Q carried the scale
                store(dv + (first + t) * sd + kv * D + x, load(&dV[t * wide + x]), D - x);
            }
    }
}

// ---------------------------------------------------------------- sums of products of rows

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

// acc (M·N) += x (M rows) times w (N rows), over k columns of both; row pointers may repeat. Fetches `rows` rows at `ahead`.
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
inline void dots_4x4(float *out, const bf16 *const *x, const bf16 *const *w, long n) {
    if (n % (2 * LANES)) return dots_4x4<bf16>(out, x, w, n);
    Floats acc[LANES] = {};
    dots<4, 4>(acc, x, w, n, nullptr, 0);
    store(out, sums(acc));
}
#endif

// ---------------------------------------------------------------- one new token a row, against the cache

// Asks for n numbers of memory that are needed soon.
template <class T>
inline void fetch(const T *p, long n) {
    for (long i = 0; i < n; i += 64 / (long)sizeof(T)) __builtin_prefetch(p + i);
}

// What G ≤ 4 heads q (G, D) that share keys K (room, D) and values V (room, D) see; scores (G, padded room) are scratch, and
// `ahead` the keys that come next.
template <int G, class T>
void attend_heads(const T *q, const T *K, const T *V, const T *ahead, float *scores, T *out, long begin, long n, long room, const Attention &a) {
    long D = a.heads.width, start = begin / LANES * LANES;
    const T *queries[4], *keys[4];
    for (int g = 0; g < 4; g++) queries[g] = q + (g < G ? g : 0) * D;
    for (long j = start; j < n; j += 4) {
        float block[16];
        for (int i = 0; i < 4; i++) keys[i] = K + (j + i < n ? j + i : j) * D;
        fetch(V + j * D, 4 * D);
        dots_4x4(block, queries, keys, D);
        for (int g = 0; g < G; g++) memcpy(scores + g * room + j, block + g * 4, 16);
    }
    float share[G];
    for (int g = 0; g < G; g++) {
        float *row = scores + g * room;
        Floats top = splat(-INFINITY), total{};
        for (long j = start; j < n; j += LANES) {
            Floats s = load(row + j) * a.scale;
            if (a.cap > 0) s = a.cap * tanh(s * (1.0f / a.cap));
            if (j < begin || j + LANES > n)
                for (long i = 0; i < LANES; i++)
                    if (j + i < begin || j + i >= n) s[i] = -INFINITY;
            top = s > top ? s : top;
            store(row + j, s);
        }
        float peak = largest(top);
        for (long j = start; j < n; j += LANES) {
            Floats s = load(row + j), p = exp(s - peak);
            p = s == -INFINITY ? Floats{} : p;
            total += p;
            store(row + j, p);
        }
        share[g] = 1.0f / sum(total);
    }
    for (long i = 0; i < D; i += 2 * LANES) {
        Floats acc[2][G] = {};
        long next = i + LANES < D ? LANES : 0;
        for (long j = begin; j < n; j++) {
            if (i == 0) fetch(ahead + j * D, D);
            Floats v0 = load(V + j * D + i, D - i), v1 = load(V + j * D + i + next, D - i - next);
            for (int g = 0; g < G; g++) {
                acc[0][g] += scores[g * room + j] * v0;
                acc[1][g] += scores[g * room + j] * v1;
            }
        }
        for (int g = 0; g < G; g++) {
            store(out + g * D + i, acc[0][g] * share[g], D - i);
            if (next) store(out + g * D + i + next, acc[1][g] * share[g], D - i - next);
        }
    }
}

// One new token a segment: keys and values (slots, kv, room, D).
template <class T>
void attention_step(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room, const int32_t *slots,
                    const int32_t *lengths, T *out, Attention a) {
    Heads heads = a.heads;
    long D = heads.width, group = heads.q / heads.kv, rows = a.segments, wide = padded(room);
#pragma omp parallel for num_threads(a.threads)
    for (long piece = 0; piece < rows * heads.kv; piece++) {
        long b = piece / heads.kv, kv = piece % heads.kv, n = lengths[b] + 1, slot = (slots[b] * heads.kv + kv) * room * D;
        T *K = keys + slot, *V = values + slot;
        memcpy(K + (n - 1) * D, qk + b * sqk + (heads.q + kv) * D, D * sizeof(T));
        memcpy(V + (n - 1) * D, v + b * sv + kv * D, D * sizeof(T));
        long begin = a.window && n > a.window ? n - a.window : 0, next = piece + 1 < rows * heads.kv ? piece + 1 : piece;
        const T *ahead = keys + (slots[next / heads.kv] * heads.kv + next % heads.kv) * room * D;
        Scratch memory(4 * wide);
        for (long h = kv * group, left = group; left; ) {
            const T *q = qk + b * sqk + h * D;
            T *o = out + (b * heads.q + h) * D;
            long now = left < 4 ? left : 4;
            auto attend = now == 4 ? attend_heads<4, T> : now == 3 ? attend_heads<3, T> : now == 2 ? attend_heads<2, T> : attend_heads<1, T>;
            attend(q, K, V, ahead, memory.next, o, begin, n, wide, a);
            h += now, left -= now;
        }
    }
}

// ---------------------------------------------------------------- cross-entropy

// logits (rows, words) become softmax − onehot in place where `gradient`; losses are −log p(label).
template <class T>
void cross_entropy(T *logits, const int64_t *labels, float *losses, long rows, long words, int gradient, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        T *x = logits + t * words;
        float label = get(x[labels[t]]);
        Floats peak = splat(-INFINITY), total{};
        long whole = words / LANES * LANES;
        for (long i = 0; i < whole; i += LANES) {
            Floats v = load(x + i);
            peak = v > peak ? v : peak;
        }
        float top = largest(peak), rest = 0;
        for (long i = whole; i < words; i++) top = get(x[i]) > top ? get(x[i]) : top;
        for (long i = 0; i < whole; i += LANES) total += exp(load(x + i) - top);
        for (long i = whole; i < words; i++) rest += std::exp(get(x[i]) - top);
        float lse = top + std::log(sum(total) + rest);
        losses[t] = lse - label;
        if (!(lse - label == lse - label)) losses[t] = NAN;
        if (!gradient) continue;
        for (long i = 0; i < words; i += LANES) {
            Floats p = exp(load(x + i, words - i) - lse);
            if (labels[t] >= i && labels[t] < i + LANES) p[labels[t] - i] -= 1.0f;
            store(x + i, p, words - i);
        }
    }
}

// ---------------------------------------------------------------- low-rank updates, in bf16 dot products

// Products with one side of 16 or so, for which a matrix library's blocks are too large. Pairs of neighbours are multiplied
// and added at once, so one operand of each product is laid out in pairs. Ranks are multiples of LANES, widths of 2·LANES.

#ifdef __AVX512BF16__

inline bf16 rounded(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return {(uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

// s·B, B (n, r) in fp32, in pairs of ranks (r/2, n, 2) and in pairs of outputs (n/2, r, 2).
void low_rank_pack(const float *b, float scale, bf16 *by_rank, bf16 *by_output, long n, long r) {
    for (long o = 0; o < n; o++)
        for (long i = 0; i < r; i++) {
            bf16 x = rounded(b[o * r + i] * scale);
            by_rank[(i / 2 * n + o) * 2 + i % 2] = x;
            by_output[(o / 2 * r + i) * 2 + o % 2] = x;
        }
}

// y (rows, n) += low (rows, r) · (s·B)ᵀ
void low_rank_add(bf16 *y, long sy, const bf16 *low, long sl, const bf16 *by_rank, long rows, long n, long r, int threads) {
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
void low_rank_project(const bf16 *dy, long sdy, const bf16 *by_output, bf16 *dlow, long sdl, long rows, long n, long r, int threads) {
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

// out (n, r) in fp32 = scale · xᵀ (n, rows) · low (rows, r)
void low_rank_outer(const bf16 *x, long sx, const bf16 *low, long sl, float *out, float scale, long rows, long n, long r, int threads) {
    long half = (rows + 1) / 2;
    std::vector<uint32_t> paired(half * r);
    for (long t = 0; t < half; t++)
        for (long i = 0; i < r; i++) {
            uint32_t second = 2 * t + 1 < rows ? low[(2 * t + 1) * sl + i].bits : 0;
            paired[t * r + i] = low[2 * t * sl + i].bits | second << 16;
        }
#pragma omp parallel for num_threads(threads)
    for (long o = 0; o < n; o += LANES)
        for (long i = 0; i < r; i += LANES) {
            Floats acc[LANES] = {};
            for (long t = 0; t < half; t++) {
                const bf16 *first = x + 2 * t * sx + o, *second = 2 * t + 1 < rows ? first + sx : first;
                Words a = __builtin_convertvector((Halves) * (const HalvesAnywhere *)first, Words);
                Words b = __builtin_convertvector((Halves) * (const HalvesAnywhere *)second, Words);
                alignas(64) uint32_t both[LANES];
                *(Words *)both = a | b << 16;
                Pairs l = pairs(&paired[t * r + i]);
                for (long v = 0; v < LANES; v++) acc[v] = dot(acc[v], repeated(both + v), l);
            }
            for (long v = 0; v < LANES; v++) store(out + (o + v) * r + i, acc[v] * scale);
        }
}

// ---------------------------------------------------------------- products with few rows, in bf16 dot products

// Outputs `begin` to `end` of a joined product y = x · wᵀ + bias; their weights w (end − begin, K) as numbers or as rows of
// `row_bytes` of blocks; and their low-rank update: a (rank, K), and s·B in b (end − begin, wide(rank)), filled up with zeros;
// rank 0 where there is none. K is a multiple of 2·LANES.
struct Part {
    long begin, end, rank;
    const bf16 *a, *b;
    const void *w;
    long row_bytes;
    int format;  // of blocks; NUMBERS where w are numbers
};

inline long wide(long rank) { return (rank + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }

template <int M, int N>
void few_rows_tiled(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const Part *parts, long count, bf16 *low, long ranks,
                    long rows, long K, int threads) {
    static_assert(M * N == LANES, "the sums of a tile fill a vector");
    long tiles = (rows + M - 1) / M;
    // y (rows, n ≤ N) = x · wᵀ + l · bᵀ + shift
    auto group = [=](const bf16 *w, long n, const bf16 *l, const bf16 *b, long rank, Floats shift, bf16 *y, long sy, bool fetch) {
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
        for (long p = 0; p < count; mine += wide(parts[p++].rank)) {
#pragma omp for nowait schedule(static)
            for (long n = 0; n < parts[p].rank; n += N)
                group(parts[p].a + n * K, parts[p].rank - n < N ? parts[p].rank - n : N, nullptr, nullptr, 0, Floats{}, mine + n, ranks, true);
        }
        if (ranks) {
#pragma omp barrier
        }
        mine = low;
        for (long p = 0; p < count; mine += wide(parts[p++].rank)) {
            Part part = parts[p];
            long rank = wide(part.rank);
#pragma omp for nowait schedule(static)
            for (long n = part.begin; n < part.end; n += N) {
                long width = part.end - n < N ? part.end - n : N;
                Floats shift{};
                for (long i = 0; bias && i < LANES; i++) shift[i] = i % N < width ? get(bias[n + i % N]) : 0.0f;
                const bf16 *w = (const bf16 *)part.w + (n - part.begin) * K;
                if (part.format != NUMBERS) {
                    unpacked.resize(N * K);
                    unpack((const uint8_t *)part.w + (n - part.begin) * part.row_bytes, part.row_bytes, part.format, unpacked.data(), K, width, K);
                    w = unpacked.data();
                }
                group(w, width, mine, part.b + (n - part.begin) * rank, rank, shift, y + n, sy, part.format == NUMBERS);
            }
        }
    }
}

void few_rows(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const Part *parts, long count, long rows, long K,
              int threads) {
    static thread_local std::vector<bf16> low;
    long ranks = 0;
    for (long p = 0; p < count; p++) ranks += wide(parts[p].rank);
    low.assign(rows * ranks, bf16{});
    auto run = rows == 1 ? few_rows_tiled<1, 16> : rows == 2 ? few_rows_tiled<2, 8> : few_rows_tiled<4, 4>;
    run(x, sx, bias, y, sy, parts, count, low.data(), ranks, rows, K, threads);
}

#endif

}  // namespace

#ifdef __AVX512BF16__
extern "C" {
void few_rows_bf16(const bf16 *x, long sx, const bf16 *bias, bf16 *y, long sy, const Part *parts, long count, long rows, long K,
                   int threads) {
    few_rows(x, sx, bias, y, sy, parts, count, rows, K, threads);
}
void low_rank_pack_bf16(const float *b, float scale, bf16 *by_rank, bf16 *by_output, long n, long r) {
    low_rank_pack(b, scale, by_rank, by_output, n, r);
}
void low_rank_add_bf16(bf16 *y, long sy, const bf16 *low, long sl, const bf16 *b, long rows, long n, long r, int threads) {
    low_rank_add(y, sy, low, sl, b, rows, n, r, threads);
}
void low_rank_project_bf16(const bf16 *dy, long sdy, const bf16 *b, bf16 *dlow, long sdl, long rows, long n, long r, int threads) {
    low_rank_project(dy, sdy, b, dlow, sdl, rows, n, r, threads);
}
void low_rank_outer_bf16(const bf16 *x, long sx, const bf16 *low, long sl, float *out, float scale, long rows, long n, long r,
                         int threads) {
    low_rank_outer(x, sx, low, sl, out, scale, rows, n, r, threads);
}
}
#endif

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                            \
    extern "C" {                                                                                                                \
    void rms_forward_##S(const T *x, long sx, const T *r, long sr, const float *w, T *h, T *y, float *rstd, long rows, long n,  \
                         float eps, int threads) {                                                                              \
        rms_forward(x, sx, r, sr, w, h, y, rstd, rows, n, eps, threads);                                                        \
    }                                                                                                                           \
    void rms_backward_##S(const T *dy, const T *dh, long sdh, const T *h, long sh, const float *w, const float *rstd, T *dx,    \
                          long sdx, long rows, long n, int threads) {                                                           \
        rms_backward(dy, dh, sdh, h, sh, w, rstd, dx, sdx, rows, n, threads);                                                   \
    }                                                                                                                           \
    void gated_forward_##S(const T *gate_up, long stride, T *out, long rows, long n, int kind, int threads) {                   \
        gated_forward(gate_up, stride, out, rows, n, kind, threads);                                                            \
    }                                                                                                                           \
    void gated_backward_##S(const T *gate_up, long stride, const T *dout, T *d, long rows, long n, int kind, int threads) {     \
        gated_backward(gate_up, stride, dout, d, rows, n, kind, threads);                                                       \
    }                                                                                                                           \
    void rotary_forward_##S(const T *qkv, long stride, T *out, const Rotary *r, long rows, int threads) {                       \
        rotary_forward(qkv, stride, out, *r, rows, threads);                                                                    \
    }                                                                                                                           \
    void rotary_backward_##S(T *d, const T *qkv, long stride, const Rotary *r, long rows, int threads) {                        \
        rotary_backward(d, qkv, stride, *r, rows, threads);                                                                     \
    }                                                                                                                           \
    void attention_forward_##S(const T *q, long sq, const T *k, long sk, const T *v, long sv, T *out, float *lse,               \
                               const Attention *a) {                                                                            \
        attention_forward(q, sq, k, sk, v, sv, out, lse, *a);                                                                   \
    }                                                                                                                           \
    void attention_backward_##S(const T *q, long sq, const T *k, long sk, const T *v, long sv, const T *out, const float *lse,  \
                                const T *dout, T *dqkv, long sd, const Attention *a) {                                          \
        long nq = a->heads.q * a->heads.width, nk = a->heads.kv * a->heads.width;                                               \
        attention_backward(q, sq, k, sk, v, sv, out, lse, dout, dqkv, dqkv + nq, dqkv + nq + nk, sd, *a);                       \
    }                                                                                                                           \
    void attention_read_##S(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room, const int32_t *slots,    \
                            const int32_t *lengths, T *out, const Attention *a) {                                               \
        attention_read(qk, sqk, v, sv, keys, values, room, slots, lengths, out, *a);                                            \
    }                                                                                                                           \
    void attention_step_##S(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room, const int32_t *slots,    \
                            const int32_t *lengths, T *out, const Attention *a) {                                               \
        attention_step(qk, sqk, v, sv, keys, values, room, slots, lengths, out, *a);                                            \
    }                                                                                                                           \
    void cross_entropy_##S(T *logits, const int64_t *labels, float *losses, long rows, long words, int gradient, int threads) { \
        cross_entropy(logits, labels, losses, rows, words, gradient, threads);                                                  \
    }                                                                                                                           \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
