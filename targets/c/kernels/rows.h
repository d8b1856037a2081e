/* Which rows of its output a kernel computes, and where the rows of its input lie. */
#ifndef KDPIPE_ROWS_H
#define KDPIPE_ROWS_H

#include <stdint.h>

/* A kernel that has scratch may keep rows there from one call to the next: the calls of an inference begin with row 0,
 * leave no row out, and leave the scratch alone. */
typedef struct {
    int32_t first, last; /* rows `first` to `last` - 1 of the output, which points to row `first` */
    int32_t in_rows;     /* row y of the input lies in row y % in_rows of the memory that `input` points to: as many
                            rows as it has, or a ring of the last ones, of which those that a call needs are there */
} kdp_rows;

/* `step` bytes after a place in a ring of `size`, at most once around. */
static inline int32_t kdp_after(int32_t place, int32_t step, int32_t size)
{
    return place + step < size ? place + step : place + step - size;
}

/* Where row y of the input lies. */
static inline int32_t kdp_place(const kdp_rows *rows, int32_t y)
{
    return y < rows->in_rows ? y : y % rows->in_rows;
}

/* For rows from `top` on: what kdp_place_after needs. */
static inline int32_t kdp_turn(const kdp_rows *rows, int32_t top)
{
    return top < rows->in_rows ? 0 : top - top % rows->in_rows;
}

/* As kdp_place without a division, for fewer than in_rows rows from the top of `turn` on. */
static inline int32_t kdp_place_after(const kdp_rows *rows, int32_t turn, int32_t y)
{
    return y - turn < rows->in_rows ? y - turn : y - turn - rows->in_rows;
}

#endif
