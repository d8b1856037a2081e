/* The loop of a firmware that infers by itself: it reads inputs from the file inputs.bin of the machine that emulates it
 * (or debugs it) and writes outputs.bin, by Arm's semihosting. An emulator that looks inside stops at firmware_idle and
 * never comes here, so that both run the same image.
 *
 * outputs.bin has for each input: the output, then 32-bit words: the status, SysTick's ticks, the stack's bytes.
 * trace.bin has for each layer: its number and its size as 32-bit words, and its output.
 * fault.bin is written where the core faults: the address as a 32-bit word.
 */
#include <stddef.h>
#include <stdint.h>

#include "model.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define SYST_RELOAD 0xFFFFFFu

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 24 };
enum { READ_BINARY = 1, WRITE_BINARY = 5 };
#define APPLICATION_EXIT 0x20026u
#define PAINT 0xA5u
/* What lies below the stack pointer when this begins to paint may still be in use by this function. */
#define PAINT_MARGIN 64u

extern int8_t firmware_input[], firmware_output[];
extern uint8_t firmware_stack_bottom[];
int firmware_infer(void);
void firmware_idle(void);
void firmware_fault(void);
void firmware_systick(void);
void firmware_report_fault(const uint32_t *frame);

static volatile uint32_t wraps;

static inline int32_t call(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

static inline int32_t open_file(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, mode, length};
    return call(SYS_OPEN, arguments);
}

/* Returns how many bytes were not written or not read. */
static inline int32_t transfer(uint32_t operation, int32_t file, const void *data, uint32_t size)
{
    const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)(uintptr_t)data, size};
    return call(operation, arguments);
}

static inline void leave(void)
{
    for (;;) {
        call(SYS_EXIT, (const void *)APPLICATION_EXIT);
    }
}

void firmware_systick(void)
{
    wraps++;
}

static inline uint32_t ticks(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = SYST_CVR;
    } while (before != wraps);
    return before * (SYST_RELOAD + 1u) + (SYST_RELOAD - value);
}

__attribute__((used)) void firmware_report_fault(const uint32_t *frame)
{
    transfer(SYS_WRITE, open_file("fault.bin", 9, WRITE_BINARY), &frame[6], 4);
    leave();
}

__attribute__((naked)) void firmware_fault(void)
{
    __asm__ volatile("mrs r0, msp\n\tb firmware_report_fault");
}

#ifdef FIRMWARE_TRACE
static int32_t trace_file;

void FIRMWARE_TRACE(int layer, const int8_t *data, int32_t size)
{
    const int32_t header[2] = {layer, size};
    transfer(SYS_WRITE, trace_file, header, sizeof header);
    transfer(SYS_WRITE, trace_file, data, (uint32_t)size);
}
#endif

static inline uint8_t *stack_pointer(void)
{
    uint8_t *pointer;
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}

__attribute__((used, noinline)) void firmware_idle(void)
{
    const int32_t inputs = open_file("inputs.bin", 10, READ_BINARY);
    const int32_t outputs = open_file("outputs.bin", 11, WRITE_BINARY);
    uint8_t *const top = stack_pointer();
#ifdef FIRMWARE_TRACE
    trace_file = open_file("trace.bin", 9, WRITE_BINARY);
#endif
    for (volatile uint8_t *place = firmware_stack_bottom; place < top - PAINT_MARGIN; place++) {
        *place = PAINT;
    }
    SYST_RVR = SYST_RELOAD;
    SYST_CVR = 0;
    SYST_CSR = 7;
    /* It reads 0 until it has been loaded. */
    while (SYST_CVR == 0) {
    }
    while (transfer(SYS_READ, inputs, firmware_input, FIRMWARE_INPUT_SIZE) == 0) {
        uint32_t record[3];
        const volatile uint8_t *used = firmware_stack_bottom;
        const uint32_t started = ticks();
        record[0] = (uint32_t)firmware_infer();
        record[1] = ticks() - started;
        while (*used == PAINT) {
            used++;
        }
        record[2] = (uint32_t)(top - used);
        transfer(SYS_WRITE, outputs, firmware_output, FIRMWARE_OUTPUT_SIZE);
        transfer(SYS_WRITE, outputs, record, sizeof record);
    }
    leave();
}
