#include <string.h>

#include "ternary.h"

/* Where the accumulators hold whole sums they start from these: two positions for two channels in 64 bits, modulo 2^64.
 * Elsewhere they start from 0, and the sums that they are added to from the windows' negative ones. */
static KDP_SMALL void put_starts(const kdp_ternary *layer, const int32_t *sums, int32_t tiles, uint32_t *starts)
{
    for (int32_t x = 0; x < 2 * tiles; x++, sums += 2, starts += 2) {
        const int32_t first = layer->start - sums[0];
        const int32_t second = layer->start - sums[1];
        starts[0] = (uint32_t)first;
        starts[1] = (uint32_t)second;
        if (layer->start > 0) {
            const uint64_t both = (uint64_t)first + ((uint64_t)second << 15);
            const uint64_t all = both + (both << 30);
            starts[0] = (uint32_t)all;
            starts[1] = (uint32_t)(all >> 32);
        }
    }
}

KDP_SMALL void KDP(ternary_outer)(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                                  int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t channels = layer->out_channels;
    uint32_t *const starts = ring + kdp_ternary_ring_rows(layer) * kdp_ternary_row_words(layer);
    int8_t *const tail = (int8_t *)(starts + 4 * layer->tiles);
    kdp_ternary_outer_row arguments;
    arguments.starts = starts;
    arguments.channels = channels;
    arguments.tile_bytes = 8 * layer->taps * layer->in_channels;
    arguments.rounding = layer->rounding;
    arguments.schedule = layer->schedule;
    for (int32_t y = rows->first; y < rows->last; y++) {
        const int32_t left = layer->out_positions - y * layer->out_width;
        const int32_t width = left < layer->out_width ? left : layer->out_width;
        const int32_t rest = width % 4;
        KDP(ternary_ring)(layer, rows, input, ring, y, arguments.rows);
        arguments.tiles = (width + 3) / 4;
        put_starts(layer, KDP(ternary_sums)(layer, arguments.rows), arguments.tiles, starts);
        arguments.weights = layer->weights;
        arguments.parameters = layer->parameters;
        arguments.output = output;
        arguments.tail = tail;
        arguments.tail_at = rest ? 1 : 0;
        for (int32_t o = 0; o < channels; o += 4) {
            layer->row(&arguments);
            arguments.weights += layer->group_words;
            arguments.parameters += layer->group_parameters;
            arguments.output += 4;
            arguments.tail += 4;
        }
        memcpy(output + (width - rest) * channels, tail, (size_t)(rest * channels));
        output += width * channels;
    }
}
