#include "softmax.h"

/* round(a * b / 2^31) */
static int32_t multiply_high(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
}

/* 1 / half, both in fixed point with 31 fractional bits, halved: in [2^30, 2^31). */
static int32_t reciprocal(int32_t half)
{
    int32_t x = 1515870810 + multiply_high(half, -1010580540); /* 48/17 and -32/17, with 29 fractional bits */
    for (int32_t i = 0; i < 3; i++) {
        x += multiply_high(x, ((int32_t)1 << 29) - multiply_high(half, x)) * 4;
    }
    return x >= ((int32_t)1 << 30) ? INT32_MAX : x * 2;
}

void KDP(softmax)(const kdp_softmax *layer, const int8_t *input, int8_t *output)
{
    const int32_t channels = layer->channels;
    for (int32_t position = 0; position < layer->positions; position++) {
        int32_t largest = input[0];
        for (int32_t c = 1; c < channels; c++) {
            largest = input[c] > largest ? input[c] : largest;
        }
        uint32_t sum = 0; /* with 19 fractional bits, below 2^31 */
        for (int32_t c = 0; c < channels; c++) {
            sum += ((uint32_t)layer->exponentials[largest - input[c]] + (1u << 11)) >> 12;
        }
        int32_t right = 35;
        while (sum < ((uint32_t)1 << 31)) {
            sum <<= 1;
            right--;
        }
        const int32_t scale = reciprocal((int32_t)(sum >> 1));
        for (int32_t c = 0; c < channels; c++) {
            const int32_t share = multiply_high(scale, layer->exponentials[largest - input[c]]);
            const int32_t steps = (int32_t)(((int64_t)share + ((int64_t)1 << (right - 1))) >> right);
            output[c] = (int8_t)(steps > 255 ? 127 : steps - 128);
        }
        input += channels;
        output += channels;
    }
}
