/* The sum of two tensors in the instructions of Armv7-M. */
#include "kernel_config.h"

#define NAME KDP(scaled_add_v7m)

        .syntax unified
        .thumb
        .text
        .macro ADD
        ldrsb   r3, [r1], #1
        ldrsb   r4, [r2], #1
        mla     r3, r3, r6, r8
        mla     r3, r4, r7, r3
        ssat    r3, #8, r3, asr #21        /* SHIFT of the generator's plan */
        strb    r3, [r12], #1
        .endm

/* void NAME(const kdp_scaled_add *layer, const int8_t *first, const int8_t *second, int8_t *output); see scaled_add.h.
 * The plan holds for every pair of inputs, which the generator has tried. */
        .global NAME
        .type NAME, %function
        .thumb_func
NAME:
        push    {r4-r8, lr}
        mov     r12, r3
        ldm     r0, {r5-r8}                /* size, first_factor, second_factor, offset */
        subs    r5, r5, #16
        bmi     2f
1:      .rept   16
        ADD
        .endr
        subs    r5, r5, #16
        bpl     1b
2:      adds    r5, r5, #16
        beq     4f
3:      ADD
        subs    r5, r5, #1
        bne     3b
4:      pop     {r4-r8, pc}
        .size NAME, . - NAME
