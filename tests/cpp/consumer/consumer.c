/* consumer BUNDLE: two tokens by the C API alone. */
#include <stdio.h>
#include <ultramem/ultramem.h>

static int failed(UltramemError* error) {
  fprintf(stderr, "error %d: %s\n", (int)ultramem_error_code(error), ultramem_error_message(error));
  ultramem_error_free(error);
  return 1;
}

int main(int argc, char** argv) {
  const int64_t prompt[] = {7, 31, 2};
  const int64_t* prompts[] = {prompt};
  const size_t lengths[] = {3};
  UltramemGenerateOptions options = ULTRAMEM_GENERATE_OPTIONS_INIT;
  UltramemModel* model = NULL;
  UltramemSession* session = NULL;
  UltramemError* error = ultramem_model_open(argc > 1 ? argv[1] : "", NULL, &model);
  const int64_t* ids = NULL;
  size_t count = 0;
  options.max_new_tokens = 2;
  options.ignore_end = 1;
  if (error == NULL) error = ultramem_session_create(model, NULL, &session);
  if (error == NULL) error = ultramem_generate(session, prompts, lengths, 1, &options);
  if (error == NULL) error = ultramem_session_output(session, 0, &ids, &count, NULL);
  if (error != NULL) return failed(error);
  for (size_t i = 0; i < count; ++i) printf("%lld ", (long long)ids[i]);
  ultramem_session_close(session);
  ultramem_model_close(model);
  return 0;
}
