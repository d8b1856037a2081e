/* Fully connected layers in MVE: four outputs at a time. */
#ifndef KDPIPE_LINEAR_MVE_H
#define KDPIPE_LINEAR_MVE_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t in_features, out_features;
    const int8_t *weights;
    const int32_t *parameters; /* of four outputs: biases, multipliers, shifts */
    int32_t left;              /* how far sums are shifted left, before the biases are added */
    int32_t zero_point, minimum, maximum;
} kdp_linear_mve;

/* The suffix says how the weights are stored: a vector of 16 inputs' for each of four outputs; for two of them, in bytes
 * 16 * w1 + w0; for all four, in bytes 64 * w3 + 16 * w2 + 4 * w1 + w0. */
void KDP(linear_mve_w8)(const kdp_linear_mve *layer, const int8_t *input, int8_t *output);
void KDP(linear_mve_w4)(const kdp_linear_mve *layer, const int8_t *input, int8_t *output);
void KDP(linear_mve_w2)(const kdp_linear_mve *layer, const int8_t *input, int8_t *output);

#endif
