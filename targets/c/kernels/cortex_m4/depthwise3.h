/* 3x3 depthwise convolutions for cores with the DSP extension and floating-point registers. */
#ifndef KDPIPE_DEPTHWISE3_H
#define KDPIPE_DEPTHWISE3_H

#include <stdint.h>

#include "kernel_config.h"

/* What computes a strip of one channel. The rows in assembly read it member by member. */
typedef struct {
    const uint32_t *plane;
    const uint32_t *weights; /* three words, the bias, and the factors */
    int8_t *output;
    int32_t rows;
} kdp_depthwise3_row;

typedef struct {
    int32_t in_height, in_width;
    int32_t out_height, out_width;
    int32_t channels; /* a multiple of 4 */
    int32_t stride;   /* 1 or 2 */
    int32_t pad_top, pad_left;
    int32_t in_zero_point;
    int32_t strip;     /* output rows at a time, strip * stride being even */
    int32_t pair_rows; /* pairs of input rows that they need */
    int32_t columns;   /* of the plane */
    int32_t channel_words;
    const uint32_t *weights;
    void (*row)(const kdp_depthwise3_row *arguments);
} kdp_depthwise3;

/* `scratch`: four planes of pair_rows * columns words, and 3 bytes more, so that it may lie anywhere. */
void KDP(depthwise3)(const kdp_depthwise3 *layer, const int8_t *input, int8_t *output, int8_t *scratch);

#endif
