// How much memory a process may still take.
#pragma once

#include <cstddef>

namespace ultramem {

// Bytes that can be had without swapping, within the limit of the process's control group. 0 where it cannot be told.
std::size_t available_memory();

}  // namespace ultramem
