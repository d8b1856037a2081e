/* The channels of several tensors, one after the other. Activations are int8, [height][width][channels]. */
#ifndef KDPIPE_CONCAT_H
#define KDPIPE_CONCAT_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t pixels;
    int32_t count;           /* of inputs */
    const int32_t *channels; /* of each input */
} kdp_concat;

void KDP(concat)(const kdp_concat *layer, const int8_t *const *inputs, int8_t *output);

#endif
