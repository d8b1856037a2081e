#include "linear_mve.h"
#include "mve.h"

#define KDP_LINEAR_MVE KDP(linear_mve_w8)
#define KDP_FACTORS {0, 0, 0, 0}
#define KDP_VECTORS 4

static inline void kdp_dot(int32_t *sums, int8x16_t inputs, const int8_t *weights, int32_t step)
{
    sums[0] = vmladavaq_s8(sums[0], inputs, vldrbq_s8(weights));
    sums[1] = vmladavaq_s8(sums[1], inputs, vldrbq_s8(weights + step));
    sums[2] = vmladavaq_s8(sums[2], inputs, vldrbq_s8(weights + 2 * step));
    sums[3] = vmladavaq_s8(sums[3], inputs, vldrbq_s8(weights + 3 * step));
}

static inline void kdp_part(int32_t *sums)
{
    (void)sums;
}

#include "linear_mve_body.h"
