#include "linear_mve.h"
#include "mve.h"

#define KDP_LINEAR_MVE KDP(linear_mve_w4)
#define KDP_FACTORS {4, 8, 4, 8}
#define KDP_VECTORS 2

/* The weights w0 of a byte are what remains of it when w1 is shifted out: 16 * w0. */
static inline void kdp_dot(int32_t *sums, int8x16_t inputs, const int8_t *weights, int32_t step)
{
    const int8x16_t first = vldrbq_s8(weights);
    const int8x16_t second = vldrbq_s8(weights + step);
    sums[0] = vmladavaq_s8(sums[0], inputs, vshlq_n_s8(first, 4));
    sums[1] = vmladavaq_s8(sums[1], inputs, first);
    sums[2] = vmladavaq_s8(sums[2], inputs, vshlq_n_s8(second, 4));
    sums[3] = vmladavaq_s8(sums[3], inputs, second);
}

/* 16 * T0 and 16 * T1 + T0 become 16 * T0 and 256 * T1, modulo 2^32. */
static inline void kdp_part(int32_t *sums)
{
    sums[1] = (int32_t)(((uint32_t)sums[1] << 4) - (uint32_t)sums[0]);
    sums[3] = (int32_t)(((uint32_t)sums[3] << 4) - (uint32_t)sums[2]);
}

#include "linear_mve_body.h"
