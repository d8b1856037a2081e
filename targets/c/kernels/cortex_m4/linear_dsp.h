/* Fully connected layers for the DSP extension. */
#ifndef KDPIPE_LINEAR_DSP_H
#define KDPIPE_LINEAR_DSP_H

#include <stdint.h>

#include "kernel_config.h"

/* What computes all outputs. `linear_dsp.inc` reads it member by member. */
typedef struct {
    const uint32_t *inputs; /* half-words: words of inputs (0, 2), (1, 3), (4, 6), ... */
    const uint32_t *end;    /* of the inputs */
    const uint32_t *weights;
    const int32_t *parameters;
    int8_t *output;
    int32_t groups; /* of eight outputs */
    int32_t sum;    /* of the inputs times the weights' offset */
    int32_t rounding;
} kdp_linear_dsp_rows;

typedef struct {
    int32_t in_features; /* a multiple of 4 */
    int32_t groups;
    int32_t offset;
    int32_t rounding; /* see kdp_ternary */
    const uint32_t *weights;
    const int32_t *parameters; /* as those of ternary_outer.inc */
    void (*rows)(const void *arguments);
} kdp_linear_dsp;

/* `scratch` holds the inputs as half-words and 3 bytes more, so that it may lie anywhere. */
void KDP(linear_dsp)(const kdp_linear_dsp *layer, const int8_t *input, int8_t *output, int8_t *scratch);

#endif
