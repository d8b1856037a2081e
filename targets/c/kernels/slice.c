#include "channels.h"

#include <string.h>

void KDP(slice)(const kdp_slice *layer, const int8_t *input, int8_t *output)
{
    const int32_t kept = layer->stop - layer->start;
    input += layer->start;
    for (int32_t pixel = 0; pixel < layer->pixels; pixel++, input += layer->channels, output += kept) {
        memcpy(output, input, (size_t)kept);
    }
}
