/* From [height][width][channels] to the channels-first order that the network's flattening means. */
#ifndef KDPIPE_FLATTEN_H
#define KDPIPE_FLATTEN_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t pixels, channels;
} kdp_flatten;

void KDP(flatten)(const kdp_flatten *layer, const int8_t *input, int8_t *output);

#endif
