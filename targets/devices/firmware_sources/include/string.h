/* What the exported sources need of the C library, for a build without one. */
#ifndef KDPIPE_FIRMWARE_STRING_H
#define KDPIPE_FIRMWARE_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int value, size_t size);

#endif
