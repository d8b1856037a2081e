/* Pooling over windows. Activations are int8, [height][width][channels]. */
#ifndef KDPIPE_POOL_H
#define KDPIPE_POOL_H

#include <stdint.h>

#include "kernel_config.h"
#include "rows.h"

typedef struct {
    int32_t in_height, in_width, channels;
    int32_t out_height, out_width;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left; /* 0 for the average */
    int32_t minimum, maximum;
} kdp_pool;

/* Largest value; positions outside the input never win. */
void KDP(max_pool)(const kdp_pool *layer, const kdp_rows *rows, const int8_t *input, int8_t *output);

/* Mean of the stored integers, rounded half away from zero. */
void KDP(average_pool)(const kdp_pool *layer, const kdp_rows *rows, const int8_t *input, int8_t *output);

/* The same of the whole input, with a multiple of four channels, for cores with the DSP extension. */
void KDP(mean_dsp)(const kdp_pool *layer, const int8_t *input, int8_t *output);

/* The same with any number of channels, for cores with MVE. */
void KDP(mean_mve)(const kdp_pool *layer, const int8_t *input, int8_t *output);

#endif
