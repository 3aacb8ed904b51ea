// One request for a completion: what it asks for, and its text as the tokens come.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <ultramem/ultramem.hpp>
#include <vector>

// What is wrong with a request; told to the client with status 400.
struct BadRequest {
  std::string message;
};

struct Request {
  ultramem::Ids prompt;
  ultramem::GenerateOptions options;
  std::vector<std::string> stop;
  bool stream = false;
};

// The body of a completions request, or of chat completions, as OpenAI's API has them. Throws BadRequest.
Request read_request(const ultramem::Model& model, const std::string& body, bool chat);

// The text of one completion, cut before the first stop string.
class Answer {
 public:
  Answer(ultramem::Text text, std::vector<std::string> stop) : text_(std::move(text)), stop_(std::move(stop)) {}

  // Takes the next token; false once a stop string has come.
  bool take(std::int64_t token);
  // Text that is certain and was not given out yet; all of it with `last`.
  std::string news(bool last);

  bool stopped() const { return stopped_; }
  std::int64_t tokens() const { return tokens_; }

 private:
  ultramem::Text text_;
  std::vector<std::string> stop_;
  std::string whole_;
  std::size_t given_ = 0;
  std::int64_t tokens_ = 0;
  bool stopped_ = false;
};
