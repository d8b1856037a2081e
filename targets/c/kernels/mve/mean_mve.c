#include "mve.h"
#include "pool.h"

/* So many bytes can be added up in half-words. */
#define MOST 256

/* The average pooling of which the window is the whole input: eight channels at a time, in half-words. */
void KDP(mean_mve)(const kdp_pool *layer, const int8_t *input, int8_t *output)
{
    const int32_t count = layer->in_height * layer->in_width;
    const int32_t channels = layer->channels;
    for (int32_t c = 0; c < channels; c += 8) {
        const mve_pred16_t some = vctp16q((uint32_t)(channels - c));
        const int8_t *from = input + c;
        int32_t sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int32_t left = count; left > 0; left -= MOST) {
            int16x8_t part = vdupq_n_s16(0);
            int16_t parts[8];
            for (int32_t n = left < MOST ? left : MOST; n > 0; n--, from += channels) {
                part = vaddq_s16(part, vldrbq_z_s16(from, some));
            }
            vstrhq_s16(parts, part);
            for (int32_t i = 0; i < 8; i++) {
                sums[i] += parts[i];
            }
        }
        for (int32_t i = 0; i < 8 && c + i < channels; i++) {
            const int32_t half = sums[i] >= 0 ? count / 2 : -(count / 2);
            const int32_t mean = (sums[i] + half) / count;
            *output++ =
                (int8_t)(mean < layer->minimum ? layer->minimum : (mean > layer->maximum ? layer->maximum : mean));
        }
    }
}
