#include "dot_w2.h"
#include "linear.h"

#define KDP_LINEAR KDP(linear_w2)
#include "linear_body.h"
