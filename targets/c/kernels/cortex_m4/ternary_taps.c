#include <string.h>

#include "ternary.h"

/* Sums of the inputs under each window, which the weights' offset is taken off with. */
static KDP_SMALL void put_boxes(const kdp_ternary *layer, const int32_t *sums, int32_t padding, int32_t *boxes)
{
    const int32_t columns = 4 * layer->tiles;
    const int32_t end = layer->out_width + 2 - layer->pad_left;
    int32_t before = 0;
    int32_t here = 0;
    for (int32_t c = -layer->pad_left; c < end; c++) {
        const int32_t sum = c >= 0 && c < columns ? sums[c] : padding;
        if (c + layer->pad_left >= 2) {
            *boxes++ = before + here + sum;
        }
        before = here;
        here = sum;
    }
}

KDP_SMALL void KDP(ternary_taps)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t channels = layer->out_channels;
    const int32_t columns = 4 * layer->tiles + 4;
    const int32_t first = 2 - layer->pad_left;
    int32_t *const boxes = (int32_t *)(ring + kdp_ternary_ring_rows(layer) * kdp_ternary_row_words(layer));
    int8_t *const line = (int8_t *)(boxes + columns);
    int32_t next = 0;
    int32_t top = 0;
    kdp_ternary_taps_row arguments;
    arguments.schedule = layer->schedule;
    arguments.boxes = boxes;
    arguments.tiles = layer->tiles;
    arguments.padding = layer->in_zero_point + 128;
    arguments.rounding = layer->rounding;
    arguments.channels = channels;
    arguments.tile_bytes = 8 * layer->in_channels;
    for (int32_t done = 0; done < layer->out_positions; done += layer->out_width, top += layer->stride_y) {
        next = KDP(ternary_ring)(layer, input, ring, top, next, arguments.rows);
        put_boxes(layer, KDP(ternary_sums)(layer, arguments.rows),
                  layer->in_channels * layer->kernel_height * arguments.padding, boxes + first);
        arguments.weights = layer->weights;
        arguments.parameters = layer->parameters;
        arguments.output = line;
        for (int32_t o = 0; o < channels; o += 2) {
            layer->row(&arguments);
            arguments.weights += layer->group_words;
            arguments.parameters += layer->group_parameters;
            arguments.output += 2;
        }
        memcpy(output, line + first * channels, (size_t)(layer->out_width * channels));
        output += layer->out_width * channels;
    }
}
