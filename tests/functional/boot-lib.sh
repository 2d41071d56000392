# shellcheck shell=bash
# What the tests of `qverity boot` share, behind lib.sh: a small disk, a fake QEMU, and the check that
# nothing is left behind.
require python3 fusermount3 pgrep
[ -w /dev/fuse ] || skip_all "no /dev/fuse"

QVERITY_TOOLS=${QVERITY_TOOLS:-$(dirname "$QVERITY")/tests/tools}
export XDG_RUNTIME_DIR=$T/run
# shellcheck disable=SC2154
export QVERITY_QEMU=$top/tests/tools/fake-qemu.py
export FAKE_QEMU_SCRIPT=$T/script FAKE_QEMU_LOG=$T/qemu.log
mkdir -m 700 run
head -c 1M /dev/urandom >disk.raw
echo kernel >vmlinuz
boot_args=(disk.raw --format raw -p disk --no-tree --kernel vmlinuz --accel tcg)

# guest LINE…: what the next fake guest does
guest()
{
    printf '%s\n' "$@" >script
    rm -f qemu.log out err
}

# boot CODE REGEX [OPTION…]: boots, and the exit code and stderr are these within 60 seconds (as all
# times here: multiplied by patience)
boot()
{
    local code=$1 regex=$2 got
    shift 2
    timeout -s KILL $((60 * patience)) "$QVERITY" boot "${boot_args[@]}" "$@" >out 2>err </dev/null
    got=$?
    judge $got "$code" "$regex"
}

judge()
{
    # One line. libfuse itself may print that a request was under way when the mount went, or that it
    # went; and the launch digest is no error.
    [ "$1" -eq "$2" ] && grep -qE -- "$3" <<<"$(cat err)" &&
        [ "$(grep -vcE '^fuse: (reading device|failed to unmount .*): |^qverity: launch digest: [0-9a-f]+$' err)" -le 1 ] && return
    echo "exit $1, expected $2; stderr, expected /$3/:"
    cat err
    return 1
}

# start [OPTION…]: boots in the background; $pid is qverity's
start()
{
    "$QVERITY" boot "${boot_args[@]}" "$@" >out 2>err </dev/null &
    pid=$!
    t_kill_later $pid
}

# What `start` started ends within 40 seconds as boot() has it.
ends()
{
    local tail_pid got
    timeout $((40 * patience)) tail -s 0.05 --pid="$pid" -f /dev/null &
    tail_pid=$!
    if ! wait $tail_pid; then
        echo "still runs"
        kill -KILL "$pid"
        return 1
    fi
    wait "$pid"
    got=$?
    judge $got "$1" "$2"
} 2>/dev/null # the shell tells of killed jobs

# Waits up to 30 seconds for a line in a file.
await()
{
    local i
    for ((i = 0; i < 600 * patience; i++)); do
        grep -qE -- "$1" "$2" 2>/dev/null && return
        sleep 0.05
    done
    echo "no /$1/ in $2"
    return 1
}

# The process that serves the mount.
serving_pid()
{
    pgrep -P "$pid" -x qverity-serve
}

# Waits until there is a mount, whether it has a place or not: until its process has a connection.
await_mount()
{
    local i
    for ((i = 0; i < 600 * patience; i++)); do
        find "/proc/$(serving_pid)/fd" -lname /dev/fuse 2>/dev/null | grep -q . && return
        sleep 0.05
    done
    echo "no mount"
    return 1
}

qemu_pid()
{
    sed -n 's/^pid //p' qemu.log | tail -1
}

# No process, mount or directory, within 30 seconds.
clean()
{
    local i
    for ((i = 0; i < 600 * patience; i++)); do
        left=$(
            pgrep -af "$T/run|boot (disk.raw|slow/image)"
            [ ! -e qemu.log ] || pgrep -g "$(qemu_pid)"
            grep -F "$T/run" /proc/self/mounts
            ls -A run
        )
        [ -z "$left" ] && return
        sleep 0.05
    done
    echo "left behind: $left"
    return 1
}
