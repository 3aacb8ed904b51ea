/* Running UltraMem bundles: the C API. ultramem.hpp is the same for C++.
 *
 * A model is opened once and shared by threads; a session holds the key-value caches of one or several sequences and
 * belongs to one thread at a time (ultramem_session_cancel may come from any). A function that can fail returns NULL,
 * or an error that the caller frees. Structs of options start with their own size, so that they can grow: set it and
 * the defaults with ULTRAMEM_*_OPTIONS_INIT.
 */
#ifndef ULTRAMEM_ULTRAMEM_H
#define ULTRAMEM_ULTRAMEM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ULTRAMEM_API __declspec(dllimport)
#else
#define ULTRAMEM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct UltramemError UltramemError;
typedef struct UltramemModel UltramemModel;
typedef struct UltramemSession UltramemSession;
typedef struct UltramemText UltramemText;

typedef enum UltramemCode {
  ULTRAMEM_CODE_INVALID = 1,   /* an argument, an option or a token id is not what the model takes */
  ULTRAMEM_CODE_MISSING = 2,   /* a file or a library is not there */
  ULTRAMEM_CODE_DAMAGED = 3,   /* the bundle is not what its manifest says */
  ULTRAMEM_CODE_VERSION = 4,   /* the bundle and a library do not fit together */
  ULTRAMEM_CODE_FULL = 5,      /* the key-value cache or the memory limit */
  ULTRAMEM_CODE_CANCELLED = 6, /* ultramem_session_cancel */
  ULTRAMEM_CODE_RUNTIME = 7    /* ONNX Runtime, or the machine */
} UltramemCode;

/* One line: what, expected, found, what to do. Lives as long as the error. */
ULTRAMEM_API const char* ultramem_error_message(const UltramemError* error);
ULTRAMEM_API UltramemCode ultramem_error_code(const UltramemError* error);
ULTRAMEM_API void ultramem_error_free(UltramemError* error);

/* The version of this library. */
ULTRAMEM_API const char* ultramem_runtime_version(void);

/* ---- model ---- */

typedef struct UltramemModelOptions {
  size_t struct_size;
  const char* onnxruntime; /* path of libonnxruntime; NULL: $ULTRAMEM_ONNXRUNTIME, then the loader's search */
  const char* plugin;      /* path of libultramem_ort.so; NULL: the bundle's, then the one beside this library */
  const char* tokenizer;   /* path of libortextensions; NULL: $ULTRAMEM_TOKENIZER, then the loader's search */
  int32_t threads;         /* 0: every core of the process */
  int32_t verify_all;      /* non-zero: check the hashes of the large files too, which reads them whole */
  const char* tables;      /* "resident": one copy on huge pages that the process shares; "mapped": read from the files,
                            * for tables larger than memory; "auto": resident where the copy takes at most half of the
                            * available memory; NULL: $ULTRAMEM_TABLES, then auto */
} UltramemModelOptions;

#define ULTRAMEM_MODEL_OPTIONS_INIT {sizeof(UltramemModelOptions), NULL, NULL, NULL, 0, 0, NULL}

typedef struct UltramemModelInfo {
  size_t struct_size;
  int64_t vocab_size;
  int64_t positions;             /* the most tokens a sequence may have */
  int64_t cache_bytes_per_token; /* of one sequence */
  int64_t table_bytes;           /* all tables, held once whatever the number of sessions */
  int64_t table_bytes_per_token; /* rows that one token reads */
  int32_t has_tokenizer;
  const char* tokenizer_problem;   /* why there is none, or NULL; lives as long as the model */
  const char* onnxruntime_version; /* lives as long as the model */
} UltramemModelInfo;

/* Open the bundle in a directory: versions, sizes, headers and small files' hashes are checked first. */
ULTRAMEM_API UltramemError* ultramem_model_open(const char* bundle, const UltramemModelOptions* options,
                                                UltramemModel** model);
/* Every session and text of the model must be closed before it. */
ULTRAMEM_API void ultramem_model_close(UltramemModel* model);
ULTRAMEM_API UltramemError* ultramem_model_info(const UltramemModel* model, UltramemModelInfo* info);

/* Text to ids, without special tokens of its own. `count` becomes the number of ids; nothing past `capacity` is
 * written, so ask with capacity 0 first. */
ULTRAMEM_API UltramemError* ultramem_encode(const UltramemModel* model, const char* text, int64_t* ids, size_t capacity,
                                            size_t* count);
/* The chat template on `messages` (JSON: [{"role": "user", "content": "..."}]), in the way of ultramem_encode. */
ULTRAMEM_API UltramemError* ultramem_encode_chat(const UltramemModel* model, const char* messages, int64_t* ids,
                                                 size_t capacity, size_t* count);

/* Ids to text, one at a time: `piece` is what the id adds ("" while a character is unfinished), valid until the next
 * call on the same object. */
ULTRAMEM_API UltramemError* ultramem_text_create(const UltramemModel* model, UltramemText** text);
ULTRAMEM_API UltramemError* ultramem_text_push(UltramemText* text, int64_t id, const char** piece);
ULTRAMEM_API void ultramem_text_free(UltramemText* text);

/* ---- session ---- */

typedef struct UltramemSessionOptions {
  size_t struct_size;
  int64_t max_tokens;         /* of a sequence, prompt included; 0: what the model can */
  int64_t memory_limit_bytes; /* of the key-value caches; 0: none */
} UltramemSessionOptions;

#define ULTRAMEM_SESSION_OPTIONS_INIT {sizeof(UltramemSessionOptions), 0, 0}

typedef struct UltramemMetrics {
  size_t struct_size;
  int64_t prompt_tokens;
  int64_t decoded_tokens; /* tokens that decode steps took in, all sequences together */
  double prefill_seconds;
  double decode_seconds;
  double tokens_per_second;   /* decoded_tokens over decode_seconds */
  double first_token_seconds; /* of the last ultramem_generate: from the call to its first token */
  int64_t table_bytes_read;   /* rows looked up while decoding */
  double table_gb_per_second; /* table_bytes_read over decode_seconds */
  int64_t cache_bytes;        /* held by the key-value caches now */
} UltramemMetrics;

ULTRAMEM_API UltramemError* ultramem_session_create(const UltramemModel* model, const UltramemSessionOptions* options,
                                                    UltramemSession** session);
ULTRAMEM_API void ultramem_session_close(UltramemSession* session);
/* Forget every sequence; the caches' memory is kept for the next ones. */
ULTRAMEM_API void ultramem_session_reset(UltramemSession* session);
/* Append `lengths[i]` tokens to sequence i. The first call says how many sequences the session holds. */
ULTRAMEM_API UltramemError* ultramem_session_prefill(UltramemSession* session, const int64_t* const* tokens,
                                                     const size_t* lengths, size_t sequences);
/* Append one token to every sequence, in one run. */
ULTRAMEM_API UltramemError* ultramem_session_decode(UltramemSession* session, const int64_t* tokens);
/* Logits [vocab_size] after a sequence's last token; valid until the next prefill, decode, generate or reset. */
ULTRAMEM_API UltramemError* ultramem_session_logits(const UltramemSession* session, size_t sequence,
                                                    const float** logits);
/* End what the session is doing, from any thread; the call returns ULTRAMEM_CODE_CANCELLED. A session that is idle
 * ends its next call so. */
ULTRAMEM_API void ultramem_session_cancel(UltramemSession* session);
ULTRAMEM_API UltramemError* ultramem_session_metrics(const UltramemSession* session, UltramemMetrics* metrics);

/* ---- generation ---- */

typedef enum UltramemFinish {
  ULTRAMEM_FINISH_LENGTH = 0, /* max_new_tokens */
  ULTRAMEM_FINISH_STOP = 1,   /* a stop token, which is not among the ids */
  ULTRAMEM_FINISH_CALLER = 2, /* the callback said so */
  ULTRAMEM_FINISH_TIME = 3    /* time_limit_seconds */
} UltramemFinish;

/* Called for each new token, as it comes; non-zero ends the sequence. */
typedef int32_t (*UltramemTokenCallback)(void* user, size_t sequence, int64_t token);

typedef struct UltramemGenerateOptions {
  size_t struct_size;
  int64_t max_new_tokens;
  float temperature;        /* 0: the most probable token */
  float top_p;              /* keep the most probable tokens up to this mass; 1: all */
  int32_t top_k;            /* keep so many tokens; 0: all */
  float repetition_penalty; /* 1: none; over prompt and output, as in CTRL (arXiv 1909.05858, section 4.1) */
  uint64_t seed;
  double time_limit_seconds; /* 0: none */
  const int64_t* stop_tokens;
  size_t stop_count;
  int32_t ignore_end; /* non-zero: the model's own end-of-text tokens do not stop */
  UltramemTokenCallback on_token;
  void* user;
} UltramemGenerateOptions;

#define ULTRAMEM_GENERATE_OPTIONS_INIT \
  {sizeof(UltramemGenerateOptions), 128, 0.0f, 1.0f, 0, 1.0f, 0, 0.0, NULL, 0, 0, NULL, NULL}

/* Forget what the session holds, prefill the prompts and decode them together until every sequence has ended. */
ULTRAMEM_API UltramemError* ultramem_generate(UltramemSession* session, const int64_t* const* prompts,
                                              const size_t* lengths, size_t sequences,
                                              const UltramemGenerateOptions* options);
/* What the last ultramem_generate made for a sequence; valid until the next one. */
ULTRAMEM_API UltramemError* ultramem_session_output(const UltramemSession* session, size_t sequence,
                                                    const int64_t** ids, size_t* count, UltramemFinish* finish);

#ifdef __cplusplus
}
#endif

#endif
