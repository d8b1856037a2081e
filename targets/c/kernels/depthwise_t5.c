#include "conv2d.h"
#include "dot_t5.h"
#include "patch.h"

#define KDP_DEPTHWISE KDP(depthwise_t5)
#include "depthwise_body.h"
