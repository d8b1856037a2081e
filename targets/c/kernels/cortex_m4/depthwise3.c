#include "depthwise3.h"

#include "dsp.h"

/* Columns of padding to the left and to the right, in all rows and planes. */
static KDP_SMALL void put_padding(const kdp_depthwise3 *layer, uint32_t *planes, int32_t left, int32_t right)
{
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 0xFFFF) * 0x10001u;
    for (int32_t rows = 4 * layer->pair_rows; rows > 0; rows--, planes += layer->columns) {
        for (int32_t c = 0; c < layer->columns; c++) {
            if (c < left || c >= right) {
                planes[c] = padding;
            }
        }
    }
}

/* Four channels of the input rows from `top` on, as planes of pairs of rows; `width` columns. */
static KDP_SMALL void put_planes(const kdp_depthwise3 *layer, const kdp_rows *where, const int8_t *input, int32_t top,
                                 uint32_t *to, int32_t width)
{
    const int32_t step = layer->channels;
    const int32_t row_bytes = layer->in_width * step;
    const uint32_t outside = ((uint32_t)layer->in_zero_point & 0xFF) * 0x01010101u;
    const int8_t *const nothing = (const int8_t *)&outside;
    kdp_depthwise3_rows rows;
    rows.plane_bytes = 4 * layer->pair_rows * layer->columns;
    rows.row_skip = 2 * row_bytes - width * step;
    rows.column_skip = 4 * (layer->columns - width);
    rows.columns = width;
    for (int32_t left = layer->pair_rows; left > 0; left -= rows.count, top += 2 * rows.count) {
        const int has_first = top >= 0 && top < layer->in_height;
        const int has_second = top >= -1 && top < layer->in_height - 1;
        rows.first = has_first ? input + kdp_place(where, top) * row_bytes : nothing;
        rows.second = has_second ? input + kdp_place(where, top + 1) * row_bytes : nothing;
        rows.first_step = has_first ? step : 0;
        rows.second_step = has_second ? step : 0;
        rows.count = 1;
        if (has_first && has_second && where->in_rows >= layer->in_height) {
            /* They lie one after the other. */
            rows.count = (layer->in_height - top) / 2;
            rows.count = rows.count < left ? rows.count : left;
        }
        to = KDP(depthwise3_unpack)(&rows, to);
    }
}

KDP_SMALL void KDP(depthwise3)(const kdp_depthwise3 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output,
                               int8_t *scratch)
{
    uint32_t *const planes = kdp_align(scratch);
    const int32_t plane = layer->pair_rows * layer->columns;
    const int32_t row_bytes = layer->out_width * layer->channels;
    const int32_t room = layer->columns - layer->pad_left;
    const int32_t width = layer->in_width < room ? layer->in_width : room;
    kdp_depthwise3_row arguments;
    if (rows->first == 0) {
        /* Rows put into the planes leave it as it is. */
        put_padding(layer, planes, layer->pad_left, layer->pad_left + width);
    }
    for (int32_t y = rows->first; y < rows->last; y += layer->strip) {
        const int32_t left = rows->last - y;
        arguments.rows = left < layer->strip ? left : layer->strip;
        arguments.weights = layer->weights;
        for (int32_t c = 0; c < layer->channels; c += 4) {
            put_planes(layer, rows, input + c, y * layer->stride - layer->pad_top, planes + layer->pad_left, width);
            arguments.plane = planes;
            for (int32_t i = 0; i < 4; i++) {
                arguments.output = output + (y - rows->first) * row_bytes + c + i;
                layer->row(&arguments);
                arguments.plane += plane;
                arguments.weights += layer->channel_words;
            }
        }
    }
}
