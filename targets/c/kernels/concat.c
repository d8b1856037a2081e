#include "concat.h"

#include <string.h>

void KDP(concat)(const kdp_concat *layer, const int8_t *const *inputs, int8_t *output)
{
    for (int32_t pixel = 0; pixel < layer->pixels; pixel++) {
        for (int32_t i = 0; i < layer->count; i++) {
            const int32_t channels = layer->channels[i];
            memcpy(output, inputs[i] + (ptrdiff_t)pixel * channels, (size_t)channels);
            output += channels;
        }
    }
}
