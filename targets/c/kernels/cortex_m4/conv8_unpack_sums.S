#include "kernel_config.h"

#define NAME KDP(conv8_unpack_sums)
#define SUMS 1
#include "conv8_unpack.inc"
