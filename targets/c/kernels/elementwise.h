/* Operations that take each element by itself. The output may be one of the inputs. */
#ifndef KDPIPE_ELEMENTWISE_H
#define KDPIPE_ELEMENTWISE_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"

typedef struct {
    int32_t multiplier, shift;
    int32_t zero_point;
} kdp_factor;

typedef struct {
    int32_t size;
    kdp_factor first, second; /* of the inputs, with their zero points */
    kdp_factor out;
    int32_t minimum, maximum;
} kdp_add;

typedef struct {
    int32_t size;
    int32_t in_zero_point;
    kdp_factor out;
    int32_t minimum, maximum;
} kdp_rescale;

/* Sum of two tensors, each with its own scale, as TensorFlow Lite's reference kernel computes it. */
void KDP(add)(const kdp_add *layer, const int8_t *first, const int8_t *second, int8_t *output);

/* From one scale and zero point to another. */
void KDP(rescale)(const kdp_rescale *layer, const int8_t *input, int8_t *output);

#endif
