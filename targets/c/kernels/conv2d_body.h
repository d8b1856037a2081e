/* The general convolution, over the dot products of the width that the including file chose. Two output positions are
 * computed at a time, so that each weight is unpacked once for both. */

void KDP_CONV2D(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch)
{
    /* Copies: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_requantization to = layer->to;
    const int32_t *const bias = layer->bias;
    const int32_t channels = layer->in_channels / layer->groups;
    const int32_t filters = layer->out_channels / layer->groups;
    const int32_t count = layer->kernel_height * layer->kernel_width * channels;
    const int32_t row_length = kdp_row_length(count);
    const int32_t positions = (rows->last - rows->first) * layer->out_width;
    int8_t *const second_patch = scratch + count;
    for (int32_t group = 0; group < layer->groups; group++) {
        const kdp_weights *const weights = (const kdp_weights *)layer->weights + (ptrdiff_t)group * filters * row_length;
        int32_t y = rows->first;
        int32_t x = 0;
        int32_t position = 0;
        while (position < positions) {
            const int paired = position + 1 < positions;
            const kdp_weights *row = weights;
            int8_t *first = output + (ptrdiff_t)position * layer->out_channels + (ptrdiff_t)group * filters;
            int8_t *second = paired ? first + layer->out_channels : first;
            kdp_gather_patch(layer, rows, input, y, x, group * channels, channels, scratch);
            if (++x == layer->out_width) {
                x = 0;
                y++;
            }
            if (paired) {
                kdp_gather_patch(layer, rows, input, y, x, group * channels, channels, second_patch);
                if (++x == layer->out_width) {
                    x = 0;
                    y++;
                }
            }
            for (int32_t o = group * filters; o < (group + 1) * filters; o++, row += row_length) {
                if (paired) {
                    uint32_t sums[2];
                    sums[0] = sums[1] = (uint32_t)bias[o];
                    kdp_dot_pair(row, scratch, second_patch, count, sums);
                    *first++ = kdp_requantize(sums[0], &to, o);
                    *second++ = kdp_requantize(sums[1], &to, o);
                } else {
                    *first++ = kdp_requantize(kdp_dot(row, scratch, 1, count, (uint32_t)bias[o]), &to, o);
                }
            }
            position += 2;
        }
    }
}
