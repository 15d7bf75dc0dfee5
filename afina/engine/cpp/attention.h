// What attention's kernels share.

#pragma once

#include <vector>

#include "vectors.h"

namespace {

struct Heads {
    long q, kv, width, rotated;
};

struct Attention {
    long segments;
    const int32_t *bounds;  // segment s holds the tokens bounds[s] to bounds[s + 1] of the pass,
    const int32_t *starts;  // the first of which stands at starts[s] in its row,
    const int32_t *parents;  // and continues the segment parents[s] (-1: none)
    long trees;
    const int32_t *roots;  // tree t has the segments roots[t] to roots[t + 1], parents before children
    Heads heads;
    float scale;
    long window;  // 0: none; else a query sees this many keys, itself included
    float cap;    // 0: none; else scores become cap·tanh(score / cap)
    int threads;
};

inline long padded(long n) { return (n + LANES - 1) / LANES * LANES; }

// Memory of a thread, reused from call to call and handed out piece by piece; not initialised. A caller whose memory
// others must not take while it is used gives a pool of its own.
struct Scratch {
    float *next;
    static std::vector<float> &own() {
        static thread_local std::vector<float> pool;
        return pool;
    }
    explicit Scratch(long size, std::vector<float> &pool = own()) {
        if ((long)pool.size() < size) pool.resize(size);
        next = pool.data();
    }
    template <class E = float>
    E *take(long n) {
        static_assert(sizeof(E) == sizeof(float));
        E *piece = (E *)next;
        next += n;
        return piece;
    }
};

}  // namespace
