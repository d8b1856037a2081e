/* Values of two rows as words of a plane, in Armv6-M's instructions. */
#include "kernel_config.h"

#define NAME KDP(pair_values)

        .syntax unified
        .thumb
        .text

/* void NAME(const int8_t *const rows[2], uint32_t *to, int32_t count, int32_t step); see depthwise_pairs.h.
 *
 * r0: step, r1: to, r2 and r3: rows, r6: 129 twice, r7: offset of the values, r12: where it ends.
 */
        .p2align 2
        .global NAME
        .type   NAME, %function
        .thumb_func
NAME:
        push    {r4, r5, r6, r7, lr}
        muls    r2, r3, r2
        mov     r12, r2
        movs    r4, r3
        ldr     r2, [r0]
        ldr     r3, [r0, #4]
        movs    r0, r4
        movs    r6, #129
        lsls    r7, r6, #16
        adds    r6, r6, r7
        movs    r7, #0
1:      ldrsb   r4, [r2, r7]
        ldrsb   r5, [r3, r7]
        lsls    r5, r5, #16
        adds    r4, r4, r5
        adds    r4, r4, r6
        stmia   r1!, {r4}
        adds    r7, r7, r0
        cmp     r7, r12
        bne     1b
        pop     {r4, r5, r6, r7, pc}
        .size   NAME, . - NAME
