#include "conv_mve.h"
#include "mve.h"

/* A row between its padding, which is there already: one block of 16 channels after the other. */
static void put_row(const kdp_mve_conv *layer, const int8_t *from, int8_t *to)
{
    const int32_t channels = layer->in_channels;
    const int32_t room = layer->columns - layer->pad_left;
    const int32_t width = layer->in_width < room ? layer->in_width : room;
    to += 16 * layer->pad_left;
    for (int32_t left = channels; left > 0; left -= 16, from += 16, to += 16 * layer->columns) {
        /* Of the last block's channels, those that there are. */
        const mve_pred16_t some = vctp8q((uint32_t)left);
        const int8_t *column = from;
        int8_t *place = to;
        for (int32_t i = width; i > 0; i--, column += channels, place += 16) {
            vstrbq_s8(place, vldrbq_z_s8(column, some));
        }
    }
}

void KDP(conv_mve_columns)(const kdp_mve_conv *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                           int8_t *scratch)
{
    int8_t *const ring = (int8_t *)(((uintptr_t)scratch + 3) & ~(uintptr_t)3);
    const int32_t row_bytes = layer->blocks * layer->columns * 16;
    const int32_t ring_rows = (layer->kernel_height - 1) * layer->dilation_y + 1;
    int32_t top = rows->first * layer->stride_y;
    /* The row to put next, counted as `top` from the first one above the input. */
    int32_t next = rows->first > 0 ? top - layer->stride_y + ring_rows : 0;
    kdp_mve_row arguments;
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    arguments.end = layer->parameters + 3 * layer->out_channels;
    for (int32_t i = 0; i < 4; i++) {
        arguments.places[i] = i * layer->out_channels;
    }
    if (rows->first == 0) {
        kdp_mve_fill(ring, layer->in_zero_point, ring_rows * row_bytes);
    }
    /* The rows above are the padding that the ring was filled with. */
    if (next < layer->pad_top) {
        next = layer->pad_top;
    }
    for (int32_t y = rows->first; y < rows->last; y++, top += layer->stride_y) {
        if (next < top) {
            next = top;
        }
        for (; next < top + ring_rows; next++) {
            const int32_t in_y = next - layer->pad_top;
            int8_t *const to = ring + next % ring_rows * row_bytes;
            if (in_y < layer->in_height) {
                put_row(layer, input + kdp_place(rows, in_y) * layer->in_width * layer->in_channels, to);
            } else {
                kdp_mve_fill(to, layer->in_zero_point, row_bytes);
            }
        }
        for (int32_t v = 0; v < layer->kernel_height; v++) {
            arguments.rows[v] = ring + (top + v * layer->dilation_y) % ring_rows * row_bytes;
        }
        arguments.output = output;
        arguments.count = layer->out_width;
        layer->row(&arguments);
        output += layer->out_width * layer->out_channels;
    }
}
