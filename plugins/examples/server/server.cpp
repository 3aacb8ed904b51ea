// server BUNDLE [PORT [SESSIONS]]: completions and chat completions over HTTP as OpenAI's API has them, on loopback.
// SIGTERM or SIGINT: no new requests, those that run get ten seconds, then the program ends.
#include <httplib.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "completion.h"
#include "pool.h"

using nlohmann::json;

namespace {

constexpr std::chrono::seconds kWait{60}, kGrace{10};
constexpr int kClients = 256;  // that may connect before any of them is taken

int failed(const ultramem::Error& error) {
  std::fprintf(stderr, "error: %s\n", error.message().c_str());
  return 1;
}

class Service {
 public:
  Service(const ultramem::Model& model, Pool& pool) : model_(model), pool_(pool) {}

  void complete(const httplib::Request& http, httplib::Response& response, bool chat) {
    try {
      auto request = std::make_shared<Request>(read_request(model_, http.body, chat));
      auto lease = std::make_shared<Pool::Lease>(pool_.lease(kWait));
      if (*lease == nullptr) return refuse(response, 503, "busy or shutting down: try again later");
      auto text = model_.text();
      if (!text) return refuse(response, 500, text.error().message());
      auto answer = std::make_shared<Answer>(std::move(*text), request->stop);
      const Form form{chat, request->stream, "cmpl-" + std::to_string(++requests_)};
      if (request->stream) {
        response.set_chunked_content_provider("text/event-stream", [=](std::size_t, httplib::DataSink& sink) mutable {
          const bool whole = stream(**lease, *request, *answer, form, sink);
          lease.reset();  // the provider lives on until the connection's next request
          return whole;
        });
      } else {
        respond(**lease, *request, *answer, form, response);
      }
    } catch (const BadRequest& bad) {
      refuse(response, 400, bad.message);
    }
  }

 private:
  struct Form {
    bool chat, stream;
    std::string id;

    json reply(const std::string& text, const json& finish) const {
      const json content = {{"content", text}};
      json choice = {{"index", 0}, {"finish_reason", finish}};
      if (chat) choice[stream ? "delta" : "message"] = content;
      if (chat && !stream) choice["message"]["role"] = "assistant";
      if (!chat) choice["text"] = text;
      const std::string object = chat ? (stream ? "chat.completion.chunk" : "chat.completion") : "text_completion";
      return {{"id", id}, {"object", object}, {"model", "ultramem"}, {"choices", {choice}}};
    }
  };

  static void refuse(httplib::Response& response, int status, const std::string& message) {
    response.status = status;
    response.set_content(error_of(message).dump(), "application/json");
  }

  static json error_of(const std::string& message) {
    return {{"error", {{"message", message}, {"type", "ultramem_error"}}}};
  }

  static const char* finish_of(const Answer& answer, UltramemFinish finish) {
    return answer.stopped() || finish == ULTRAMEM_FINISH_STOP ? "stop" : "length";
  }

  static void respond(ultramem::Session& session, Request& request, Answer& answer, const Form& form,
                      httplib::Response& response) {
    request.options.callback = [&](std::size_t, std::int64_t token) { return answer.take(token); };
    auto outputs = session.generate({request.prompt}, request.options);
    if (!outputs) {
      const UltramemCode code = outputs.error().code();
      const bool theirs = code == ULTRAMEM_CODE_INVALID || code == ULTRAMEM_CODE_FULL;
      return refuse(response, theirs ? 400 : code == ULTRAMEM_CODE_CANCELLED ? 503 : 500, outputs.error().message());
    }
    json reply = form.reply(answer.news(true), finish_of(answer, (*outputs)[0].finish));
    const auto prompt = static_cast<std::int64_t>(request.prompt.size());
    reply["usage"] = {
        {"prompt_tokens", prompt}, {"completion_tokens", answer.tokens()}, {"total_tokens", prompt + answer.tokens()}};
    response.set_content(reply.dump(), "application/json");
  }

  // Server-sent events; whether the client got all of them.
  static bool stream(ultramem::Session& session, Request& request, Answer& answer, const Form& form,
                     httplib::DataSink& sink) {
    const auto send = [&](const std::string& data) {
      const std::string event = "data: " + data + "\n\n";
      return sink.write(event.data(), event.size());
    };
    bool connected = true;
    request.options.callback = [&](std::size_t, std::int64_t token) {
      const bool more = answer.take(token);
      const std::string news = answer.news(false);
      if (!news.empty()) connected = send(form.reply(news, nullptr).dump());
      return more && connected;
    };
    auto outputs = session.generate({request.prompt}, request.options);
    if (!connected) return false;
    if (outputs) {
      connected = send(form.reply(answer.news(true), finish_of(answer, (*outputs)[0].finish)).dump());
    } else {
      connected = send(error_of(outputs.error().message()).dump());
    }
    connected = connected && send("[DONE]");
    sink.done();
    return connected;
  }

  const ultramem::Model& model_;
  Pool& pool_;
  std::atomic<std::int64_t> requests_{0};
};

std::vector<ultramem::Session> sessions_of(const ultramem::Model& model, int count) {
  std::vector<ultramem::Session> sessions;
  for (int i = 0; i < count; ++i) {
    auto session = model.session();
    if (!session) std::exit(failed(session.error()));
    sessions.push_back(std::move(*session));
  }
  return sessions;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) return std::fprintf(stderr, "usage: server BUNDLE [PORT [SESSIONS]]\n"), 2;
  const int port = argc > 2 ? std::atoi(argv[2]) : 8080, sessions = argc > 3 ? std::atoi(argv[3]) : 8;
  if (sessions < 1) return std::fprintf(stderr, "error: SESSIONS: expected 1 or more, found %s\n", argv[3]), 2;
  // Before any thread: all of them leave the signals to the one that waits for them.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  auto model = ultramem::Model::open(argv[1]);
  if (!model) return failed(model.error());
  Pool pool(sessions_of(*model, sessions));
  Service service(*model, pool);

  httplib::Server server;
  // A thread a connection: those without a session wait for one, and still answer /health.
  server.new_task_queue = [=] { return new httplib::ThreadPool(static_cast<std::size_t>(sessions) + 64); };
  int listening = -1;
  server.set_socket_options([&](socket_t made) {
    httplib::default_socket_options(made);
    listening = made;
  });
  server.set_payload_max_length(16 << 20);
  server.set_tcp_nodelay(true);
  server.Get("/health", [](const auto&, auto& response) { response.set_content("{\"ok\":true}", "application/json"); });
  server.Post("/v1/completions", [&](const auto& http, auto& response) { service.complete(http, response, false); });
  server.Post("/v1/chat/completions",
              [&](const auto& http, auto& response) { service.complete(http, response, true); });
  const int bound = port == 0                                ? server.bind_to_any_port("127.0.0.1")
                    : server.bind_to_port("127.0.0.1", port) ? port
                                                             : -1;
  if (bound < 0) return std::fprintf(stderr, "error: port %d is taken: choose another\n", port), 1;
  // Compiled builds of the library let five connections wait; the system resets what comes beyond them.
  if (::listen(listening, kClients) != 0) return std::perror("error: listen"), 1;
  std::printf("listening on http://127.0.0.1:%d\n", bound);
  std::fflush(stdout);

  std::thread ender([&] {
    int signal = 0;
    sigwait(&ends, &signal);
    pool.close(kGrace);
    server.stop();
  });
  server.listen_after_bind();
  ender.join();
  return 0;
}
