/* Nearest neighbour: each pixel repeated. Activations are int8, [height][width][channels]. */
#ifndef KDPIPE_UPSAMPLE_H
#define KDPIPE_UPSAMPLE_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t height, width, channels; /* of the input */
    int32_t factor_y, factor_x;
} kdp_upsample;

void KDP(upsample)(const kdp_upsample *layer, const int8_t *input, int8_t *output);

#endif
