#include "kernel_config.h"

#define NAME KDP(dot4_w4)
#define BITS 4
#include "dot4.inc"
