// Lets a library that is opened by its bare name later be found in a folder that is not on the search path.
#pragma once

#include <string>

namespace nt {

// Loads `name` from `folder` under its bare name, for good: a dlopen(name) by any other library of the
// process finds it then.
//
// The loader fixes LD_LIBRARY_PATH when the process starts, and dlopen with a path remembers the path and not
// the name. It does remember the name by which another library needs it, though, and looks for that in this
// library's own search path. So this opens an empty library, made in memory, that needs `name` and has
// `folder` as its search path. Linux on x86-64 only.
//
// Returns "", or what the loader said.
std::string loadByName(const std::string& folder, const std::string& name);

}  // namespace nt
