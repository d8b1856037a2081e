#include "conv2d.h"
#include "dot_w4.h"

#define KDP_POINTWISE KDP(pointwise_w4)
#include "pointwise_body.h"
