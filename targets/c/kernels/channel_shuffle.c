#include "channels.h"

void KDP(channel_shuffle)(const kdp_channel_shuffle *layer, const int8_t *input, int8_t *output)
{
    const int32_t groups = layer->groups;
    const int32_t size = layer->group_size;
    const int32_t pixels = layer->pixels;
    const int32_t channels = groups * size;
    for (int32_t pixel = 0; pixel < pixels; pixel++, input += channels) {
        for (int32_t i = 0; i < size; i++) {
            for (int32_t group = 0; group < groups; group++) {
                *output++ = input[group * size + i];
            }
        }
    }
}
