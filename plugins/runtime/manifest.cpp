#include "manifest.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "failure.h"

namespace ultramem::runtime {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kMostNumbers = std::int64_t{1} << 48;

[[noreturn]] void damaged(const std::string& key, const std::string& expected) {
  fail(ULTRAMEM_CODE_DAMAGED, "manifest.json: " + key + ": expected " + expected + "; make the bundle again");
}

// One object of the document, with the way to it for messages.
class Object {
 public:
  Object(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
    if (!json_.is_object()) damaged(path_, "an object");
  }

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  const Json& at(const char* key) const {
    if (!has(key)) damaged(name(key), "a value");
    return json_.at(key);
  }

  Object object(const char* key) const { return {at(key), name(key)}; }

  std::string text(const char* key) const {
    if (!at(key).is_string()) damaged(name(key), "a string");
    return at(key).get<std::string>();
  }

  std::string text_or_empty(const char* key) const { return has(key) ? text(key) : ""; }

  bool flag(const char* key) const {
    if (!at(key).is_boolean()) damaged(name(key), "true or false");
    return at(key).get<bool>();
  }

  // A count: from `least` to 2^48, so that products of two small ones stay within 64 bits.
  std::int64_t number(const char* key, std::int64_t least = 0) const { return number_of(at(key), name(key), least); }

  std::vector<std::int64_t> numbers(const char* key) const {
    std::vector<std::int64_t> found;
    for (const Json& item : array(key)) found.push_back(number_of(item, name(key), 0));
    return found;
  }

  std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> found;
    for (const Json& item : array(key)) {
      if (!item.is_string()) damaged(name(key), "strings");
      found.push_back(item.get<std::string>());
    }
    return found;
  }

  const Json& array(const char* key) const {
    if (!at(key).is_array()) damaged(name(key), "a list");
    return at(key);
  }

  // A file's name: relative, inside the bundle.
  std::string file(const char* key) const { return inside(text(key), name(key)); }
  std::string file_or_empty(const char* key) const { return has(key) ? file(key) : ""; }

  static std::string inside(const std::string& file, const std::string& where) {
    std::istringstream parts("/" + file);
    std::string part;
    std::getline(parts, part, '/');
    bool good = !file.empty() && file.find('\\') == std::string::npos && file.find('\0') == std::string::npos;
    while (std::getline(parts, part, '/')) good = good && !part.empty() && part != "..";
    if (!good) damaged(where, "a relative path inside the bundle, found \"" + file + "\"");
    return file;
  }

  std::string name(const char* key) const { return path_.empty() ? key : path_ + "." + key; }

 private:
  static std::int64_t number_of(const Json& json, const std::string& where, std::int64_t least) {
    if (!json.is_number_integer()) damaged(where, "an integer");
    const bool large = json.is_number_unsigned() && json.get<std::uint64_t>() > kMostNumbers;
    if (large || json.get<std::int64_t>() < least) damaged(where, "a number from " + std::to_string(least));
    return json.get<std::int64_t>();
  }

  const Json& json_;
  std::string path_;
};

Table table_of(const Json& json) {
  const Object entry(json, "tables");
  Table table{entry.text("name"),     entry.file("file"),
              entry.text("dtype"),    entry.number("offset"),
              entry.number("bytes"),  entry.number("rows_per_token"),
              entry.numbers("shape"), entry.text_or_empty("fingerprint")};
  return table;
}

Plugin plugin_of(const Json& json) {
  const Object entry(json, "plugins");
  return {entry.file("file"), entry.text("host"), entry.text("platform"), entry.text("version")};
}

std::map<std::string, File> files_of(const Object& root) {
  std::map<std::string, File> files;
  for (const auto& [name, json] : root.at("files").items()) {
    const Object entry(json, "files." + name);
    files[Object::inside(name, "files")] = {entry.number("size"), entry.text("sha256")};
  }
  return files;
}

std::vector<CachePort> caches_of(const Object& engine) {
  std::vector<CachePort> caches;
  for (const Json& json : engine.array("caches")) {
    const Object entry(json, "engine.caches");
    caches.push_back({entry.text("input"), entry.text("output"), entry.number("heads", 1), entry.number("width", 1)});
  }
  return caches;
}

EngineInfo engine_of(const Object& engine) {
  EngineInfo found{};
  found.backend = engine.text("backend");
  found.version = engine.text("version");
  found.version_compatible = engine.flag("version_compatible");
  found.embeds_plugin = engine.flag("embeds_plugin");
  found.weight_streaming = engine.flag("weight_streaming");
  found.capabilities = engine.texts("capabilities");
  found.least_capability = engine.text_or_empty("least_capability");
  found.shortest = engine.number("shortest", 1);
  found.longest = engine.number("longest", found.shortest);
  found.context = engine.number("context", found.longest);
  found.cache_item_bytes = engine.number("cache_item_bytes", 1);
  found.caches = caches_of(engine);
  for (const auto& [input, json] : engine.at("bindings").items()) {
    if (!json.is_string()) damaged("engine.bindings", "strings");
    found.bindings[input] = json.get<std::string>();
  }
  return found;
}

void check_header(const Object& root) {
  if (root.text_or_empty("format") != "ultramem-bundle") damaged("format", "\"ultramem-bundle\"");
  const std::int64_t schema = root.number("schema", 1);
  require(schema <= kSchema, ULTRAMEM_CODE_VERSION,
          "manifest.json: schema " + std::to_string(schema) + ", this library reads up to " + std::to_string(kSchema) +
              ": install ultramem-deploy " + root.object("tool").text_or_empty("version") + " or newer");
}

Manifest manifest_of(const Object& root) {
  check_header(root);
  Manifest found{};
  const Object graph = root.object("graph"), decoder = root.object("model").object("decoder");
  const Object required = root.object("requires"), tokenizer = root.object("tokenizer");
  found.runtime = root.text("runtime");
  if (found.runtime == "onnxruntime") found.required_onnxruntime = required.text("onnxruntime");
  found.required_plugin = required.text("plugin");
  found.operators_version = required.object("operators").number("version");
  found.tool_version = root.object("tool").text("version");
  found.graph = graph.file("file");
  found.packed_cache = graph.text("cache") == "packed";
  found.uses_operators = graph.flag("uses_operators");
  found.positions = graph.number("positions", 1);
  found.prefill_chunk = graph.number("prefill_chunk", 1);
  found.vocab_size = decoder.number("vocab_size", 1);
  found.layers = decoder.number("num_layers", 1);
  found.kv_heads = decoder.number("num_kv_heads", 1);
  found.head_dim = decoder.number("head_dim", 1);
  if (root.object("model").has("tokens")) found.end_tokens = root.object("model").object("tokens").numbers("eos");
  found.tokenizer = tokenizer.file_or_empty("file");
  found.chat_template = tokenizer.file_or_empty("chat_template");
  for (const Json& table : root.array("tables")) found.tables.push_back(table_of(table));
  for (const Json& plugin : root.array("plugins")) found.plugins.push_back(plugin_of(plugin));
  found.files = files_of(root);
  for (const Table& table : found.tables) {
    if (found.files.count(table.file) == 0) damaged("tables", "a file that \"files\" lists, found " + table.file);
  }
  if (root.has("engine")) found.engine = engine_of(root.object("engine"));
  if (found.engine) {
    for (const auto& binding : found.engine->bindings) found.table(binding.second);
  }
  return found;
}

}  // namespace

const Table& Manifest::table(const std::string& name) const {
  for (const Table& known : tables) {
    if (known.name == name) return known;
  }
  damaged("engine.bindings", "tables that \"tables\" lists, found " + name);
}

Manifest parse_manifest(const std::string& text) {
  const Json document = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(!document.is_discarded(), ULTRAMEM_CODE_DAMAGED, "manifest.json: not JSON; copy the bundle again");
  return manifest_of(Object(document, ""));
}

Manifest read_manifest(const std::string& directory) {
  std::ifstream stream(directory + "/manifest.json", std::ios::binary);
  require(stream.good(), ULTRAMEM_CODE_MISSING,
          directory + ": holds no manifest.json: make a bundle with `ultramem-deploy bundle MODEL OUT`");
  std::ostringstream text;
  text << stream.rdbuf();
  return parse_manifest(text.str());
}

}  // namespace ultramem::runtime
