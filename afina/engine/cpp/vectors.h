// Vectors of the widest kind that this processor has, and the types that numbers are stored in.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef float FloatsAnywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t HalvesAnywhere __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

struct bf16 {
    uint16_t bits;
};

inline Floats splat(float x) { return Floats{} + x; }
inline Floats load(const float *p) { return *(const FloatsAnywhere *)p; }
inline Floats load(const bf16 *p) {
    return (Floats)(__builtin_convertvector((Halves) * (const HalvesAnywhere *)p, Words) << 16);
}
inline void store(float *p, Floats x) { *(FloatsAnywhere *)p = x; }
inline void store(bf16 *p, Floats x) {
    Words u = (Words)x;
    u += 0x7fff + ((u >> 16) & 1);  // to the nearest, ties to even
    *(HalvesAnywhere *)p = __builtin_convertvector(u >> 16, Halves);
}
inline float get(float x) { return x; }
inline float get(bf16 x) {
    uint32_t u = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

inline void set(float &to, float x) { to = x; }
inline void set(bf16 &to, float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    to.bits = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

// The same at the end of a row, where `left` elements are left; what is missing reads as zero.
template <class T>
inline Floats load(const T *p, long left) {
    if (left >= LANES) return load(p);
    T buffer[LANES] = {};
    memcpy(buffer, p, left * sizeof(T));
    return load(buffer);
}
template <class T>
inline void store(T *p, Floats x, long left) {
    if (left >= LANES) return store(p, x);
    T buffer[LANES];
    store(buffer, x);
    memcpy(p, buffer, left * sizeof(T));
}

inline float sum(Floats x) {  // by halves: one by one, each addition would wait for the one before it
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter part[LANES / 4];
    memcpy(part, &x, sizeof x);
    for (long n = LANES / 8; n; n /= 2)
        for (long i = 0; i < n; i++) part[i] += part[i + n];
    return (part[0][0] + part[0][1]) + (part[0][2] + part[0][3]);
}
inline float largest(Floats x) {
    float m = x[0];
    for (long i = 1; i < LANES; i++) m = x[i] > m ? x[i] : m;
    return m;
}
