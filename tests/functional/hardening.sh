#!/bin/bash
# SPDX-License-Identifier: MIT
# What the compiler and the linker can do against faults in the program is in the program.
. "$(dirname "$0")/lib.sh"

require readelf objdump

# hardened PROGRAM
hardened()
{
    local program=$1 name=${1##*/} headers segments dynamic symbols function
    headers=$(readelf -hW "$program")
    segments=$(readelf -lW "$program")
    dynamic=$(readelf -dW "$program")
    symbols=$(readelf --dyn-syms -W "$program" | grep -oE ' __[a-z0-9_]*(_chk|_chk_fail)@.*')

    like "$name: position independent" "$headers" 'Type: *DYN'
    like "$name: and a program" "$dynamic" 'FLAGS_1.* PIE'
    like "$name: relocations are read-only" "$segments" 'GNU_RELRO'
    like "$name: all of them, as nothing is bound later" "$dynamic" 'FLAGS.* (BIND_)?NOW'
    like "$name: the stack is not executable" "$(grep GNU_STACK <<<"$segments")" ' RW  '
    is "$name: nothing is writable and executable" "$(grep -E ' (RWE|WE)' <<<"$segments")" ""
    is "$name: no relocations in code" "$(grep TEXTREL <<<"$dynamic")" ""
    if nm -D "$program" 2>/dev/null | grep -qE '__(asan|tsan)_init'; then
        return # it checks more than the following
    fi
    like "$name: stack protector" "$symbols" ' __stack_chk_fail@'
    # Functions that write; a call whose size is known to fit has no check.
    for function in memcpy snprintf read; do
        like "$name: fortified: $function" "$symbols" " __${function}_chk@"
    done
    if [ "$(uname -m)" = x86_64 ]; then
        objdump -d --no-show-raw-insn "$program" >code
        ok "$name: large stack frames are touched page by page" grep -q 'or[ql] *\$0x0,(%rsp)' code
        # Every function that can be called through a pointer begins so.
        ok "$name: indirect branches have marked targets" [ "$(grep -c endbr64 code)" -gt 500 ]
        # The program is marked if all that is linked into it is, the C library's first object, too.
        case $(readelf -nW "$(cc -print-file-name=Scrt1.o)") in
        *"x86 feature: IBT, SHSTK"*) like "$name: which the program claims" "$(readelf -nW "$program")" 'IBT, SHSTK' ;;
        esac
    fi
}

hardened "$QVERITY"
hardened "$(dirname "$QVERITY")/qverity-build"
finish
