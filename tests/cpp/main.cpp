#include <cstring>

#include "check.h"
#include "places.h"

std::string places::bundle, places::portable, places::scratch;

// PROGRAM BUNDLE PORTABLE SCRATCH [TEST]: a bundle of the ort target, one of the portable target, a folder to write in.
int main(int argc, char** argv) {
  if (argc < 4) return 2;
  places::bundle = argv[1], places::portable = argv[2], places::scratch = argv[3];
  int run = 0;
  for (const check::Test& test : check::tests()) {
    if (argc > 4 && std::strcmp(argv[4], test.name) != 0) continue;
    const int before = check::failures;
    test.run();
    std::cerr << (check::failures == before ? "ok   " : "FAIL ") << test.name << "\n";
    ++run;
  }
  std::cerr << run << " tests, " << check::failures << " failures\n";
  return run == 0 || check::failures != 0 ? 1 : 0;
}
