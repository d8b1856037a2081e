#include "linear_blocks.h"

#include <string.h>

void KDP(linear_blocks)(const kdp_linear_blocks *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    /* A copy: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_requantization to = layer->to;
    const int32_t outputs = layer->out_features;
    uint8_t *const inputs = (uint8_t *)scratch;
    uint32_t sums[KDP_LINEAR_MOST];
    uint32_t sum = 0;
    kdp_linear_block block;
    for (int32_t i = 0; i < layer->in_features; i++) {
        inputs[i] = (uint8_t)(input[i] + 128);
        sum += inputs[i];
    }
    memset(inputs + layer->in_features, 0, (size_t)(layer->length - layer->in_features));
    sum *= (uint32_t)layer->offset;
    block.weights = layer->weights;
    block.inputs = inputs;
    block.end = inputs + layer->length;
    block.sums = sums;
    for (int32_t first = 0; first < outputs; first += layer->group, block.weights += layer->group_words) {
        const int32_t count = outputs - first < layer->group ? outputs - first : layer->group;
        layer->block(&block);
        for (int32_t o = 0; o < count; o++) {
            const uint32_t start = (uint32_t)layer->starts[first + o];
            output[first + o] = kdp_requantize(sums[o] + start - sum, &to, first + o);
        }
    }
}
