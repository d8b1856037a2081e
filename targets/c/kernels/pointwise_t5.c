#include "conv2d.h"
#include "dot_t5.h"

#define KDP_POINTWISE KDP(pointwise_t5)
#include "pointwise_body.h"
