#include "conv8.h"
#include "dsp.h"

#define KDP_CONV8 KDP(conv8_w4)
#define KDP_BOXES 1
#define KDP_UNPACK KDP(conv8_unpack_sums)
#include "conv8_body.h"
