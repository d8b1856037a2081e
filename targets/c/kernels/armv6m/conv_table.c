#include <stddef.h>

#include "dot.h"

#define KDP_POSITIONS 4
#define KDP_PATCH_VALUES KDP(patch_values4)
#define KDP_WEIGHT_OFFSET 0u
#define KDP_CONV_DOT KDP(conv_table)
#include "conv_dot_body.h"
