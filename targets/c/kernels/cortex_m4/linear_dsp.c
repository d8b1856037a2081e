#include "conv8.h"
#include "dsp.h"
#include "linear_dsp.h"

KDP_SMALL void KDP(linear_dsp)(const kdp_linear_dsp *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const inputs = kdp_align(scratch);
    int32_t sum = 0;
    kdp_linear_dsp_rows arguments;
    KDP(conv8_unpack_sums)(input, inputs, 0, 4, 1, layer->in_features / 4, &sum);
    arguments.inputs = inputs;
    arguments.end = inputs + layer->in_features / 2;
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    arguments.output = output;
    arguments.groups = layer->groups;
    arguments.sum = sum * layer->offset;
    arguments.rounding = layer->rounding;
    layer->rows(&arguments);
}
