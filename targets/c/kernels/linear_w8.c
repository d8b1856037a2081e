#include "dot_w8.h"
#include "linear.h"

#define KDP_LINEAR KDP(linear_w8)
#include "linear_body.h"
