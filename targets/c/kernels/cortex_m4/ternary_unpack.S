/* Inputs of four positions as words of 15-bit fields, for the kernels with ternary weights. */
#include "kernel_config.h"

#define NAME KDP(ternary_unpack)

        .syntax unified
        .thumb
        .text

/* uint32_t *NAME(const int8_t *from, uint32_t *to, int32_t step, int32_t channels, uint32_t *sums, int32_t tiles);
 * see ternary.h. */
        .global NAME
        .type NAME, %function
        .thumb_func
NAME:
        push    {r3-r11, lr}
.Ltile:
        ldr     r12, [sp, #40]
        ldr     r3, [sp, #0]
        ldm     r12, {r4-r7}
        add     r3, r3, r0                 /* where the channels end */
.Lword:
        add     r12, r0, r2
        ldr     r9, [r0, r2]
        ldr     r10, [r0, r2, lsl #1]
        ldr     r11, [r12, r2, lsl #1]
        ldr     r8, [r0], #4
        eor     r8, r8, #0x80808080        /* from signed to unsigned bytes */
        eor     r9, r9, #0x80808080
        eor     r10, r10, #0x80808080
        eor     r11, r11, #0x80808080
        mov     r12, #0
        usada8  r4, r8, r12, r4
        usada8  r5, r9, r12, r5
        usada8  r6, r10, r12, r6
        usada8  r7, r11, r12, r7
        uxtb    r12, r8
        bfi     r12, r9, #15, #8
        uxtb    lr, r10
        bfi     lr, r11, #15, #8
        strd    r12, lr, [r1], #8
        .irp    byte, 8, 16
        ubfx    r12, r8, #\byte, #8
        lsr     r9, r9, #8
        bfi     r12, r9, #15, #8
        ubfx    lr, r10, #\byte, #8
        lsr     r11, r11, #8
        bfi     lr, r11, #15, #8
        strd    r12, lr, [r1], #8
        .endr
        lsr     r12, r8, #24
        lsr     r9, r9, #8
        orr     r12, r12, r9, lsl #15
        lsr     lr, r10, #24
        lsr     r11, r11, #8
        orr     lr, lr, r11, lsl #15
        strd    r12, lr, [r1], #8
        cmp     r0, r3
        bne     .Lword
        ldr     r12, [sp, #40]
        ldr     r3, [sp, #44]
        stm     r12!, {r4-r7}
        str     r12, [sp, #40]
        ldr     r12, [sp, #0]
        add     r0, r0, r2, lsl #2
        sub     r0, r0, r12
        subs    r3, r3, #1
        str     r3, [sp, #44]
        bne     .Ltile
        mov     r0, r1
        pop     {r3-r11, pc}
        .size NAME, . - NAME
