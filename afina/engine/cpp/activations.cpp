// Gated activations: ops/by_cpp.py.

#include "functions.h"

namespace {

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

}  // namespace

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                   \
    extern "C" {                                                                                                       \
    void gated_forward_##S(const T *gate_up, long stride, T *out, long rows, long n, int kind, int threads) {          \
        gated_forward(gate_up, stride, out, rows, n, kind, threads);                                                   \
    }                                                                                                                  \
    void gated_backward_##S(const T *gate_up, long stride, const T *dout, T *d, long rows, long n, int kind,           \
                            int threads) {                                                                             \
        gated_backward(gate_up, stride, dout, d, rows, n, kind, threads);                                              \
    }                                                                                                                  \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
