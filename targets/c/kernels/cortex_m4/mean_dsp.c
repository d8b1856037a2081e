#include "dsp.h"
#include "pool.h"

/* So many bytes can be added up in half-words. */
#define MOST 256

static inline void add_word(const int8_t *from, uint32_t *even, uint32_t *odd)
{
    const uint32_t word = kdp_load(from);
    __asm__("sxtab16 %0, %0, %1" : "+r"(*even) : "r"(word));
    __asm__("sxtab16 %0, %0, %1, ror #8" : "+r"(*odd) : "r"(word));
}

/* The average pooling of which the window is the whole input: four channels at a time, in pairs of half-words. */
KDP_SMALL void KDP(mean_dsp)(const kdp_pool *layer, const int8_t *input, int8_t *output)
{
    const int32_t count = layer->in_height * layer->in_width;
    const int32_t channels = layer->channels;
    for (int32_t c = 0; c < channels; c += 4) {
        const int8_t *from = input + c;
        int32_t sums[4] = {0, 0, 0, 0};
        for (int32_t left = count; left > 0; left -= MOST) {
            uint32_t even = 0;
            uint32_t odd = 0;
            int32_t n = left < MOST ? left : MOST;
            for (; n >= 4; n -= 4, from += 4 * channels) {
                add_word(from, &even, &odd);
                add_word(from + channels, &even, &odd);
                add_word(from + 2 * channels, &even, &odd);
                add_word(from + 3 * channels, &even, &odd);
            }
            for (; n > 0; n--, from += channels) {
                add_word(from, &even, &odd);
            }
            sums[0] += (int16_t)even;
            sums[1] += (int16_t)odd;
            sums[2] += (int32_t)even >> 16;
            sums[3] += (int32_t)odd >> 16;
        }
        for (int32_t i = 0; i < 4; i++) {
            const int32_t half = sums[i] >= 0 ? count / 2 : -(count / 2);
            const int32_t mean = (sums[i] + half) / count;
            *output++ =
                (int8_t)(mean < layer->minimum ? layer->minimum : (mean > layer->maximum ? layer->maximum : mean));
        }
    }
}
