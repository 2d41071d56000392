# shellcheck shell=bash
# What the shell tests share; source it first. Each test gets a directory $T of its own and stands in
# it; when the script ends, the processes it registered are ended, everything mounted below $T is
# unmounted, and $T is removed.
set -u
# What ./run installs comes first: the python3 of a version manager takes ten times as long to start.
export LC_ALL=C PATH=/usr/bin:/bin:/usr/sbin:/sbin:$PATH

here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
QVERITY=$(realpath "${QVERITY:-$top/build/qverity}")
T=$(mktemp -d "${TMPDIR:-/var/tmp}/qverity-test.XXXXXX")
cd "$T" || exit 1
# Limits of time end what hangs, and tell what waits from what does not. This says how many times as long they are
# where all takes longer: on a busy machine, under a sanitizer.
export patience=${QVERITY_TEST_PATIENCE:-1}
t_count=0
t_failed=0
t_pids=()

t_cleanup()
{
    local pid dir
    for pid in "${t_pids[@]}"; do
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    cd /
    # Deepest first; a dead mount does not answer, so the list comes from the kernel.
    awk -v t="$T/" 'index($2, t) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r dir; do
        fusermount3 -u "$dir" 2>/dev/null || umount "$dir" 2>/dev/null || umount -l "$dir"
    done
    rm -rf "$T"
}
trap t_cleanup EXIT
trap 'exit 1' INT TERM HUP

# Ends this process id when the test ends.
t_kill_later()
{
    t_pids+=("$1")
}

pass()
{
    t_count=$((t_count + 1))
    printf 'ok %d - %s\n' "$t_count" "$*"
}

fail()
{
    t_count=$((t_count + 1))
    t_failed=$((t_failed + 1))
    printf 'not ok %d - %s\n' "$t_count" "$*"
}

note()
{
    printf '%s\n' "$*" | sed 's/^/# /'
}

# ok DESCRIPTION COMMAND…: the command succeeds
ok()
{
    local description=$1
    shift
    if "$@" >"$T/.out" 2>&1; then
        pass "$description"
    else
        fail "$description"
        note "exit $? of: $*"
        note "$(head -c 2000 "$T/.out")"
    fi
}

# is DESCRIPTION GOT EXPECTED
is()
{
    if [ "$2" = "$3" ]; then
        pass "$1"
    else
        fail "$1"
        note "got:      $2"
        note "expected: $3"
    fi
}

# like DESCRIPTION TEXT REGEX (extended)
like()
{
    if grep -qE -- "$3" <<<"$2"; then
        pass "$1"
    else
        fail "$1"
        note "got:      $2"
        note "expected: /$3/"
    fi
}

# same DESCRIPTION FILE FILE: equal bytes
same()
{
    if cmp -- "$2" "$3" >"$T/.out" 2>&1; then
        pass "$1"
    else
        fail "$1"
        note "$(cat "$T/.out")"
    fi
}

# refused DESCRIPTION CODE REGEX COMMAND…: the command exits with CODE in time, prints nothing on stdout,
# and says one line on stderr that matches
refused()
{
    local description=$1 code=$2 regex=$3 got
    shift 3
    timeout $((20 * patience)) "$@" >"$T/.out" 2>"$T/.err" </dev/null
    got=$?
    if [ $got -eq "$code" ] && [ ! -s "$T/.out" ] && [ "$(grep -vc '^qverity: warning: ' "$T/.err")" -eq 1 ] &&
        grep -qE -- "$regex" "$T/.err"; then
        pass "$description"
    else
        fail "$description"
        note "command:  $*"
        note "exit:     $got, expected $code"
        note "stderr:   $(head -c 1000 "$T/.err")"
        note "expected: /$regex/"
        note "stdout:   $(head -c 200 "$T/.out" | tr -d '\0')"
    fi
}

# patch FILE (OFFSET FORMAT NUMBER)…: overwrites big-endian numbers; FORMAT is of python's struct
patch()
{
    python3 - "$@" <<'PYTHON'
import struct
import sys
with open(sys.argv[1], "r+b") as file:
    for at, kind, number in zip(*[iter(sys.argv[2:])] * 3):
        file.seek(int(at, 0))
        file.write(struct.pack(">" + kind, int(number, 0) & (1 << 64) - 1))
PYTHON
}

# entry FILE OFFSET: a big-endian number of 64 bits
entry()
{
    od -An -t u8 -j "$(($2))" -N 8 --endian=big "$1" | tr -d ' '
}

# The script cannot run here, and why.
skip_all()
{
    printf '1..0 # SKIP %s\n' "$*"
    exit 77
}

# qemu_hold [OPTION…] QCOW2: a qemu-io has the image open, and has said so, until qemu_release
qemu_hold()
{
    rm -f "$T/.commands" "$T/.answers"
    mkfifo "$T/.commands" "$T/.answers"
    qemu-io -f qcow2 "$@" <"$T/.commands" >"$T/.answers" 2>&1 &
    qemu_holder=$!
    t_kill_later $qemu_holder
    exec 8>"$T/.commands" 9<"$T/.answers"
    # What is answered was opened.
    echo length >&8
    timeout $((60 * patience)) head -n 1 <&9 >/dev/null
}

qemu_release()
{
    echo quit >&8
    exec 8>&- 9<&-
    wait "$qemu_holder"
}

# sampled: whether this one of many cases is to be tried: all are, or, where time is short, one in
# QVERITY_TEST_SAMPLE, at no regular distance, as cases often rotate
t_cases=0
sampled()
{
    [ $(((t_cases++ * 2654435761 >> 16) % ${QVERITY_TEST_SAMPLE:-1})) -eq 0 ]
}

# until_true SECONDS COMMAND…: tries it until it succeeds; fails after that time (multiplied by patience)
until_true()
{
    local i
    for ((i = 0; i < $1 * 20 * patience; i++)); do
        "${@:2}" && return 0
        sleep 0.05
    done
    return 1
}

# What is left of this test's played guests (tools/fake-guest.py). What was killed may take a moment.
guests()
{
    local found i
    for ((i = 0; i < 50 * patience; i++)); do
        found=$(pgrep -af "fake-gues[t].py .*$T"; pgrep -af "sshd.*$T/fake-gues[t]")
        [ -n "$found" ] || return 0
        sleep 0.1
    done
    echo "$found"
}

# Programs that the script needs.
require()
{
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || skip_all "$program is not installed"
    done
}

# The last line of every script.
finish()
{
    printf '1..%d\n' "$t_count"
    [ "$t_count" -gt 0 ] && [ "$t_failed" -eq 0 ]
    exit
}
