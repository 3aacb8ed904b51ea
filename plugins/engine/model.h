// A bundle whose graph is a TensorRT engine, opened: files checked, the engine loaded, its tables in place.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../gpu_tables/tables.h"
#include "../runtime/manifest.h"
#include "engine.h"

namespace ultramem::engine {

using LoadEngine = std::unique_ptr<Engine> (*)(const std::string& directory, const runtime::Manifest& manifest);

class Model {
 public:
  // Tables are shared with every other model of the process; ULTRAMEM_GPU_TABLES says where they go. Throws Failure.
  explicit Model(const std::string& directory, LoadEngine load = load_engine);

  const runtime::Manifest& manifest() const { return manifest_; }
  const runtime::EngineInfo& info() const { return *manifest_.engine; }
  Engine& engine() const { return *engine_; }

 private:
  void bind_tables(const std::string& directory);

  runtime::Manifest manifest_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::shared_ptr<const gpu_tables::Resident>> tables_;
};

}  // namespace ultramem::engine
