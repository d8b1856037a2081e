#include "elementwise.h"

void KDP(rescale)(const kdp_rescale *layer, const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < layer->size; i++) {
        const int32_t scaled = kdp_scale(input[i] - layer->in_zero_point, layer->out.multiplier, layer->out.shift);
        output[i] = kdp_clamp(scaled, layer->out.zero_point, layer->minimum, layer->maximum);
    }
}
