# shellcheck shell=bash
# What the tests that boot guests share; source it after lib.sh. They use the demo image in build/demo, which
# is made if it is not there, and always emulate the CPU: that works everywhere.
# shellcheck disable=SC2154

demo=$top/build/demo
guest_image=$demo/disk.qcow2

# The partition with the root filesystem is the second one.
root_partition_start=$((65 * 1024 * 1024))

# Makes the demo image, or waits until another test has made it.
guest_need_image()
{
    [ -e /dev/fuse ] || skip_all "there is no /dev/fuse"
    require qemu-system-x86_64 fusermount3
    if [ ! -s "$guest_image" ] && [ "$(id -u)" -ne 0 ]; then
        skip_all "build/demo/disk.qcow2 is not there and making it needs root: ./run demo"
    fi
    mkdir -p "$demo"
    if [ "$(id -u)" -eq 0 ] && ! flock "$demo.lock" "$QVERITY" build --work "$demo" \
        "$top/provision/recipes/debian.yaml" >image.log 2>&1; then
        fail "the demo image can be made"
        note "$(tail -n 20 image.log)"
        finish
    fi
}

# Prints the kernel command line that `qverity boot` uses by default, without dm-mod.create, and $*; and no_timer_check,
# as kernels panic where a busy machine's emulated timer is late.
guest_append()
{
    echo "no_timer_check systemd.mask=ssh.service fsck.mode=skip ro console=ttyS0 overlayroot=tmpfs root=/dev/dm-0 rootflags=noload $*"
}

# guest_argv DISK HASH: sets `argv` to QEMU's arguments for booting the demo image verified, with these two
# raw files in the place of the disk and the hash device that `qverity boot` would serve.
guest_argv()
{
    local line i
    line=$("$QVERITY" boot --accel tcg --kernel "$demo/vmlinuz" --initrd "$demo/initrd.img" \
        --memory 1G --dry-run "$guest_image") || return
    # One shell-quoted line.
    eval "argv=($line)"
    for i in "${!argv[@]}"; do
        case ${argv[i]} in
        file=*/disk,*) argv[i]="file=$1,${argv[i]#*/disk,}" ;;
        file=*/hash,*) argv[i]="file=$2,${argv[i]#*/hash,}" ;;
        -append) argv[i + 1]+=" no_timer_check" ;;
        esac
    done
}

# guest_run REGEX SECONDS COMMAND…: runs QEMU until its console, the file `console`, has a line that matches,
# or QEMU ends, or the time (multiplied by patience) is over; fails unless it matched.
guest_run()
{
    local regex=$1 limit=$((SECONDS + $2 * patience)) pid matched=1
    shift 2
    # Not left to the background job, or the last guest's console might be looked at.
    : >console
    "$@" >>console 2>&1 </dev/null &
    pid=$!
    t_kill_later "$pid"
    while :; do
        if grep -qaE -- "$regex" console; then
            matched=0
            break
        fi
        kill -0 "$pid" 2>/dev/null || break
        [ $SECONDS -lt $limit ] || break
        sleep 0.5
    done
    # What follows the line is of interest, too.
    [ $matched -ne 0 ] || sleep 2
    kill "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    # QEMU may have written the line as its last.
    [ $matched -eq 0 ] || grep -qaE -- "$regex" console
}

# The console's lines that matter here.
guest_lines()
{
    tr -d '\r' <console | grep -aE 'verity|panic|EXT4|login:' | grep -av 'ommand line:'
}

# What the console has, for a test that failed.
guest_note()
{
    note "$(guest_lines | tail -n 20)"
    note "last lines:"
    note "$(tail -n 10 console | tr -d '\r')"
}
