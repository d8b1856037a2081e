#include "mve.h"
#include "scaled_add.h"

#define SHIFT 21 /* of the generator's plan */

/* The plan holds for every pair of inputs, which the generator has tried. */
static inline int32x4_t add_four(const kdp_scaled_add *layer, int32x4_t first, int32x4_t second)
{
    const int32x4_t sums = vmlasq_n_s32(first, vdupq_n_s32(layer->first_factor), layer->offset);
    const int32x4_t all = vshrq_n_s32(vmlaq_n_s32(sums, second, layer->second_factor), SHIFT);
    /* Not VQSHRN, which some assemblers take for its rounding sister. */
    const int16x8_t halves = vqmovnbq_s32(vreinterpretq_s16_s32(all), all);
    return vreinterpretq_s32_s8(vqmovnbq_s16(vreinterpretq_s8_s16(halves), halves));
}

void KDP(scaled_add_mve)(const kdp_scaled_add *layer, const int8_t *first, const int8_t *second, int8_t *output)
{
    const kdp_scaled_add copy = *layer;
    int32_t left = copy.size;
    for (; left >= 4; left -= 4, first += 4, second += 4, output += 4) {
        vstrbq_s32(output, add_four(&copy, vldrbq_s32(first), vldrbq_s32(second)));
    }
    if (left > 0) {
        const mve_pred16_t some = vctp32q((uint32_t)left);
        vstrbq_p_s32(output, add_four(&copy, vldrbq_z_s32(first, some), vldrbq_z_s32(second, some)), some);
    }
}
