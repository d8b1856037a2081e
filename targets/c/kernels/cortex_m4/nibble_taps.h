/* Convolutions with 4-bit weights, three taps wide, for cores with the DSP extension and floating-point registers. */
#ifndef KDPIPE_NIBBLE_TAPS_H
#define KDPIPE_NIBBLE_TAPS_H

#include <stdint.h>

#include "kernel_config.h"
#include "rows.h"

#define KDP_NIBBLE_MAX_HEIGHT 16

/* What computes one output row. `nibble_taps.inc` reads it member by member. */
typedef struct {
    const uint32_t *weights;
    const int32_t *parameters;
    int8_t *output;
    int8_t *tail;           /* where the last tile goes, as it may reach beyond the row */
    const uint32_t *starts; /* of each tile four accumulators of 64 bits */
    int32_t tiles;
    int32_t tail_at; /* how many tiles are left when it is the last one's turn, or 0 for no tail */
    int32_t channels;
    int32_t runs; /* of the unrolled loop in a kernel row */
    int32_t rounding;
    const uint32_t *rows[KDP_NIBBLE_MAX_HEIGHT + 1]; /* then 0 */
} kdp_nibble_taps_row;

/* A row of the ring is tiles of eight output positions: for each channel five words x[a] + x[a + 1] * 2^20 of inputs less
 * their zero point, of the columns a = 8 * tile - 1, + 1, + 3, + 5, + 7, the very first word being x[0] alone; then, for each
 * tile, of each of these words the sum over the channels, of 64 bits. */
typedef struct {
    int32_t in_height, in_width, in_channels;
    int32_t out_width, out_channels;
    int32_t kernel_height;
    int32_t stride_y;
    int32_t pad_top; /* on the left there is one column */
    int32_t in_zero_point;
    int32_t tiles;
    int32_t runs;
    int32_t start;    /* what keeps every field from going below 0 */
    int32_t rounding; /* see kdp_ternary */
    const uint32_t *weights;
    const int32_t *parameters; /* for each channel, the bias less `start` and the multiplier; see ternary_outer.inc */
    void (*row)(const void *arguments);
} kdp_nibble_taps;

/* `scratch`: the ring, of `kernel_height` rows; 8 starts for each tile; `in_channels` bytes; 8 positions of output; and 3
 * bytes more, so that it may lie anywhere. */
void KDP(nibble_taps)(const kdp_nibble_taps *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                      int8_t *scratch);

/* Puts all channels of `words` times two columns, `channels` bytes apart: the first at `first`, the second at `second`.
 * Of a word the channels lie five words apart. Puts each word's sum. */
void KDP(nibble_unpack)(const int8_t *first, const int8_t *second, uint32_t *to, int32_t channels, int32_t zero_point,
                        int32_t words, uint32_t *sums);

#endif
