// The properties of the generic runtime's classes.
#pragma once

#include <napi.h>

#include <vector>

#include "napi/runtime_environment.h"

namespace nt::napi {

std::vector<napi_property_descriptor> classProperties(ObjectKind kind);

}  // namespace nt::napi
