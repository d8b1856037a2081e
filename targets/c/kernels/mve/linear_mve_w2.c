#include "linear_mve.h"
#include "mve.h"

#define KDP_LINEAR_MVE KDP(linear_mve_w2)
#define KDP_FACTORS {6, 8, 8, 8}
#define KDP_VECTORS 1

/* Each shift leaves one weight of a byte less, and the rest four times as large. */
static inline void kdp_dot(int32_t *sums, int8x16_t inputs, const int8_t *weights, int32_t step)
{
    const int8x16_t all = vldrbq_s8(weights);
    (void)step;
    sums[0] = vmladavaq_s8(sums[0], inputs, vshlq_n_s8(all, 6));
    sums[1] = vmladavaq_s8(sums[1], inputs, vshlq_n_s8(all, 4));
    sums[2] = vmladavaq_s8(sums[2], inputs, vshlq_n_s8(all, 2));
    sums[3] = vmladavaq_s8(sums[3], inputs, all);
}

/* 64 * T0, 64 * T1 + 16 * T0, 64 * T2 + 16 * T1 + 4 * T0 and 64 * T3 + 16 * T2 + 4 * T1 + T0 become 64 * T0, 256 * T1,
 * 256 * T2 and 256 * T3, modulo 2^32. */
static inline void kdp_part(int32_t *sums)
{
    sums[3] = (int32_t)(((uint32_t)sums[3] << 2) - (uint32_t)sums[2]);
    sums[2] = (int32_t)(((uint32_t)sums[2] << 2) - (uint32_t)sums[1]);
    sums[1] = (int32_t)(((uint32_t)sums[1] << 2) - (uint32_t)sums[0]);
}

#include "linear_mve_body.h"
