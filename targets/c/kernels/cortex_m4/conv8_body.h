/* The ring of rows around a row kernel. The including file defines KDP_CONV8, and KDP_BOXES: 1 where the weights have an
 * offset that the windows' sums of inputs correct; and KDP_UNPACK accordingly. */

/* The channels beyond the last four of `count` columns. */
static KDP_SMALL void kdp_put_rest(const kdp_conv8 *layer, const int8_t *from, int32_t step, uint32_t *to, int32_t count,
                                   int32_t *sums)
{
    const int32_t rest = layer->in_channels & 3;
    for (int32_t i = 0; i < count; i++, from += step, to++) {
        const int32_t second = rest > 1 ? from[1] : 0;
        const int32_t third = rest > 2 ? from[2] : 0;
        to[0] = ((uint32_t)from[0] & 0xFFFF) | (uint32_t)third << 16;
        if (rest > 1) {
            to[layer->pair_words] = (uint32_t)second & 0xFFFF;
        }
        if (KDP_BOXES) {
            sums[i] += from[0] + second + third;
        }
    }
}

static KDP_SMALL void kdp_fill(uint32_t *to, uint32_t value, int32_t count)
{
    while (count-- > 0) {
        *to++ = value;
    }
}

static inline int32_t kdp_between(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : (value > high ? high : value);
}

/* A row of the ring: a word holds channels (4j, 4j + 2) or (4j + 1, 4j + 3) of one column. Columns outside the input
 * hold its zero point. With KDP_BOXES the columns' sums follow. */
static KDP_SMALL void kdp_put_row(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int32_t y,
                                  uint32_t *row)
{
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 0xFFFF) * 0x10001u;
    const int32_t left = layer->in_positions - y * layer->in_width;
    const int32_t width = y < 0 || y >= layer->in_height ? 0 : (left < layer->in_width ? left : layer->in_width);
    const int32_t place = kdp_place(rows, y);
    const int32_t pairs = layer->pairs;
    const int32_t quads = layer->in_channels / 4;
    const int32_t stride = layer->phases * layer->column_step; /* input pixels from a word to the next */
    const int32_t step = stride * layer->in_channels;
    for (int32_t phase = 0; phase < layer->phases; phase++, row += layer->phase_words) {
        const int32_t x = phase * layer->column_step - layer->pad_left;
        const int32_t first = x < 0 ? kdp_between((stride - 1 - x) / stride, 0, layer->phase_words) : 0;
        const int32_t last = kdp_between((width - x + stride - 1) / stride, first, layer->phase_words);
        const int8_t *const from = input + (place * layer->in_width + x + first * stride) * layer->in_channels;
        uint32_t *to = row;
        int32_t *sums = 0;
#if KDP_BOXES
        sums = (int32_t *)(row + pairs * layer->pair_words);
        kdp_fill((uint32_t *)sums, (uint32_t)(2 * pairs * layer->in_zero_point), layer->phase_words);
        kdp_fill((uint32_t *)sums + first, 0, last - first);
        sums += first;
#endif
        for (int32_t p = last - first < layer->phase_words ? 0 : pairs; p < pairs; p++, to += layer->pair_words) {
            kdp_fill(to, padding, first);
            kdp_fill(to + last, padding, layer->phase_words - last);
        }
        if (first == last) {
            continue;
        }
        if (quads > 0) {
            KDP_UNPACK(from, row + first, step, 4 * layer->pair_words, last - first, quads, sums);
        }
        if ((layer->in_channels & 3) > 0) {
            kdp_put_rest(layer, from + 4 * quads, step, row + first + 2 * quads * layer->pair_words, last - first, sums);
        }
    }
}

#if KDP_BOXES
/* Sums of the windows. Those of the columns are taken in the topmost row, which no further window needs. */
static KDP_SMALL void kdp_put_boxes(const kdp_conv8 *layer, uint32_t *const *rows, int32_t width, int32_t *boxes)
{
    const int32_t sums_at = layer->pairs * layer->pair_words;
    const int32_t columns = layer->pair_words;
    const int32_t kernel_width = layer->kernel_width;
    int32_t *const sums = (int32_t *)rows[0] + sums_at;
    for (int32_t v = 1; v < layer->kernel_height; v++) {
        const int32_t *const more = (const int32_t *)rows[v] + sums_at;
        for (int32_t c = 0; c < columns; c++) {
            sums[c] += more[c];
        }
    }
    kdp_fill((uint32_t *)boxes, 0, 2 * width);
    for (int32_t u = 0; u < kernel_width; u++) {
        const int32_t tap = u * layer->dilation_x;
        const int32_t *const of = sums + tap % layer->phases * layer->phase_words + tap / layer->phases;
        for (int32_t x = 0; x < width; x += 2) {
            boxes[2 * x] += 8 * of[x];
            boxes[2 * x + 1] += 8 * of[x + 1];
        }
    }
    for (int32_t x = 0; x < width; x += 2, boxes += 4) {
        boxes[2] = 257 * boxes[0];
        boxes[3] = 257 * boxes[1];
    }
}
#endif

KDP_SMALL void KDP_CONV8(const kdp_conv8 *layer, const kdp_rows *rows, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t row_words = layer->pairs * layer->pair_words + (KDP_BOXES ? layer->pair_words : 0);
    const int32_t ring_rows = (layer->kernel_height - 1) * layer->dilation_y + 1;
#if KDP_BOXES
    int32_t *const boxes = (int32_t *)(ring + ring_rows * row_words);
#endif
    int32_t top = rows->first * layer->stride_y;
    /* The row to expand next, counted as `top` from the first one above the input. */
    int32_t next = rows->first > 0 ? top - layer->stride_y + ring_rows : 0;
    kdp_conv8_row arguments;
    arguments.boxes = 0;
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    for (int32_t y = rows->first; y < rows->last; y++, top += layer->stride_y) {
        const int32_t left = layer->out_positions - y * layer->out_width;
        const int32_t width = left < layer->out_width ? left : layer->out_width;
        if (next < top) {
            next = top;
        }
        for (; next < top + ring_rows; next++) {
            kdp_put_row(layer, rows, input, next - layer->pad_top, ring + next % ring_rows * row_words);
        }
        for (int32_t v = 0; v < layer->kernel_height; v++) {
            arguments.rows[v] = ring + (top + v * layer->dilation_y) % ring_rows * row_words;
        }
        arguments.pair_bytes = (width + 1) / 2 * 8;
        arguments.odd_at = width % 2 ? arguments.pair_bytes - 8 : -1;
        arguments.output = output;
        output += width * layer->out_channels;
#if KDP_BOXES
        if (layer->kernel_height * layer->kernel_width > 1) {
            kdp_put_boxes(layer, arguments.rows, arguments.pair_bytes / 4, boxes);
            arguments.boxes = boxes;
        }
#endif
        layer->row(&arguments);
    }
}
