#include "conv8.h"
#include "dsp.h"

/* A row as half-words; `columns` of them. A second copy, one half-word further, keeps the words of both pixels of a pair
 * aligned where they are an odd number of half-words apart. */
static KDP_SMALL void put_row(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int32_t y, int16_t *row)
{
    const int16_t padding = (int16_t)layer->in_zero_point;
    const int32_t channels = layer->in_channels;
    const int32_t left = layer->pad_left * channels;
    const int32_t inside = y < 0 || y >= layer->in_height ? 0 : layer->in_width * channels;
    const int32_t end = left + inside < layer->columns ? left + inside : layer->columns;
    const int8_t *from = input + kdp_place(rows, y) * layer->in_width * channels;
    int32_t n = 0;
    for (; n < left; n++) {
        row[n] = padding;
    }
    for (; n + 4 <= end; n += 4, from += 4) {
        const uint32_t word = kdp_load(from);
        const uint32_t even = kdp_even_bytes(word);
        const uint32_t odd = kdp_odd_bytes(word);
        kdp_store(row + n, kdp_low_halves(even, odd));
        kdp_store(row + n + 2, kdp_high_halves(even, odd));
    }
    for (; n < end; n++) {
        row[n] = *from++;
    }
    for (; n < layer->columns; n++) {
        row[n] = padding;
    }
    if (layer->pairs == 2) {
        const uint32_t *words = (const uint32_t *)(const void *)row;
        uint32_t *to = (uint32_t *)(void *)(row + layer->columns);
        for (n = 0; n < layer->columns / 2 - 1; n++) {
            to[n] = words[n] >> 16 | words[n + 1] << 16;
        }
    }
}

KDP_SMALL void KDP(conv8_flat)(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                               int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t row_words = layer->pairs * layer->columns / 2;
    const int32_t pair_bytes = 4 * layer->stride_x * layer->in_channels;
    int32_t top = rows->first * layer->stride_y;
    int32_t next = rows->first > 0 ? top - layer->stride_y + layer->kernel_height : 0;
    kdp_conv8_row arguments;
    arguments.boxes = 0;
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    arguments.pair_bytes = (layer->out_width + 1) / 2 * pair_bytes;
    arguments.odd_at = layer->out_width % 2 ? arguments.pair_bytes - pair_bytes : -1;
    for (int32_t y = rows->first; y < rows->last; y++, top += layer->stride_y) {
        if (next < top) {
            next = top;
        }
        for (; next < top + layer->kernel_height; next++) {
            put_row(layer, rows, input, next - layer->pad_top,
                    (int16_t *)(void *)(ring + next % layer->kernel_height * row_words));
        }
        for (int32_t v = 0; v < layer->kernel_height; v++) {
            arguments.rows[v] = ring + (top + v) % layer->kernel_height * row_words;
        }
        arguments.output = output;
        output += layer->out_width * layer->out_channels;
        layer->row(&arguments);
    }
}
