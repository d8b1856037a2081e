#include "conv2d.h"
#include "dot_w2.h"
#include "patch.h"

#define KDP_DEPTHWISE KDP(depthwise_w2)
#include "depthwise_body.h"
