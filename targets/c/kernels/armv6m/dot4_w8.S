#include "kernel_config.h"

#define NAME KDP(dot4_w8)
#define BITS 8
#include "dot4.inc"
