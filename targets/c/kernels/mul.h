/* Product of two tensors. */
#ifndef KDPIPE_MUL_H
#define KDPIPE_MUL_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"

typedef struct {
    int32_t size;         /* of the first input and of the output */
    int32_t second_size;  /* as `size`, or one number for each channel of the first input */
    int32_t first_zero_point, second_zero_point;
    int32_t multiplier, shift;
    int32_t zero_point;
    int32_t minimum, maximum;
} kdp_mul;

/* The output may be the first input. */
void KDP(mul)(const kdp_mul *layer, const int8_t *first, const int8_t *second, int8_t *output);

#endif
