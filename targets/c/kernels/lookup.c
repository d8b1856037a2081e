#include "lookup.h"

void KDP(lookup)(const kdp_lookup *layer, const int8_t *input, int8_t *output)
{
    const int8_t *const table = layer->table + 128;
    const int32_t size = layer->size;
    for (int32_t i = 0; i < size; i++) {
        output[i] = table[input[i]];
    }
}
