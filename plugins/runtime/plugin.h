// The library of ai.ultramem operators that ONNX Runtime runs.
#pragma once

#include <string>

#include "manifest.h"
#include "ort.h"

namespace ultramem::runtime {

// Registers the operators with a session to be made: those of the library `path`, or where that is "" of the bundle's
// own library for this platform, or of the one installed beside this library. Throws Failure MISSING, or VERSION where
// the library is older than the bundle requires, or not the one that the manifest describes.
void register_plugin(const Ort& ort, const Options& options, const std::string& directory, const Manifest& manifest,
                     const std::string& path);

}  // namespace ultramem::runtime
