/* The convolution over four output positions at a time. Values are made unsigned by adding 128, weights by adding an
 * offset; the first is part of the channels' starts, the second is taken off by the sum of each position's values. */

static uint16_t *kdp_fill(uint16_t *patch, uint32_t value, int32_t count, uint32_t *sum)
{
    *sum += value * (uint32_t)count;
    for (; count > 0; count--, patch += 4) {
        *patch = (uint16_t)value;
    }
    return patch;
}

static uint16_t *kdp_copy(uint16_t *patch, const int8_t *from, int32_t count, uint32_t *sum)
{
    const uint8_t *values = (const uint8_t *)from;
    uint32_t total = *sum;
    for (; count >= 4; count -= 4, patch += 16, values += 4) {
        const uint32_t a = values[0] ^ 0x80u;
        const uint32_t b = values[1] ^ 0x80u;
        const uint32_t c = values[2] ^ 0x80u;
        const uint32_t d = values[3] ^ 0x80u;
        patch[0] = (uint16_t)a;
        patch[4] = (uint16_t)b;
        patch[8] = (uint16_t)c;
        patch[12] = (uint16_t)d;
        total += a;
        total += b;
        total += c;
        total += d;
    }
    for (; count > 0; count--, patch += 4) {
        const uint32_t value = *values++ ^ 0x80u;
        *patch = (uint16_t)value;
        total += value;
    }
    *sum = total;
    return patch;
}

/* Collects the window of one position; returns the sum of its values. */
static uint32_t kdp_gather(const kdp_dot4 *layer, const kdp_rows *rows, const int8_t *input, int32_t out_y, int32_t out_x,
                           uint16_t *patch)
{
    const int32_t channels = layer->in_channels;
    const uint32_t padding = (uint32_t)(layer->in_zero_point + 128);
    const int32_t left = out_x * layer->stride_x - layer->pad_left;
    const int inside = layer->dilation_x == 1 && left >= 0 && left + layer->kernel_width <= layer->in_width;
    int32_t y = out_y * layer->stride_y - layer->pad_top;
    const int32_t turn = kdp_turn(rows, y);
    uint32_t sum = 0;
    for (int32_t v = 0; v < layer->kernel_height; v++, y += layer->dilation_y) {
        const int8_t *row;
        int32_t x = left;
        if (y < 0 || y >= layer->in_height) {
            patch = kdp_fill(patch, padding, layer->kernel_width * channels, &sum);
            continue;
        }
        row = input + kdp_place_after(rows, turn, y) * layer->in_width * channels;
        if (inside) {
            patch = kdp_copy(patch, row + left * channels, layer->kernel_width * channels, &sum);
            continue;
        }
        for (int32_t u = 0; u < layer->kernel_width; u++, x += layer->dilation_x) {
            if (x < 0 || x >= layer->in_width) {
                patch = kdp_fill(patch, padding, channels, &sum);
            } else {
                patch = kdp_copy(patch, row + x * channels, channels, &sum);
            }
        }
    }
    return sum;
}

/* clamp((floor(sum * multiplier / 2^32) + start) >> shift): four products of 16 bits by 16, where the core has no long
 * multiplication. The generator has proved that it equals the graph's rounding, and that |sum| is below 2^30. */
static inline int8_t kdp_requantize_high(int32_t sum, uint32_t multiplier, int32_t start, const kdp_requantization *to,
                                         int32_t shift)
{
    const uint32_t low = (uint32_t)sum & 0xFFFFu;
    const int32_t high = sum >> 16;
    const uint32_t factor_low = multiplier & 0xFFFFu;
    const uint32_t factor_high = multiplier >> 16;
    const uint32_t middle = low * factor_high + ((low * factor_low) >> 16);
    const int32_t carry = ((int32_t)(middle & 0xFFFFu) + high * (int32_t)factor_low) >> 16;
    const int32_t value = (high * (int32_t)factor_high + (int32_t)(middle >> 16) + carry + start) >> shift;
    return (int8_t)(value < to->minimum ? to->minimum : (value > to->maximum ? to->maximum : value));
}

void KDP_CONV_DOT4(const kdp_dot4 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch)
{
    const kdp_requantization to = layer->to;
    uint16_t *const patch = (uint16_t *)(void *)(((uintptr_t)scratch + 3) & ~(uintptr_t)3);
    const int32_t outputs = layer->out_channels;
    const int32_t start = layer->start;
    const int32_t shift = layer->shift;
    int32_t left = (rows->last - rows->first) * layer->out_width;
    int32_t y = rows->first;
    int32_t x = 0;
    while (left > 0) {
        const uint8_t *row = layer->weights;
        const int32_t *channel = layer->channels;
        const int32_t live = left < 4 ? left : 4;
        uint32_t offsets[4] = {0, 0, 0, 0};
        for (int32_t p = 0; p < live; p++) {
            offsets[p] = kdp_gather(layer, rows, input, y, x, patch + p) * (uint32_t)layer->weight_offset;
            if (++x == layer->out_width) {
                x = 0;
                y++;
            }
        }
        for (int32_t o = 0; o < outputs; o++, row += layer->row_bytes) {
            uint32_t sums[4];
            int8_t *place = output + o;
            KDP_DOT4(row, patch, layer->blocks, sums);
            if (to.multipliers == NULL) {
                const uint32_t begin = (uint32_t)channel[0];
                const uint32_t multiplier = (uint32_t)channel[1];
                channel += 2;
                for (int32_t p = 0; p < live; p++, place += outputs) {
                    const int32_t sum = (int32_t)(sums[p] - offsets[p] + begin);
                    *place = kdp_requantize_high(sum, multiplier, start, &to, shift);
                }
            } else {
                const uint32_t begin = (uint32_t)*channel++;
                for (int32_t p = 0; p < live; p++, place += outputs) {
                    *place = kdp_requantize(sums[p] - offsets[p] + begin, &to, o);
                }
            }
        }
        output += live * outputs;
        left -= live;
    }
}
