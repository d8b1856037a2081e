/* Instructions of the DSP extension. */
#ifndef KDPIPE_DSP_H
#define KDPIPE_DSP_H

#include <stdint.h>

#if !defined(__ARM_FEATURE_DSP)
#error "These kernels need a core with the DSP extension; on others, build the sources in portable/"
#endif

/* What runs around the rows in assembly is to be small rather than fast. */
#if defined(__clang__)
#define KDP_SMALL __attribute__((minsize))
#elif defined(__GNUC__)
#define KDP_SMALL __attribute__((optimize("Os")))
#else
#define KDP_SMALL
#endif

/* The first address from `scratch` on that words can lie at. */
static inline void *kdp_align(int8_t *scratch)
{
    return (void *)(((uintptr_t)scratch + 3) & ~(uintptr_t)3);
}

static inline uint32_t kdp_load(const int8_t *from)
{
    uint32_t word;
    /* As a builtin it is one load; a freestanding compiler calls the function. */
    __builtin_memcpy(&word, from, sizeof word);
    return word;
}

static inline void kdp_store(int16_t *to, uint32_t word)
{
    __builtin_memcpy(to, &word, sizeof word);
}

/* The low halves of both, `first` lowest. */
static inline uint32_t kdp_low_halves(uint32_t first, uint32_t second)
{
    uint32_t both;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(both) : "r"(first), "r"(second));
    return both;
}

/* The high halves of both, `first` lowest. */
static inline uint32_t kdp_high_halves(uint32_t first, uint32_t second)
{
    uint32_t both;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(both) : "r"(second), "r"(first));
    return both;
}

/* Bytes 0 and 2 as signed half-words. */
static inline uint32_t kdp_even_bytes(uint32_t word)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1" : "=r"(halves) : "r"(word));
    return halves;
}

/* Bytes 1 and 3 as signed half-words. */
static inline uint32_t kdp_odd_bytes(uint32_t word)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(halves) : "r"(word));
    return halves;
}

/* sum + both signed half-words. */
static inline int32_t kdp_add_halves(uint32_t halves, int32_t sum)
{
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(halves), "r"(0x00010001));
    return sum;
}

#endif
