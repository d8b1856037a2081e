#include "ternary.h"

static inline uint32_t sum_bytes(uint32_t word, uint32_t sum)
{
    uint32_t total;
    __asm__("usada8 %0, %1, %2, %3" : "=r"(total) : "r"(word), "r"(0), "r"(sum));
    return total;
}

/* Four channels of four positions. */
static inline void put_words(uint32_t p0, uint32_t p1, uint32_t p2, uint32_t p3, uint32_t *to)
{
    to[0] = (p0 & 255) | (p1 & 255) << 15;
    to[1] = (p2 & 255) | (p3 & 255) << 15;
    to[2] = (p0 >> 8 & 255) | (p1 >> 8 & 255) << 15;
    to[3] = (p2 >> 8 & 255) | (p3 >> 8 & 255) << 15;
    to[4] = (p0 >> 16 & 255) | (p1 >> 16 & 255) << 15;
    to[5] = (p2 >> 16 & 255) | (p3 >> 16 & 255) << 15;
    to[6] = p0 >> 24 | p1 >> 24 << 15;
    to[7] = p2 >> 24 | p3 >> 24 << 15;
}

/* From signed to unsigned bytes. */
#define OFFSET 0x80808080u

static void put_row(const kdp_ternary *layer, const int8_t *input, int32_t y, uint32_t *row)
{
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 255) * 0x01010101u ^ OFFSET;
    const int32_t channels = layer->in_channels;
    const int32_t left = layer->in_positions - y * layer->in_width;
    const int32_t width = y < 0 || y >= layer->in_height ? 0 : (left < layer->in_width ? left : layer->in_width);
    const int32_t step = layer->stride_x * channels;
    uint32_t *sums = row + layer->tiles * layer->taps * channels * 2;
    for (int32_t tile = 0; tile < layer->tiles; tile++, sums += 4) {
        uint32_t s0 = 0;
        uint32_t s1 = 0;
        uint32_t s2 = 0;
        uint32_t s3 = 0;
        for (int32_t u = 0; u < layer->taps; u++) {
            const int32_t x = 4 * tile * layer->stride_x + u * layer->dilation_x - layer->ring_left;
            const int8_t *from = input + (y * layer->in_width + x) * channels;
            const int8_t *const end = from + channels;
            if (x >= 0 && x + 3 * layer->stride_x < width) {
                for (; from != end; from += 4, row += 8) {
                    const uint32_t p0 = kdp_load(from) ^ OFFSET;
                    const uint32_t p1 = kdp_load(from + step) ^ OFFSET;
                    const uint32_t p2 = kdp_load(from + 2 * step) ^ OFFSET;
                    const uint32_t p3 = kdp_load(from + 3 * step) ^ OFFSET;
                    s0 = sum_bytes(p0, s0);
                    s1 = sum_bytes(p1, s1);
                    s2 = sum_bytes(p2, s2);
                    s3 = sum_bytes(p3, s3);
                    put_words(p0, p1, p2, p3, row);
                }
                continue;
            }
            for (; from != end; from += 4, row += 8) {
                uint32_t words[4];
                const int8_t *at = from;
                for (int32_t i = 0; i < 4; i++, at += step) {
                    const int32_t column = x + i * layer->stride_x;
                    words[i] = column >= 0 && column < width ? kdp_load(at) ^ OFFSET : padding;
                }
                s0 = sum_bytes(words[0], s0);
                s1 = sum_bytes(words[1], s1);
                s2 = sum_bytes(words[2], s2);
                s3 = sum_bytes(words[3], s3);
                put_words(words[0], words[1], words[2], words[3], row);
            }
        }
        sums[0] = s0;
        sums[1] = s1;
        sums[2] = s2;
        sums[3] = s3;
    }
}

int32_t KDP(ternary_ring)(const kdp_ternary *layer, const int8_t *input, uint32_t *ring, int32_t top, int32_t next,
                          const uint32_t **rows)
{
    const int32_t ring_rows = kdp_ternary_ring_rows(layer);
    const int32_t row_words = kdp_ternary_row_words(layer);
    if (next < top) {
        next = top;
    }
    for (; next < top + ring_rows; next++) {
        put_row(layer, input, next - layer->pad_top, ring + next % ring_rows * row_words);
    }
    for (int32_t v = 0; v < layer->kernel_height; v++) {
        rows[v] = ring + (top + v * layer->dilation_y) % ring_rows * row_words;
    }
    return next;
}
