// The bytes of a built model: what it was built for, and one TensorRT plan per segment shape.
//
// Little-endian: "NTPLAN01", then the fields of PlanHeader, then per engine its signature and its plan, each
// with a length.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/module.h"

namespace nt {

struct PlanHeader {
  int32_t libraryVersion = 0;  // that TensorRT alone can run it
  int32_t computeMajor = 0;
  int32_t computeMinor = 0;
  DType dtype = DType::kBF16;
  std::vector<RowProfile> layerProfiles;
  std::vector<RowProfile> headProfiles;
};

struct PlanEngine {
  std::string signature;  // SegmentShape::signature
  std::vector<char> plan;
};

struct PlanFile {
  PlanHeader header;
  std::vector<PlanEngine> engines;
};

std::vector<char> writePlanFile(const PlanFile& file);

// ERR_ENGINE_INVALID for anything that writePlanFile does not write.
Expected<PlanFile> readPlanFile(std::span<const char> bytes);

// ERR_INVALID_ARGUMENT unless there is at least one profile, 1 <= min <= opt <= max in each, and the maxima
// ascend.
Status checkProfiles(const char* name, const std::vector<RowProfile>& profiles);

}  // namespace nt
