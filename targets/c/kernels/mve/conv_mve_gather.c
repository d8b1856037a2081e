#include "conv_mve_tile.h"

/* Eight inputs at a time, from where `offsets` say. */
static inline void put_window(const kdp_mve_conv *layer, const int8_t *from, int8_t *to)
{
    const uint16_t *offsets = layer->offsets;
    for (int32_t left = layer->blocks; left > 0; left--, offsets += 16, to += 64) {
        vstrbq_s16(to, vldrbq_gather_offset_s16(from, vldrhq_u16(offsets)));
        vstrbq_s16(to + 8, vldrbq_gather_offset_s16(from, vldrhq_u16(offsets + 8)));
    }
}

void KDP(conv_mve_gather)(const kdp_mve_conv *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                          int8_t *scratch)
{
    const int32_t channels = layer->in_channels;
    const int32_t row_bytes = layer->columns * channels;
    const int32_t held = (layer->kernel_height - 1) * layer->dilation_y + 1;
    const int32_t kept = held > layer->stride_y ? held - layer->stride_y : 0;
    const int32_t room = layer->columns - layer->pad_left;
    const int32_t width = layer->in_width < room ? layer->in_width : room;
    const int32_t step = layer->stride_x * channels;
    int32_t top = rows->first * layer->stride_y - layer->pad_top;
    kdp_mve_tile tile = {scratch + held * row_bytes, output, 0};
    if (rows->first == 0) {
        kdp_mve_fill(scratch, layer->in_zero_point, held * row_bytes);
    }
    for (int32_t y = rows->first; y < rows->last; y++, top += layer->stride_y) {
        /* The rows that this window shares with the one above move up, those below are new. */
        const int32_t first = y > 0 ? kept : 0;
        if (first > 0) {
            kdp_mve_copy(scratch, scratch + layer->stride_y * row_bytes, kept * row_bytes);
        }
        for (int32_t v = first; v < held; v++) {
            int8_t *const to = scratch + v * row_bytes;
            const int32_t in_y = top + v;
            if (in_y >= 0 && in_y < layer->in_height) {
                kdp_mve_copy(to + layer->pad_left * channels,
                             input + kdp_place(rows, in_y) * layer->in_width * channels, width * channels);
            } else {
                kdp_mve_fill(to, layer->in_zero_point, row_bytes);
            }
        }
        for (int32_t x = 0; x < layer->out_width; x++) {
            put_window(layer, scratch + x * step, tile.windows + 16 * tile.live);
            if (++tile.live == 4) {
                kdp_mve_compute(layer, &tile);
            }
        }
    }
    if (tile.live > 0) {
        kdp_mve_compute(layer, &tile);
    }
}
