/* Windows that are collected one by one, and computed four at a time. */
#ifndef KDPIPE_CONV_MVE_TILE_H
#define KDPIPE_CONV_MVE_TILE_H

#include <stdint.h>

#include "conv_mve.h"
#include "mve.h"

typedef struct {
    int8_t *windows; /* block by block of 16 bytes, 64 apart: those of four windows take turns */
    int8_t *output;  /* of the first of them */
    int32_t live;    /* how many there are */
} kdp_mve_tile;

static inline void kdp_mve_compute(const kdp_mve_conv *layer, kdp_mve_tile *tile)
{
    const int32_t channels = layer->out_channels;
    int8_t *const spare = tile->windows + 64 * layer->blocks;
    kdp_mve_row arguments;
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    arguments.end = layer->parameters + 3 * channels;
    for (int32_t i = 0; i < 4; i++) {
        arguments.places[i] = i * channels;
    }
    arguments.rows[0] = tile->windows;
    arguments.count = 4;
    /* Always four, of which the last ones may be left over from before. */
    arguments.output = tile->live == 4 ? tile->output : spare;
    layer->row(&arguments);
    if (tile->live < 4) {
        kdp_mve_copy(tile->output, spare, tile->live * channels);
    }
    tile->output += tile->live * channels;
    tile->live = 0;
}

#endif
