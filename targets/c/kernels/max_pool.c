#include "pool.h"

void KDP(max_pool)(const kdp_pool *layer, const kdp_rows *rows, const int8_t *input, int8_t *output)
{
    const int32_t row_bytes = layer->in_width * layer->channels;
    for (int32_t out_y = rows->first; out_y < rows->last; out_y++) {
        const int32_t top = out_y * layer->stride_y - layer->pad_top;
        const int32_t turn = kdp_turn(rows, top);
        const int32_t first_y = top < 0 ? 0 : top;
        const int32_t last_y = top + layer->kernel_height < layer->in_height ? top + layer->kernel_height
                                                                           : layer->in_height;
        for (int32_t out_x = 0; out_x < layer->out_width; out_x++) {
            const int32_t left = out_x * layer->stride_x - layer->pad_left;
            const int32_t first_x = left < 0 ? 0 : left;
            const int32_t last_x = left + layer->kernel_width < layer->in_width ? left + layer->kernel_width
                                                                              : layer->in_width;
            for (int32_t c = 0; c < layer->channels; c++) {
                int32_t largest = -128;
                for (int32_t y = first_y; y < last_y; y++) {
                    const int8_t *value = input + (ptrdiff_t)kdp_place_after(rows, turn, y) * row_bytes +
                                          (ptrdiff_t)first_x * layer->channels + c;
                    for (int32_t x = first_x; x < last_x; x++, value += layer->channels) {
                        largest = *value > largest ? *value : largest;
                    }
                }
                *output++ = (int8_t)largest;
            }
        }
    }
}
