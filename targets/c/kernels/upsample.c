#include "upsample.h"

#include <string.h>

void KDP(upsample)(const kdp_upsample *layer, const int8_t *input, int8_t *output)
{
    for (int32_t y = 0; y < layer->height * layer->factor_y; y++) {
        const int8_t *const row = input + (ptrdiff_t)(y / layer->factor_y) * layer->width * layer->channels;
        for (int32_t x = 0; x < layer->width; x++) {
            for (int32_t i = 0; i < layer->factor_x; i++) {
                memcpy(output, row + (ptrdiff_t)x * layer->channels, (size_t)layer->channels);
                output += layer->channels;
            }
        }
    }
}
