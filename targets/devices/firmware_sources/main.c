/* Start-up code and the loop of a firmware that does nothing but infer. The emulator plays the part of the hardware: it
 * fills firmware_input, calls firmware_infer and reads firmware_output.
 *
 * The build defines FIRMWARE_STACK_BYTES, a multiple of 8, FIRMWARE_RUN, FIRMWARE_INPUT_SIZE, FIRMWARE_OUTPUT_SIZE and, to
 * look at every layer, FIRMWARE_TRACE: the names that model.h gives them; FIRMWARE_FPU where the kernels use the registers
 * of the floating-point unit; FIRMWARE_SEMIHOSTING where semihosting.c takes the place of an emulator that looks inside.
 */
#include <stdint.h>
#include <string.h>

#include "model.h"

extern uint8_t firmware_data_load[], firmware_data_start[], firmware_data_end[];
extern uint8_t firmware_bss_start[], firmware_bss_end[], firmware_stack_top[];

__attribute__((used, aligned(8), section(".bss.firmware_stack"))) uint8_t firmware_stack[FIRMWARE_STACK_BYTES];
/* Aligned as any type may be: programs of others take numbers that are wider than bytes. */
__attribute__((used, aligned(8))) int8_t firmware_input[FIRMWARE_INPUT_SIZE];
__attribute__((used, aligned(8))) int8_t firmware_output[FIRMWARE_OUTPUT_SIZE];

__attribute__((used, noinline)) int firmware_infer(void)
{
    return FIRMWARE_RUN(firmware_input, firmware_output);
}

#ifdef FIRMWARE_SEMIHOSTING
void firmware_idle(void);
void firmware_fault(void);
void firmware_systick(void);
#else
__attribute__((used, noinline)) void firmware_idle(void)
{
    for (;;) {
        __asm__ volatile("nop");
    }
}

#ifdef FIRMWARE_TRACE
/* The emulator stops here and reads the arguments. */
__attribute__((used, noinline)) void FIRMWARE_TRACE(int layer, const int8_t *data, int32_t size)
{
    __asm__ volatile("" : : "r"(layer), "r"(data), "r"(size) : "memory");
}
#endif
#endif

__attribute__((used, noreturn)) void firmware_reset(void)
{
#ifdef FIRMWARE_FPU
    /* Cores start with the unit off: an instruction that names its registers faults until CPACR grants access. */
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm__ volatile("dsb\n\tisb" : : : "memory");
#endif
    memcpy(firmware_data_start, firmware_data_load, (size_t)(firmware_data_end - firmware_data_start));
    memset(firmware_bss_start, 0, (size_t)(firmware_bss_end - firmware_bss_start));
    firmware_idle();
    for (;;) {
        firmware_infer();
    }
}

__attribute__((used, section(".vectors"))) const void *const firmware_vectors[] = {
    firmware_stack_top,
    (const void *)firmware_reset,
#ifdef FIRMWARE_SEMIHOSTING
    [2 ... 14] = (const void *)firmware_fault,
    (const void *)firmware_systick,
#endif
};
