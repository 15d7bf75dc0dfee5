// RMSNorm of a sum: ops/by_cpp.py.

#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

template <class T>
void rms_forward(const T *x, long sx, const T *r, long sr, const float *w, T *h, T *y, float *rstd, long rows, long n,
                 float eps, int threads) {
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
void rms_backward(const T *dy, const T *dh, long sdh, const T *h, long sh, const float *w, const float *rstd, T *dx,
                  long sdx, long rows, long n, int threads) {
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

}  // namespace

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                   \
    extern "C" {                                                                                                       \
    void rms_forward_##S(const T *x, long sx, const T *r, long sr, const float *w, T *h, T *y, float *rstd,            \
                         long rows, long n, float eps, int threads) {                                                  \
        rms_forward(x, sx, r, sr, w, h, y, rstd, rows, n, eps, threads);                                               \
    }                                                                                                                  \
    void rms_backward_##S(const T *dy, const T *dh, long sdh, const T *h, long sh, const float *w,                     \
                          const float *rstd, T *dx, long sdx, long rows, long n, int threads) {                        \
        rms_backward(dy, dh, sdh, h, sh, w, rstd, dx, sdx, rows, n, threads);                                          \
    }                                                                                                                  \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
