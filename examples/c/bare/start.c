/* The test of the digits network on a Cortex-M without any system: exit status 0 where it passes.
 *
 * Everything that a program needs there: a vector table, variables set to zero, and the exit by semihosting,
 * which an emulator or a debugger answers.
 */
#include "digits_vit.h"

#define CPACR (*(volatile uint32_t *)0xe000ed88)

extern uint32_t stack_top[], variables[], variables_end[];

static void leave(uint32_t status)
{
    const uint32_t block[2] = {0x20026, status}; /* ADP_Stopped_ApplicationExit */
    register uint32_t operation __asm__("r0") = 0x20; /* SYS_EXIT_EXTENDED */
    register const uint32_t *argument __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(argument) : "memory");
}

void reset(void);
void reset(void)
{
    CPACR |= 0xfU << 20; /* allows vector instructions, where there are any */
    __asm__ volatile("dsb\n isb" ::: "memory");
    for (uint32_t *p = variables; p < variables_end; ++p) {
        *p = 0;
    }
    leave(digits_vit_check() == 0 ? 0 : 1);
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    stack_top,
    (const void *)reset,
};
