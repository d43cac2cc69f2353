// Channels taken from a map, and added to one, at places that each image may have of its own.
//
// Maps [B, C, P] lie with positions innermost, or with channels innermost where `innermost` is set.

#include "numbers.h"

#include <vector>

namespace {

// y[b, j] = x[b, index[b, j]]
template <class T>
void take(const T* x, const int64_t* index, T* y, int64_t B, int64_t C, int64_t K, int64_t P, bool innermost) {
    if (innermost) {
        const std::vector<int32_t> table(index, index + B * K);
#pragma omp parallel for
        for (int64_t bp = 0; bp < B * P; bp++) {
            fetch(x + bp * C, table.data() + (bp / P) * K, K, y + bp * K);
        }
    } else {
#pragma omp parallel for
        for (int64_t bk = 0; bk < B * K; bk++) std::memcpy(y + bk * P, x + ((bk / K) * C + index[bk]) * P, P * sizeof(T));
    }
}

// y = stage, and y[b, index[j]] += branch[b, j]; no two places are the same
template <class T>
void add(const T* stage, const T* branch, const int64_t* index, T* y, int64_t B, int64_t C, int64_t K, int64_t P, bool innermost) {
    if (innermost) {
#pragma omp parallel for
        for (int64_t bp = 0; bp < B * P; bp++) {
            T* out = y + bp * C;
            std::memcpy(out, stage + bp * C, C * sizeof(T));
            for (int64_t j = 0; j < K; j++) store(out[index[j]], load(out[index[j]]) + load(branch[bp * K + j]));
        }
        return;
    }
    std::vector<const T*> other(C, nullptr);
    for (int64_t j = 0; j < K; j++) other[index[j]] = branch + j * P;
#pragma omp parallel for
    for (int64_t bc = 0; bc < B * C; bc++) {
        const T* one = stage + bc * P;
        T* out = y + bc * P;
        if (other[bc % C] == nullptr) {
            std::memcpy(out, one, P * sizeof(T));
            continue;
        }
        const T* two = other[bc % C] + (bc / C) * K * P;
        for (int64_t i = 0; i < P; i++) store(out[i], load(one[i]) + load(two[i]));
    }
}

}  // namespace

#define FUNCTIONS(T, NAME)                                                                                                             \
    extern "C" void take_##NAME(const T* x, const int64_t* index, T* y, int64_t B, int64_t C, int64_t K, int64_t P, bool innermost) {  \
        take<T>(x, index, y, B, C, K, P, innermost);                                                                                   \
    }                                                                                                                                  \
    extern "C" void add_##NAME(const T* stage, const T* branch, const int64_t* index, T* y, int64_t B, int64_t C, int64_t K, \
                               int64_t P, bool innermost) {  \
        add<T>(stage, branch, index, y, B, C, K, P, innermost);                                                                       \
    }

FUNCTIONS(float, float32)
FUNCTIONS(bfloat16, bfloat16)
