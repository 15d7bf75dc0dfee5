// Attention of one new token per row to the cache: ops/by_cpp.py.

#include <cmath>

#include "attention.h"
#include "dots.h"
#include "functions.h"

namespace {

// Asks for n numbers of memory that are needed soon.
template <class T>
inline void fetch(const T *p, long n) {
    for (long i = 0; i < n; i += 64 / (long)sizeof(T)) __builtin_prefetch(p + i);
}

// What G ≤ 4 heads q (G, D) that share keys K (room, D) and values V (room, D) see; scores (G, padded room) are
// scratch, and `ahead` the keys that come next.
template <int G, class T>
void attend_heads(const T *q, const T *K, const T *V, const T *ahead, float *scores, T *out, long begin, long n,
                  long room, const Attention &a) {
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

// One new token per segment: keys and values (slots, kv, room, D).
template <class T>
void attention_step(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room, const int32_t *slots,
                    const int32_t *lengths, T *out, Attention a) {
    Heads heads = a.heads;
    long D = heads.width, group = heads.q / heads.kv, rows = a.segments, wide = padded(room);
#pragma omp parallel for num_threads(a.threads)
    for (long piece = 0; piece < rows * heads.kv; piece++) {
        long b = piece / heads.kv, kv = piece % heads.kv, n = lengths[b] + 1;
        long slot = (slots[b] * heads.kv + kv) * room * D;
        T *K = keys + slot, *V = values + slot;
        memcpy(K + (n - 1) * D, qk + b * sqk + (heads.q + kv) * D, D * sizeof(T));
        memcpy(V + (n - 1) * D, v + b * sv + kv * D, D * sizeof(T));
        long begin = a.window && n > a.window ? n - a.window : 0;
        long next = piece + 1 < rows * heads.kv ? piece + 1 : piece;
        const T *ahead = keys + (slots[next / heads.kv] * heads.kv + next % heads.kv) * room * D;
        Scratch memory(4 * wide);
        for (long h = kv * group, left = group; left; ) {
            const T *q = qk + b * sqk + h * D;
            T *o = out + (b * heads.q + h) * D;
            long now = left < 4 ? left : 4;
            auto attend = now == 4   ? attend_heads<4, T>
                          : now == 3 ? attend_heads<3, T>
                          : now == 2 ? attend_heads<2, T>
                                     : attend_heads<1, T>;
            attend(q, K, V, ahead, memory.next, o, begin, n, wide, a);
            h += now, left -= now;
        }
    }
}

}  // namespace

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                   \
    extern "C" {                                                                                                       \
    void attention_step_##S(const T *qk, long sqk, const T *v, long sv, T *keys, T *values, long room,                 \
                            const int32_t *slots, const int32_t *lengths, T *out, const Attention *a) {                \
        attention_step(qk, sqk, v, sv, keys, values, room, slots, lengths, out, *a);                                   \
    }                                                                                                                  \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
