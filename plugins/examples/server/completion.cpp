#include "completion.h"

#include <algorithm>

using nlohmann::json;

namespace {

// A field of the body, or `otherwise` where it is missing or null.
template <typename T>
T field(const json& body, const char* name, T otherwise) {
  if (!body.contains(name) || body[name].is_null()) return otherwise;
  try {
    return body[name].get<T>();
  } catch (const json::exception&) {
    throw BadRequest{std::string(name) + ": is not of the type that it should be, found " + body[name].dump()};
  }
}

ultramem::Ids encoded(const ultramem::Model& model, const json& body, bool chat) {
  const char* name = chat ? "messages" : "prompt";
  if (!body.contains(name)) throw BadRequest{std::string(name) + ": is missing"};
  const json& given = body[name];
  if (!chat && given.is_array()) return field<ultramem::Ids>(body, name, {});
  if (!chat && !given.is_string()) throw BadRequest{"prompt: expected text or a list of token ids"};
  auto ids = chat ? model.encode_chat(given.dump()) : model.encode(given.get<std::string>());
  if (!ids) throw BadRequest{ids.error().message()};
  return *ids;
}

std::vector<std::string> stops(const json& body) {
  const bool one = body.contains("stop") && body["stop"].is_string();
  auto found = one ? std::vector<std::string>{body["stop"].get<std::string>()}
                   : field<std::vector<std::string>>(body, "stop", {});
  found.erase(std::remove(found.begin(), found.end(), ""), found.end());
  return found;
}

}  // namespace

Request read_request(const ultramem::Model& model, const std::string& text, bool chat) {
  const json body = json::parse(text, nullptr, false);
  if (!body.is_object()) throw BadRequest{"the body is not a JSON object"};
  Request request;
  request.options.max_new_tokens = field<std::int64_t>(body, "max_tokens", 128);
  request.options.temperature = field<float>(body, "temperature", 1);
  request.options.top_p = field<float>(body, "top_p", 1);
  request.options.top_k = field<std::int32_t>(body, "top_k", 0);
  request.options.repetition_penalty = field<float>(body, "repetition_penalty", 1);
  request.options.seed = field<std::uint64_t>(body, "seed", 0);
  request.stream = field<bool>(body, "stream", false);
  request.stop = stops(body);
  request.prompt = encoded(model, body, chat);
  return request;
}

bool Answer::take(std::int64_t token) {
  ++tokens_;
  auto piece = text_.push(token);
  if (!piece) return true;
  whole_ += *piece;
  for (const std::string& stop : stop_) {
    if (const std::size_t at = whole_.find(stop, given_); at != std::string::npos) {
      whole_.resize(at);
      stopped_ = true;
    }
  }
  return !stopped_;
}

std::string Answer::news(bool last) {
  std::size_t certain = whole_.size();
  // The end of the text may be the start of a stop string.
  for (const std::string& stop : stop_) {
    for (std::size_t size = 1; !last && !stopped_ && size < stop.size() && size <= whole_.size() - given_; ++size) {
      if (whole_.compare(whole_.size() - size, size, stop, 0, size) == 0) {
        certain = std::min(certain, whole_.size() - size);
      }
    }
  }
  const std::string found = whole_.substr(given_, certain - given_);
  given_ = certain;
  return found;
}
