/* Convolutions for Armv6-M: sums of some output positions at a time, two to a register. */
#ifndef KDPIPE_POSITIONS_DOT_H
#define KDPIPE_POSITIONS_DOT_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"
#include "rows.h"

#if !defined(__thumb__)
#error "These kernels are in Thumb assembly; on others, build the sources in portable/"
#endif

/* What computes some positions of every output channel, or the sums of one channel for C to requantize. The assembly
 * reads it member by member. */
typedef struct {
    const uint8_t *weights;
    const uint16_t *patch;    /* [taps][positions], values made unsigned by adding 128 */
    const int32_t *channels;  /* each one's start of the sum and multiplier, or the start alone */
    int8_t *output;
    int32_t stride;           /* output channels: bytes from one position to the next */
    int32_t count;            /* of positions that are wanted */
    int32_t block_bytes, row_bytes; /* of weights: so many taps' sums fit half-words; of a whole row */
    int32_t start, shift, low_bits, minimum, maximum; /* see requantize.inc */
    uint32_t *sums;           /* of one channel, or what conv_table works in: every channel's four, then the tables */
    uint32_t offsets[4];      /* what each position's sums have too much where weights are made unsigned too */
} kdp_dot_block;

/* `multipliers` of `to` is null where `block` requantizes. */
typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t dilation_y, dilation_x;
    int32_t in_zero_point;
    int32_t block_bytes, row_bytes;
    int32_t patch_bytes;
    const void *weights;
    const int32_t *channels;
    int32_t start, shift, low_bits;
    kdp_requantization to;
    void (*block)(const kdp_dot_block *block);
} kdp_dot;

/* Puts values that lie one after the other, at least one, into a patch of so many positions. The first returns their sum,
 * 128 added to each. */
uint32_t KDP(patch_values4)(uint16_t *patch, const int8_t *values, int32_t count);
uint32_t KDP(patch_values8)(uint16_t *patch, const int8_t *values, int32_t count);

/* Any kernel size, stride, padding and dilation, one group. `scratch` holds four patches at 8 bits, eight at 4 and 2, of
 * 2 bytes a tap, padded to whole rows of weights, and 3 bytes more. */
void KDP(conv_dot_w8)(const kdp_dot *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                      int8_t *scratch);
void KDP(conv_dot_w4)(const kdp_dot *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                      int8_t *scratch);
void KDP(conv_dot_w2)(const kdp_dot *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                      int8_t *scratch);

/* The same of ternary weights, by tables of sums: their bytes are offsets of entries, [chunks][channels][groups of three
 * taps]. `scratch` holds four patches, and behind them what `sums` says. */
void KDP(conv_table)(const kdp_dot *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch);

#endif
