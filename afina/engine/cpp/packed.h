// Numbers as products take them: one by one, or in bf16 two at once, where the processor multiplies pairs (AVX-512
// BF16).

#pragma once

#include "dots.h"

namespace {

template <class T>
struct Packing {
    typedef float Element;
    static constexpr long per = 1;
};

inline Floats repeated(const float *p) { return splat(*p); }
inline Floats elements(const float *p) { return load(p); }
inline Floats dot(Floats sum, Floats a, Floats b) { return sum + a * b; }
// Into a row of numbers, `at` numbers from its beginning.
inline void put(float *row, long at, Floats x) { store(row + at, x); }
// Into a row of elements that each hold one number of this row and one of the row beneath: as the `second`, or as the
// first, with which the second becomes zero.
inline void put_beneath(float *row, bool, Floats x) { store(row, x); }
inline void pack(float &to, const float *x, long) { to = *x; }
inline void pack(float &to, const bf16 *x, long) { to = get(*x); }

#ifdef __AVX512BF16__
struct Two {
    bf16 first, second;
};
template <>
struct Packing<bf16> {
    typedef Two Element;
    static constexpr long per = 2;
};

inline Pairs elements(const Two *p) { return pairs(p); }
inline void put(Two *row, long at, Floats x) { store((bf16 *)row + at, x); }
inline void put_beneath(Two *row, bool second, Floats x) {
    Words words;
    Halves halves;
    store((bf16 *)&halves, x);
    words = __builtin_convertvector(halves, Words);
    if (second) {
        Words before;
        memcpy(&before, row, sizeof before);
        words = (before & 0xffff) | (words << 16);
    }
    memcpy(row, &words, sizeof words);
}
inline void pack(Two &to, const bf16 *x, long left) { to = {x[0], left > 1 ? x[1] : bf16{0}}; }
#endif

template <class T>
using Element = typename Packing<T>::Element;
template <class T>
constexpr long PER = Packing<T>::per;
template <class T>
constexpr long packed(long numbers) {
    return (numbers + PER<T> - 1) / PER<T>;
}

}  // namespace
