#include "kernels.h"

const dmsflow::Kernels* dmsflow::avx512_kernels() { return nullptr; }
