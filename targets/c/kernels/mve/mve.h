/* Copies in MVE, and what all its kernels ask for. */
#ifndef KDPIPE_MVE_H
#define KDPIPE_MVE_H

#include <stdint.h>

#if !defined(__ARM_FEATURE_MVE)
#error "These kernels need a core with MVE; on others, build the sources in portable/"
#endif

#include <arm_mve.h>

/* Copies of `count` bytes, which neither read nor write beyond. */
static inline void kdp_mve_copy(int8_t *to, const int8_t *from, int32_t count)
{
    for (; count >= 16; count -= 16, to += 16, from += 16) {
        vstrbq_s8(to, vldrbq_s8(from));
    }
    if (count > 0) {
        const mve_pred16_t some = vctp8q((uint32_t)count);
        vstrbq_p_s8(to, vldrbq_z_s8(from, some), some);
    }
}

static inline void kdp_mve_fill(int8_t *to, int32_t value, int32_t count)
{
    const int8x16_t all = vdupq_n_s8((int8_t)value);
    for (; count >= 16; count -= 16, to += 16) {
        vstrbq_s8(to, all);
    }
    if (count > 0) {
        vstrbq_p_s8(to, all, vctp8q((uint32_t)count));
    }
}

#endif
