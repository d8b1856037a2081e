/* Fully connected layers in Armv6-M's instructions. */
#ifndef KDPIPE_LINEAR_BLOCKS_H
#define KDPIPE_LINEAR_BLOCKS_H

#include <stdint.h>

#include "fixed_point.h"
#include "kernel_config.h"

#define KDP_LINEAR_MOST 8 /* outputs of a block */

/* What computes the sums of some outputs at a time. `linear_block.inc` reads it member by member. */
typedef struct {
    const uint32_t *weights;
    const uint8_t *inputs;
    const uint8_t *end; /* of the inputs */
    uint32_t *sums;
} kdp_linear_block;

typedef struct {
    int32_t in_features, out_features;
    int32_t length; /* of the inputs with their padding */
    int32_t group;  /* outputs of a block */
    int32_t group_words;
    int32_t offset; /* of the weights */
    const uint32_t *weights;
    const int32_t *starts; /* the biases with the zero point of unsigned inputs folded in, modulo 2^32 */
    kdp_requantization to;
    void (*block)(const kdp_linear_block *block);
} kdp_linear_blocks;

/* `scratch` holds `length` bytes. */
void KDP(linear_blocks)(const kdp_linear_blocks *layer, const int8_t *input, int8_t *output, int8_t *scratch);

#endif
