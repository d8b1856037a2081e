/* Convolutions with ternary weights for cores with the DSP extension and floating-point registers. */
#ifndef KDPIPE_TERNARY_H
#define KDPIPE_TERNARY_H

#include <stdint.h>

#include "dsp.h"
#include "kernel_config.h"
#include "rows.h"

#define KDP_TERNARY_MAX_HEIGHT 16

/* What computes one output row for a group of channels. The rows in assembly read these member by member. */
typedef struct {
    const uint32_t *weights;
    int8_t *output; /* of column `pad_left` - 2 */
    const uint8_t *schedule;
    const int32_t *parameters;
    const int32_t *boxes;
    int32_t tiles;
    int32_t padding; /* as an unsigned byte */
    int32_t rounding;
    int32_t channels;
    int32_t tile_bytes;
    uint32_t *rows[KDP_TERNARY_MAX_HEIGHT];
} kdp_ternary_taps_row;

typedef struct {
    const uint32_t *starts; /* four words of each tile: what its sums or its accumulators start from */
    const int32_t *parameters;
    int8_t *output;
    int8_t *tail; /* where the last tile goes, as it may reach beyond the row */
    int32_t tiles;
    int32_t tail_at; /* how many tiles are left when it is the last one's turn, or 0 for no tail */
    int32_t channels;
    int32_t tile_bytes;
    int32_t rounding;
    const uint32_t *weights;
    const uint8_t *schedule;
    uint32_t *rows[KDP_TERNARY_MAX_HEIGHT];
} kdp_ternary_outer_row;

/* A row of the ring is tiles of four positions: for each tap and channel two words x[0] + x[1] * 2^15 and x[2] + x[3] *
 * 2^15 of inputs as unsigned bytes, then for each position the sum of its inputs. */
typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t in_positions; /* height * width, or less where the last row is shorter */
    int32_t out_width, out_positions, out_channels;
    int32_t kernel_height;
    int32_t stride_y, stride_x;
    int32_t pad_top, pad_left;
    int32_t dilation_y, dilation_x;
    int32_t in_zero_point;
    int32_t taps;      /* in a row of the ring */
    int32_t ring_left; /* columns of padding before the first position in a row of the ring */
    int32_t tiles;
    int32_t group_words; /* of weights, for the channels of a row kernel */
    int32_t group_parameters;
    int32_t start;    /* ternary_outer: what keeps the accumulators from going below 0, or 0 where they start from 0 */
    int32_t rounding; /* added to scaled sums: the zero point and a half; or twice that, for a shift less by one */
    const uint32_t *weights;
    const int32_t *parameters;
    const uint8_t *schedule;
    void (*row)(const void *arguments);
} kdp_ternary;

/* `scratch`: the ring, of ((kernel_height - 1) * dilation_y + 1) rows; then as each kernel says; and 3 bytes more, so
 * that it may lie anywhere. */

/* Kernels three wide, stride_x 1. After the ring: 4 * tiles + 1 boxes, and as many positions of output. */
void KDP(ternary_taps)(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                       int8_t *scratch);

/* Any kernel. After the ring: 4 * tiles starts, and four positions of output. */
void KDP(ternary_outer)(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                        int8_t *scratch);

static inline int32_t kdp_ternary_row_words(const kdp_ternary *layer)
{
    return layer->tiles * (2 * layer->taps * layer->in_channels + 4);
}

static inline int32_t kdp_ternary_ring_rows(const kdp_ternary *layer)
{
    return (layer->kernel_height - 1) * layer->dilation_y + 1;
}

/* Puts `channels` of four positions, `step` bytes apart, and adds them to four sums; and so on for as many tiles, each of
 * the next four positions and sums. Returns where the next words go. */
uint32_t *KDP(ternary_unpack)(const int8_t *from, uint32_t *to, int32_t step, int32_t channels, uint32_t *sums,
                              int32_t tiles);

/* Brings the ring up to the rows of output row y and points `window` to them. */
void KDP(ternary_ring)(const kdp_ternary *layer, const kdp_rows *rows, const int8_t *input, uint32_t *ring, int32_t y,
                       uint32_t **window);

/* Adds up the sums of the inputs in each column of `rows`, in the topmost row, which no further window needs. */
const int32_t *KDP(ternary_sums)(const kdp_ternary *layer, uint32_t *const *rows);

#endif
