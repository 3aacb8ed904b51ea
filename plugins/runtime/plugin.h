// The library of ai.ultramem operators that ONNX Runtime runs.
#pragma once

#include <string>

#include "manifest.h"
#include "ort.h"
#include "shared_library.h"

namespace ultramem::runtime {

// The library `name` of the operators for `host`: `path`, or where that is "" the bundle's own for this platform, or
// the one installed beside this library. Throws Failure MISSING, or VERSION where it is older than the bundle requires,
// or not the one that the manifest describes.
SharedLibrary open_operators(const std::string& host, const std::string& name, const std::string& directory,
                             const Manifest& manifest, const std::string& path);

// Registers the operators with a session to be made; which library and what is thrown as for open_operators.
void register_plugin(const Ort& ort, const Options& options, const std::string& directory, const Manifest& manifest,
                     const std::string& path);

}  // namespace ultramem::runtime
