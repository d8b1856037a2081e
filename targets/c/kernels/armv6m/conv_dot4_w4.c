#include <stddef.h>

#include "dot4.h"

#define KDP_DOT4 KDP(dot4_w4)
#define KDP_CONV_DOT4 KDP(conv_dot4_w4)
#include "conv_dot4_body.h"
