// What kernels do that look at a whole map before they work on it: its means, and dense layers on them.
//
// The loops are shared among the threads of the parallel region that calls them, and each ends before the next begins.
#pragma once

#include "numbers.h"

#include <algorithm>
#include <cmath>

// As if it had been stored in between.
template <class T>
inline float rounded(float value) {
    T place;
    store(place, value);
    return load(place);
}

inline float as_it_is(float value) { return value; }
inline float magnitude(float value) { return std::fabs(value); }
inline float rectified(float value) { return value > 0.0f ? value : value == value ? 0.0f : value; }
inline float sigmoid(float value) { return 1.0f / (1.0f + std::exp(-value)); }

// Means over the positions of x [B, C, P], g [B, C], of what `of` makes of each number. With positions innermost `parts` is 0. Where
// channels lie innermost, `parts` runs of positions are summed by themselves, into sums [B, parts, C]: what comes out does not depend on
// the number of threads.
template <class T, float of(float)>
void means(const T* x, float* g, float* sums, int64_t B, int64_t C, int64_t P, int64_t parts) {
    constexpr int64_t LANES = 64;
    const float share = 1.0f / static_cast<float>(P);
    if (parts == 0) {
#pragma omp for
        for (int64_t bc = 0; bc < B * C; bc++) {
            const T* __restrict row = x + bc * P;
            float total = 0.0f;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < P; i++) total += of(load(row[i]));
            g[bc] = rounded<T>(total * share);
        }
        return;
    }
    const int64_t run = (P + parts - 1) / parts;
#pragma omp for collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t part = 0; part < parts; part++) {
            float* __restrict sum = sums + (b * parts + part) * C;
            std::fill(sum, sum + C, 0.0f);
            for (int64_t at = part * run; at < std::min(P, (part + 1) * run); at++) {
                const T* __restrict row = x + (b * P + at) * C;
#pragma omp simd
                for (int64_t c = 0; c < C; c++) sum[c] += of(load(row[c]));
            }
        }
#pragma omp for collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t begin = 0; begin < C; begin += LANES) {
            const int64_t count = std::min(LANES, C - begin);
            float total[LANES] = {};
            for (int64_t part = 0; part < parts; part++) {
                const float* __restrict sum = sums + (b * parts + part) * C + begin;
#pragma omp simd
                for (int64_t i = 0; i < count; i++) total[i] += sum[i];
            }
            for (int64_t i = 0; i < count; i++) g[b * C + begin + i] = rounded<T>(total[i] * share);
        }
}

// act(given weight^T + bias): given [B, I], weight [O, I], bias [O], found [B, O].
template <class T, float act(float)>
void dense(const float* given, const T* weight, const T* bias, float* found, int64_t B, int64_t I, int64_t O) {
#pragma omp for
    for (int64_t o = 0; o < O; o++)
        for (int64_t b = 0; b < B; b++) {
            const T* __restrict row = weight + o * I;
            const float* __restrict vector = given + b * I;
            float total = 0.0f;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < I; i++) total += load(row[i]) * vector[i];
            found[b * O + o] = rounded<T>(act(rounded<T>(total + load(bias[o]))));
        }
}
