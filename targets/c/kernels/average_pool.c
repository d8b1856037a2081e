#include "pool.h"

void KDP(average_pool)(const kdp_pool *layer, const kdp_rows *rows, const int8_t *input, int8_t *output)
{
    const int32_t row_bytes = layer->in_width * layer->channels;
    const int32_t count = layer->kernel_height * layer->kernel_width;
    const int32_t half = count / 2;
    for (int32_t out_y = rows->first; out_y < rows->last; out_y++) {
        const int32_t top = out_y * layer->stride_y;
        const int32_t turn = kdp_turn(rows, top);
        for (int32_t out_x = 0; out_x < layer->out_width; out_x++) {
            const int8_t *const column = input + (ptrdiff_t)out_x * layer->stride_x * layer->channels;
            for (int32_t c = 0; c < layer->channels; c++) {
                int32_t sum = 0;
                int32_t mean;
                for (int32_t v = 0; v < layer->kernel_height; v++) {
                    const int8_t *value = column + (ptrdiff_t)kdp_place_after(rows, turn, top + v) * row_bytes + c;
                    for (int32_t u = 0; u < layer->kernel_width; u++, value += layer->channels) {
                        sum += *value;
                    }
                }
                mean = (sum >= 0 ? sum + half : sum - half) / count;
                mean = mean < layer->minimum ? layer->minimum : (mean > layer->maximum ? layer->maximum : mean);
                *output++ = (int8_t)mean;
            }
        }
    }
}
