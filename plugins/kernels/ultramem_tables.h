// Where a table's rows lie while kernels read them: plain C, no host.
//
// Resident: one copy on huge pages, shared by all in the process that hold the same part of the same file. Random rows
// miss the TLB on ordinary pages; on huge ones they are up to twice as fast. Mapped: the pages of the file as the
// system pages them in, for tables larger than memory; each run asks for all of its rows at once before it reads them.
#ifndef ULTRAMEM_TABLES_H_
#define ULTRAMEM_TABLES_H_

#include <stddef.h>
#include <stdint.h>

#include "ultramem_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum UltramemTables {
  ULTRAMEM_TABLES_AUTO = 0,  // resident where the copy takes at most half of the available memory, else mapped
  ULTRAMEM_TABLES_RESIDENT = 1,
  ULTRAMEM_TABLES_MAPPED = 2
} UltramemTables;

// What "auto", "resident" or "mapped" stands for; -1 for anything else.
ULTRAMEM_PUBLIC int ultramem_tables_named(const char* name);

typedef struct UltramemPlace {
  const void* data;    // read the table here
  int32_t read_ahead;  // UltramemTable.read_ahead
  void* copy;          // the share in a resident copy, or null
} UltramemPlace;

// Places `bytes` at `data`, which must stay mapped and unchanged until the release. Memory that is no file's stays as
// it is, as do tables below 32 MiB under AUTO. ULTRAMEM_OUT_OF_MEMORY where RESIDENT does not fit into the available
// memory or the file cannot be read again.
ULTRAMEM_PUBLIC UltramemCode ultramem_place(const void* data, size_t bytes, UltramemTables wanted,
                                            UltramemPlace* place);
// The last share of a copy frees it.
ULTRAMEM_PUBLIC void ultramem_release(UltramemPlace* place);

// Asks the system for the rows of `count` addresses, unless a sample of them is in memory; waits for no row. Addresses
// that are no rows are left to the kernel to report.
ULTRAMEM_PUBLIC void ultramem_read_ahead(const UltramemTable* table, const int64_t* addresses, int64_t count);

// The same from a thread of the library's own, which also waits where the disk's queue is full: a hint for rows that
// are read later. Addresses are copied; the table may go meanwhile, for no byte of it is read. Does nothing where too
// much is waiting already, and in a forked child.
ULTRAMEM_PUBLIC void ultramem_ask_ahead(const UltramemTable* table, const int64_t* addresses, int64_t count);

#ifdef __cplusplus
}
#endif

#endif  // ULTRAMEM_TABLES_H_
