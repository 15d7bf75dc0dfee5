// Cross-entropy: ops/by_cpp.py.

#include <cmath>

#include "functions.h"

namespace {

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

}  // namespace

// One plain name for each function and type, so that kernels.py can find it.
#define EXPORT(T, S)                                                                                                   \
    extern "C" {                                                                                                       \
    void cross_entropy_##S(T *logits, const int64_t *labels, float *losses, long rows, long words, int gradient,       \
                           int threads) {                                                                              \
        cross_entropy(logits, labels, losses, rows, words, gradient, threads);                                         \
    }                                                                                                                  \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
