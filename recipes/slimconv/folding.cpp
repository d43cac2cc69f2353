// fold_m(w * x) of SlimConv, Equation 2, for several orders of the weights at once: x is read once.
//
// x [B, C, P] and y [N, B, S, P], with S = C / m, lie with positions innermost, or with channels innermost where `innermost` is set.
// weights [B, N, C] are in single precision. Forward loops are shared among the threads of their caller's parallel region.

#include "numbers.h"
#include "pooled.h"

#include <algorithm>

namespace {

template <class T>
void rows_forward(const T* x, const float* w, T* y, int64_t B, int64_t C, int64_t S, int64_t N, int64_t P) {
#pragma omp for
    for (int64_t bs = 0; bs < B * S; bs++) {
        const int64_t b = bs / S, s = bs % S;
        for (int64_t begin = 0; begin < P; begin += BLOCK) {
            const int64_t count = std::min(BLOCK, P - begin);
            for (int64_t n = 0; n < N; n++) {
                float folded[BLOCK] = {};
                for (int64_t c = s; c < C; c += S) {
                    const T* row = x + (b * C + c) * P + begin;
                    const float weight = w[(b * N + n) * C + c];
                    for (int64_t i = 0; i < count; i++) folded[i] += weight * load(row[i]);
                }
                T* out = y + ((n * B + b) * S + s) * P + begin;
                for (int64_t i = 0; i < count; i++) store(out[i], folded[i]);
            }
        }
    }
}

template <class T>
void positions_forward(const T* x, const float* w, T* y, int64_t B, int64_t C, int64_t S, int64_t N, int64_t P) {
#pragma omp for
    for (int64_t bp = 0; bp < B * P; bp++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t begin = 0; begin < S; begin += BLOCK) {
                const int64_t count = std::min(BLOCK, S - begin);
                float folded[BLOCK] = {};
                for (int64_t c = begin; c < C; c += S) {
                    const T* row = x + bp * C + c;
                    const float* weights = w + ((bp / P) * N + n) * C + c;
                    for (int64_t i = 0; i < count; i++) folded[i] += weights[i] * load(row[i]);
                }
                T* out = y + (n * B * P + bp) * S + begin;
                for (int64_t i = 0; i < count; i++) store(out[i], folded[i]);
            }
}

// One number a channel, as each path takes them: w [B, N, C] from attention [B, C].
void in_orders(const float* attention, const int64_t* orders, float* w, int64_t B, int64_t C, int64_t N) {
#pragma omp for collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = 0; c < C; c++) w[(b * N + n) * C + c] = attention[b * C + orders[n * C + c]];
}

template <class T>
void rows_backward(const T* gradient, const T* x, const float* w, T* dx, float* dw, int64_t B, int64_t C, int64_t S, int64_t N, int64_t P) {
#pragma omp parallel for
    for (int64_t bc = 0; bc < B * C; bc++) {
        const int64_t b = bc / C, c = bc % C;
        for (int64_t n = 0; n < N; n++) dw[(b * N + n) * C + c] = 0.0f;
        for (int64_t begin = 0; begin < P; begin += BLOCK) {
            const int64_t count = std::min(BLOCK, P - begin);
            float spread[BLOCK] = {};
            for (int64_t n = 0; n < N; n++) {
                const T* row = x + bc * P + begin;
                const T* from = gradient + ((n * B + b) * S + c % S) * P + begin;
                const float weight = w[(b * N + n) * C + c];
                float received = 0.0f;
#pragma omp simd reduction(+ : received)
                for (int64_t i = 0; i < count; i++) {
                    const float g = load(from[i]);
                    spread[i] += weight * g;
                    received += g * load(row[i]);
                }
                dw[(b * N + n) * C + c] += received;
            }
            T* out = dx + bc * P + begin;
            for (int64_t i = 0; i < count; i++) store(out[i], spread[i]);
        }
    }
}

// What weights receive is summed over `parts` runs of positions of each image: the sums do not depend on the number of threads.
template <class T>
void positions_backward(const T* gradient, const T* x, const float* w, T* dx, float* dw, int64_t B, int64_t C, int64_t S, int64_t N,
                        int64_t P, int64_t parts) {
    const int64_t run = (P + parts - 1) / parts;
#pragma omp parallel for collapse(2)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t b = 0; b < B; b++) {
            float* sums = dw + (part * B + b) * N * C;
            std::fill(sums, sums + N * C, 0.0f);
            for (int64_t at = b * P + part * run; at < b * P + std::min(P, (part + 1) * run); at++)
                for (int64_t c = 0; c < C; c += S)
                    for (int64_t begin = 0; begin < S; begin += BLOCK) {
                        const int64_t count = std::min(BLOCK, S - begin);
                        float spread[BLOCK] = {};
                        const T* __restrict row = x + at * C + c + begin;
                        for (int64_t n = 0; n < N; n++) {
                            const T* __restrict from = gradient + (n * B * P + at) * S + begin;
                            const float* __restrict weights = w + (b * N + n) * C + c + begin;
                            float* __restrict received = sums + n * C + c + begin;
                            for (int64_t i = 0; i < count; i++) {
                                const float g = load(from[i]);
                                spread[i] += weights[i] * g;
                                received[i] += g * load(row[i]);
                            }
                        }
                        T* out = dx + at * C + c + begin;
                        for (int64_t i = 0; i < count; i++) store(out[i], spread[i]);
                    }
        }
}

}  // namespace

#define FUNCTIONS(T, NAME)                                                                                                             \
    extern "C" void forward_##NAME(const T* x, const float* w, T* y, int64_t B, int64_t C, int64_t S, int64_t N, int64_t P,            \
                                   bool innermost) {                                                                                   \
        _Pragma("omp parallel")(innermost ? positions_forward<T> : rows_forward<T>)(x, w, y, B, C, S, N, P);                           \
    }                                                                                                                                  \
    extern "C" void attend_##NAME(const T* x, const T* squeeze, const T* squeeze_bias, const T* excite, const T* excite_bias,          \
                                  const int64_t* orders, T* y, float* g, float* sums, float* hidden, float* attention, float* w,       \
                                  int64_t B, int64_t C, int64_t S, int64_t N, int64_t P, int64_t H, int64_t parts, bool innermost) {   \
        _Pragma("omp parallel") {                                                                                                      \
            means<T, as_it_is>(x, g, sums, B, C, P, parts);                                                                            \
            dense<T, rectified>(g, squeeze, squeeze_bias, hidden, B, C, H);                                                            \
            dense<T, sigmoid>(hidden, excite, excite_bias, attention, B, H, C);                                                        \
            in_orders(attention, orders, w, B, C, N);                                                                                  \
            (innermost ? positions_forward<T> : rows_forward<T>)(x, w, y, B, C, S, N, P);                                              \
        }                                                                                                                              \
    }                                                                                                                                  \
    extern "C" void backward_##NAME(const T* gradient, const T* x, const float* w, T* dx, float* dw, int64_t B, int64_t C, int64_t S,  \
                                    int64_t N, int64_t P, bool innermost, int64_t parts) {                                             \
        if (innermost)                                                                                                                 \
            positions_backward<T>(gradient, x, w, dx, dw, B, C, S, N, P, parts);                                                       \
        else                                                                                                                           \
            rows_backward<T>(gradient, x, w, dx, dw, B, C, S, N, P);                                                                   \
    }

FUNCTIONS(float, float32)
FUNCTIONS(bfloat16, bfloat16)
