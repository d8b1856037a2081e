#include "dot_t5.h"
#include "linear.h"

#define KDP_LINEAR KDP(linear_t5)
#include "linear_body.h"
