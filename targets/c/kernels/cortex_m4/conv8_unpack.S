#include "kernel_config.h"

#define NAME KDP(conv8_unpack)
#define SUMS 0
#include "conv8_unpack.inc"
