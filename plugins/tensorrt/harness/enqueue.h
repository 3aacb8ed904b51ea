// Runs a plugin on random tensors and compares what it writes with the formula in float64.
#pragma once

#include <NvInferRuntime.h>

#include "cases.h"
#include "drive.h"
#include "memory.h"

namespace ultramem::harness {

// Every input is given.
void enqueue(nvinfer1::IPluginCreatorV3One& creator, const Case& c, Memory& memory, Report& report);

using AddTables = void (*)(const char* folder);

// The table and its scales are the plugin's own, out of a file in a folder that `add_tables` names; a case without a
// table is left alone.
void enqueue_with_own_tables(nvinfer1::IPluginCreatorV3One& creator, const Case& c, AddTables add_tables,
                             Memory& memory, Report& report);

}  // namespace ultramem::harness
