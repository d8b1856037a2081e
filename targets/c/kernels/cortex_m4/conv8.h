/* Convolutions for the DSP extension (Cortex-M4, M7, M33), over rows in assembly (conv8.inc). */
#ifndef KDPIPE_CONV8_H
#define KDPIPE_CONV8_H

#include <stdint.h>

#include "kernel_config.h"
#include "rows.h"

#define KDP_CONV8_MAX_HEIGHT 16

/* What computes one output row. `conv8.inc` reads it member by member. */
typedef struct {
    const int32_t *boxes; /* 4-bit weights, several taps: of both windows of a pair the sum of inputs times 8, then times
                             8 * 257 */
    const uint32_t *weights;
    const int32_t *parameters; /* for four output channels at a time: starts of the sums, then their factors */
    int8_t *output;
    int32_t pair_bytes; /* where the row's pairs of pixels end in a ring row */
    int32_t odd_at;     /* where the pair lies of which the second pixel does not exist, or -1 */
    uint32_t *rows[KDP_CONV8_MAX_HEIGHT];
} kdp_conv8_row;

/* Rows of inputs lie in a ring, as half-words, in an order that the layer's constants describe. */
typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t in_positions; /* height * width, or less where the last row is shorter */
    int32_t out_width, out_positions, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t dilation_y, dilation_x;
    int32_t in_zero_point;
    int32_t columns;     /* of a ring row, or its half-words in conv8_flat */
    int32_t column_step; /* input pixels from one column to the next */
    int32_t phases;      /* columns c, c + phases, c + 2 * phases, ... are neighbours */
    int32_t phase_words; /* from one of these sequences to the next */
    int32_t pair_words;  /* from one channel pair to the next */
    int32_t pairs;       /* of channels; in conv8_flat copies of a row */
    const uint32_t *weights;
    const int32_t *parameters;
    void (*row)(const kdp_conv8_row *arguments);
} kdp_conv8;

/* `scratch` holds the ring: ((kernel_height - 1) * dilation_y + 1) * pairs * pair_words words, with 4-bit weights
 * `pair_words` more for each row, and, of several taps, 2 * (`out_width` + 1); and 3 bytes more, so that it may lie anywhere. */
void KDP(conv8_w8)(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                   int8_t *scratch);
void KDP(conv8_w4)(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                   int8_t *scratch);

/* Puts `quads` times four channels of `count` columns, `step` bytes apart: of each four, channels 0 and 2 at `to`, 1 and 3
 * `pair_bytes` further, and the next four after these. The second adds the columns' sums to `sums`. */
void KDP(conv8_unpack)(const int8_t *from, uint32_t *to, int32_t step, int32_t pair_bytes, int32_t count, int32_t quads,
                       int32_t *sums);
void KDP(conv8_unpack_sums)(const int8_t *from, uint32_t *to, int32_t step, int32_t pair_bytes, int32_t count,
                            int32_t quads, int32_t *sums);

/* Few input channels: the taps and channels of a kernel row are one run of half-words. `scratch` holds kernel_height
 * * pairs * columns half-words and 3 bytes. */
void KDP(conv8_flat)(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                     int8_t *scratch);

#endif
