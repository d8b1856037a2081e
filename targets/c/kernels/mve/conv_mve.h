/* Convolutions in MVE, the vector extension of Armv8.1-M. */
#ifndef KDPIPE_CONV_MVE_H
#define KDPIPE_CONV_MVE_H

#include <stdint.h>

#include "kernel_config.h"
#include "rows.h"

#define KDP_MVE_MAX_HEIGHT 7

/* What computes a row of outputs, of more than a depthwise convolution at least four. The rows in assembly read it member by
 * member: 64 bytes, which they copy. */
typedef struct {
    const void *weights;
    const int32_t *parameters, *end; /* of each pair of channels: biases, multipliers, shifts */
    int8_t *output;
    int32_t count;
    int32_t places[4]; /* 0, 1, 2 and 3 times the output channels */
    const int8_t *rows[KDP_MVE_MAX_HEIGHT];
} kdp_mve_row;

typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels; /* an even number of channels */
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t dilation_y, dilation_x;
    int32_t in_zero_point;
    int32_t blocks;  /* of 16 inputs, of the channels or of a whole window */
    int32_t columns; /* of the padded input */
    const void *weights;
    const int32_t *parameters;
    const uint16_t *offsets; /* of the inputs of a window that is gathered */
    void (*row)(const kdp_mve_row *arguments);
} kdp_mve_conv;

/* Kernels up to three columns wide without dilation in x, or, in a depthwise convolution, up to five; of blocks of 16
 * channels, the last of which may have fewer. `scratch` holds (kernel_height - 1) * dilation_y + 1 rows of
 * blocks * columns * 16 bytes, and 3 bytes more, so that it may lie anywhere. */
void KDP(conv_mve_columns)(const kdp_mve_conv *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                           int8_t *scratch);

/* 1x1 without padding. `scratch` holds four windows of blocks * 16 bytes, and four outputs. */
void KDP(conv_mve_pointwise)(const kdp_mve_conv *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                             int8_t *scratch);

/* Any kernel. `scratch` holds the same, and (kernel_height - 1) * dilation_y + 1 rows of columns * in_channels bytes. */
void KDP(conv_mve_gather)(const kdp_mve_conv *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                          int8_t *scratch);

#endif
