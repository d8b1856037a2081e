/* What every convolution kernel is told about its layer. Activations are int8, [height][width][channels]. */
#ifndef KDPIPE_CONV2D_H
#define KDPIPE_CONV2D_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"
#include "rows.h"

typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t dilation_y, dilation_x;
    int32_t groups;
    int32_t in_zero_point;
    const void *weights; /* rows of [kernel_height][kernel_width][in_channels / groups], one for each output channel */
    const int32_t *bias; /* with the input's zero point folded in, modulo 2^32 */
    kdp_requantization to;
} kdp_conv2d;

/* Any kernel size, stride, padding, dilation and groups; the suffix says how the weights are stored: ternary ones five to
 * a byte (t5), else at 2, 4 or 8 bits. `scratch` holds two patches: 2 * kernel_height * kernel_width * (in_channels / groups) bytes. */
void KDP(conv2d_t5)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                    int8_t *scratch);
void KDP(conv2d_w2)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                    int8_t *scratch);
void KDP(conv2d_w4)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                    int8_t *scratch);
void KDP(conv2d_w8)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                    int8_t *scratch);

/* 1x1 without padding, dilation or groups. */
void KDP(pointwise_t5)(const kdp_conv2d *layer, const int8_t *input, int8_t *output);
void KDP(pointwise_w2)(const kdp_conv2d *layer, const int8_t *input, int8_t *output);
void KDP(pointwise_w4)(const kdp_conv2d *layer, const int8_t *input, int8_t *output);
void KDP(pointwise_w8)(const kdp_conv2d *layer, const int8_t *input, int8_t *output);

/* groups == in_channels. `scratch` holds one patch: kernel_height * kernel_width * in_channels bytes. */
void KDP(depthwise_t5)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);
void KDP(depthwise_w2)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);
void KDP(depthwise_w4)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);
void KDP(depthwise_w8)(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);

#endif
