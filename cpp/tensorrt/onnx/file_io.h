// Whole files, with errors as Status.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/status.h"

namespace nt {

// Empty where there is no such file. ERR_IO.
Expected<std::vector<char>> readFileIfThere(const std::string& path);

// Writes a file that must not be there yet, to the disk. It is removed where that fails. ERR_IO.
Status writeNewFile(const std::string& path, const void* data, size_t bytes);

// Writes beside the file and renames: readers see the old or the new one, whole. ERR_IO.
Status replaceFile(const std::string& path, const void* data, size_t bytes);

}  // namespace nt
