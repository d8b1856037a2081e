/* Four outputs at a time. The including file defines KDP_LINEAR_MVE; KDP_VECTORS, how many vectors hold the weights of
 * 16 inputs; kdp_dot, which adds the products of such a block to four sums; kdp_part, which makes of the sums of
 * packed weights those of each output; and KDP_FACTORS, how far left these are shifted. */

void KDP_LINEAR_MVE(const kdp_linear_mve *layer, const int8_t *input, int8_t *output)
{
    /* A copy: a store to the output might change what `layer` points to, for all the compiler knows. */
    const kdp_linear_mve copy = *layer;
    const int8_t *weights = copy.weights;
    const int32_t *parameters = copy.parameters;
    const int32_t rest = copy.in_features % 16;
    const mve_pred16_t some = vctp8q((uint32_t)rest);
#if KDP_ROUNDING_TFLITE
    static const int32_t factors[4] = KDP_FACTORS;
#endif
    for (int32_t left = copy.out_features; left > 0; left -= 4, output += 4, parameters += 12) {
        const int8_t *from = input;
        int32_t sums[4] = {0, 0, 0, 0};
        int32x4_t values;
        for (int32_t blocks = copy.in_features / 16; blocks > 0; blocks--, from += 16, weights += 16 * KDP_VECTORS) {
            kdp_dot(sums, vldrbq_s8(from), weights, 16);
        }
        if (rest > 0) {
            /* What the loads of weights reach beyond is multiplied with 0. */
            kdp_dot(sums, vldrbq_z_s8(from, some), weights, rest);
            weights += rest * KDP_VECTORS;
        }
        kdp_part(sums);
        values = vldrwq_s32(sums);
#if KDP_ROUNDING_TFLITE
        /* It rounds twice, so that factors must not remain. */
        values = vaddq_s32(values, vldrwq_s32(parameters));
        values = vshlq_s32(values, vnegq_s32(vldrwq_s32(factors)));
        values = vqrdmulhq_s32(values, vldrwq_s32(parameters + 4));
        values = vaddq_s32(values, vshrq_n_s32(values, 31)); /* halves away from zero */
#else
        values = vaddq_s32(vshlq_r_s32(values, copy.left), vldrwq_s32(parameters));
        values = vqdmulhq_s32(values, vldrwq_s32(parameters + 4));
#endif
        values = vaddq_n_s32(vrshlq_s32(values, vldrwq_s32(parameters + 8)), copy.zero_point);
        values = vminq_s32(vmaxq_s32(values, vdupq_n_s32(copy.minimum)), vdupq_n_s32(copy.maximum));
        vstrbq_p_s32(output, values, vctp32q((uint32_t)left));
    }
}
