#!/bin/bash
# SPDX-License-Identifier: MIT
# libcrypto and libcryptsetup are loaded by those who need them, and missed by nobody else.
. "$(dirname "$0")/lib.sh"
require ldconfig readelf veritysetup

head -c 8M /dev/urandom >a.raw
veritysetup format a.raw expected.hash --salt "$(printf '%064d' 0)" >expected 2>&1
root=$(awk '/^Root hash:/ { print $3 }' expected)

# Whether this CPU needs no help with SHA-256, and is not told to take it.
alone=
grep -qw sha_ni /proc/cpuinfo && [ -z "${QVERITY_HASH_KERNEL:-}" ] && alone=y

# --- What the program says of itself ---

is "they are not loaded with the program" "$(readelf -dW "$QVERITY" | grep -cE 'NEEDED.*lib(crypto|cryptsetup)\.')" 0
note=$(readelf -p .note.dlopen "$QVERITY" 2>&1)
for library in libcrypto.so.3 libcryptsetup.so.12; do
    like "packagers are told of $library" "$note" "\"priority\":\"required\",\"soname\":\\[\"$library\"\\]"
done

# loaded COMMAND…: those of the two that it loads, on a line
loaded()
{
    LD_DEBUG=files LD_DEBUG_OUTPUT=$T/files "$@" >out 2>err </dev/null || note "exit $?: $(cat err)"
    cat files.* | sed -n 's/.*calling init: .*\/\(libcrypto\|libcryptsetup\)\.so.*/\1/p' | sort -u | tr '\n' ' '
    rm files.*
}
is "map loads none" "$(loaded "$QVERITY" map -p disk a.raw)" ''
[ -z "$alone" ] || is "nor does hash, with SHA-256" "$(loaded "$QVERITY" hash --no-tree -p disk a.raw)" ''
is "with another digest it does" "$(loaded "$QVERITY" hash --no-tree -p disk --hash sha512 a.raw)" 'libcrypto '
is "a superblock takes both" "$(loaded "$QVERITY" hash --no-tree -p disk --write a.hash a.raw)" 'libcrypto libcryptsetup '

# --- Where they are not there ---

# ./without COMMAND…: runs it where /dev/null hides both
for library in libcrypto.so.3 libcryptsetup.so.12; do
    ldconfig -p | awk -v library=$library '$1 == library && /x86-64|AArch64/ { print $NF; exit }'
done >paths
cat >without <<'END'
#!/bin/bash
while read -r path; do
    mount --bind /dev/null "$path" || exit 126
done <paths
exec "$@"
END
chmod 755 without
without=(unshare -m ./without)
if [ "$(wc -l <paths)" -ne 2 ] || ! "${without[@]}" true 2>/dev/null; then
    note "a library cannot be hidden here"
    finish
fi
ok "map needs none" "${without[@]}" "$QVERITY" map -p disk a.raw
[ -z "$alone" ] || is "nor does hash, with SHA-256" \
    "$("${without[@]}" "$QVERITY" hash --no-tree -p disk --json a.raw | sed -n 's/.*"root_hash": "\([0-9a-f]*\)".*/\1/p')" "$root"
for sandbox in '' --no-sandbox; do
    refused "another digest${sandbox:+ $sandbox}: which library is missing" 1 \
        '^qverity: --hash sha512: cannot load a library: .*libcrypto\.so\.3: ' \
        "${without[@]}" "$QVERITY" hash $sandbox --no-tree -p disk --hash sha512 a.raw
    is "and nothing else is told" "$(wc -l <.err)" 1
    refused "a superblock${sandbox:+ $sandbox}: which library is missing" 1 \
        'cannot load a library: .*(libcrypto\.so\.3|libcryptsetup\.so\.12): ' \
        "${without[@]}" "$QVERITY" hash $sandbox --no-tree -p disk --write new.hash a.raw
    is "and nothing else is told" "$(wc -l <.err)" 1
    ok "and nothing is left" [ -z "$(find . -name 'new.hash*')" ]
done
finish
