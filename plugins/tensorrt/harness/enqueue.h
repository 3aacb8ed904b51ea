// Runs a plugin on random tensors and compares what it writes with the formula in float64.
#pragma once

#include <NvInferRuntime.h>

#include "cases.h"
#include "drive.h"
#include "memory.h"

namespace ultramem::harness {

void enqueue(nvinfer1::IPluginCreatorV3One& creator, const Case& c, Memory& memory, Report& report);

}  // namespace ultramem::harness
