#include <stddef.h>

#include "dot.h"

#define KDP_POSITIONS 8
#define KDP_PATCH_VALUES KDP(patch_values8)
#define KDP_WEIGHT_OFFSET 0u
#define KDP_CONV_DOT KDP(conv_dot_w2)
#include "conv_dot_body.h"
