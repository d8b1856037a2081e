#include <string.h>

#include "dsp.h"
#include "nibble_taps.h"

#define TILE 8  /* output positions */
#define WORDS 5 /* of inputs for a tile */

static KDP_SMALL void put_row(const kdp_nibble_taps *layer, const kdp_rows *rows, const int8_t *input, int32_t y,
                              const int8_t *padding, uint32_t *row)
{
    const int32_t channels = layer->in_channels;
    const int32_t width = layer->in_width;
    const int32_t zero_point = layer->in_zero_point;
    const int8_t *line;
    uint32_t *sums = row + layer->tiles * WORDS * channels;
    memset(row, 0, 4 * (size_t)(layer->tiles * WORDS * (channels + 2)));
    if (y < 0 || y >= layer->in_height) {
        return;
    }
    line = input + kdp_place(rows, y) * width * channels;
    for (int32_t tile = 0; tile < layer->tiles; tile++, row += WORDS * channels, sums += 2 * WORDS) {
        int32_t word = 0;
        int32_t x = TILE * tile - 1;
        int32_t words;
        if (tile == 0) {
            KDP(nibble_unpack)(line, padding, row, channels, zero_point, 1, sums);
            word = 1;
            x = 1;
        }
        words = (width - x) / 2;
        if (words > 0) {
            words = words < WORDS - word ? words : WORDS - word;
            KDP(nibble_unpack)(line + x * channels, line + (x + 1) * channels, row + word, channels, zero_point, words,
                               sums + 2 * word);
            word += words;
            x += 2 * words;
        }
        if (word < WORDS && x < width) {
            KDP(nibble_unpack)(line + x * channels, padding, row + word, channels, zero_point, 1, sums + 2 * word);
        }
    }
}

/* The sum of the inputs that are at one place of all kernel rows. */
static KDP_SMALL uint64_t sum_rows(const kdp_nibble_taps_row *arguments, int32_t at)
{
    uint64_t sum = 0;
    for (const uint32_t *const *row = arguments->rows; *row != 0; row++) {
        sum += (*row)[at] | (uint64_t)(*row)[at + 1] << 32;
    }
    return sum;
}

static KDP_SMALL void put_starts(const kdp_nibble_taps *layer, const kdp_nibble_taps_row *arguments, uint32_t *starts)
{
    const uint64_t both = 1 | (uint64_t)1 << 20; /* lower fields */
    int32_t at = layer->tiles * WORDS * layer->in_channels;
    for (int32_t tile = 0; tile < layer->tiles; tile++) {
        uint64_t before = sum_rows(arguments, at) * (tile == 0 ? both : 1);
        at += 2;
        for (int32_t i = 1; i < WORDS; i++, at += 2) {
            const uint64_t here = sum_rows(arguments, at);
            const uint64_t start = (uint64_t)layer->start * both - 8 * (before + here * both);
            *starts++ = (uint32_t)start;
            *starts++ = (uint32_t)(start >> 32);
            before = here;
        }
    }
}

KDP_SMALL void KDP(nibble_taps)(const kdp_nibble_taps *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                                int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t row_words = layer->tiles * WORDS * (layer->in_channels + 2);
    const int32_t height = layer->kernel_height;
    const int32_t channels = layer->out_channels;
    const int32_t rest = layer->out_width % TILE;
    uint32_t *const starts = ring + height * row_words;
    int8_t *const padding = (int8_t *)(starts + TILE * layer->tiles);
    int8_t *const tail = padding + layer->in_channels;
    int32_t top = rows->first * layer->stride_y;
    /* The row to put next, counted as `top` from the first one above the input. */
    int32_t next = rows->first > 0 ? top - layer->stride_y + height : 0;
    kdp_nibble_taps_row arguments;
    memset(padding, layer->in_zero_point, (size_t)layer->in_channels);
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    arguments.tail = tail;
    arguments.starts = starts;
    arguments.tiles = layer->tiles;
    arguments.tail_at = rest ? 1 : 0;
    arguments.channels = channels;
    arguments.runs = layer->runs;
    arguments.rounding = layer->rounding;
    arguments.rows[height] = 0;
    for (int32_t y = rows->first; y < rows->last; y++, top += layer->stride_y) {
        if (next < top) {
            next = top;
        }
        for (; next < top + height; next++) {
            put_row(layer, rows, input, next - layer->pad_top, padding, ring + next % height * row_words);
        }
        for (int32_t v = 0; v < height; v++) {
            arguments.rows[v] = ring + (top + v) % height * row_words;
        }
        put_starts(layer, &arguments, starts);
        arguments.output = output;
        layer->row(&arguments);
        output += layer->out_width * channels;
        memcpy(output - rest * channels, tail, (size_t)(rest * channels));
    }
}
