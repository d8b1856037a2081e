/* Convolutions with ternary weights for cores with the DSP extension and floating-point registers. */
#ifndef KDPIPE_TERNARY_H
#define KDPIPE_TERNARY_H

#include <stdint.h>

#include "dsp.h"
#include "kernel_config.h"

#define KDP_TERNARY_MAX_HEIGHT 16

/* What computes one output row for a group of channels. The rows in assembly read it member by member. */
typedef struct {
    const uint32_t *weights;
    int32_t *sums;
    const uint8_t *schedule;
    const uint32_t *rows[KDP_TERNARY_MAX_HEIGHT];
} kdp_ternary_row;

typedef struct {
    const uint64_t *starts; /* for each pair of positions what its accumulators start from */
    const int32_t *parameters;
    int8_t *output;
    int8_t *tail; /* where the last tile goes, as it may reach beyond the row */
    int32_t tiles;
    int32_t tail_at; /* how many tiles are left when it is the last one's turn, or 0 for no tail */
    kdp_ternary_row row;
} kdp_ternary_fused_row;

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
    int32_t group_words; /* weights of a group of output channels */
    int32_t sum_words;   /* sums of one channel; ternary_fused: parameters of four */
    int32_t adds_sums;   /* whether the row adds to the sums or overwrites them */
    int32_t left_shift;  /* of sums before they are scaled */
    int32_t start;       /* fused: what keeps the accumulators from going below 0 */
    const uint32_t *weights;
    const int32_t *parameters;
    const uint8_t *schedule;
    void (*row)(const void *arguments);
} kdp_ternary;

/* `scratch`: the ring, of ((kernel_height - 1) * dilation_y + 1) rows; then as each kernel says; and 3 bytes more, so
 * that it may lie anywhere. `ternary_taps`: kernels three wide, stride_x 1. `ternary_outer`: any kernel. */
void KDP(ternary_taps)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch);
void KDP(ternary_outer)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch);
void KDP(ternary_fused)(const kdp_ternary *layer, const int8_t *input, int8_t *output, int8_t *scratch);

static inline int32_t kdp_ternary_row_words(const kdp_ternary *layer)
{
    return layer->tiles * (2 * layer->taps * layer->in_channels + 4);
}

static inline int32_t kdp_ternary_ring_rows(const kdp_ternary *layer)
{
    return (layer->kernel_height - 1) * layer->dilation_y + 1;
}

/* Brings the ring up to the rows of the output row whose window starts at `top`, counted from the first row of padding,
 * and points `rows` to them. Returns the next row to put. */
int32_t KDP(ternary_ring)(const kdp_ternary *layer, const int8_t *input, uint32_t *ring, int32_t top, int32_t next,
                          const uint32_t **rows);

/* Scales a sum to an output; parameters are a multiplier, a start and a shift. */
static inline int8_t kdp_ternary_scale(int32_t sum, int32_t multiplier, int32_t start, int32_t shift,
                                       int32_t left_shift)
{
    int32_t scaled;
#if KDP_ROUNDING_TFLITE
    (void)left_shift;
    sum = (int32_t)((uint32_t)sum << 1);
    __asm__("smmulr %0, %1, %2" : "=r"(scaled) : "r"(sum), "r"(multiplier));
    scaled = (scaled + (scaled >> 31) + start) >> shift;
#else
    sum = (int32_t)((uint32_t)sum << left_shift);
    __asm__("smmla %0, %1, %2, %3" : "=r"(scaled) : "r"(sum), "r"(multiplier), "r"(start));
    scaled >>= shift;
#endif
    __asm__("ssat %0, #8, %1" : "=r"(scaled) : "r"(scaled));
    return (int8_t)scaled;
}

#endif
