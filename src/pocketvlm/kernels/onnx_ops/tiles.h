// Tile registers (AMX): what int8 products need of them, and the same in plain C++ for tests on other processors.
//
// POCKETVLM_TILES chooses when this is compiled: 0 none, 1 the instructions, 2 the plain twin.
#pragma once

#include <cstdint>
#include <cstring>

#if POCKETVLM_TILES == 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pocketvlm::tiles {

constexpr int kRows = 16, kBytes = 64;  // of a register

#if POCKETVLM_TILES == 1

// All eight registers as 16 rows of 64 bytes. Each thread configures its own.
struct alignas(64) Configuration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Whether the processor has tiles and the kernel lets this process use them.
inline bool granted() {
  static const bool is_granted = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
    return (d & kTile) && (d & kInt8) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return is_granted;
}

// As text with a clobber: GCC 12 drops stores to a configuration that only its own function for this reads.
inline void begin() {
  static const Configuration configuration;
  __asm__ volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
}

inline void end() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int kTile>
void load(const void* at, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride), "i"(kTile) : "memory");
}

// What is read once: the first-level cache keeps what it has.
template <int kTile>
void load_once(const void* at, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
void store(void* at, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
void clear() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// sums int32 [16, 16] += left int8 [16, 64] times right uint8 [16, 16, 4]: four inputs of 16 outputs a row.
template <int kSums, int kLeft, int kRight>
void dot() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}

// The same, both with sign.
template <int kSums, int kLeft, int kRight>
void dot_signed() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}

#elif POCKETVLM_TILES == 2

inline thread_local uint8_t registers[8][kRows][kBytes];

inline bool granted() { return true; }
inline void begin() {}
inline void end() {}

template <int kTile>
void load(const void* at, int64_t stride) {
  for (int row = 0; row < kRows; ++row)
    std::memcpy(registers[kTile][row], static_cast<const char*>(at) + row * stride, kBytes);
}

template <int kTile>
void load_once(const void* at, int64_t stride) {
  load<kTile>(at, stride);
}

template <int kTile>
void store(void* at, int64_t stride) {
  for (int row = 0; row < kRows; ++row)
    std::memcpy(static_cast<char*>(at) + row * stride, registers[kTile][row], kBytes);
}

template <int kTile>
void clear() {
  std::memset(registers[kTile], 0, sizeof(registers[kTile]));
}

template <int kSums, int kLeft, int kRight, typename Right = uint8_t>
void dot() {
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kBytes / 4; ++column) {
      int32_t sum;
      std::memcpy(&sum, registers[kSums][row] + 4 * column, 4);
      for (int k = 0; k < kBytes; ++k)
        sum += static_cast<int8_t>(registers[kLeft][row][k]) *
               static_cast<Right>(registers[kRight][k / 4][4 * column + k % 4]);
      std::memcpy(registers[kSums][row] + 4 * column, &sum, 4);
    }
}

template <int kSums, int kLeft, int kRight>
void dot_signed() {
  dot<kSums, kLeft, kRight, int8_t>();
}

#endif

}  // namespace pocketvlm::tiles
