#include "conv2d.h"
#include "dot_w8.h"
#include "patch.h"

#define KDP_DEPTHWISE KDP(depthwise_w8)
#include "depthwise_body.h"
