/* Dot products with ternary weights: two bits each in two's complement, sixteen to a word, the first lowest. A row of
 * weights starts on a word of its own.
 *
 * Sums are kept modulo 2^32: the generator has proved that the final ones fit int32, whatever the partial ones do.
 */
#ifndef KDPIPE_DOT_H
#define KDPIPE_DOT_H

#include <stdint.h>

typedef uint32_t kdp_weights;

static inline int32_t kdp_row_length(int32_t count)
{
    return (count + 15) / 16;
}

/* Weight `i` of a word. */
#define KDP_WEIGHT(word, i) ((int32_t)((word) << (30 - 2 * (i))) >> 30)

#define KDP_STEP(i)                                 \
    do {                                            \
        const int32_t weight = KDP_WEIGHT(word, i); \
        first += (uint32_t)(weight * x0[i]);        \
        second += (uint32_t)(weight * x1[i]);       \
    } while (0)

/* Adds the products of one row with two patches of `count` values to the two accumulators. */
static inline void kdp_dot_pair(const kdp_weights *row, const int8_t *x0, const int8_t *x1, int32_t count,
                                uint32_t *sums)
{
    uint32_t first = sums[0];
    uint32_t second = sums[1];
    uint32_t word;
    for (; count >= 16; count -= 16) {
        word = *row++;
        KDP_STEP(0);
        KDP_STEP(1);
        KDP_STEP(2);
        KDP_STEP(3);
        KDP_STEP(4);
        KDP_STEP(5);
        KDP_STEP(6);
        KDP_STEP(7);
        KDP_STEP(8);
        KDP_STEP(9);
        KDP_STEP(10);
        KDP_STEP(11);
        KDP_STEP(12);
        KDP_STEP(13);
        KDP_STEP(14);
        KDP_STEP(15);
        x0 += 16;
        x1 += 16;
    }
    if (count > 0) {
        word = *row;
        for (; count >= 4; count -= 4) {
            KDP_STEP(0);
            KDP_STEP(1);
            KDP_STEP(2);
            KDP_STEP(3);
            x0 += 4;
            x1 += 4;
            word >>= 8;
        }
        for (; count > 0; count--) {
            KDP_STEP(0);
            x0++;
            x1++;
            word >>= 2;
        }
    }
    sums[0] = first;
    sums[1] = second;
}

/* Adds the products of one row with values `stride` apart to `sum` and returns it. */
static inline uint32_t kdp_dot(const kdp_weights *row, const int8_t *x, int32_t stride, int32_t count, uint32_t sum)
{
    while (count > 0) {
        uint32_t word = *row++;
        int32_t left = count < 16 ? count : 16;
        count -= left;
        for (; left >= 4; left -= 4) {
            sum += (uint32_t)(KDP_WEIGHT(word, 0) * x[0]);
            x += stride;
            sum += (uint32_t)(KDP_WEIGHT(word, 1) * x[0]);
            x += stride;
            sum += (uint32_t)(KDP_WEIGHT(word, 2) * x[0]);
            x += stride;
            sum += (uint32_t)(KDP_WEIGHT(word, 3) * x[0]);
            x += stride;
            word >>= 8;
        }
        for (; left > 0; left--) {
            sum += (uint32_t)(KDP_WEIGHT(word, 0) * x[0]);
            x += stride;
            word >>= 2;
        }
    }
    return sum;
}

#undef KDP_STEP

#endif
