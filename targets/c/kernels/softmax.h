/* exp(x) / sum exp(x) over the channels of each position, as TensorFlow Lite's reference kernel computes it. */
#ifndef KDPIPE_SOFTMAX_H
#define KDPIPE_SOFTMAX_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t positions, channels;
    const int32_t *exponentials; /* exp(-d * scale) * 2^31 of each difference d of two inputs */
} kdp_softmax;

/* The output may be the input. */
void KDP(softmax)(const kdp_softmax *layer, const int8_t *input, int8_t *output);

#endif
