// Text and token ids, by the C API of onnxruntime-extensions (Ortx*), loaded at run time.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ultramem::runtime {

struct OrtxApi;     // the library's functions
struct OrtxObject;  // any object of the library's

using Ids = std::vector<std::int64_t>;

class Tokenizer {
 public:
  // The tokenizer files in `directory`; `library` may be "": the environment variable, then the loader's search.
  // Throws Failure MISSING or DAMAGED. `chat_template` is a file in the directory, or "".
  Tokenizer(const std::string& library, const std::string& directory, const std::string& chat_template);
  ~Tokenizer();

  Ids encode(const std::string& text) const;
  Ids encode_chat(const std::string& messages) const;

  // What an id adds to the text; `state` (see make_state) holds the bytes of an unfinished character.
  std::string push(OrtxObject* state, std::int64_t id) const;
  OrtxObject* make_state() const;
  void free_state(OrtxObject* state) const;

 private:
  void check(int status, const std::string& what) const;

  std::unique_ptr<OrtxApi> api_;
  OrtxObject* tokenizer_ = nullptr;
  std::string chat_template_;
  mutable std::mutex mutex_;  // the library does not promise that one tokenizer serves several threads
};

}  // namespace ultramem::runtime
