#include "conv_mve_tile.h"

/* A pixel's channels are its window. */
static void put_window(const int8_t *from, int8_t *to, int32_t channels)
{
    for (; channels >= 16; channels -= 16, from += 16, to += 64) {
        vstrbq_s8(to, vldrbq_s8(from));
    }
    if (channels > 0) {
        vstrbq_s8(to, vldrbq_z_s8(from, vctp8q((uint32_t)channels)));
    }
}

void KDP(conv_mve_pointwise)(const kdp_mve_conv *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                             int8_t *scratch)
{
    const int32_t step = layer->stride_x * layer->in_channels;
    kdp_mve_tile tile = {scratch, output, 0};
    for (int32_t y = rows->first; y < rows->last; y++) {
        const int8_t *from = input + kdp_place(rows, y * layer->stride_y) * layer->in_width * layer->in_channels;
        for (int32_t left = layer->out_width; left > 0; left--, from += step) {
            put_window(from, scratch + 16 * tile.live, layer->in_channels);
            if (++tile.live == 4) {
                kdp_mve_compute(layer, &tile);
            }
        }
    }
    if (tile.live > 0) {
        kdp_mve_compute(layer, &tile);
    }
}
