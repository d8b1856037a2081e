#include "depthwise3.h"

#include "dsp.h"

/* The low halves of both, `first` lowest. */
static inline uint32_t low_halves(uint32_t first, uint32_t second)
{
    uint32_t both;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(both) : "r"(first), "r"(second));
    return both;
}

/* The high halves of both, `first` lowest. */
static inline uint32_t high_halves(uint32_t first, uint32_t second)
{
    uint32_t both;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(both) : "r"(second), "r"(first));
    return both;
}

/* Four channels of `count` columns of two rows as pairs, one plane for each channel. */
static __attribute__((noinline)) uint32_t *put_pairs(const int8_t *first, const int8_t *second, int32_t first_step, int32_t second_step,
                           uint32_t *to, int32_t plane, int32_t count)
{
    uint32_t *const end = to + count;
    for (; to != end; to++, first += first_step, second += second_step) {
        const uint32_t upper = kdp_load(first);
        const uint32_t lower = kdp_load(second);
        const uint32_t low = low_halves(upper, lower);
        const uint32_t high = high_halves(upper, lower);
        to[0] = kdp_even_bytes(low);
        to[plane] = kdp_odd_bytes(low);
        to[2 * plane] = kdp_even_bytes(high);
        to[3 * plane] = kdp_odd_bytes(high);
    }
    return to;
}

static KDP_SMALL uint32_t *put_padding(uint32_t *to, int32_t plane, int32_t count, uint32_t padding)
{
    for (; count > 0; count--, to++) {
        to[0] = padding;
        to[plane] = padding;
        to[2 * plane] = padding;
        to[3 * plane] = padding;
    }
    return to;
}

/* Four channels of the input rows from `top` on, as planes of pairs of rows. */
static KDP_SMALL void put_planes(const kdp_depthwise3 *layer, const int8_t *input, int32_t top, uint32_t *planes)
{
    const int32_t plane = layer->pair_rows * layer->columns;
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 0xFFFF) * 0x10001u;
    const uint32_t outside = ((uint32_t)layer->in_zero_point & 0xFF) * 0x01010101u;
    const int8_t *const nothing = (const int8_t *)&outside;
    const int32_t room = layer->columns - layer->pad_left;
    const int32_t width = layer->in_width < room ? layer->in_width : room;
    uint32_t *to = planes;
    for (int32_t i = 0; i < layer->pair_rows; i++) {
        const int32_t y = top + 2 * i;
        const int has_first = y >= 0 && y < layer->in_height;
        const int has_second = y + 1 >= 0 && y + 1 < layer->in_height;
        const int8_t *first = has_first ? input + y * layer->in_width * layer->channels : nothing;
        const int8_t *second = has_second ? input + (y + 1) * layer->in_width * layer->channels : nothing;
        const int32_t first_step = has_first ? layer->channels : 0;
        const int32_t second_step = has_second ? layer->channels : 0;
        to = put_padding(to, plane, layer->pad_left, padding);
        to = put_pairs(first, second, first_step, second_step, to, plane, width);
        to = put_padding(to, plane, room - width, padding);
    }
}

KDP_SMALL void KDP(depthwise3)(const kdp_depthwise3 *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const planes = kdp_align(scratch);
    const int32_t row_bytes = layer->out_width * layer->channels;
    kdp_depthwise3_row arguments;
    for (int32_t y = 0; y < layer->out_height; y += layer->strip) {
        const int32_t left = layer->out_height - y;
        arguments.rows = left < layer->strip ? left : layer->strip;
        arguments.weights = layer->weights;
        for (int32_t c = 0; c < layer->channels; c += 4) {
            put_planes(layer, input + c, y * layer->stride - layer->pad_top, planes);
            arguments.plane = planes;
            for (int32_t i = 0; i < 4; i++) {
                arguments.output = output + y * row_bytes + c + i;
                layer->row(&arguments);
                arguments.plane += layer->pair_rows * layer->columns;
                arguments.weights += layer->channel_words;
            }
        }
    }
}
