#include "conv2d.h"
#include "dot_w2.h"

#define KDP_POINTWISE KDP(pointwise_w2)
#include "pointwise_body.h"
