#include "sha256.h"

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "failure.h"

namespace ultramem::runtime {
namespace {

constexpr std::size_t kBlock = 64;

constexpr std::array<std::uint32_t, 64> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotate(std::uint32_t value, int by) { return (value >> by) | (value << (32 - by)); }

struct State {
  std::array<std::uint32_t, 8> h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

  // One block, FIPS 180-4 section 6.2.2.
  void take(const unsigned char* block) {
    std::array<std::uint32_t, 64> w;
    for (std::size_t t = 0; t < 16; ++t) {
      const unsigned char* p = block + 4 * t;
      w[t] = std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | p[3];
    }
    for (std::size_t t = 16; t < 64; ++t) {
      const std::uint32_t low = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ (w[t - 15] >> 3);
      const std::uint32_t high = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ (w[t - 2] >> 10);
      w[t] = w[t - 16] + low + w[t - 7] + high;
    }
    auto [a, b, c, d, e, f, g, i] = h;
    for (std::size_t t = 0; t < 64; ++t) {
      const std::uint32_t one =
          i + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + kRound[t] + w[t];
      const std::uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      i = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    const std::array<std::uint32_t, 8> add = {a, b, c, d, e, f, g, i};
    for (std::size_t n = 0; n < 8; ++n) h[n] += add[n];
  }

  // The last bytes: a one bit, zeros, the length in bits.
  void finish(const unsigned char* rest, std::size_t count, std::uint64_t total) {
    std::array<unsigned char, 2 * kBlock> last{};
    std::copy(rest, rest + count, last.begin());
    last[count] = 0x80;
    const std::size_t size = count + 9 <= kBlock ? kBlock : 2 * kBlock;
    for (std::size_t n = 0; n < 8; ++n) last[size - 1 - n] = static_cast<unsigned char>(total * 8 >> 8 * n);
    for (std::size_t at = 0; at < size; at += kBlock) take(last.data() + at);
  }

  std::string hex() const {
    std::string text;
    for (const std::uint32_t word : h) {
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    }
    return text;
  }
};

}  // namespace

std::string sha256_bytes(const void* data, std::size_t count) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  const std::size_t whole = count / kBlock * kBlock;
  State state;
  for (std::size_t at = 0; at < whole; at += kBlock) state.take(bytes + at);
  state.finish(bytes + whole, count - whole, count);
  return state.hex();
}

std::string sha256_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  require(file != nullptr, ULTRAMEM_CODE_MISSING, path + ": cannot be opened; copy the whole bundle");
  std::vector<unsigned char> buffer(std::size_t{1} << 20);
  State state;
  std::uint64_t total = 0;
  for (;;) {
    const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), file.get());
    total += count;
    const std::size_t whole = count / kBlock * kBlock;
    for (std::size_t at = 0; at < whole; at += kBlock) state.take(buffer.data() + at);
    if (count < buffer.size()) {
      require(std::ferror(file.get()) == 0, ULTRAMEM_CODE_MISSING, path + ": cannot be read");
      state.finish(buffer.data() + whole, count - whole, total);
      return state.hex();
    }
  }
}

}  // namespace ultramem::runtime
