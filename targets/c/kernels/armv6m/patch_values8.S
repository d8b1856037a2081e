#include "kernel_config.h"

#define NAME KDP(patch_values8)
#define POSITIONS 8
#include "patch_values.inc"
