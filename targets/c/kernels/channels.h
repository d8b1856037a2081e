/* Some channels, or all in another order. Activations are int8, [height][width][channels]. */
#ifndef KDPIPE_CHANNELS_H
#define KDPIPE_CHANNELS_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t pixels, channels;
    int32_t start, stop;
} kdp_slice;

typedef struct {
    int32_t pixels;
    int32_t groups, group_size;
} kdp_channel_shuffle;

/* Channels start to stop - 1. */
void KDP(slice)(const kdp_slice *layer, const int8_t *input, int8_t *output);

/* The first of every group, then the second of every group, and so on. */
void KDP(channel_shuffle)(const kdp_channel_shuffle *layer, const int8_t *input, int8_t *output);

#endif
