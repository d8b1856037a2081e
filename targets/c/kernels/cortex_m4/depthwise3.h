/* 3x3 depthwise convolutions for cores with the DSP extension and floating-point registers. */
#ifndef KDPIPE_DEPTHWISE3_H
#define KDPIPE_DEPTHWISE3_H

#include <stdint.h>

#include "kernel_config.h"
#include "rows.h"

/* What computes a strip of one channel. The rows in assembly read it member by member. */
typedef struct {
    const uint32_t *plane;
    const uint32_t *weights; /* the taps, the bias and the multiplier */
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

/* Pairs of input rows that are to be put in the planes. The assembly reads it member by member. */
typedef struct {
    const int8_t *first, *second;
    int32_t first_step, second_step; /* bytes from one column to the next */
    int32_t plane_bytes;
    int32_t count;
    int32_t row_skip;    /* from the end of a row to the next one of a pair */
    int32_t column_skip; /* bytes of a plane's row that are padding */
    int32_t columns;     /* that are not */
} kdp_depthwise3_rows;

/* Puts four channels of `rows`, one plane for each. Returns where the next row goes. */
uint32_t *KDP(depthwise3_unpack)(const kdp_depthwise3_rows *rows, uint32_t *to);

/* `scratch`: four planes of pair_rows * columns words, and 3 bytes more, so that it may lie anywhere. */
void KDP(depthwise3)(const kdp_depthwise3 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                     int8_t *scratch);

#endif
