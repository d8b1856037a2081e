/* The ring of rows around a row kernel. The including file defines KDP_CONV8, and KDP_BOXES where the weights have an
 * offset that the windows' sums of inputs correct. */

static void kdp_put_pixel(const kdp_conv8 *layer, const int8_t *from, uint32_t *to, int32_t *sum)
{
    const int32_t step = layer->pair_words;
    const int8_t *const end = from + (layer->in_channels & ~3);
    const int32_t rest = layer->in_channels & 3;
    int32_t total = 0;
    for (; from != end; from += 4, to += 2 * step) {
        const uint32_t word = kdp_load(from);
        const uint32_t even = kdp_even_bytes(word);
        const uint32_t odd = kdp_odd_bytes(word);
        to[0] = even;
        to[step] = odd;
#if KDP_BOXES
        total = kdp_add_halves(odd, kdp_add_halves(even, total));
#endif
    }
    if (rest > 0) {
        const int32_t second = rest > 1 ? from[1] : 0;
        const int32_t third = rest > 2 ? from[2] : 0;
        to[0] = ((uint32_t)from[0] & 0xFFFF) | (uint32_t)third << 16;
        if (rest > 1) {
            to[step] = (uint32_t)second & 0xFFFF;
        }
        total += from[0] + second + third;
    }
    *sum = total;
}

/* A row of the ring: a word holds channels (4j, 4j + 2) or (4j + 1, 4j + 3) of one column. Columns outside the input
 * hold its zero point. */
static void kdp_put_row(const kdp_conv8 *layer, const int8_t *input, int32_t y, uint32_t *row)
{
    const uint32_t padding = ((uint32_t)layer->in_zero_point & 0xFFFF) * 0x10001u;
    const int32_t left = layer->in_positions - y * layer->in_width;
    const int32_t width = y < 0 || y >= layer->in_height ? 0 : (left < layer->in_width ? left : layer->in_width);
    const int8_t *from = input + (y * layer->in_width - layer->pad_left) * layer->in_channels;
    const int32_t step = layer->column_step * layer->in_channels;
    int32_t x = -layer->pad_left;
    int32_t phase = 0;
    uint32_t *to = row;
#if KDP_BOXES
    int32_t *boxes = (int32_t *)(row + layer->pairs * layer->pair_words);
#endif
    for (int32_t c = 0; c < layer->columns; c++, x += layer->column_step, from += step) {
        int32_t sum;
        if (x >= 0 && x < width) {
            kdp_put_pixel(layer, from, to, &sum);
        } else {
            uint32_t *pair = to;
            for (int32_t p = 0; p < layer->pairs; p++, pair += layer->pair_words) {
                *pair = padding;
            }
            sum = 2 * layer->pairs * layer->in_zero_point;
        }
#if KDP_BOXES
        *boxes++ = sum;
#endif
        if (++phase == layer->phases) {
            phase = 0;
            to += 1 - (layer->phases - 1) * layer->phase_words;
        } else {
            to += layer->phase_words;
        }
    }
}

#if KDP_BOXES
static void kdp_put_boxes(const kdp_conv8 *layer, const kdp_conv8_row *arguments, int32_t *boxes)
{
    const int32_t sums_at = layer->pairs * layer->pair_words;
    for (int32_t x = 0; x < arguments->pair_bytes / 4; x++) {
        int32_t sum = 0;
        for (int32_t v = 0; v < layer->kernel_height; v++) {
            const int32_t *const sums = (const int32_t *)arguments->rows[v] + sums_at + x * layer->phases;
            for (int32_t u = 0; u < layer->kernel_width; u++) {
                sum += sums[u * layer->dilation_x];
            }
        }
        boxes[x] = 8 * sum;
    }
}
#endif

void KDP_CONV8(const kdp_conv8 *layer, const int8_t *input, int8_t *output, int8_t *scratch)
{
    uint32_t *const ring = kdp_align(scratch);
    const int32_t row_words = layer->pairs * layer->pair_words + (KDP_BOXES ? layer->columns : 0);
    const int32_t ring_rows = (layer->kernel_height - 1) * layer->dilation_y + 1;
#if KDP_BOXES
    int32_t *const boxes = (int32_t *)(ring + ring_rows * row_words);
#endif
    int32_t next = 0; /* the row to expand next, counted from the first one above the input */
    int32_t top = 0;
    kdp_conv8_row arguments;
    arguments.boxes = 0;
    arguments.weights = layer->weights;
    arguments.parameters = layer->parameters;
    for (int32_t done = 0; done < layer->out_positions; done += layer->out_width, top += layer->stride_y) {
        const int32_t left = layer->out_positions - done;
        const int32_t width = left < layer->out_width ? left : layer->out_width;
        if (next < top) {
            next = top;
        }
        for (; next < top + ring_rows; next++) {
            kdp_put_row(layer, input, next - layer->pad_top, ring + next % ring_rows * row_words);
        }
        for (int32_t v = 0; v < layer->kernel_height; v++) {
            arguments.rows[v] = ring + (top + v * layer->dilation_y) % ring_rows * row_words;
        }
        arguments.pair_bytes = (width + 1) / 2 * 8;
        arguments.odd_at = width % 2 ? arguments.pair_bytes - 8 : -1;
        arguments.output = output + done * layer->out_channels;
#if KDP_BOXES
        kdp_put_boxes(layer, &arguments, boxes);
        arguments.boxes = boxes;
#endif
        layer->row(&arguments);
    }
}
