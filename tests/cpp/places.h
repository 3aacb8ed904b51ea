// What the tests were given.
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

namespace places {

extern std::string bundle, portable, scratch;

inline std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

inline void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::remove(path);  // a library of that name may be mapped into this process
  std::ofstream(path, std::ios::binary) << text;
}

// A bundle of one's own, to be damaged.
class Copy {
 public:
  explicit Copy(const std::string& of = bundle) : path_(std::filesystem::path(scratch) / "copy") {
    std::filesystem::remove_all(path_);
    std::filesystem::copy(of, path_);
  }
  std::string path() const { return path_.string(); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  nlohmann::json manifest() const { return nlohmann::json::parse(text_of(path_ / "manifest.json")); }
  void set(const nlohmann::json& manifest) const { write(path_ / "manifest.json", manifest.dump()); }

 private:
  std::filesystem::path path_;
};

}  // namespace places
