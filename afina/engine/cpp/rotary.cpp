// Norms and rotation of queries and keys: ops/by_cpp.py.

#include <cmath>

#include "attention.h"

namespace {

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
        for (long i = 0; i < half; i += LANES) {
            long left = half - i;
            Floats a = load(p + i, left), b = load(p + i + half, left);
            Floats cosine = load(c + i, left), sine = load(s + i, left) * direction;
            store(p + i, a * cosine - b * sine, left);
            store(p + i + half, b * cosine + a * sine, left);
        }
}

template <class T>
void rotary_forward(const T *qkv, long stride, T *out, Rotary r, long rows, int threads) {
    Heads heads = r.heads;
    long D = heads.width, all = (heads.q + heads.kv) * D;
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        float *x = Scratch(all).take(all);
        for (long i = 0; i < all; i += LANES) store(x + i, load(qkv + t * stride + i, all - i), all - i);
        for (int part = 0; r.norm && part < 2; part++) {
            float *p = x + (part ? heads.q * D : 0);
            const float *w = part ? r.wk : r.wq;
            long n = (part ? heads.kv : heads.q) * D, group = r.norm == 1 ? D : n;
            for (long g = 0; g < n; g += group) {
                float s = head_rstd(p + g, group, r.eps);
                for (long i = 0; i < group; i++) p[g + i] *= s * w[r.norm == 1 ? i : g + i];
            }
        }
        turn(x, r, r.positions[t], 1.0f);
        T *o = out + t * all;
        for (long i = 0; i < all; i += LANES) store(o + i, load(x + i, all - i), all - i);
    }
}

// In place: d holds the gradients of the rotated q and k, and becomes those of qkv's.
template <class T>
void rotary_backward(T *d, const T *qkv, long stride, Rotary r, long rows, int threads) {
    Heads heads = r.heads;
    long D = heads.width, all = (heads.q + heads.kv) * D;
#pragma omp parallel for num_threads(threads)
    for (long t = 0; t < rows; t++) {
        Scratch memory(2 * all);
        float *g = memory.take(all), *x = memory.take(all);
        for (long i = 0; i < all; i += LANES) store(g + i, load(d + t * stride + i, all - i), all - i);
        turn(g, r, r.positions[t], -1.0f);
        for (int part = 0; r.norm && part < 2; part++) {
            long begin = part ? heads.q * D : 0;
            const float *w = part ? r.wk : r.wq;
            long n = (part ? heads.kv : heads.q) * D, group = r.norm == 1 ? D : n;
            for (long k = 0; k < n; k += group) {
                float *p = g + begin + k, dot = 0;
                for (long i = 0; i < group; i++) x[i] = get(qkv[t * stride + begin + k + i]);
                float rs = head_rstd(x, group, r.eps);
                for (long i = 0; i < group; i++) {
                    p[i] *= w[r.norm == 1 ? i : k + i];
                    dot += p[i] * x[i];
                }
                for (long i = 0; i < group; i++) p[i] = rs * p[i] - x[i] * (dot * rs * rs * rs / group);
            }
        }
        for (long i = 0; i < all; i += LANES) store(d + t * stride + i, load(g + i, all - i), all - i);
    }
}

}  // namespace

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                   \
    extern "C" {                                                                                                       \
    void rotary_forward_##S(const T *qkv, long stride, T *out, const Rotary *r, long rows, int threads) {              \
        rotary_forward(qkv, stride, out, *r, rows, threads);                                                           \
    }                                                                                                                  \
    void rotary_backward_##S(T *d, const T *qkv, long stride, const Rotary *r, long rows, int threads) {               \
        rotary_backward(d, qkv, stride, *r, rows, threads);                                                            \
    }                                                                                                                  \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
