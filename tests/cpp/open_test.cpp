// Opening a bundle: every way it can fail, each an error with what to do.
#include <cstdlib>
#include <ultramem/ultramem.hpp>

#include "check.h"
#include "places.h"

using places::Copy;
using ultramem::Model;
using ultramem::ModelOptions;

namespace {

ModelOptions with_runtime(const char* path) {
  ModelOptions options;
  options.onnxruntime = path;
  return options;
}

}  // namespace

TEST(a_bundle_opens_wherever_it_is_moved) {
  const Copy copy;
  const std::string moved = places::scratch + "/moved elsewhere";
  std::filesystem::remove_all(moved);
  std::filesystem::rename(copy.path(), moved);
  auto model = Model::open(moved);
  CHECK(model);
  if (!model) return;
  const UltramemModelInfo info = model->info();
  CHECK(info.vocab_size == 61 && info.positions == 512 && info.table_bytes > 0 && info.table_bytes_per_token > 0);
  CHECK(info.has_tokenizer == (info.tokenizer_problem == nullptr));
}

TEST(no_bundle) {
  CHECK_ERROR(Model::open(places::scratch + "/nothing"), ULTRAMEM_CODE_MISSING, "holds no manifest.json");
  const Copy copy;
  places::write(copy / "manifest.json", "not JSON");
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_DAMAGED, "not JSON");
}

TEST(newer_schema) {
  const Copy copy;
  auto manifest = copy.manifest();
  manifest["schema"] = 2;
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_VERSION, "schema 2, this library reads up to 1");
}

TEST(wrong_plugin_version) {
  const Copy copy;
  auto manifest = copy.manifest();
  manifest["requires"]["plugin"] = "99.1";
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_VERSION, "the bundle requires 99.1 or newer");
  manifest["requires"]["plugin"] = "0.0.1";
  manifest["plugins"][0]["version"] = "0.0.9";
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_VERSION, "the manifest says 0.0.9");
}

TEST(other_operators_or_runtime) {
  const Copy copy;
  auto manifest = copy.manifest();
  manifest["requires"]["operators"]["version"] = 2;
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_VERSION, "operators of version 2");
  manifest["runtime"] = "tensorrt";
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_VERSION, "a bundle for tensorrt");
}

TEST(truncated_table) {
  const Copy copy;
  const auto table = copy / copy.manifest()["tables"][0]["file"].get<std::string>();
  std::filesystem::resize_file(table, std::filesystem::file_size(table) - 8);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_DAMAGED, "bytes, the manifest says");
  auto manifest = copy.manifest();
  manifest["files"][table.filename().string()]["size"] = std::filesystem::file_size(table);
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_DAMAGED, "the file is truncated");
  std::filesystem::remove(table);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_MISSING, "is missing");
}

TEST(table_elsewhere) {
  for (const char* key : {"offset", "bytes"}) {
    const Copy copy;
    auto manifest = copy.manifest();
    manifest["tables"][0][key] = manifest["tables"][0][key].get<int>() + 4;
    copy.set(manifest);
    CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_DAMAGED, "is not where and what the manifest says");
  }
}

TEST(wrong_hash) {
  const Copy copy;
  for (const char* name : {"model.onnx", "tokenizer.json", "libultramem_ort.so"}) {
    std::string text = places::text_of(copy / name);
    text.back() = static_cast<char>(text.back() ^ 1);
    places::write(copy / name, text);
    CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_DAMAGED, "the file changed");
    text.back() = static_cast<char>(text.back() ^ 1);
    places::write(copy / name, text);
  }
  CHECK(Model::open(copy.path()));
}

TEST(hashes_of_large_files_on_demand) {
  const Copy copy;
  places::write(copy / "large.bin", std::string(17 << 20, 'x'));
  auto manifest = copy.manifest();
  manifest["files"]["large.bin"] = {{"size", 17 << 20}, {"sha256", std::string(64, '0')}};
  copy.set(manifest);
  CHECK(Model::open(copy.path()));
  ModelOptions options;
  options.verify_all = 1;
  CHECK_ERROR(Model::open(copy.path(), options), ULTRAMEM_CODE_DAMAGED, "large.bin: SHA-256");
}

TEST(missing_onnxruntime) {
  const ModelOptions options = with_runtime("/nowhere/libonnxruntime.so");
  CHECK_ERROR(Model::open(places::bundle, options), ULTRAMEM_CODE_MISSING, "pip install onnxruntime");
  CHECK_ERROR(Model::open(places::bundle, with_runtime("libm.so.6")), ULTRAMEM_CODE_VERSION, "OrtGetApiBase");
}

TEST(old_onnxruntime) {
  setenv("STUB_ORT_VERSION", "1.10.0", 1);
  CHECK_ERROR(Model::open(places::bundle, with_runtime(std::getenv("STUB_ORT"))), ULTRAMEM_CODE_VERSION,
              "ONNX Runtime 1.10.0, the bundle requires 1.20 or newer");
  unsetenv("STUB_ORT_VERSION");
  const Copy copy;
  auto manifest = copy.manifest();
  manifest["requires"]["onnxruntime"] = "99";
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_VERSION, "the bundle requires 99 or newer");
}

TEST(missing_plugin) {
  ModelOptions options;
  options.plugin = "/nowhere/libultramem_ort.so";
  CHECK_ERROR(Model::open(places::bundle, options), ULTRAMEM_CODE_MISSING, "--with-plugins");
}

TEST(missing_tokenizer) {
  ModelOptions options;
  options.tokenizer = "/nowhere/libortextensions.so";
  auto model = Model::open(places::bundle, options);
  CHECK(model);
  if (!model) return;
  CHECK(model->info().has_tokenizer == 0);
  CHECK_ERROR(model->encode("a"), ULTRAMEM_CODE_MISSING, "or pass token ids");
  CHECK_ERROR(model->text(), ULTRAMEM_CODE_MISSING, "or pass token ids");
}

TEST(a_graph_that_the_runtime_refuses) {
  const Copy copy;
  auto manifest = copy.manifest();
  places::write(copy / "model.onnx", "not a model");
  manifest["files"].erase("model.onnx");
  copy.set(manifest);
  CHECK_ERROR(Model::open(copy.path()), ULTRAMEM_CODE_RUNTIME, "model.onnx: ONNX Runtime");
}

TEST(tables_of_every_mode) {
  for (const char* mode : {"auto", "resident", "mapped"}) {
    ModelOptions options;
    options.tables = mode;
    CHECK(Model::open(places::bundle, options));
  }
}

TEST(bad_options) {
  ModelOptions options;
  options.threads = -1;
  CHECK_ERROR(Model::open(places::bundle, options), ULTRAMEM_CODE_INVALID, "threads: expected 0 or more, found -1");
  ModelOptions nowhere;
  nowhere.tables = "elsewhere";
  CHECK_ERROR(Model::open(places::bundle, nowhere), ULTRAMEM_CODE_INVALID,
              "tables: expected auto, resident or mapped, found elsewhere");
  UltramemModel* model = nullptr;
  UltramemError* error = ultramem_model_open(nullptr, nullptr, &model);
  CHECK(error != nullptr && ultramem_error_code(error) == ULTRAMEM_CODE_INVALID && model == nullptr);
  ultramem_error_free(error);
}
