/* Depthwise convolution, with any channel multiplier. */

void KDP_DEPTHWISE(const kdp_conv2d *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch)
{
    /* Copies: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_requantization to = layer->to;
    const int32_t *const bias = layer->bias;
    const int32_t taps = layer->kernel_height * layer->kernel_width;
    const int32_t row_length = kdp_row_length(taps);
    const int32_t filters = layer->out_channels / layer->in_channels;
    for (int32_t y = rows->first; y < rows->last; y++) {
        for (int32_t x = 0; x < layer->out_width; x++) {
            const kdp_weights *row = (const kdp_weights *)layer->weights;
            int32_t o = 0;
            kdp_gather_patch(layer, rows, input, y, x, 0, layer->in_channels, scratch);
            for (int32_t c = 0; c < layer->in_channels; c++) {
                for (int32_t f = 0; f < filters; f++, o++, row += row_length) {
                    const uint32_t sum = kdp_dot(row, scratch + c, layer->in_channels, taps, (uint32_t)bias[o]);
                    *output++ = kdp_requantize(sum, &to, o);
                }
            }
        }
    }
}
