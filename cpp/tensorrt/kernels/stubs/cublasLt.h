// FlashInfer's headers include cublasLt.h for types that the kernels compiled here never use.
#pragma once
