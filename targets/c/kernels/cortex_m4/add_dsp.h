/* Sum of two tensors by two multiplications, for cores with the DSP extension. */
#ifndef KDPIPE_ADD_DSP_H
#define KDPIPE_ADD_DSP_H

#include <stdint.h>

#include "kernel_config.h"

/* output = saturate((first * first_factor + second * second_factor + offset) >> 21) */
typedef struct {
    int32_t size;
    int32_t first_factor, second_factor;
    int32_t offset;
} kdp_add_dsp;

/* The output may be one of the inputs. */
void KDP(add_dsp)(const kdp_add_dsp *layer, const int8_t *first, const int8_t *second, int8_t *output);

#endif
