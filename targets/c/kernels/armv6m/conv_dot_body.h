/* The convolution, some output positions at a time. Values are made unsigned by adding 128, which is part of the
 * channels' starts. The including file defines
 *   KDP_CONV_DOT        the function
 *   KDP_POSITIONS       at a time: 4 or 8
 *   KDP_PATCH_VALUES    see patch_values.inc
 *   KDP_WEIGHT_OFFSET   what was added to each weight to make it unsigned: times each position's sum of values it is
 *                       taken off again */

static void kdp_fill(uint16_t *patch, uint32_t value, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        patch[i * KDP_POSITIONS] = (uint16_t)value;
    }
}

/* Collects the window of one position; returns the sum of its values, or what KDP_PATCH_VALUES returns for it. */
static uint32_t kdp_gather(const kdp_dot *layer, const kdp_rows *rows, const int8_t *input, int32_t out_y, int32_t out_x,
                           uint16_t *patch)
{
    const int32_t channels = layer->in_channels;
    const uint32_t padding = (uint32_t)(layer->in_zero_point + 128);
    const int32_t left = out_x * layer->stride_x - layer->pad_left;
    const int inside = layer->dilation_x == 1 && left >= 0 && left + layer->kernel_width <= layer->in_width;
    /* How many values lie one after the other. */
    const int32_t run = inside ? layer->kernel_width * channels : channels;
    int32_t y = out_y * layer->stride_y - layer->pad_top;
    const int32_t turn = kdp_turn(rows, y);
    uint32_t sum = 0;
    for (int32_t v = 0; v < layer->kernel_height; v++, y += layer->dilation_y) {
        const int32_t place = kdp_place_after(rows, turn, y) * layer->in_width;
        int32_t x = left;
        for (int32_t u = layer->kernel_width * channels; u > 0; u -= run, x += layer->dilation_x) {
            if (y < 0 || y >= layer->in_height || x < 0 || x >= layer->in_width) {
                kdp_fill(patch, padding, run);
                sum += padding * (uint32_t)run;
            } else {
                sum += KDP_PATCH_VALUES(patch, input + (place + x) * channels, run);
            }
            patch += run * KDP_POSITIONS;
        }
    }
    return sum;
}

void KDP_CONV_DOT(const kdp_dot *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch)
{
    const kdp_requantization to = layer->to;
    uint16_t *const patch = (uint16_t *)(void *)(((uintptr_t)scratch + 3) & ~(uintptr_t)3);
    const int32_t outputs = layer->out_channels;
    int32_t left = (rows->last - rows->first) * layer->out_width;
    int32_t y = rows->first;
    int32_t x = 0;
    uint32_t sums[KDP_POSITIONS];
    kdp_dot_block block;
    block.patch = patch;
    block.stride = outputs;
    block.block_bytes = layer->block_bytes;
    block.row_bytes = layer->row_bytes;
    block.start = layer->start;
    block.shift = layer->shift;
    block.low_bits = layer->low_bits;
    block.minimum = to.minimum;
    block.maximum = to.maximum;
    block.sums = to.multipliers == NULL ? (uint32_t *)(void *)((uint8_t *)patch + layer->patch_bytes) : sums;
    for (int32_t p = 0; p < 4; p++) {
        block.offsets[p] = 0;
    }
    while (left > 0) {
        block.weights = layer->weights;
        block.channels = layer->channels;
        block.output = output;
        block.count = left < KDP_POSITIONS ? left : KDP_POSITIONS;
        for (int32_t p = 0; p < block.count; p++) {
            const uint32_t sum = kdp_gather(layer, rows, input, y, x, patch + p);
#if KDP_WEIGHT_OFFSET
            block.offsets[p] = sum * KDP_WEIGHT_OFFSET;
#else
            (void)sum;
#endif
            if (++x == layer->out_width) {
                x = 0;
                y++;
            }
        }
        if (to.multipliers == NULL) {
            layer->block(&block);
        } else {
            for (int32_t o = 0; o < outputs; o++, block.weights += layer->row_bytes, block.channels++) {
                layer->block(&block);
                for (int32_t p = 0; p < block.count; p++) {
                    output[p * outputs + o] = kdp_requantize(sums[p], &to, o);
                }
            }
        }
        output += block.count * outputs;
        left -= block.count;
    }
}
