/* Sum of two tensors by two multiplications, for cores with the instructions of Armv6-M or Armv7-M, or with
 * MVE. */
#ifndef KDPIPE_SCALED_ADD_H
#define KDPIPE_SCALED_ADD_H

#include <stdint.h>

#include "kernel_config.h"

/* output = saturate((first * first_factor + second * second_factor + offset) >> 21) */
typedef struct {
    int32_t size;
    int32_t first_factor, second_factor;
    int32_t offset;
} kdp_scaled_add;

/* The output may be one of the inputs. */
void KDP(scaled_add_v6m)(const kdp_scaled_add *layer, const int8_t *first, const int8_t *second, int8_t *output);
void KDP(scaled_add_v7m)(const kdp_scaled_add *layer, const int8_t *first, const int8_t *second, int8_t *output);
void KDP(scaled_add_mve)(const kdp_scaled_add *layer, const int8_t *first, const int8_t *second, int8_t *output);

#endif
