/* Requantization in fixed point: factors are multiplier * 2^(shift - 31), as the integer graph names them.
 *
 * Signed right shifts are arithmetic on every compiler this code is meant for (GCC, Clang, Arm Compiler, IAR, MSVC).
 */
#ifndef KDPIPE_FIXED_POINT_H
#define KDPIPE_FIXED_POINT_H

#include <stdint.h>

#include "kernel_config.h"

/* Per-channel factors and the output's range. */
typedef struct {
    const int32_t *multipliers;
    const int8_t *shifts;
    int32_t zero_point;
    int32_t minimum;
    int32_t maximum;
} kdp_requantization;

/* Scales `value` by the factor and rounds; the generator has proved that no intermediate leaves its type. */
static inline int32_t kdp_scale(int32_t value, int32_t multiplier, int32_t shift)
{
#if KDP_ROUNDING_TFLITE
    const int32_t left = shift > 0 ? shift : 0;
    const int32_t right = shift > 0 ? 0 : -shift;
    const int64_t product = (int64_t)(value * (int32_t)((uint32_t)1 << left)) * multiplier;
    /* Adding half and flooring equals gemmlowp's nudge and truncation, for either sign. */
    const int32_t high = (int32_t)((product + ((int64_t)1 << 30)) >> 31);
    /* Round half away from zero. */
    const int32_t mask = (int32_t)(((uint32_t)1 << right) - 1);
    const int32_t threshold = (mask >> 1) + (high < 0 ? 1 : 0);
    return (high >> right) + ((high & mask) > threshold ? 1 : 0);
#else
    const int32_t right = 31 - shift;
    return (int32_t)(((int64_t)value * multiplier + ((int64_t)1 << (right - 1))) >> right);
#endif
}

/* Limits `value` to the range before the zero point is added, so that the sum can't overflow. */
static inline int8_t kdp_clamp(int32_t value, int32_t zero_point, int32_t minimum, int32_t maximum)
{
    const int32_t low = minimum - zero_point;
    const int32_t high = maximum - zero_point;
    const int32_t limited = value < low ? low : (value > high ? high : value);
    return (int8_t)(limited + zero_point);
}

static inline int8_t kdp_requantize(uint32_t accumulator, const kdp_requantization *to, int32_t channel)
{
    const int32_t scaled = kdp_scale((int32_t)accumulator, to->multipliers[channel], to->shifts[channel]);
    return kdp_clamp(scaled, to->zero_point, to->minimum, to->maximum);
}

#endif
