/* Convolutions for Armv6-M: sums of four output positions at a time, two to a register. */
#ifndef KDPIPE_DOT4_H
#define KDPIPE_DOT4_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"
#include "rows.h"

#if !defined(__thumb__)
#error "These kernels are in Thumb assembly; on others, build the sources in portable/"
#endif

/* `multipliers` of `to` is null where each channel's one multiplier and the layer's one shift serve. */
typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t dilation_y, dilation_x;
    int32_t in_zero_point;
    int32_t blocks;           /* of a row of weights */
    int32_t row_bytes;
    int32_t weight_offset;    /* that was added to each weight */
    const void *weights;
    const int32_t *channels;  /* start of the sum; its multiplier, where `to` has none */
    int32_t start, shift;
    kdp_requantization to;
} kdp_dot4;

/* sums[p] = sum over the taps t of weights[t] * patch[4 * t + p], for unsigned weights of 8, 4 or 2 bits in blocks of 8,
 * 16 and 16, and a patch of unsigned bytes in half-words. Modulo 2^32. */
void KDP(dot4_w8)(const uint8_t *weights, const uint16_t *patch, int32_t blocks, uint32_t *sums);
void KDP(dot4_w4)(const uint8_t *weights, const uint16_t *patch, int32_t blocks, uint32_t *sums);
void KDP(dot4_w2)(const uint8_t *weights, const uint16_t *patch, int32_t blocks, uint32_t *sums);

/* Any kernel size, stride, padding and dilation, one group. `scratch` holds four patches of 2 bytes a tap, padded to
 * whole blocks, and 3 bytes more. */
void KDP(conv_dot4_w8)(const kdp_dot4 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);
void KDP(conv_dot4_w4)(const kdp_dot4 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);
void KDP(conv_dot4_w2)(const kdp_dot4 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);

#endif
