#include "kernel_config.h"

#define NAME KDP(dot4_w2)
#define BITS 2
#include "dot4.inc"
