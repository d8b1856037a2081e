#include "ternary.h"

typedef struct {
    int32_t bias[2];
    int32_t left[2];  /* what a column of padding before the first position adds */
    int32_t right[2]; /* and one after the last tile */
    int32_t factors[2][3];
} pair_parameters;

/* Sums of the inputs under each window, which the weights' offset is taken off with. */
static void put_boxes(const kdp_ternary *layer, const uint32_t *const *rows, int32_t *boxes)
{
    const int32_t sums_at = kdp_ternary_row_words(layer) - 4 * layer->tiles;
    const int32_t padding = layer->in_channels * layer->kernel_height * (layer->in_zero_point + 128);
    int32_t before = 0;
    int32_t here = 0;
    for (int32_t c = -layer->pad_left; c < layer->out_width + 2 - layer->pad_left; c++) {
        int32_t sum = 0;
        if (c >= 0 && c < 4 * layer->tiles) {
            for (int32_t v = 0; v < layer->kernel_height; v++) {
                sum += (int32_t)rows[v][sums_at + c];
            }
        } else {
            sum = padding;
        }
        if (c + layer->pad_left >= 2) {
            *boxes++ = before + here + sum;
        }
        before = here;
        here = sum;
    }
}

static inline void store(const kdp_ternary *layer, const pair_parameters *of, const int32_t *sums, const int32_t *boxes,
                         int8_t *output, int32_t left_shift)
{
    const int32_t width = layer->out_width;
    const int32_t channels = layer->out_channels;
    const int32_t *second = sums + layer->sum_words;
    const int32_t m0 = of->factors[0][0];
    const int32_t a0 = of->factors[0][1];
    const int32_t r0 = of->factors[0][2];
    const int32_t m1 = of->factors[1][0];
    const int32_t a1 = of->factors[1][1];
    const int32_t r1 = of->factors[1][2];
    for (int32_t x = 0; x < width; x++, output += channels) {
        const int32_t box = boxes[x];
        output[0] = kdp_ternary_scale(sums[x] - box, m0, a0, r0, left_shift);
        output[1] = kdp_ternary_scale(second[x] - box, m1, a1, r1, left_shift);
    }
}

/* `scratch`, after the ring: out_width boxes, then the sums of two channels. */
void KDP(ternary_taps)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    int32_t *const boxes = (int32_t *)(ring + kdp_ternary_ring_rows(layer) * kdp_ternary_row_words(layer));
    int32_t *const sums = boxes + layer->out_width;
    /* Copies: a store to the sums might change what `layer` points to, for all the compiler knows. */
    const int32_t sum_words = layer->sum_words;
    const int32_t last = layer->out_width - 1;
    const int32_t first = 2 - layer->pad_left;
    int32_t next = 0;
    int32_t top = 0;
    kdp_ternary_row arguments;
    arguments.sums = sums;
    arguments.schedule = layer->schedule;
    for (int32_t done = 0; done < layer->out_positions; done += layer->out_width, top += layer->stride_y) {
        const pair_parameters *pair = (const pair_parameters *)(const void *)layer->parameters;
        next = KDP(ternary_ring)(layer, input, ring, top, next, arguments.rows);
        put_boxes(layer, arguments.rows, boxes);
        arguments.weights = layer->weights;
        for (int32_t o = 0; o < layer->out_channels; o += 2, pair++) {
            int32_t *to = sums;
            for (int32_t i = 0; i < 2; i++, to += sum_words) {
                const int32_t bias = pair->bias[i];
                for (int32_t c = 0; c < sum_words; c += 2) {
                    to[c] = bias;
                    to[c + 1] = bias;
                }
                to[first] += pair->left[i];
                to[first + last] += pair->right[i];
            }
            layer->row(&arguments);
            arguments.weights += layer->group_words;
            if (layer->left_shift > 0) {
                store(layer, pair, sums + first, boxes, output + o, layer->left_shift);
            } else {
                store(layer, pair, sums + first, boxes, output + o, 0);
            }
        }
        output += layer->out_width * layer->out_channels;
    }
}
