#include "elementwise.h"

/* Headroom that the inputs are given before they are brought to one scale. */
#define KDP_ADD_LEFT_SHIFT 20

static inline int32_t kdp_to_common_scale(int8_t value, const kdp_factor *from)
{
    return kdp_scale((value - from->zero_point) * ((int32_t)1 << KDP_ADD_LEFT_SHIFT), from->multiplier, from->shift);
}

void KDP(add)(const kdp_add *layer, const int8_t *first, const int8_t *second, int8_t *output)
{
    for (int32_t i = 0; i < layer->size; i++) {
        const int32_t sum =
            kdp_to_common_scale(first[i], &layer->first) + kdp_to_common_scale(second[i], &layer->second);
        const int32_t scaled = kdp_scale(sum, layer->out.multiplier, layer->out.shift);
        output[i] = kdp_clamp(scaled, layer->out.zero_point, layer->minimum, layer->maximum);
    }
}
