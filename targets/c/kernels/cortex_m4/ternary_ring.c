#include <string.h>

#include "ternary.h"

/* So many channels are copied together. */
#define CHUNK 16

/* Four positions `step` bytes apart, `stride` columns from column `x` on, of which those outside the `width` hold padding. */
static KDP_SMALL uint32_t *put_edge(const int8_t *from, uint32_t *to, int32_t step, int32_t channels, int32_t x,
                                    int32_t stride, int32_t width, int8_t padding, uint32_t *sums)
{
    int8_t copies[4 * CHUNK];
    for (int32_t c = 0; c < channels; c += CHUNK) {
        const int32_t count = channels - c < CHUNK ? channels - c : CHUNK;
        for (int32_t i = 0; i < 4; i++) {
            const int32_t column = x + i * stride;
            if (column >= 0 && column < width) {
                memcpy(copies + i * CHUNK, from + i * step + c, (size_t)count);
            } else {
                memset(copies + i * CHUNK, padding, (size_t)count);
            }
        }
        to = KDP(ternary_unpack)(copies, to, CHUNK, copies + count, sums);
    }
    return to;
}

static KDP_SMALL void put_row(const kdp_ternary *layer, const int8_t *input, int32_t y, uint32_t *row)
{
    const int32_t channels = layer->in_channels;
    const int32_t left = layer->in_positions - y * layer->in_width;
    const int32_t width = y < 0 || y >= layer->in_height ? 0 : (left < layer->in_width ? left : layer->in_width);
    const int32_t stride = layer->stride_x;
    uint32_t *sums = row + layer->tiles * layer->taps * channels * 2;
    for (int32_t tile = 0; tile < layer->tiles; tile++, sums += 4) {
        for (int32_t i = 0; i < 4; i++) {
            sums[i] = 0;
        }
        for (int32_t u = 0; u < layer->taps; u++) {
            const int32_t x = 4 * tile * stride + u * layer->dilation_x - layer->ring_left;
            const int8_t *from = input + (y * layer->in_width + x) * channels;
            if (x >= 0 && x + 3 * stride < width) {
                row = KDP(ternary_unpack)(from, row, stride * channels, from + channels, sums);
            } else {
                row = put_edge(from, row, stride * channels, channels, x, stride, width,
                               (int8_t)layer->in_zero_point, sums);
            }
        }
    }
}

KDP_SMALL int32_t KDP(ternary_ring)(const kdp_ternary *layer, const int8_t *input, uint32_t *ring, int32_t top, int32_t next,
                          uint32_t **rows)
{
    const int32_t ring_rows = kdp_ternary_ring_rows(layer);
    const int32_t row_words = kdp_ternary_row_words(layer);
    if (next < top) {
        next = top;
    }
    for (; next < top + ring_rows; next++) {
        put_row(layer, input, next - layer->pad_top, ring + next % ring_rows * row_words);
    }
    for (int32_t v = 0; v < layer->kernel_height; v++) {
        rows[v] = ring + (top + v * layer->dilation_y) % ring_rows * row_words;
    }
    return next;
}

KDP_SMALL const int32_t *KDP(ternary_sums)(const kdp_ternary *layer, uint32_t *const *rows)
{
    const int32_t columns = 4 * layer->tiles;
    const int32_t at = kdp_ternary_row_words(layer) - columns;
    int32_t *const sums = (int32_t *)rows[0] + at;
    for (int32_t v = 1; v < layer->kernel_height; v++) {
        const int32_t *const more = (const int32_t *)rows[v] + at;
        for (int32_t c = 0; c < columns; c++) {
            sums[c] += more[c];
        }
    }
    return sums;
}
