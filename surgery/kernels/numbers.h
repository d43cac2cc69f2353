// Numbers as kernels load, compute with and store them: always in single precision in between.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

struct bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float loaded;
    std::memcpy(&loaded, &bits, sizeof loaded);
    return loaded;
}

inline void store(float& place, float value) { place = value; }

// To the nearest number, to the even one of two that are as near, as torch rounds.
inline void store(bfloat16& place, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    place.bits = value == value ? rounded : static_cast<uint16_t>(0x7fc0);
}

// found[i] = row[places[i]], one after the other: instructions that fetch several at once are slower than that on many processors.
#if defined(__GNUC__) && !defined(__clang__)
#define ONE_BY_ONE __attribute__((noinline, optimize("no-tree-vectorize")))
#else
#define ONE_BY_ONE
#endif
template <class T, class Found>
ONE_BY_ONE void fetch(const T* __restrict row, const int32_t* __restrict places, int64_t count, Found* __restrict found) {
#ifdef __clang__
#pragma clang loop vectorize(disable)
#endif
    for (int64_t i = 0; i < count; i++) {
        if constexpr (std::is_same_v<Found, T>)
            found[i] = row[places[i]];
        else
            found[i] = load(row[places[i]]);
    }
}

// Positions that a loop over rows keeps in the nearest cache.
constexpr int64_t BLOCK = 512;
