// What a test asks of the stand-in for cuBLASLt (cublas_stand_in.cpp), and tells it.
#pragma once

#include <cstdint>

struct CublasStandIn {
  // What the calls answer from now on.
  int32_t createStatus = 0;
  int32_t heuristicStatus = 0;
  int32_t kernelsFound = 1;
  int32_t matmulStatus = 0;

  int32_t living = 0;      // handles, descriptors, layouts and preferences that were not destroyed
  int32_t heuristics = 0;  // calls
  int32_t products = 0;
  int32_t lastRows = 0;  // of the last product
};

// The library's function `cublasStandIn`.
using CublasStandInFn = CublasStandIn* (*)();
