/* A function of each element by itself, as a table. */
#ifndef KDPIPE_LOOKUP_H
#define KDPIPE_LOOKUP_H

#include <stdint.h>

#include "kernel_config.h"

typedef struct {
    int32_t size;
    const int8_t *table; /* of 256 entries: what -128, -127, ..., 127 become */
} kdp_lookup;

/* The output may be the input. */
void KDP(lookup)(const kdp_lookup *layer, const int8_t *input, int8_t *output);

#endif
