// A copy of a part of a file, in memory of huge pages.
#pragma once

#include <cstddef>
#include <memory>

#include "file_part.h"

namespace ultramem {

class Resident {
 public:
  // Reads the part on several threads. Null where it cannot be read, or there is no memory.
  static std::shared_ptr<const Resident> read(const FilePart& part);

  Resident(const Resident&) = delete;
  Resident& operator=(const Resident&) = delete;
  ~Resident();

  const void* data() const { return data_; }

 private:
  Resident(void* mapping, std::size_t mapped, char* data) : mapping_(mapping), mapped_(mapped), data_(data) {}

  void* mapping_;
  std::size_t mapped_;
  char* data_;
};

}  // namespace ultramem
