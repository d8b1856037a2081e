#include "ternary.h"

/* A tile of which some positions lie outside the input: `words` are four channels of each. */
static KDP_SMALL void put_words(const uint32_t *words, uint32_t *to, uint32_t *sums)
{
    for (int32_t i = 0; i < 4; i++) {
        uint32_t total = sums[i];
        __asm__("usada8 %0, %1, %2, %0" : "+r"(total) : "r"(words[i]), "r"(0));
        sums[i] = total;
    }
    for (int32_t shift = 0; shift < 32; shift += 8, to += 2) {
        to[0] = (words[0] >> shift & 255) | (words[1] >> shift & 255) << 15;
        to[1] = (words[2] >> shift & 255) | (words[3] >> shift & 255) << 15;
    }
}

static KDP_SMALL void put_row(const kdp_ternary *layer, const int8_t *input, int32_t y, uint32_t *row)
{
    const uint32_t offset = 0x80808080u; /* from signed to unsigned bytes */
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 255) * 0x01010101u ^ offset;
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
            const int8_t *const end = from + channels;
            if (x >= 0 && x + 3 * stride < width) {
                row = KDP(ternary_unpack)(from, row, stride * channels, end, sums);
                continue;
            }
            for (; from != end; from += 4, row += 8) {
                uint32_t words[4];
                for (int32_t i = 0; i < 4; i++) {
                    const int32_t column = x + i * stride;
                    words[i] = padding;
                    if (column >= 0 && column < width) {
                        words[i] = kdp_load(from + i * stride * channels) ^ offset;
                    }
                }
                put_words(words, row, sums);
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
