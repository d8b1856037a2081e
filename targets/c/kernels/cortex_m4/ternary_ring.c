#include "ternary.h"

/* So many channels are copied together. */
#define CHUNK 16

/* Four positions `step` bytes apart, `stride` columns from column `x` on, of which those outside the `width` hold padding. */
static KDP_SMALL uint32_t *put_edge(const int8_t *from, uint32_t *to, int32_t step, int32_t channels, int32_t x,
                                    int32_t stride, int32_t width, uint32_t padding, uint32_t *sums)
{
    uint32_t copies[4][CHUNK / 4];
    for (int32_t c = 0; c < channels; c += CHUNK) {
        const int32_t count = channels - c < CHUNK ? channels - c : CHUNK;
        for (int32_t i = 0; i < 4; i++) {
            const int32_t column = x + i * stride;
            const int inside = column >= 0 && column < width;
            for (int32_t n = 0; n < count; n += 4) {
                copies[i][n / 4] = inside ? kdp_load(from + i * step + c + n) : padding;
            }
        }
        to = KDP(ternary_unpack)((const int8_t *)copies, to, CHUNK, count, sums, 1);
    }
    return to;
}

static KDP_SMALL void fill_sums(uint32_t *sums, uint32_t value, int32_t tiles)
{
    for (; tiles > 0; tiles--) {
        *sums++ = value;
        *sums++ = value;
        *sums++ = value;
        *sums++ = value;
    }
}

static KDP_SMALL void put_row(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, int32_t y, uint32_t *row)
{
    const int32_t channels = layer->in_channels;
    const int32_t left = layer->in_positions - y * layer->in_width;
    const int32_t width = y < 0 || y >= layer->in_height ? 0 : (left < layer->in_width ? left : layer->in_width);
    const int32_t stride = layer->stride_x;
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 255) * 0x01010101u;
    int32_t tile = 0;
    uint32_t *sums = row + layer->tiles * layer->taps * channels * 2;
    if (width == 0) {
        const uint32_t value = (uint32_t)(layer->in_zero_point + 128);
        while (row != sums) {
            *row++ = value | value << 15;
        }
        fill_sums(sums, (uint32_t)(layer->taps * channels) * value, layer->tiles);
        return;
    }
    input += kdp_place(rows, y) * layer->in_width * channels;
    fill_sums(sums, 0, layer->tiles);
    if (layer->taps == 1 && layer->ring_left == 0 && width > 3 * stride) {
        /* Whole tiles follow each other. */
        tile = (width + stride - 1) / (4 * stride);
        tile = tile < layer->tiles ? tile : layer->tiles;
        row = KDP(ternary_unpack)(input, row, stride * channels, channels, sums, tile);
        sums += 4 * tile;
    }
    for (; tile < layer->tiles; tile++, sums += 4) {
        for (int32_t u = 0; u < layer->taps; u++) {
            const int32_t x = 4 * tile * stride + u * layer->dilation_x - layer->ring_left;
            const int8_t *from = input + x * channels;
            if (x >= 0 && x + 3 * stride < width) {
                row = KDP(ternary_unpack)(from, row, stride * channels, channels, sums, 1);
            } else {
                row = put_edge(from, row, stride * channels, channels, x, stride, width, padding, sums);
            }
        }
    }
}

KDP_SMALL void KDP(ternary_ring)(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, uint32_t *ring,
                                 int32_t y, uint32_t **window)
{
    const int32_t ring_rows = kdp_ternary_ring_rows(layer);
    const int32_t row_words = kdp_ternary_row_words(layer);
    /* Counted from the first row of padding. */
    const int32_t top = y * layer->stride_y;
    int32_t next = y > 0 ? top - layer->stride_y + ring_rows : 0;
    if (next < top) {
        next = top;
    }
    for (; next < top + ring_rows; next++) {
        put_row(layer, rows, input, next - layer->pad_top, ring + next % ring_rows * row_words);
    }
    for (int32_t v = 0; v < layer->kernel_height; v++) {
        window[v] = ring + (top + v * layer->dilation_y) % ring_rows * row_words;
    }
}

KDP_SMALL const int32_t *KDP(ternary_sums)(const kdp_ternary *layer, uint32_t *const *rows)
{
    const int32_t columns = 4 * layer->tiles;
    const int32_t at = kdp_ternary_row_words(layer) - columns;
    int32_t *const sums = (int32_t *)rows[0] + at;
    int32_t v = 1;
    for (; v + 1 < layer->kernel_height; v += 2) {
        const int32_t *const one = (const int32_t *)rows[v] + at;
        const int32_t *const other = (const int32_t *)rows[v + 1] + at;
        for (int32_t c = 0; c < columns; c++) {
            sums[c] += one[c] + other[c];
        }
    }
    if (v < layer->kernel_height) {
        const int32_t *const last = (const int32_t *)rows[v] + at;
        for (int32_t c = 0; c < columns; c++) {
            sums[c] += last[c];
        }
    }
    return sums;
}
