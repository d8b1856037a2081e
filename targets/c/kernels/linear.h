/* Fully connected layers. */
#ifndef KDPIPE_LINEAR_H
#define KDPIPE_LINEAR_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"

typedef struct {
    int32_t in_features, out_features;
    const void *weights; /* rows of [in_features], one for each output */
    const int32_t *bias; /* with the input's zero point folded in, modulo 2^32 */
    kdp_requantization to;
} kdp_linear;

/* The suffix says how the weights are stored: ternary ones five to a byte (t5), else at 2, 4 or 8 bits. */
void KDP(linear_t5)(const kdp_linear *layer, const int8_t *input, int8_t *output);
void KDP(linear_w2)(const kdp_linear *layer, const int8_t *input, int8_t *output);
void KDP(linear_w4)(const kdp_linear *layer, const int8_t *input, int8_t *output);
void KDP(linear_w8)(const kdp_linear *layer, const int8_t *input, int8_t *output);

#endif
