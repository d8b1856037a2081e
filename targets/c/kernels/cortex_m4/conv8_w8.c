#include "conv8.h"
#include "dsp.h"

#define KDP_CONV8 KDP(conv8_w8)
#define KDP_BOXES 0
#define KDP_UNPACK KDP(conv8_unpack)
#include "conv8_body.h"
