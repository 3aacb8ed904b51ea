// What libFuzzer does, in small, for compilers without it: fuzz_readers EXECUTIONS SEED_FILE... changes the seeds'
// bytes at random and feeds them to the target. A crash is the sanitizers' to report.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::mt19937_64 random_bits(0);

std::size_t below(std::size_t limit) { return static_cast<std::size_t>(random_bits() % (limit == 0 ? 1 : limit)); }

// Pieces that readers stumble over.
const std::vector<std::string> kPieces = {
    "{",  "}",       "[",    "]",  "\"", "null", "-1", "1e999",   "18446744073709551615",
    "..", "\\u0000", "true", "\0", ":",  ",",    "/",  "{\"a\":", "9223372036854775807"};

void change(std::string& text) {
  switch (below(5)) {
    case 0:
      if (!text.empty()) text[below(text.size())] = static_cast<char>(random_bits());
      break;
    case 1:
      text.erase(below(text.size()), below(16));
      break;
    case 2:
      text.insert(below(text.size()), kPieces[below(kPieces.size())]);
      break;
    case 3: {
      const std::string part = text.substr(below(text.size()), below(64));
      text.insert(below(text.size()), part);
      break;
    }
    default:
      text.resize(below(text.size() + 1));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  std::vector<std::string> seeds;
  for (int i = 2; i < argc; ++i) {
    std::ostringstream text;
    text << std::ifstream(argv[i], std::ios::binary).rdbuf();
    seeds.push_back(text.str());
  }
  const long long executions = std::atoll(argv[1]);
  for (long long i = 0; i < executions; ++i) {
    std::string input = seeds[below(seeds.size())];
    for (std::size_t changes = 1 + below(4); changes-- > 0;) change(input);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
  }
  std::printf("%lld executions\n", executions);
}
