#include "bundle_files.h"

#include <filesystem>

#include "failure.h"
#include "safetensors.h"
#include "sha256.h"

namespace ultramem::runtime {
namespace {

constexpr std::int64_t kOperators = 1;     // the version of ai.ultramem that this library's plugins have
constexpr std::int64_t kSmall = 16 << 20;  // hashed whenever a bundle is opened: a fraction of a second in all

void check_sizes(const std::string& directory, const Manifest& manifest) {
  for (const auto& [name, file] : manifest.files) {
    std::error_code error;
    const auto size = std::filesystem::file_size(directory + "/" + name, error);
    require(!error, ULTRAMEM_CODE_MISSING, directory + ": " + name + " is missing; copy the whole bundle");
    require(static_cast<std::int64_t>(size) == file.size, ULTRAMEM_CODE_DAMAGED,
            directory + ": " + name + ": " + std::to_string(size) + " bytes, the manifest says " +
                std::to_string(file.size) + "; copy the file again");
  }
}

void check_hashes(const std::string& directory, const Manifest& manifest, bool all) {
  for (const auto& [name, file] : manifest.files) {
    if (!all && file.size > kSmall) continue;
    const std::string found = sha256_file(directory + "/" + name);
    require(found == file.sha256, ULTRAMEM_CODE_DAMAGED,
            directory + ": " + name + ": SHA-256 " + found.substr(0, 12) + ", the manifest says " +
                file.sha256.substr(0, 12) + ": the file changed; copy it again, or make the bundle again");
  }
}

void check_tables(const std::string& directory, const Manifest& manifest) {
  std::map<std::string, std::map<std::string, Tensor>> headers;
  for (const Table& table : manifest.tables) {
    if (headers.count(table.file) == 0) headers[table.file] = read_safetensors(directory + "/" + table.file);
    const auto& tensors = headers[table.file];
    const auto found = tensors.find(table.name);
    const bool same = found != tensors.end() && found->second.offset == table.offset &&
                      found->second.bytes == table.bytes && found->second.dtype == table.dtype &&
                      found->second.shape == table.shape;
    require(same, ULTRAMEM_CODE_DAMAGED,
            directory + ": " + table.file + ": table " + table.name +
                " is not where and what the manifest says; make the bundle again");
  }
}

}  // namespace

void check_files(const std::string& directory, const Manifest& manifest, bool verify_all) {
  check_sizes(directory, manifest);
  check_tables(directory, manifest);
  check_hashes(directory, manifest, verify_all);
}

Manifest open_bundle(const std::string& directory, const std::string& runtime, bool verify_all) {
  Manifest manifest = read_manifest(directory);
  require(manifest.runtime == runtime, ULTRAMEM_CODE_VERSION,
          directory + ": a bundle for " + manifest.runtime + ", this runs " + runtime +
              ": bundle again with --runtime " + runtime);
  require(manifest.operators_version == kOperators, ULTRAMEM_CODE_VERSION,
          directory + ": operators of version " + std::to_string(manifest.operators_version) +
              ", this library has version " + std::to_string(kOperators) + ": install ultramem-deploy " +
              manifest.tool_version);
  check_files(directory, manifest, verify_all);
  return manifest;
}

}  // namespace ultramem::runtime
