/* 3x3 depthwise convolutions for Armv6-M: two output rows at a time, two sums to a register. */
#ifndef KDPIPE_DEPTHWISE_PAIRS_H
#define KDPIPE_DEPTHWISE_PAIRS_H

#include <stdint.h>

#include "kernel_config.h"
#include "rows.h"

#if !defined(__thumb__)
#error "These kernels are in Thumb assembly; on others, build the sources in portable/"
#endif

/* What computes a strip of one channel. The assembly reads it member by member. */
typedef struct {
    const uint32_t *plane;    /* two values a word, that of the strip's upper half lowest, made 1 to 256 by adding 129 */
    int32_t pitch, step;      /* bytes from one row of it to the next, and from one output's window to the next */
    int32_t row_bytes;        /* of one output row's windows */
    int32_t row_step;         /* from their end to the next output row's first */
    int32_t rows;             /* of the upper half */
    const int32_t *taps;
    int32_t negative_taps;
    int32_t begin;            /* what sums start from */
    int32_t *sums;            /* of the upper half, then of the lower half */
    int32_t half_bytes;       /* of the upper half's sums, less 4 */
    int32_t count;            /* of sums that are wanted */
    int32_t multiplier;
    int8_t *output;
    int32_t stride;           /* channels: bytes from one output to the next */
    int32_t start, shift, low_bits, minimum, maximum; /* see requantize.inc */
} kdp_depthwise_channel;

typedef struct {
    int32_t in_height, in_width;
    int32_t out_height, out_width;
    int32_t channels;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t in_zero_point;
    int32_t strip;            /* output rows at a time, an even number */
    int32_t columns;          /* of the plane */
    int32_t plane_rows;       /* the most that it has */
    int32_t weight_bits;      /* 8: a byte each; 4 and 2: in words, two's complement, the first lowest */
    int32_t channel_bytes;
    const void *weights;
    const int32_t *parameters; /* of each channel: `begin` and `multiplier` */
    int32_t start, shift, low_bits, minimum, maximum;
    void (*channel)(const kdp_depthwise_channel *channel);
} kdp_depthwise_pairs;

/* Values of one channel in two rows as words of a plane; `step`: bytes from one value to the next. */
void KDP(pair_values)(const int8_t *const rows[2], uint32_t *to, int32_t count, int32_t step);

/* `scratch`: the plane, the sums of a strip, and 3 bytes more, so that it may lie anywhere. */
void KDP(depthwise_pairs)(const kdp_depthwise_pairs *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                          int8_t *scratch);

#endif
