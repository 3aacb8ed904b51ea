#include "plugin.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "failure.h"
#include "version.h"

namespace ultramem::runtime {
namespace {

// As Python's platform.system() and machine() spell it.
std::string this_platform() {
  utsname machine{};
  uname(&machine);
  std::string name = std::string(machine.sysname) + "-" + machine.machine;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

const Plugin* bundled(const Manifest& manifest, const std::string& host) {
  const std::string platform = this_platform();
  for (const Plugin& plugin : manifest.plugins) {
    if (plugin.host == host && plugin.platform == platform) return &plugin;
  }
  return nullptr;
}

void check_version(const SharedLibrary& library, const Manifest& manifest, const Plugin* described) {
  const std::string version = library.function<const char*()>("ultramem_version")();
  require(at_least(version, manifest.required_plugin), ULTRAMEM_CODE_VERSION,
          library.name() + ": version " + version + ", the bundle requires " + manifest.required_plugin +
              " or newer: install ultramem-deploy " + manifest.tool_version + ", or bundle again with --with-plugins");
  require(described == nullptr || described->version == version, ULTRAMEM_CODE_VERSION,
          library.name() + ": version " + version + ", the manifest says " + (described ? described->version : "") +
              ": make the bundle again");
}

}  // namespace

SharedLibrary open_operators(const std::string& host, const std::string& name, const std::string& directory,
                             const Manifest& manifest, const std::string& path) {
  const Plugin* own = path.empty() ? bundled(manifest, host) : nullptr;
  std::vector<std::string> places = {path};
  // The loader searches for a bare name, so that a relative path of the bundle would not do.
  if (own != nullptr) places = {std::filesystem::absolute(directory + "/" + own->file).string()};
  // A program that holds this library lies in bin/.
  if (path.empty() && own == nullptr) places = {own_directory() + "/" + name, own_directory() + "/../lib/" + name};
  const SharedLibrary library = SharedLibrary::open(
      "operator library", places,
      "bundle again with --with-plugins on this kind of machine, or give the path of " + name + " in the options");
  check_version(library, manifest, own);
  return library;
}

void register_plugin(const Ort& ort, const Options& options, const std::string& directory, const Manifest& manifest,
                     const std::string& path) {
  const SharedLibrary library = open_operators("onnxruntime", "libultramem_ort.so", directory, manifest, path);
  using Register = OrtStatus*(OrtSessionOptions*, const OrtApiBase*);
  ort.check(library.function<Register>("RegisterCustomOps")(options.get(), ort.base()), library.name());
}

}  // namespace ultramem::runtime
