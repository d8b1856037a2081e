#include <string.h>

#include "ternary.h"

/* `scratch`, after the ring: a start for each pair of positions, then a tile of outputs. */
void KDP(ternary_fused)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t row_words = kdp_ternary_row_words(layer);
    const int32_t sums_at = row_words - 4 * layer->tiles;
    uint32_t *const starts = ring + kdp_ternary_ring_rows(layer) * row_words;
    int8_t *const tail = (int8_t *)(starts + 4 * layer->tiles);
    int32_t next = 0;
    int32_t top = 0;
    kdp_ternary_fused_row arguments;
    arguments.starts = (const uint64_t *)(const void *)starts;
    arguments.row.schedule = layer->schedule;
    arguments.row.sums = 0;
    for (int32_t done = 0; done < layer->out_positions; done += layer->out_width, top += layer->stride_y) {
        const int32_t left = layer->out_positions - done;
        const int32_t width = left < layer->out_width ? left : layer->out_width;
        const int32_t rest = width % 4;
        next = KDP(ternary_ring)(layer, input, ring, top, next, arguments.row.rows);
        arguments.tiles = (width + 3) / 4;
        for (int32_t x = 0; x < 2 * arguments.tiles; x++) {
            uint32_t first = (uint32_t)layer->start;
            uint32_t second = first;
            uint64_t both;
            for (int32_t v = 0; v < layer->kernel_height; v++) {
                first -= arguments.row.rows[v][sums_at + 2 * x];
                second -= arguments.row.rows[v][sums_at + 2 * x + 1];
            }
            both = first | second << 15;
            both |= both << 30;
            starts[2 * x] = (uint32_t)both;
            starts[2 * x + 1] = (uint32_t)(both >> 32);
        }
        arguments.row.weights = layer->weights;
        arguments.parameters = layer->parameters;
        arguments.output = output;
        arguments.tail = tail;
        arguments.tail_at = rest ? 1 : 0;
        for (int32_t o = 0; o < layer->out_channels; o += 4) {
            layer->row(&arguments);
            arguments.row.weights += layer->group_words;
            arguments.parameters += layer->sum_words;
            arguments.output += 4;
            arguments.tail += 4;
        }
        memcpy(output + (width - rest) * layer->out_channels, tail, (size_t)(rest * layer->out_channels));
        output += width * layer->out_channels;
    }
}
