#include "conv2d.h"
#include "dot_w8.h"
#include "patch.h"

#define KDP_CONV2D KDP(conv2d_w8)
#include "conv2d_body.h"
