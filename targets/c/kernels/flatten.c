#include "flatten.h"

void KDP(flatten)(const kdp_flatten *layer, const int8_t *input, int8_t *output)
{
    for (int32_t c = 0; c < layer->channels; c++) {
        const int8_t *value = input + c;
        for (int32_t i = 0; i < layer->pixels; i++, value += layer->channels) {
            *output++ = *value;
        }
    }
}
