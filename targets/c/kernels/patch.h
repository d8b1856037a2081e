/* Collects the window under one output position into [kernel_height][kernel_width][channels], contiguous. */
#ifndef KDPIPE_PATCH_H
#define KDPIPE_PATCH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "conv2d.h"

/* Positions outside the input hold its zero point, as the folded bias expects. `channels` are taken from
 * `first_channel` on. */
static inline void kdp_gather_patch(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int32_t out_y,
                                    int32_t out_x, int32_t first_channel, int32_t channels, int8_t *patch)
{
    const int32_t zero_point = layer->in_zero_point;
    const int32_t left = out_x * layer->stride_x - layer->pad_left;
    const int32_t row_bytes = layer->kernel_width * channels;
    const int contiguous = layer->dilation_x == 1 && channels == layer->in_channels && left >= 0 &&
                           left + layer->kernel_width <= layer->in_width;
    int32_t y = out_y * layer->stride_y - layer->pad_top;
    const int32_t turn = kdp_turn(rows, y);
    for (int32_t v = 0; v < layer->kernel_height; v++, y += layer->dilation_y) {
        const int8_t *row;
        int32_t x = left;
        if (y < 0 || y >= layer->in_height) {
            memset(patch, zero_point, (size_t)row_bytes);
            patch += row_bytes;
            continue;
        }
        row = input + (ptrdiff_t)kdp_place_after(rows, turn, y) * layer->in_width * layer->in_channels + first_channel;
        if (contiguous) {
            memcpy(patch, row + (ptrdiff_t)left * layer->in_channels, (size_t)row_bytes);
            patch += row_bytes;
            continue;
        }
        for (int32_t u = 0; u < layer->kernel_width; u++, x += layer->dilation_x) {
            if (x < 0 || x >= layer->in_width) {
                memset(patch, zero_point, (size_t)channels);
            } else {
                memcpy(patch, row + (ptrdiff_t)x * layer->in_channels, (size_t)channels);
            }
            patch += channels;
        }
    }
}

#endif
