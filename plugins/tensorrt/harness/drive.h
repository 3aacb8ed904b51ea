// Drives one plugin through its life, as a host does, and counts what it finds wrong.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "cases.h"

namespace ultramem::harness {

class Report {
 public:
  void expect(bool condition, const std::string& what);
  int checks() const { return checks_; }
  int failures() const { return failures_; }

 private:
  int checks_ = 0;
  int failures_ = 0;
};

// Creation from fields, types, shapes, formats, tactics, serialised fields, the copy made of them, clones, contexts.
void drive(nvinfer1::IPluginCreatorV3One& creator, const Case& c, Report& report);

}  // namespace ultramem::harness
