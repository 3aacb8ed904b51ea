#include "tokenizer.h"

#include <fstream>
#include <sstream>

#include "failure.h"
#include "shared_library.h"

namespace ultramem::runtime {
namespace {

constexpr const char* kFix =
    "give the path of libortextensions.so in the options or in ULTRAMEM_TOKENIZER, or pass token ids";
constexpr int kDetokenizerCache = 0x778B;  // OrtxObjectKind of the public ortx_utils.h

SharedLibrary open_library(const std::string& path) {
  if (!path.empty()) return SharedLibrary::open("tokenizer", {path}, kFix);
  if (const std::string named = environment("ULTRAMEM_TOKENIZER"); !named.empty()) {
    return SharedLibrary::open("tokenizer", {named}, kFix);
  }
  return SharedLibrary::open("tokenizer", {"libortextensions.so"}, kFix);
}

std::string text_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

}  // namespace

// Signatures as in the public ortx_tokenizer.h and ortx_utils.h; a status of 0 is success.
struct OrtxApi {
  explicit OrtxApi(const SharedLibrary& library)
      : last_error(library.function<const char*()>("OrtxGetLastErrorMessage")),
        create(library.function<int(int, OrtxObject**, ...)>("OrtxCreate")),
        dispose(library.function<int(OrtxObject**)>("OrtxDispose")),
        create_tokenizer(library.function<int(OrtxObject**, const char*)>("OrtxCreateTokenizer")),
        tokenize(
            library.function<int(const OrtxObject*, const char**, std::size_t, OrtxObject**, bool)>("OrtxTokenize")),
        ids(library.function<int(const OrtxObject*, std::size_t, const std::uint32_t**, std::size_t*)>(
            "OrtxTokenId2DArrayGetItem")),
        piece(
            library.function<int(const OrtxObject*, OrtxObject*, std::uint32_t, const char**)>("OrtxDetokenizeCached")),
        chat(library.function<int(const OrtxObject*, const char*, const char*, const char*, OrtxObject**, bool, bool)>(
            "OrtxApplyChatTemplate")),
        result(library.function<int(OrtxObject*, std::size_t, OrtxObject**)>("OrtxTensorResultGetAt")),
        data(
            library.function<int(OrtxObject*, const void**, const std::int64_t**, std::size_t*)>("OrtxGetTensorData")) {
  }

  const char* (*last_error)();
  int (*create)(int, OrtxObject**, ...);
  int (*dispose)(OrtxObject**);
  int (*create_tokenizer)(OrtxObject**, const char*);
  int (*tokenize)(const OrtxObject*, const char**, std::size_t, OrtxObject**, bool);
  int (*ids)(const OrtxObject*, std::size_t, const std::uint32_t**, std::size_t*);
  int (*piece)(const OrtxObject*, OrtxObject*, std::uint32_t, const char**);
  int (*chat)(const OrtxObject*, const char*, const char*, const char*, OrtxObject**, bool, bool);
  int (*result)(OrtxObject*, std::size_t, OrtxObject**);
  int (*data)(OrtxObject*, const void**, const std::int64_t**, std::size_t*);
};

namespace {

struct Owned {
  const OrtxApi& api;
  OrtxObject* object = nullptr;
  ~Owned() {
    if (object != nullptr) api.dispose(&object);
  }
};

}  // namespace

Tokenizer::Tokenizer(const std::string& library, const std::string& directory, const std::string& chat_template)
    : api_(std::make_unique<OrtxApi>(open_library(library))) {
  check(api_->create_tokenizer(&tokenizer_, directory.c_str()), directory + ": its tokenizer");
  if (!chat_template.empty()) chat_template_ = text_of(directory + "/" + chat_template);
}

Tokenizer::~Tokenizer() { api_->dispose(&tokenizer_); }

void Tokenizer::check(int status, const std::string& what) const {
  if (status != 0) fail(ULTRAMEM_CODE_DAMAGED, what + ": onnxruntime-extensions: " + api_->last_error());
}

Ids Tokenizer::encode(const std::string& text) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const char* texts[] = {text.c_str()};
  Owned found{*api_};
  check(api_->tokenize(tokenizer_, texts, 1, &found.object, false), "text");
  const std::uint32_t* ids = nullptr;
  std::size_t count = 0;
  check(api_->ids(found.object, 0, &ids, &count), "text");
  return {ids, ids + count};
}

Ids Tokenizer::encode_chat(const std::string& messages) const {
  require(!chat_template_.empty(), ULTRAMEM_CODE_MISSING, "the bundle has no chat template: encode plain text");
  std::string text;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Owned found{*api_}, tensor{*api_};
    check(api_->chat(tokenizer_, chat_template_.c_str(), messages.c_str(), nullptr, &found.object, true, false),
          "messages");
    check(api_->result(found.object, 0, &tensor.object), "messages");
    const void* data = nullptr;
    const std::int64_t* shape = nullptr;
    std::size_t rank = 0;
    check(api_->data(tensor.object, &data, &shape, &rank), "messages");
    text = static_cast<const char*>(data);
  }
  return encode(text);
}

std::string Tokenizer::push(OrtxObject* state, std::int64_t id) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const char* piece = "";
  check(api_->piece(tokenizer_, state, static_cast<std::uint32_t>(id), &piece), "token " + std::to_string(id));
  return piece;
}

OrtxObject* Tokenizer::make_state() const {
  OrtxObject* state = nullptr;
  check(api_->create(kDetokenizerCache, &state), "text");
  return state;
}

void Tokenizer::free_state(OrtxObject* state) const { api_->dispose(&state); }

}  // namespace ultramem::runtime
