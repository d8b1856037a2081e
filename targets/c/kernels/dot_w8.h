/* Dot products with 8-bit weights, one a byte.
 *
 * Sums are kept modulo 2^32: the generator has proved that the final ones fit int32, whatever the partial ones do.
 */
#ifndef KDPIPE_DOT_H
#define KDPIPE_DOT_H

#include <stdint.h>

typedef int8_t kdp_weights;

static inline int32_t kdp_row_length(int32_t count)
{
    return count;
}

#define KDP_STEP(i)                           \
    do {                                      \
        const int32_t weight = row[i];        \
        first += (uint32_t)(weight * x0[i]);  \
        second += (uint32_t)(weight * x1[i]); \
    } while (0)

/* Adds the products of one row with two patches of `count` values to the two accumulators. */
static inline void kdp_dot_pair(const kdp_weights *row, const int8_t *x0, const int8_t *x1, int32_t count,
                                uint32_t *sums)
{
    uint32_t first = sums[0];
    uint32_t second = sums[1];
    for (; count >= 8; count -= 8) {
        KDP_STEP(0);
        KDP_STEP(1);
        KDP_STEP(2);
        KDP_STEP(3);
        KDP_STEP(4);
        KDP_STEP(5);
        KDP_STEP(6);
        KDP_STEP(7);
        row += 8;
        x0 += 8;
        x1 += 8;
    }
    for (; count > 0; count--) {
        KDP_STEP(0);
        row++;
        x0++;
        x1++;
    }
    sums[0] = first;
    sums[1] = second;
}

/* Adds the products of one row with values `stride` apart to `sum` and returns it. */
static inline uint32_t kdp_dot(const kdp_weights *row, const int8_t *x, int32_t stride, int32_t count, uint32_t sum)
{
    for (; count >= 4; count -= 4) {
        sum += (uint32_t)(row[0] * x[0]);
        x += stride;
        sum += (uint32_t)(row[1] * x[0]);
        x += stride;
        sum += (uint32_t)(row[2] * x[0]);
        x += stride;
        sum += (uint32_t)(row[3] * x[0]);
        x += stride;
        row += 4;
    }
    for (; count > 0; count--) {
        sum += (uint32_t)(row[0] * x[0]);
        row++;
        x += stride;
    }
    return sum;
}

#undef KDP_STEP

#endif
