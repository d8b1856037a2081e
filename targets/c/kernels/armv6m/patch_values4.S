#include "kernel_config.h"

#define NAME KDP(patch_values4)
#define POSITIONS 4
#include "patch_values.inc"
