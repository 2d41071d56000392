#!/bin/bash
# SPDX-License-Identifier: MIT
# What a QEMU can do is asked once, kept, and believed only if it is of that very file and nobody else could
# have written it.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
require qemu-system-x86_64 python3

export XDG_CACHE_HOME=$T/cache QVERITY_QEMU=$T/qemu
cp "$(type -P qemu-system-x86_64)" qemu
# Where a QEMU that is somewhere else finds its modules.
QEMU_MODULE_DIR=$(find /usr/lib /usr/lib64 -name 'accel-tcg-*.so' -printf '%h\n' 2>/dev/null | head -n 1)
[ -z "$QEMU_MODULE_DIR" ] || export QEMU_MODULE_DIR
truncate -s 1M disk.raw
echo kernel >vmlinuz
python3 "$here/naive_measure.py" ovmf ovmf.fd amdsev

# can: whether QEMU can start SEV-SNP guests, as far as qverity knows
can()
{
    if "$QVERITY" boot disk.raw --format raw -p disk --no-tree --kernel vmlinuz --snp --bios ovmf.fd --dry-run \
        >out 2>err; then
        echo yes
    elif grep -q 'cannot start SEV-SNP guests' err; then
        echo no
    else
        cat err
    fi
}

# The answer that this QEMU does not give tells that it was not asked.
lie()
{
    case $truth in
    yes) sed -i 's/"sev-snp-guest": true/"sev-snp-guest": false/' "$file" ;;
    no) sed -i 's/"sev-snp-guest": false/"sev-snp-guest": true/' "$file" ;;
    esac
}

truth=$(can)
like "it is asked" "$truth" '^(yes|no)$'
lies=$([ "$truth" = yes ] && echo no || echo yes)
file=$(echo cache/qverity/qemu-*.json)
ok "its answer is kept" [ -f "$file" ]
is "for us alone" "$(stat -c %a cache/qverity "$file" | tr '\n' ' ')" "700 600 "
like "with its version" "$(./qemu --version)" "version $(python3 -c '
import json, sys
print(*json.load(open(sys.argv[1]))["version"], sep="[.]")' "$file")"
cp "$file" good
lie
cp "$file" lying
is "and believed" "$(can)" "$lies"

# again DESCRIPTION COMMAND…: after the command it is asked again, and the true answer kept
again()
{
    local description=$1
    shift
    rm -rf cache/qverity
    mkdir -m 700 cache/qverity
    install -m 600 lying "$file"
    is "$description: before" "$(can)" "$lies"
    "$@" || fail "$description: $*"
    is "$description: it is asked" "$(can)" "$truth"
    # Where nobody else can write, that is.
    if [ "$(stat -c '%F %a %u' cache/qverity)" = "directory 700 $(id -u)" ]; then
        is "$description: for us alone" "$(stat -c '%F %a %u' "$file")" "regular file 600 $(id -u)"
        same "$description: and the answer kept" "$file" good
    fi
}

edit()
{
    sed -i "$1" "$file"
}
again "no file" rm "$file"
again "an empty file" truncate -s 0 "$file"
again "half a file" truncate -s 100 "$file"
again "too large a file" truncate -s 100000 "$file"
again "no JSON" cp vmlinuz "$file"
again "another format" edit 's/"format": 1/"format": 2/'
again "another path" edit 's|/qemu"|/quemu"|'
again "another size" edit 's/"size": \([0-9]*\)/"size": 1\1/'
again "another time" edit 's/"mtime": \([0-9]*\)/"mtime": 1/'
again "another inode" edit 's/"inode": \([0-9]*\)/"inode": 1\1/'
again "a version that is none" edit 's/^    [0-9]*,$/    "x",/'
again "a negative version" edit 's/^    \([0-9]*\),$/    -\1,/'
again "something missing" edit '/"sev-guest"/d'
again "something more" edit 's/^{$/{ "more": 1,/'
again "a file that others may write" chmod 622 "$file"
again "a link to a file" eval 'mv "$file" moved; ln -s "$T/moved" "$file"'
again "a pipe" eval 'rm "$file"; mkfifo "$file"'
again "a directory that others may write" chmod 777 cache/qverity
if [ "$(id -u)" -eq 0 ]; then
    again "a file of another user" chown 65534 "$file"
    again "a directory of another user" chown 65534 cache/qverity
fi
rm -rf moved cache/qverity
mkdir elsewhere
again "a link to a directory" eval 'mv cache/qverity elsewhere; ln -s "$T/elsewhere/qverity" cache/qverity'
rm -r cache

# --- Nothing can be kept ---

echo >cache
is "no directory can be made" "$(can)" "$truth"
is "and nothing is said of it" "$(grep -v 'cannot start SEV-SNP' err)" ""
rm cache
is "no home" "$(unset XDG_CACHE_HOME HOME && can)" "$truth"
is "a home" "$(unset XDG_CACHE_HOME && HOME=$T/home && mkdir home && export HOME && can)" "$truth"
ok "has it in .cache" [ -f home/.cache/qverity/"${file##*/}" ]
is "relative directories are none" "$(XDG_CACHE_HOME=relative can) $(ls)" "$truth $(ls)"

# --- Another QEMU ---

is "all anew" "$(can)" "$truth"
lie
is "the same file" "$(can)" "$lies"
cp qemu other
mv other qemu
is "is another one" "$(can)" "$truth"
lie
touch qemu
is "and another one when it was written to" "$(can)" "$truth"
lie
QVERITY_QEMU=./qemu
is "by whatever name it is called" "$(can)" "$lies"
ln -s qemu link
QVERITY_QEMU=$T/link
is "also by a link" "$(can)" "$lies"
mkdir bin
mv qemu bin/qemu-system-x86_64
QVERITY_QEMU=
is "moved it is another one" "$(PATH=$T/bin:$PATH can)" "$truth"
is "which is kept by itself" "$(find cache/qverity -name 'qemu-*.json' | wc -l)" 2
ok "nothing else is there" [ "$(ls -A cache/qverity | wc -l)" -eq 2 ]
finish
