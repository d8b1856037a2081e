/* Inputs of two columns as a word of 20-bit fields, for the kernel with 4-bit weights. */
#include "kernel_config.h"

#define NAME KDP(nibble_unpack)

        .syntax unified
        .thumb
        .text

/* void NAME(const int8_t *first, const int8_t *second, uint32_t *to, int32_t channels, int32_t zero_point, int32_t words,
 *           uint32_t *sums); see nibble_taps.h. */
        .global NAME
        .type NAME, %function
        .thumb_func
NAME:
        push    {r3-r11, lr}
        ldr     r4, [sp, #40]
        ldr     r5, [sp, #48]
        rsb     r4, r4, #0
        mov     lr, #1
.Lword:
        ldr     r3, [sp, #0]
        mov     r12, r2
        mov     r6, #0
        mov     r7, #0
        add     r3, r3, r0                 /* where the channels end */
.Lquad:
        ldr     r8, [r0], #4
        ldr     r9, [r1], #4
        sxtab   r10, r4, r8
        sxtab   r11, r4, r9
        add     r10, r10, r11, lsl #20
        str     r10, [r12], #20
        smlal   r6, r7, r10, lr
        .irp    turn, 8, 16, 24
        sxtab   r10, r4, r8, ror #\turn
        sxtab   r11, r4, r9, ror #\turn
        add     r10, r10, r11, lsl #20
        str     r10, [r12], #20
        smlal   r6, r7, r10, lr
        .endr
        cmp     r0, r3
        bne     .Lquad
        ldr     r3, [sp, #0]
        ldr     r8, [sp, #44]
        stm     r5!, {r6, r7}
        add     r0, r0, r3
        add     r1, r1, r3
        add     r2, r2, #4
        subs    r8, r8, #1
        str     r8, [sp, #44]
        bne     .Lword
        pop     {r3-r11, pc}
        .size NAME, . - NAME
