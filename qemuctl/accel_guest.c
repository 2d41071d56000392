/* SPDX-License-Identifier: MIT */
#include "qemuctl/accel_guest.h"

/*
 * What a kernel's first steps need of a CPU, in a few lines: from real mode to protected mode to
 * long mode, a loop that only a CPU (or a translator) finishes in time, and a timer interrupt
 * through PIC and PIT. Descriptor tables and page tables are laid out by the host (accel.c), except
 * for the GDT, which is part of the code.
 */
#ifdef __x86_64__

#define STRING_(x) #x
#define STRING(x) STRING_(x)

/* An address in the guest of a label in this code. */
#define GUEST(label) "(" label " - accel_guest_start + " STRING(ACCEL_GUEST_CODE) ")"

#define REPORT(stage) "    mov $" stage ", %al\n    out %al, $" STRING(ACCEL_GUEST_PORT) "\n"

#define OUT(value, port) "    mov $" #value ", %al\n    out %al, $" #port "\n"

__asm__(
    ".pushsection .rodata\n"
    ".globl accel_guest_start, accel_guest_timer, accel_guest_end\n"
    ".hidden accel_guest_start, accel_guest_timer, accel_guest_end\n"
    ".code16\n"
    "accel_guest_start:\n"
    "    cli\n" REPORT("1") "    lgdtl " GUEST(
        "2f") "\n"
              "    mov %cr0, %eax\n"
              "    or $1, %al\n"
              "    mov %eax, %cr0\n"
              "    ljmpl $0x08, $" GUEST(
                  "1f") "\n"

                        ".code32\n"
                        "1:  mov $0x10, %ax\n"
                        "    mov %ax, %ds\n"
                        "    mov %ax, %es\n"
                        "    mov %ax, %ss\n"
                        "    mov $" STRING(
                            ACCEL_GUEST_STACK) ", %esp\n"
                                               "    mov %cr4, %eax\n"
                                               "    or $0x20, %eax\n" /* CR4.PAE */
                                               "    mov %eax, %cr4\n"
                                               "    mov $" STRING(
                                                   ACCEL_GUEST_PML4) ", %eax\n"
                                                                     "    mov %eax, %cr3\n"
                                                                     "    mov $0xc0000080, %ecx\n" /* EFER */
                                                                     "    rdmsr\n"
                                                                     "    or $0x100, %eax\n" /* EFER.LME
                                                                                              */
                                                                     "    wrmsr\n"
                                                                     "    mov %cr0, %eax\n"
                                                                     "    or $0x80000000, %eax\n" /* CR0.PG */
                                                                     "    mov %eax, %cr0\n"
                                                                     "    ljmpl $0x18, $" GUEST(
                                                                         "3f") "\n"

                                                                               ".code64\n"
                                                                               "3:\n" REPORT("2") "    mov " STRING(
                                                                                   ACCEL_GUEST_LOOPS) ", %ecx\n"
                                                                                                      "4:  dec %ecx\n"
                                                                                                      "    jnz 4b\n" REPORT(
                                                                                                          "3") "    lidt (" GUEST("5f") ")\n"
    /* The PIC: vectors from 0x20 on, only the timer unmasked. */
    OUT(0x11, 0x20) OUT(0x20, 0x21) OUT(0x04, 0x21) OUT(0x01, 0x21) OUT(0xfe, 0x21)
    /* The PIT: channel 0, mode 2, about a millisecond. */
    OUT(0x34, 0x43) OUT(0xa9, 0x40)
        OUT(0x04, 0x40) "    sti\n"
                        "6:  hlt\n"
                        "    jmp 6b\n"

                        "accel_guest_timer:\n" REPORT(
                            "4") "    cli\n"
                                 "    hlt\n"

                                 "    .balign 8\n"
                                 "2:  .word 0x1f\n"
                                 "    .long " GUEST(
                                     "7f") "\n"
                                           "    .balign 8\n"
                                           "7:  .quad 0\n"
                                           "    .quad 0x00cf9b000000ffff\n" /* 0x08: 32-bit code */
                                           "    .quad 0x00cf93000000ffff\n" /* 0x10: data */
                                           "    .quad 0x00af9b000000ffff\n" /* 0x18: 64-bit code */
                                           "5:  .word 0xfff\n"
                                           "    .quad " STRING(ACCEL_GUEST_IDT) "\n"
                                                                                "accel_guest_end:\n"
                                                                                ".popsection\n");

_Static_assert(ACCEL_STAGE_REAL == 1 && ACCEL_STAGE_LONG == 2 && ACCEL_STAGE_LOOP == 3 &&
                   ACCEL_STAGE_DONE == 4,
               "the numbers in the code above");

#endif
