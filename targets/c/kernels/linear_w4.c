#include "dot_w4.h"
#include "linear.h"

#define KDP_LINEAR KDP(linear_w4)
#include "linear_body.h"
