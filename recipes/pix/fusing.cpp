// Pick-or-Mix, Equations 2 and 3, in one read: of each subset of channels the extreme or the mean, as p says, times p. And the whole layer,
// from the means that p comes from (Equation 1) on. Loops that are shared among threads belong to the parallel region of their caller.
//
// x [B, C, P] and gradient [B, K, P] lie with positions innermost (rows), or with channels innermost ([B, P, C]) where `innermost` is set.
// Either way what lies next to each other in memory is worked on together: positions of one subset, or subsets of one position.

#include "numbers.h"
#include "pooled.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace {

constexpr int64_t LANES = 64;  // subsets of one position at a time

// Neighbouring subsets of one size, and where their channels are: place j of subset i at table[j * count + i].
struct Group {
    int64_t begin, count, size;
    std::vector<int32_t> table;
};

struct Subsets {
    int64_t count, first, longer, shorter;
    bool strided;
    const int64_t* order;

    int64_t size(int64_t subset) const { return subset < first ? longer : shorter; }

    int64_t channel(int64_t subset, int64_t place) const {
        if (strided) return place * count + subset;
        const int64_t begin = subset < first ? subset * longer : first * longer + (subset - first) * shorter;
        return order ? order[begin + place] : begin + place;
    }

    std::vector<Group> groups() const {
        std::vector<Group> found;
        for (const auto& [begin, end, size] : {std::tuple{int64_t(0), first, longer}, std::tuple{first, count, shorter}}) {
            if (begin == end) continue;
            Group group{begin, end - begin, size, {}};
            for (int64_t place = 0; place < size; place++)
                for (int64_t subset = begin; subset < end; subset++) group.table.push_back(static_cast<int32_t>(channel(subset, place)));
            found.push_back(std::move(group));
        }
        return found;
    }
};

// As torch's maximum and minimum, a NaN wins.
template <bool LEAST>
inline float extreme(float one, float other) {
    const bool further = LEAST ? other < one : other > one;
    return (further | (other != other)) ? other : one;
}

// Extreme or sum of subset k at `count` positions, from the first one of the image's first channel on.
template <class T, bool LEAST>
inline void reduce_rows(const T* x, const Subsets& subsets, int64_t k, int64_t P, int64_t count, bool picks, float* found) {
    for (int64_t place = 0; place < subsets.size(k); place++) {
        const T* row = x + subsets.channel(k, place) * P;
        if (place == 0)
            for (int64_t i = 0; i < count; i++) found[i] = load(row[i]);
        else if (picks)
            for (int64_t i = 0; i < count; i++) found[i] = extreme<LEAST>(found[i], load(row[i]));
        else
            for (int64_t i = 0; i < count; i++) found[i] += load(row[i]);
    }
}

template <class T, bool LEAST>
void rows_forward(const T* x, const float* p, const Subsets& subsets, T* y, int64_t B, int64_t C, int64_t P, float tau) {
    const int64_t K = subsets.count;
#pragma omp for
    for (int64_t bk = 0; bk < B * K; bk++) {
        const int64_t b = bk / K, k = bk % K, size = subsets.size(k);
        const bool picks = p[bk] <= tau;
        const float divisor = picks ? 1.0f : static_cast<float>(size);
        for (int64_t begin = 0; begin < P; begin += BLOCK) {
            const int64_t count = std::min(BLOCK, P - begin);
            float found[BLOCK];
            reduce_rows<T, LEAST>(x + b * C * P + begin, subsets, k, P, count, picks, found);
            T* out = y + bk * P + begin;
            for (int64_t i = 0; i < count; i++) store(out[i], p[bk] * (found[i] / divisor));
        }
    }
}

// One channel of each of some subsets; they are neighbours where subsets are strided.
template <class T>
inline void gather(const T* __restrict row, const Subsets& subsets, const int32_t* __restrict channels, int64_t count,
                   float* __restrict values) {
    const T* __restrict run = row + channels[0];
    if (subsets.strided) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) values[i] = load(run[i]);
    } else {
        fetch(row, channels, count, values);
    }
}

// Extreme and sum of some subsets of a group at one position.
template <class T, bool LEAST>
inline void reduce(const T* __restrict row, const Subsets& subsets, const Group& group, int64_t begin, int64_t count,
                   float* __restrict picked, float* __restrict sum) {
    for (int64_t place = 0; place < group.size; place++) {
        const int32_t* __restrict channels = group.table.data() + place * group.count + begin;
        float values[LANES];
        gather(row, subsets, channels, count, values);
        if (place == 0) {
            std::copy(values, values + count, picked);
            std::copy(values, values + count, sum);
            continue;
        }
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            picked[i] = extreme<LEAST>(picked[i], values[i]);
            sum[i] += values[i];
        }
    }
}

// SIZE as a constant lets the compiler take neighbours apart in registers.
template <class T, bool LEAST, int SIZE>
inline void reduce_runs(const T* __restrict run, int64_t count, float* __restrict picked, float* __restrict sum) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float most = load(run[i * SIZE]), total = most;
#pragma GCC unroll 8
        for (int place = 1; place < SIZE; place++) {
            const float value = load(run[i * SIZE + place]);
            most = extreme<LEAST>(most, value);
            total += value;
        }
        picked[i] = most;
        sum[i] = total;
    }
}

template <class T, bool LEAST>
inline void reduce_any(const T* row, const Subsets& subsets, const Group& group, int64_t begin, int64_t count, float* picked, float* sum) {
    const bool runs = !subsets.strided && subsets.order == nullptr;
    const T* run = row + group.table[begin];
    if (runs && group.size == 2)
        reduce_runs<T, LEAST, 2>(run, count, picked, sum);
    else if (runs && group.size == 4)
        reduce_runs<T, LEAST, 4>(run, count, picked, sum);
    else if (runs && group.size == 8)
        reduce_runs<T, LEAST, 8>(run, count, picked, sum);
    else
        reduce<T, LEAST>(row, subsets, group, begin, count, picked, sum);
}

template <class T, bool LEAST>
void positions_forward(const T* x, const float* p, const Subsets& subsets, T* y, int64_t B, int64_t C, int64_t P, float tau) {
    const int64_t K = subsets.count;
    const std::vector<Group> groups = subsets.groups();
#pragma omp for
    for (int64_t bp = 0; bp < B * P; bp++)
        for (const Group& group : groups)
            for (int64_t begin = 0; begin < group.count; begin += LANES) {
                const int64_t count = std::min(LANES, group.count - begin);
                float picked[LANES], sum[LANES];
                reduce_any<T, LEAST>(x + bp * C, subsets, group, begin, count, picked, sum);
                const float* __restrict factors = p + (bp / P) * K + group.begin + begin;
                T* __restrict out = y + bp * K + group.begin + begin;
                const float divisor = static_cast<float>(group.size);
                for (int64_t i = 0; i < count; i++)
                    store(out[i], factors[i] * (factors[i] <= tau ? picked[i] : sum[i] / divisor));
            }
}

// A gradient goes to all channels that share the extreme, in equal parts.
template <class T, bool LEAST>
void rows_backward(const T* gradient, const T* x, const float* p, const Subsets& subsets, T* dx, float* dp, int64_t B, int64_t C, int64_t P,
                   float tau) {
    const int64_t K = subsets.count;
#pragma omp parallel for
    for (int64_t bk = 0; bk < B * K; bk++) {
        const int64_t b = bk / K, k = bk % K, size = subsets.size(k);
        const bool picks = p[bk] <= tau;
        float received = 0.0f;
        for (int64_t begin = 0; begin < P; begin += BLOCK) {
            const int64_t count = std::min(BLOCK, P - begin);
            float found[BLOCK], each[BLOCK];
            reduce_rows<T, LEAST>(x + b * C * P + begin, subsets, k, P, count, picks, found);
            if (picks) {
                for (int64_t i = 0; i < count; i++) each[i] = 0.0f;
                for (int64_t place = 0; place < size; place++) {
                    const T* row = x + (b * C + subsets.channel(k, place)) * P + begin;
                    for (int64_t i = 0; i < count; i++) each[i] += load(row[i]) == found[i] ? 1.0f : 0.0f;
                }
            } else {
                for (int64_t i = 0; i < count; i++) each[i] = static_cast<float>(size);
                for (int64_t i = 0; i < count; i++) found[i] /= each[i];
            }
            const T* from = gradient + bk * P + begin;
#pragma omp simd reduction(+ : received)
            for (int64_t i = 0; i < count; i++) {
                const float g = load(from[i]);
                received += g * found[i];
                each[i] = g * p[bk] / each[i];
            }
            for (int64_t place = 0; place < size; place++) {
                const int64_t at = (b * C + subsets.channel(k, place)) * P + begin;
                const T* row = x + at;
                T* out = dx + at;
                if (picks)
                    for (int64_t i = 0; i < count; i++) store(out[i], load(row[i]) == found[i] ? each[i] : 0.0f);
                else
                    for (int64_t i = 0; i < count; i++) store(out[i], each[i]);
            }
        }
        dp[bk] = received;
    }
}

// What p receives is summed over `parts` runs of positions of each image: the sums do not depend on the number of threads.
template <class T, bool LEAST>
void positions_backward(const T* gradient, const T* x, const float* p, const Subsets& subsets, T* dx, float* dp, int64_t B, int64_t C,
                        int64_t P, float tau, int64_t parts) {
    const int64_t K = subsets.count, run = (P + parts - 1) / parts;
    const std::vector<Group> groups = subsets.groups();
#pragma omp parallel for collapse(2)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t b = 0; b < B; b++) {
            float* received = dp + (part * B + b) * K;
            std::fill(received, received + K, 0.0f);
            for (int64_t at = b * P + part * run; at < b * P + std::min(P, (part + 1) * run); at++)
                for (const Group& group : groups)
                    for (int64_t begin = 0; begin < group.count; begin += LANES) {
                        const int64_t count = std::min(LANES, group.count - begin), k = group.begin + begin;
                        const float* factors = p + b * K + k;
                        const T* from = gradient + at * K + k;
                        const T* row = x + at * C;
                        T* out = dx + at * C;
                        float picked[LANES], sum[LANES], ties[LANES] = {}, each[LANES], values[LANES];
                        reduce_any<T, LEAST>(row, subsets, group, begin, count, picked, sum);
                        for (int64_t place = 0; place < group.size; place++) {
                            gather(row, subsets, group.table.data() + place * group.count + begin, count, values);
#pragma omp simd
                            for (int64_t i = 0; i < count; i++) ties[i] += values[i] == picked[i] ? 1.0f : 0.0f;
                        }
                        const float size = static_cast<float>(group.size);
#pragma omp simd
                        for (int64_t i = 0; i < count; i++) {
                            const float g = load(from[i]);
                            const bool picks = factors[i] <= tau;
                            received[k + i] += g * (picks ? picked[i] : sum[i] / size);
                            each[i] = g * factors[i] / (picks ? ties[i] : size);
                        }
                        for (int64_t place = 0; place < group.size; place++) {
                            const int32_t* __restrict channels = group.table.data() + place * group.count + begin;
                            gather(row, subsets, channels, count, values);
#pragma omp simd
                            for (int64_t i = 0; i < count; i++)
                                values[i] = ((values[i] == picked[i]) | !(factors[i] <= tau)) ? each[i] : 0.0f;
                            if (subsets.strided)
                                for (int64_t i = 0; i < count; i++) store(out[channels[0] + i], values[i]);
                            else
                                for (int64_t i = 0; i < count; i++) store(out[channels[i]], values[i]);
                        }
                    }
        }
}

}  // namespace

#define FUNCTIONS(T, NAME)                                                                                                              \
    extern "C" void forward_##NAME(const T* x, const float* p, const int64_t* order, T* y, int64_t B, int64_t C, int64_t K, int64_t P,  \
                                   int64_t first, int64_t longer, int64_t shorter, bool strided, bool innermost, bool least,            \
                                   float tau) {                                                                                         \
        const Subsets subsets{K, first, longer, shorter, strided, order};                                                               \
        const auto rows = least ? rows_forward<T, true> : rows_forward<T, false>;                                                       \
        const auto positions = least ? positions_forward<T, true> : positions_forward<T, false>;                                        \
        _Pragma("omp parallel")(innermost ? positions : rows)(x, p, subsets, y, B, C, P, tau);                                          \
    }                                                                                                                                   \
    extern "C" void sample_##NAME(const T* x, const T* theta, const T* beta, const int64_t* order, T* y, float* g, float* sums,         \
                                  float* p, int64_t B, int64_t C, int64_t K, int64_t P, int64_t parts, int64_t first, int64_t longer,   \
                                  int64_t shorter, bool strided, bool innermost, bool least, bool nonnegative, float tau) {             \
        const Subsets subsets{K, first, longer, shorter, strided, order};                                                               \
        const auto rows = least ? rows_forward<T, true> : rows_forward<T, false>;                                                       \
        const auto positions = least ? positions_forward<T, true> : positions_forward<T, false>;                                        \
        const auto average = nonnegative ? means<T, as_it_is> : means<T, magnitude>;                                                    \
        _Pragma("omp parallel") {                                                                                                       \
            average(x, g, sums, B, C, P, parts);                                                                                        \
            dense<T, sigmoid>(g, theta, beta, p, B, C, K);                                                                              \
            (innermost ? positions : rows)(x, p, subsets, y, B, C, P, tau);                                                             \
        }                                                                                                                               \
    }                                                                                                                                   \
    extern "C" void backward_##NAME(const T* gradient, const T* x, const float* p, const int64_t* order, T* dx, float* dp, int64_t B,   \
                                    int64_t C, int64_t K, int64_t P, int64_t first, int64_t longer, int64_t shorter, bool strided,      \
                                    bool innermost, bool least, float tau, int64_t parts) {                                             \
        const Subsets subsets{K, first, longer, shorter, strided, order};                                                               \
        const auto rows = least ? rows_backward<T, true> : rows_backward<T, false>;                                                     \
        const auto positions = least ? positions_backward<T, true> : positions_backward<T, false>;                                      \
        if (innermost)                                                                                                                  \
            positions(gradient, x, p, subsets, dx, dp, B, C, P, tau, parts);                                                            \
        else                                                                                                                            \
            rows(gradient, x, p, subsets, dx, dp, B, C, P, tau);                                                                        \
    }

FUNCTIONS(float, float32)
FUNCTIONS(bfloat16, bfloat16)
