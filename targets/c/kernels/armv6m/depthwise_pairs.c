#include "depthwise_pairs.h"

/* What is added to values: makes them 1 to 256. */
#define OFFSET 129

/* The nine taps of channel c; returns how many are negative. */
static int32_t unpack_taps(const kdp_depthwise_pairs *layer, int32_t c, int32_t *taps)
{
    const uint8_t *const from = (const uint8_t *)layer->weights + c * layer->channel_bytes;
    int32_t negative = 0;
    for (int32_t t = 0; t < 9; t++) {
        const int32_t bits = layer->weight_bits;
        /* Bits beyond a byte's lowest ones go first. */
        const uint32_t byte = (uint32_t)from[(t * bits) >> 3] << (32 - bits - ((t * bits) & 7));
        taps[t] = (int32_t)byte >> (32 - bits);
        negative += taps[t] < 0 ? 1 : 0;
    }
    return negative;
}

/* Where row y of the input begins, or -1 where there is none. */
static int32_t row_at(const kdp_depthwise_pairs *layer, const kdp_rows *rows, int32_t y)
{
    if (y < 0 || y >= layer->in_height) {
        return -1;
    }
    return kdp_place(rows, y) * layer->in_width * layer->channels;
}

/* One channel of the input rows from `top` on, the lower half `below` rows further. */
static void put_plane(const kdp_depthwise_pairs *layer, const kdp_rows *rows, const int8_t *input, int32_t top,
                      int32_t below, int32_t count, uint32_t *to)
{
    const int32_t room = layer->columns - layer->pad_left;
    const int32_t width = layer->in_width < room ? layer->in_width : room;
    const uint32_t padding = (uint32_t)(layer->in_zero_point + OFFSET);
    to += layer->pad_left;
    for (int32_t i = 0; i < count; i++, top++, to += layer->columns) {
        const int32_t upper = row_at(layer, rows, top);
        const int32_t lower = row_at(layer, rows, top + below);
        if (upper >= 0 && lower >= 0) {
            const int8_t *const pair[2] = {input + upper, input + lower};
            KDP(pair_values)(pair, to, width, layer->channels);
            continue;
        }
        for (int32_t x = 0; x < width; x++) {
            const int32_t place = x * layer->channels;
            const uint32_t first = upper < 0 ? padding : (uint32_t)(input[upper + place] + OFFSET);
            const uint32_t second = lower < 0 ? padding : (uint32_t)(input[lower + place] + OFFSET);
            to[x] = first | second << 16;
        }
    }
}

void KDP(depthwise_pairs)(const kdp_depthwise_pairs *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                          int8_t *scratch)
{
    uint32_t *const plane = (uint32_t *)(void *)(((uintptr_t)scratch + 3) & ~(uintptr_t)3);
    const int32_t words = layer->plane_rows * layer->columns;
    const uint32_t padding = (uint32_t)(layer->in_zero_point + OFFSET);
    const int32_t channels = layer->channels;
    int32_t taps[9];
    kdp_depthwise_channel channel;
    channel.plane = plane;
    channel.pitch = 4 * layer->columns;
    channel.step = 4 * layer->stride_x;
    channel.row_bytes = layer->out_width * channel.step;
    channel.row_step = layer->stride_y * channel.pitch - channel.row_bytes;
    channel.taps = taps;
    channel.sums = (int32_t *)(void *)(plane + words);
    channel.stride = channels;
    channel.start = layer->start;
    channel.shift = layer->shift;
    channel.low_bits = layer->low_bits;
    channel.minimum = layer->minimum;
    channel.maximum = layer->maximum;
    for (int32_t i = 0; i < words; i++) {
        plane[i] = padding | padding << 16;
    }
    for (int32_t y = rows->first; y < rows->last; y += layer->strip) {
        const int32_t left = rows->last - y;
        const int32_t count = left < layer->strip ? left : layer->strip;
        const int32_t half = (count + 1) / 2;
        int8_t *const place = output + (y - rows->first) * layer->out_width * channels;
        channel.rows = half;
        channel.half_bytes = 4 * half * layer->out_width - 4;
        channel.count = count * layer->out_width;
        for (int32_t c = 0; c < channels; c++) {
            channel.negative_taps = unpack_taps(layer, c, taps);
            channel.begin = layer->parameters[2 * c];
            channel.multiplier = layer->parameters[2 * c + 1];
            channel.output = place + c;
            put_plane(layer, rows, input + c, y * layer->stride_y - layer->pad_top, half * layer->stride_y,
                      (half - 1) * layer->stride_y + 3, plane);
            layer->channel(&channel);
        }
    }
}
