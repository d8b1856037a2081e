#include <string.h>

#include "ternary.h"

/* Sums of the inputs under each window, which the weights' offset is taken off with. */
static void put_boxes(const kdp_ternary *layer, const int32_t *sums, int32_t padding, int32_t *boxes)
{
    const int32_t known = 4 * layer->tiles + layer->pad_left - 2; /* windows without a column behind the tiles */
    int32_t *const end = boxes + (known < layer->out_width ? known : layer->out_width);
    int32_t before = layer->pad_left > 0 ? padding : *sums++;
    int32_t here = *sums++;
    while (boxes != end) {
        const int32_t next = *sums++;
        *boxes++ = before + here + next;
        before = here;
        here = next;
    }
    if (known < layer->out_width) {
        *boxes = before + here + padding;
    }
}

/* As memcpy, four words at a time where both lie at words. */
static inline void copy(int8_t *to, const int8_t *from, int32_t bytes)
{
    if ((((uintptr_t)to | (uintptr_t)from) & 3) == 0) {
        for (; bytes >= 16; bytes -= 16) {
            __asm__ volatile("ldmia %1!, {r4, r5, r6, r8}\n\tstmia %0!, {r4, r5, r6, r8}"
                             : "+r"(to), "+r"(from)
                             :
                             : "r4", "r5", "r6", "r8", "memory");
        }
    }
    memcpy(to, from, (size_t)bytes);
}

void KDP(ternary_taps)(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t channels = layer->out_channels;
    const int32_t columns = 4 * layer->tiles + 1;
    const int32_t first = 2 - layer->pad_left;
    int32_t *const boxes = (int32_t *)(ring + kdp_ternary_ring_rows(layer) * kdp_ternary_row_words(layer));
    int8_t *const line = (int8_t *)(boxes + columns);
    const int32_t group_words = layer->group_words;
    const int32_t group_parameters = layer->group_parameters;
    void (*const row)(const void *arguments) = layer->row;
    kdp_ternary_taps_row arguments;
    arguments.schedule = layer->schedule;
    arguments.boxes = boxes;
    arguments.tiles = layer->tiles;
    arguments.padding = layer->in_zero_point + 128;
    arguments.rounding = layer->rounding;
    arguments.channels = channels;
    arguments.tile_bytes = 8 * layer->in_channels;
    for (int32_t y = rows->first; y < rows->last; y++) {
        KDP(ternary_ring)(layer, rows, input, ring, y, arguments.rows);
        put_boxes(layer, KDP(ternary_sums)(layer, arguments.rows),
                  layer->in_channels * layer->kernel_height * arguments.padding, boxes + first);
        arguments.weights = layer->weights;
        arguments.parameters = layer->parameters;
        arguments.output = line;
        for (int32_t o = 0; o < channels; o += 2) {
            row(&arguments);
            arguments.weights += group_words;
            arguments.parameters += group_parameters;
            arguments.output += 2;
        }
        copy(output, line + first * channels, layer->out_width * channels);
        output += layer->out_width * channels;
    }
}
