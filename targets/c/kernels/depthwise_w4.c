#include "conv2d.h"
#include "dot_w4.h"
#include "patch.h"

#define KDP_DEPTHWISE KDP(depthwise_w4)
#include "depthwise_body.h"
