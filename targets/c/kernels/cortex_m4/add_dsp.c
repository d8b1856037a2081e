#include "add_dsp.h"

#include "dsp.h"

/* The plan holds for every pair of inputs, which the generator has tried. */
static inline int8_t add(int32_t first, int32_t second, int32_t first_factor, int32_t second_factor, int32_t offset,
                         int32_t shift)
{
    int32_t sum = first * first_factor + second * second_factor + offset;
    sum >>= shift;
    __asm__("ssat %0, #8, %1" : "=r"(sum) : "r"(sum));
    return (int8_t)sum;
}

void KDP(add_dsp)(const kdp_add_dsp *layer, const int8_t *first, const int8_t *second, int8_t *output)
{
    const int32_t a = layer->first_factor;
    const int32_t b = layer->second_factor;
    const int32_t k = layer->offset;
    const int32_t s = layer->shift;
    int32_t left = layer->size;
    for (; left >= 4; left -= 4, first += 4, second += 4, output += 4) {
        output[0] = add(first[0], second[0], a, b, k, s);
        output[1] = add(first[1], second[1], a, b, k, s);
        output[2] = add(first[2], second[2], a, b, k, s);
        output[3] = add(first[3], second[3], a, b, k, s);
    }
    for (; left > 0; left--) {
        *output++ = add(*first++, *second++, a, b, k, s);
    }
}
