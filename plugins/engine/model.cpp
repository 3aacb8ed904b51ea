#include "model.h"

#include "../runtime/bundle_files.h"
#include "../runtime/failure.h"

namespace ultramem::engine {

Model::Model(const std::string& directory, LoadEngine load)
    : manifest_(runtime::open_bundle(directory, "tensorrt", /*verify_all=*/false)) {
  runtime::require(manifest_.engine.has_value(), ULTRAMEM_CODE_DAMAGED,
                   directory + "/manifest.json: engine: expected a value; make the bundle again");
  engine_ = load(directory, manifest_);
  bind_tables(directory);
}

void Model::bind_tables(const std::string& directory) {
  const gpu_tables::Place place = gpu_tables::place_asked();
  for (const auto& [input, name] : info().bindings) {
    const runtime::Table& table = manifest_.table(name);
    const gpu_tables::Source source{directory + "/" + table.file, table.offset, table.bytes, table.fingerprint};
    tables_.push_back(gpu_tables::acquire(source, place));
    for (const Profile profile : {kPrefill, kDecode}) {
      // TensorRT takes addresses of inputs as of outputs; it writes to none of the former.
      engine_->bind(profile, input, const_cast<void*>(tables_.back()->data));
    }
  }
}

}  // namespace ultramem::engine
