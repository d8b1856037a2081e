#include "conv2d.h"
#include "dot_w8.h"

#define KDP_POINTWISE KDP(pointwise_w8)
#include "pointwise_body.h"
