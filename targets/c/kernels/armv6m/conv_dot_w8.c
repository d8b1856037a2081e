#include <stddef.h>

#include "dot.h"

#define KDP_POSITIONS 4
#define KDP_PATCH_VALUES KDP(patch_values4)
#define KDP_WEIGHT_OFFSET 128u
#define KDP_CONV_DOT KDP(conv_dot_w8)
#include "conv_dot_body.h"
