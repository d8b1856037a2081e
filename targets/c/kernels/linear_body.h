/* Fully connected: one row after the other. */

void KDP_LINEAR(const kdp_linear *layer, const int8_t *input, int8_t *output)
{
    /* Copies: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_requantization to = layer->to;
    const int32_t *const bias = layer->bias;
    const kdp_weights *row = (const kdp_weights *)layer->weights;
    const int32_t row_length = kdp_row_length(layer->in_features);
    for (int32_t o = 0; o < layer->out_features; o++, row += row_length) {
        output[o] =
            kdp_requantize(kdp_dot(row, input, 1, layer->in_features, (uint32_t)bias[o]), &to, o);
    }
}
