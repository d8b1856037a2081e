/* memcpy and memset. Compiled with -fno-builtin, so that the loops are not turned into calls of themselves. */
#include <stdint.h>
#include <string.h>

/* Read and written where memory was declared as something else. */
typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    uint8_t *target = to;
    const uint8_t *source = from;
    if ((((uintptr_t)target ^ (uintptr_t)source) & 3) == 0) {
        for (; size > 0 && ((uintptr_t)target & 3) != 0; size--) {
            *target++ = *source++;
        }
        for (; size >= 16; size -= 16, target += 16, source += 16) {
            ((word *)target)[0] = ((const word *)source)[0];
            ((word *)target)[1] = ((const word *)source)[1];
            ((word *)target)[2] = ((const word *)source)[2];
            ((word *)target)[3] = ((const word *)source)[3];
        }
        for (; size >= 4; size -= 4, target += 4, source += 4) {
            *(word *)target = *(const word *)source;
        }
    }
    while (size-- > 0) {
        *target++ = *source++;
    }
    return to;
}

void *memset(void *to, int value, size_t size)
{
    uint8_t *target = to;
    const uint32_t repeated = (uint8_t)value * 0x01010101u;
    for (; size > 0 && ((uintptr_t)target & 3) != 0; size--) {
        *target++ = (uint8_t)value;
    }
    for (; size >= 4; size -= 4, target += 4) {
        *(word *)target = repeated;
    }
    while (size-- > 0) {
        *target++ = (uint8_t)value;
    }
    return to;
}
