// chat BUNDLE [TOKENS]: a conversation on the terminal, each answer as it comes; an empty line or Ctrl-D ends it.
#include <pthread.h>
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <ultramem/ultramem.hpp>

namespace {

int failed(const ultramem::Error& error) {
  std::cerr << "error: " << error.message() << "\n";
  return 1;
}

// A JSON string.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[7];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      result += escape;
    } else {
      result += c;
    }
  }
  return result + "\"";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) return std::fprintf(stderr, "usage: chat BUNDLE [TOKENS]\n"), 2;
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  auto model = ultramem::Model::open(argv[1]);
  if (!model) return failed(model.error());
  auto session = model->session();
  if (!session) return failed(session.error());
  // Ctrl-C ends the answer, not the program: a thread waits for it, since a signal handler may not cancel.
  std::thread([&session, interrupt] {
    for (int signal = 0; sigwait(&interrupt, &signal) == 0;) session->cancel();
  }).detach();

  ultramem::GenerateOptions options;
  options.max_new_tokens = argc == 3 ? std::atoll(argv[2]) : 256;
  options.temperature = 0.7f;
  options.top_p = 0.9f;
  options.repetition_penalty = 1.1f;

  std::string messages;
  for (std::string line; std::cout << "> " << std::flush, std::getline(std::cin, line) && !line.empty();) {
    messages += (messages.empty() ? "" : ",") + std::string("{\"role\":\"user\",\"content\":") + quoted(line) + "}";
    auto prompt = model->encode_chat("[" + messages + "]");
    if (!prompt) return failed(prompt.error());
    auto text = model->text();
    if (!text) return failed(text.error());
    std::string answer;
    options.callback = [&](std::size_t, std::int64_t token) {
      if (auto piece = text->push(token)) {
        answer += *piece;
        std::cout << *piece << std::flush;
      }
      return true;
    };
    auto outputs = session->generate({*prompt}, options);
    if (!outputs && outputs.error().code() != ULTRAMEM_CODE_CANCELLED) return failed(outputs.error());
    std::cout << "\n";
    messages += ",{\"role\":\"assistant\",\"content\":" + quoted(answer) + "}";
  }
  return 0;
}
