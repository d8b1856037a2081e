/* Four channels of two rows as pairs of half-words, for the 3x3 depthwise convolutions. */
#include "kernel_config.h"

#define NAME KDP(depthwise3_unpack)

        .syntax unified
        .thumb
        .text

/* uint32_t *NAME(const kdp_depthwise3_rows *rows, uint32_t *to); see depthwise3.h. */
        .global NAME
        .type NAME, %function
        .thumb_func
NAME:
        push    {r4-r11, lr}
        mov     lr, r0
        mov     r4, r1
        ldm     lr, {r0, r1, r2, r3, r5, r10} /* first, second, their steps, plane_bytes, count */
        add     r12, r4, r5
        add     r12, r12, r5, lsl #1       /* the fourth plane */
.Lrow:
        ldr     r11, [lr, #32]             /* columns */
1:      ldr     r6, [r0]
        ldr     r7, [r1]
        add     r0, r0, r2
        add     r1, r1, r3
        pkhbt   r8, r6, r7, lsl #16
        pkhtb   r9, r7, r6, asr #16
        sxtb16  r6, r8
        sxtb16  r7, r8, ror #8
        sxtb16  r8, r9
        sxtb16  r9, r9, ror #8
        str     r7, [r4, r5]
        str     r8, [r4, r5, lsl #1]
        str     r9, [r12], #4
        str     r6, [r4], #4
        subs    r11, r11, #1
        bne     1b
        ldrd    r6, r7, [lr, #24]          /* row_skip, column_skip */
        add     r0, r0, r6
        add     r1, r1, r6
        add     r4, r4, r7
        add     r12, r12, r7
        subs    r10, r10, #1
        bne     .Lrow
        mov     r0, r4
        pop     {r4-r11, pc}
        .size NAME, . - NAME
