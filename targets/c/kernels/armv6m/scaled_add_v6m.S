/* The sum of two tensors in Armv6-M's instructions. */
#include "kernel_config.h"

#define NAME KDP(scaled_add_v6m)

        .syntax unified
        .thumb
        .text

/* void NAME(const kdp_scaled_add *layer, const int8_t *first, const int8_t *second, int8_t *output); see scaled_add.h.
 * The plan holds for every pair of inputs, which the generator has tried.
 *
 * r1, r2, r3: the ends of the inputs and of the output, r0: index from there, r6, r7: factors, r8: offset.
 */
        .p2align 2
        .global NAME
        .type NAME, %function
        .thumb_func
NAME:
        push    {r4, r5, r6, r7, lr}
        mov     r4, r8
        push    {r4}
        ldmia   r0!, {r4, r6, r7}          /* size, first_factor, second_factor */
        ldr     r5, [r0]
        mov     r8, r5
        adds    r1, r1, r4
        adds    r2, r2, r4
        adds    r3, r3, r4
        rsbs    r0, r4, #0
1:      ldrsb   r4, [r1, r0]
        ldrsb   r5, [r2, r0]
        muls    r4, r6, r4
        muls    r5, r7, r5
        adds    r4, r4, r5
        add     r4, r8
        asrs    r4, r4, #21                /* SHIFT of the generator's plan */
        sxtb    r5, r4
        cmp     r4, r5
        bne     3f
2:      strb    r4, [r3, r0]
        adds    r0, r0, #1
        bne     1b
        pop     {r4}
        mov     r8, r4
        pop     {r4, r5, r6, r7, pc}
3:      asrs    r4, r4, #31                /* 127 or -128 */
        movs    r5, #127
        eors    r4, r4, r5
        b       2b
        .size NAME, . - NAME
