/* Dot products with ternary weights, five to a byte: w + 1 as digits of a number to the base of three, the first highest,
 * scaled from 243 to 256, so that the product with three carries one digit after the other out of the byte. A row of
 * weights starts on a byte of its own.
 *
 * Sums are kept modulo 2^32: the generator has proved that the final ones fit int32, whatever the partial ones do.
 */
#ifndef KDPIPE_DOT_H
#define KDPIPE_DOT_H

#include <stdint.h>

typedef uint8_t kdp_weights;

static inline int32_t kdp_row_length(int32_t count)
{
    return (count + 4) / 5;
}

/* The next weight of a byte, which stays in `code`. */
#define KDP_NEXT(code) ((code) = ((code) & 255u) * 3u, (int32_t)((code) >> 8) - 1)

#define KDP_STEP(i)                              \
    do {                                         \
        const int32_t weight = KDP_NEXT(code);   \
        first += (uint32_t)(weight * x0[i]);     \
        second += (uint32_t)(weight * x1[i]);    \
    } while (0)

/* Adds the products of one row with two patches of `count` values to the two accumulators. */
static inline void kdp_dot_pair(const kdp_weights *row, const int8_t *x0, const int8_t *x1, int32_t count,
                                uint32_t *sums)
{
    uint32_t first = sums[0];
    uint32_t second = sums[1];
    for (; count >= 5; count -= 5) {
        uint32_t code = *row++;
        KDP_STEP(0);
        KDP_STEP(1);
        KDP_STEP(2);
        KDP_STEP(3);
        KDP_STEP(4);
        x0 += 5;
        x1 += 5;
    }
    if (count > 0) {
        uint32_t code = *row;
        for (int32_t i = 0; i < count; i++) {
            KDP_STEP(i);
        }
    }
    sums[0] = first;
    sums[1] = second;
}

/* Adds the products of one row with values `stride` apart to `sum` and returns it. */
static inline uint32_t kdp_dot(const kdp_weights *row, const int8_t *x, int32_t stride, int32_t count, uint32_t sum)
{
    while (count > 0) {
        uint32_t code = *row++;
        const int32_t here = count < 5 ? count : 5;
        for (int32_t i = 0; i < here; i++, x += stride) {
            const int32_t weight = KDP_NEXT(code);
            sum += (uint32_t)(weight * x[0]);
        }
        count -= here;
    }
    return sum;
}

#undef KDP_STEP

#endif
