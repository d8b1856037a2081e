/* 1x1 convolution: the input itself serves as the patches. */

void KDP_POINTWISE(const kdp_conv2d *layer, const int8_t *input, int8_t *output)
{
    /* Copies: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_requantization to = layer->to;
    const int32_t *const bias = layer->bias;
    const int32_t count = layer->in_channels;
    const int32_t row_length = kdp_row_length(count);
    const int32_t step_x = layer->stride_x * layer->in_channels;
    const int32_t step_y = layer->stride_y * layer->in_width * layer->in_channels;
    for (int32_t y = 0; y < layer->out_height; y++) {
        const int8_t *patch = input + (ptrdiff_t)y * step_y;
        int32_t x = 0;
        for (; x + 1 < layer->out_width; x += 2, patch += (ptrdiff_t)2 * step_x) {
            const kdp_weights *row = (const kdp_weights *)layer->weights;
            int8_t *const second = output + layer->out_channels;
            for (int32_t o = 0; o < layer->out_channels; o++, row += row_length) {
                uint32_t sums[2];
                sums[0] = sums[1] = (uint32_t)bias[o];
                kdp_dot_pair(row, patch, patch + step_x, count, sums);
                output[o] = kdp_requantize(sums[0], &to, o);
                second[o] = kdp_requantize(sums[1], &to, o);
            }
            output += (ptrdiff_t)2 * layer->out_channels;
        }
        if (x < layer->out_width) {
            const kdp_weights *row = (const kdp_weights *)layer->weights;
            for (int32_t o = 0; o < layer->out_channels; o++, row += row_length) {
                *output++ = kdp_requantize(kdp_dot(row, patch, 1, count, (uint32_t)bias[o]), &to, o);
            }
        }
    }
}
