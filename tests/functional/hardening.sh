#!/bin/bash
# SPDX-License-Identifier: MIT
# What the compiler and the linker can do against faults in the program is in the program.
. "$(dirname "$0")/lib.sh"

require readelf objdump

headers=$(readelf -hW "$QVERITY")
segments=$(readelf -lW "$QVERITY")
dynamic=$(readelf -dW "$QVERITY")
symbols=$(readelf --dyn-syms -W "$QVERITY" | grep -oE ' __[a-z0-9_]*(_chk|_chk_fail)@.*')

like "position independent" "$headers" 'Type: *DYN'
like "and a program" "$dynamic" 'FLAGS_1.* PIE'
like "relocations are read-only" "$segments" 'GNU_RELRO'
like "all of them, as nothing is bound later" "$dynamic" 'FLAGS.* (BIND_)?NOW'
like "the stack is not executable" "$(grep GNU_STACK <<<"$segments")" ' RW  '
is "nothing is writable and executable" "$(grep -E ' (RWE|WE)' <<<"$segments")" ""
is "no relocations in code" "$(grep TEXTREL <<<"$dynamic")" ""
if nm -D "$QVERITY" 2>/dev/null | grep -qE '__(asan|tsan)_init'; then
    finish # which checks more than the following
fi
like "stack protector" "$symbols" ' __stack_chk_fail@'
# Functions that write; a call whose size is known to fit has no check.
for name in memcpy snprintf read; do
    like "fortified: $name" "$symbols" " __${name}_chk@"
done
if [ "$(uname -m)" = x86_64 ]; then
    objdump -d --no-show-raw-insn "$QVERITY" >code
    ok "large stack frames are touched page by page" grep -q 'or[ql] *\$0x0,(%rsp)' code
    # Every function that can be called through a pointer begins so.
    ok "indirect branches have marked targets" [ "$(grep -c endbr64 code)" -gt 500 ]
    # The program is marked if all that is linked into it is, the C library's first object, too.
    case $(readelf -nW "$(cc -print-file-name=Scrt1.o)") in
    *"x86 feature: IBT, SHSTK"*) like "which the program claims" "$(readelf -nW "$QVERITY")" 'IBT, SHSTK' ;;
    esac
fi
finish
