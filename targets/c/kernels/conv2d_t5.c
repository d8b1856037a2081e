#include "conv2d.h"
#include "dot_t5.h"
#include "patch.h"

#define KDP_CONV2D KDP(conv2d_t5)
#include "conv2d_body.h"
