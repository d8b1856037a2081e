#include "mul.h"

void KDP(mul)(const kdp_mul *layer, const int8_t *first, const int8_t *second, int8_t *output)
{
    /* A copy: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_mul to = *layer;
    /* Channels lie next to each other, so that factors by channel repeat with every pixel. */
    for (int32_t start = 0; start < to.size; start += to.second_size) {
        for (int32_t i = 0; i < to.second_size; i++) {
            const int32_t product = (first[start + i] - to.first_zero_point) * (second[i] - to.second_zero_point);
            const int32_t scaled = kdp_scale(product, to.multiplier, to.shift);
            output[start + i] = kdp_clamp(scaled, to.zero_point, to.minimum, to.maximum);
        }
    }
}
