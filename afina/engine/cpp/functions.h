// Functions of vectors.

#pragma once

#include "vectors.h"

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

}  // namespace
