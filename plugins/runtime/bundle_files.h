// What is checked of a bundle's files before anything is loaded.
#pragma once

#include <string>

#include "manifest.h"

namespace ultramem::runtime {

// Every file is there and has its size, small files have their hash (all of them with `verify_all`), and each table
// lies where the manifest says. Throws Failure MISSING or DAMAGED that names the file.
void check_files(const std::string& directory, const Manifest& manifest, bool verify_all);

// The manifest of the bundle in `directory`, whose files are as check_files wants them. Throws Failure VERSION besides,
// where it is for another runtime, or for operators of another version.
Manifest open_bundle(const std::string& directory, const std::string& runtime, bool verify_all);

}  // namespace ultramem::runtime
