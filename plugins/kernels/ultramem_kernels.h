// The operators' kernels as plain C: pointers, shapes and element types in, status out. Nothing here knows a host.
//
// Every call works on a range of the problem, so that a host can spread one problem over its own threads: the results
// do not depend on how it is cut. Tensors are dense and row-major, except that table rows may be padded (row_stride).
// Element types: `type` is float32 or float16 (activations, scores, outputs); tables may also be bfloat16, or quantised
// with one scale a row: value = code * scale. Arithmetic is in float32. Sizes and offsets are 64-bit and counted in
// elements.
#ifndef ULTRAMEM_KERNELS_H_
#define ULTRAMEM_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

// What a library that contains the kernels also offers to its users (a host's doctor, say).
#define ULTRAMEM_PUBLIC __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef enum UltramemType {
  ULTRAMEM_FLOAT32 = 0,
  ULTRAMEM_FLOAT16 = 1,
  ULTRAMEM_BFLOAT16 = 2,
  ULTRAMEM_INT8 = 3,        // of tables alone, as the next two; the code is the integer
  ULTRAMEM_INT4 = 4,        // two a byte, low nibble first; the code is the nibble - 8
  ULTRAMEM_FLOAT8_E4M3 = 5  // finite numbers and NaN, no infinity; the code is the number
} UltramemType;

typedef enum UltramemCode {
  ULTRAMEM_OK = 0,
  ULTRAMEM_BAD_ADDRESS = 1,       // token, slot and address say which; outputs of the range are unspecified
  ULTRAMEM_UNSUPPORTED_TYPE = 2,  // an element type that the kernel does not take in that place
  ULTRAMEM_BAD_SHAPE = 3,         // sizes that contradict each other, or a range outside the problem
  ULTRAMEM_OUT_OF_MEMORY = 4      // no scratch for a thread
} UltramemCode;

typedef struct UltramemStatus {
  UltramemCode code;
  int64_t token;
  int64_t slot;
  int64_t address;
} UltramemStatus;

typedef struct UltramemRange {
  int64_t begin;
  int64_t end;  // exclusive
} UltramemRange;

typedef struct UltramemTable {
  const void* data;  // [rows, width]
  UltramemType type;
  int64_t rows;         // N
  int64_t width;        // D
  int64_t row_stride;   // elements from one row to the next, >= width; even for int4
  const float* scales;  // [rows] for a quantised type, else null
  int32_t read_ahead;   // non-zero: rows may lie on a disk, and a whole problem asks for all of its rows at once
} UltramemTable;

// output[t, p*D + d] = sum over k with addresses[t, k] / N = p of scores[t, k, d / (D/cores)] * value[address % N, d]
typedef struct UltramemSparseLookup {
  UltramemTable table;       // [N, D]
  const int64_t* addresses;  // [tokens, slots], each in [0, blocks*N)
  const void* scores;        // [tokens, slots, cores] of `type`
  void* output;              // [tokens, blocks*D] of `type`
  UltramemType type;
  int64_t tokens;
  int64_t slots;   // K
  int64_t cores;   // M, divides D
  int64_t blocks;  // E
} UltramemSparseLookup;

typedef enum UltramemActivation {
  ULTRAMEM_NONE = 0,
  ULTRAMEM_GELU = 1,  // exact (erf)
  ULTRAMEM_SILU = 2,
  ULTRAMEM_SWIGLU = 3  // silu(<row[:P], x>) * <row[P:], x>
} UltramemActivation;

// gate[t, k] = activation(<value[addresses[t, k] % N], x[t]>)
typedef struct UltramemSparseGate {
  UltramemTable table;       // [N, P], or [N, 2P] for swiglu
  const int64_t* addresses;  // [tokens, slots], each >= 0
  const void* x;             // [tokens, P] of `type`
  void* gate;                // [tokens, slots] of `type`
  UltramemType type;
  int64_t tokens;
  int64_t slots;    // K
  int64_t x_width;  // P
  UltramemActivation activation;
} UltramemSparseGate;

// TuckerTopK numbers candidates with 32 bits: the keys of one side, and the pairs of the kept ones.
#define ULTRAMEM_MOST_KEYS INT64_C(2147483647)
#define ULTRAMEM_MOST_KEPT INT64_C(46340)

// Stage 1 keeps the best min(k, n) rows of sum_r u_r row[r, i], and columns likewise; stage 2 the best k pairs of
// sum_c row[:, i]^T core_c col[:, j]. Best first; a NaN ranks above every number; ties go to the smaller position
// on the kept grid (in stage 1: of the key).
typedef struct UltramemTuckerTopK {
  const void* row_scores;  // [tokens, heads, rank, n_row] of `type`, as all but the indices
  const void* col_scores;  // [tokens, heads, rank, n_col]
  const void* u;           // [heads, rank]
  const void* v;           // [heads, rank]
  const void* core;        // [cores, heads, rank, rank]
  void* scores;            // [tokens, heads*k, cores]: each core's own score of the kept pairs
  int64_t* indices;        // [tokens, heads*k]: i*n_col + j
  UltramemType type;
  int64_t tokens;
  int64_t heads;
  int64_t rank;
  int64_t n_row;  // <= ULTRAMEM_MOST_KEYS, as n_col
  int64_t n_col;
  int64_t cores;
  int64_t k;  // 1 <= k <= min(k, n_row) * min(k, n_col), k <= ULTRAMEM_MOST_KEPT
} UltramemTuckerTopK;

// Vectors of several heads at several places: elements from one sequence, head and place to the next. A vector's
// numbers lie side by side.
typedef struct UltramemHeads {
  const void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t place_stride;
} UltramemHeads;

// Attention of one position: output[b, h] = sum over p of weight[b, h, p] * v[b, h / group, p], where group = heads /
// kv_heads and the weights are the softmax over places of scale * <q[b, h], k[b, h / group, p]>. A place of weight 0
// whose value is not finite gives NaN, but places before the first that the mask allows, or behind the last, are not
// read; a sequence without an allowed place gives NaN.
typedef struct UltramemAttention {
  UltramemHeads q;      // [batch, heads, 1, width] of `type`
  UltramemHeads k;      // [batch, kv_heads, places, width] of `type`
  UltramemHeads v;      // [batch, kv_heads, places, value_width] of `type`
  const uint8_t* mask;  // [batch, places]: 1 where a place may be seen, else 0; null where all may
  int64_t mask_stride;  // from one sequence to the next; 0 for one row that all share
  void* output;         // [batch, heads, value_width] of `type`
  UltramemType type;    // float32, float16 or bfloat16
  int64_t batch;
  int64_t heads;
  int64_t kv_heads;  // divides heads
  int64_t places;
  int64_t width;
  int64_t value_width;
  float scale;
} UltramemAttention;

// output[r, c] = bias[c] + sum over i of x[r, i] * weight[c, i]: a dense layer for few rows, whose weights are read
// once in the order in which they lie.
typedef struct UltramemLinear {
  const void* x;             // [rows, depth] of `type`
  const void* weight;        // [columns, depth] of `type`
  const void* bias;          // [columns] of `type`, or null
  void* output;              // [rows, columns] of `output_type`
  UltramemType type;         // float32, float16 or bfloat16
  UltramemType output_type;  // `type` or float32
  int64_t rows;
  int64_t columns;
  int64_t depth;
  int64_t x_stride;  // elements from one row of x to the next
} UltramemLinear;

// Bytes of scratch (aligned to 64) that one call needs; the caller owns it, and calls that run together need one each.
size_t ultramem_sparse_lookup_scratch(const UltramemSparseLookup* problem);
size_t ultramem_sparse_gate_scratch(const UltramemSparseGate* problem);
size_t ultramem_tucker_topk_scratch(const UltramemTuckerTopK* problem);
size_t ultramem_attention_scratch(const UltramemAttention* problem);

// `tokens` within [0, tokens) and `columns` within [0, D), from an even one for int4: one token can be shared among
// threads by columns.
UltramemStatus ultramem_sparse_lookup(const UltramemSparseLookup* problem, UltramemRange tokens, UltramemRange columns,
                                      void* scratch);
// `pairs` within [0, tokens*slots).
UltramemStatus ultramem_sparse_gate(const UltramemSparseGate* problem, UltramemRange pairs, void* scratch);
// `items` within [0, tokens*heads).
UltramemStatus ultramem_tucker_topk(const UltramemTuckerTopK* problem, UltramemRange items, void* scratch);
// `items` within [0, batch*kv_heads).
UltramemStatus ultramem_attention(const UltramemAttention* problem, UltramemRange items, void* scratch);
// `columns` within [0, columns); needs no scratch.
UltramemStatus ultramem_linear(const UltramemLinear* problem, UltramemRange columns);

typedef void (*UltramemTask)(void* data, size_t index);

// The host's threads: `parallel_for` calls task(data, i) for i in [0, count), count <= 64, in any order, and returns
// when all are done. Null, or a null parallel_for, is the calling thread alone.
typedef struct UltramemThreads {
  void (*parallel_for)(void* host, UltramemTask task, size_t count, void* data);
  void* host;
  int64_t count;  // threads that tasks are meant for; 0 is as many as the machine has
} UltramemThreads;

// Whole problems, over the host's threads; scratch is kept by each thread. What a library that contains the kernels
// offers to hosts without an adapter of their own.
ULTRAMEM_PUBLIC UltramemStatus ultramem_sparse_lookup_run(const UltramemSparseLookup* problem,
                                                          const UltramemThreads* threads);
ULTRAMEM_PUBLIC UltramemStatus ultramem_sparse_gate_run(const UltramemSparseGate* problem,
                                                        const UltramemThreads* threads);
ULTRAMEM_PUBLIC UltramemStatus ultramem_tucker_topk_run(const UltramemTuckerTopK* problem,
                                                        const UltramemThreads* threads);
ULTRAMEM_PUBLIC UltramemStatus ultramem_attention_run(const UltramemAttention* problem, const UltramemThreads* threads);
ULTRAMEM_PUBLIC UltramemStatus ultramem_linear_run(const UltramemLinear* problem, const UltramemThreads* threads);

// `parallel` is GOMP_parallel, which GNU's, LLVM's and Intel's OpenMP offer alike.
typedef struct UltramemOpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  unsigned threads;
} UltramemOpenMp;

// A parallel_for whose host is an UltramemOpenMp.
ULTRAMEM_PUBLIC void ultramem_openmp_for(void* host, UltramemTask task, size_t count, void* data);

// rounded[rows[i]*stride + j] = numbers[i*width + j] in bfloat16, float64 rounded once to nearest even; how many finite
// numbers became infinite. For folds, whose sums are in float64.
ULTRAMEM_PUBLIC int64_t ultramem_round_rows(const double* numbers, uint16_t* rounded, const int64_t* rows,
                                            int64_t count, int64_t width, int64_t stride);

// The instruction set in use, "plain", "avx2", "avx512" or "avx512_bf16": the best of this machine, or what
// ULTRAMEM_CPU asks for. Decided once a process.
ULTRAMEM_PUBLIC const char* ultramem_cpu_isa(void);
// What is wrong with ULTRAMEM_CPU (an unknown name, or more than this machine has), or null.
ULTRAMEM_PUBLIC const char* ultramem_cpu_error(void);

#ifdef __cplusplus
}
#endif

#endif  // ULTRAMEM_KERNELS_H_
