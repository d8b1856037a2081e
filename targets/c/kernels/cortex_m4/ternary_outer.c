#include "ternary.h"

typedef struct {
    int32_t bias;
    int32_t factors[3];
} channel_parameters;

/* Two channels. */
static inline void store(const kdp_ternary *layer, const channel_parameters *of, const int32_t *sums,
                         const int32_t *boxes, int32_t width, int8_t *output, int32_t left_shift)
{
    const int32_t channels = layer->out_channels;
    const int32_t *second = sums + layer->sum_words;
    const int32_t m0 = of[0].factors[0];
    const int32_t a0 = of[0].factors[1];
    const int32_t r0 = of[0].factors[2];
    const int32_t m1 = of[1].factors[0];
    const int32_t a1 = of[1].factors[1];
    const int32_t r1 = of[1].factors[2];
    const int32_t first_bias = of[0].bias;
    const int32_t difference = of[1].bias - first_bias;
    for (int32_t x = 0; x < width; x++, output += channels) {
        const int32_t offset = first_bias - boxes[x];
        output[0] = kdp_ternary_scale(sums[x] + offset, m0, a0, r0, left_shift);
        output[1] = kdp_ternary_scale(second[x] + offset + difference, m1, a1, r1, left_shift);
    }
}

/* `scratch`, after the ring: 4 * tiles boxes, then the sums of four channels. */
void KDP(ternary_outer)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t row_words = kdp_ternary_row_words(layer);
    const int32_t columns = 4 * layer->tiles;
    int32_t *const boxes = (int32_t *)(ring + kdp_ternary_ring_rows(layer) * row_words);
    int32_t *const sums = boxes + columns;
    int32_t next = 0;
    int32_t top = 0;
    kdp_ternary_row arguments;
    arguments.sums = sums;
    arguments.schedule = layer->schedule;
    for (int32_t done = 0; done < layer->out_positions; done += layer->out_width, top += layer->stride_y) {
        const channel_parameters *channel = (const channel_parameters *)(const void *)layer->parameters;
        const int32_t left = layer->out_positions - done;
        const int32_t width = left < layer->out_width ? left : layer->out_width;
        next = KDP(ternary_ring)(layer, input, ring, top, next, arguments.rows);
        for (int32_t x = 0; x < columns; x++) {
            int32_t sum = 0;
            for (int32_t v = 0; v < layer->kernel_height; v++) {
                sum += (int32_t)arguments.rows[v][row_words - columns + x];
            }
            boxes[x] = sum;
        }
        arguments.weights = layer->weights;
        for (int32_t o = 0; o < layer->out_channels; o += 4) {
            if (layer->adds_sums) {
                for (int32_t i = 0; i < 4 * columns; i++) {
                    sums[i] = 0;
                }
            }
            layer->row(&arguments);
            arguments.weights += layer->group_words;
            for (int32_t i = 0; i < 4; i += 2, channel += 2) {
                if (layer->left_shift > 0) {
                    store(layer, channel, sums + i * columns, boxes, width, output + o + i, layer->left_shift);
                } else {
                    store(layer, channel, sums + i * columns, boxes, width, output + o + i, 0);
                }
            }
        }
        output += width * layer->out_channels;
    }
}
