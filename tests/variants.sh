# shellcheck shell=bash
# The tests once more, where the machine or the program has less to offer. `./run test-variants` runs all of
# them so, .ci/run those that it has the time for.

# variant_kernels QVERITY: the hash kernels that this CPU can run, one a line
variant_kernels()
{
    # The message about a kernel that is none has those that are.
    QVERITY_HASH_KERNEL=list "$1" hash -p disk --data-block-size 512 "${BASH_SOURCE[0]}" 2>&1 |
        sed -n 's/.*this CPU can run: //p' | tr -d ' ' | tr ',' '\n'
}

# Tests in which nothing is hashed: they pass with a hash kernel that does not exist as well, which everybody who hashes
# refuses.
variant_hashless=(bad-images corrupt-headers docker-runner docs files files-damaged files-features files-inside
    files-kernel hardening image-matrix image-reader info initramfs-script legacy-qcow measure overlay-crash
    overlay-write)

# variant_tests NAME BUILD: the tests that a variant can change, one a line
variant_tests()
{
    meson test -C "$2" --no-rebuild --list --no-suite install 2>/dev/null | sed 's/.* //' |
        case $1 in
        one-cpu | bare | tsan) cat ;;
        *) grep -vxF "$(printf '%s\n' "${variant_hashless[@]}")" ;;
        esac
}

# variant NAME BUILD [REPORTS]: sets variant_options, options of `meson test -C BUILD`; ThreadSanitizer's reports go
# to files REPORTS.*: a daemon has no stderr, and a test that expects a failure must not take one for it.
#
#     one-cpu     all processes share one CPU, so the program has one thread where it chooses
#     bare        the same, without io_uring, and without SHA-256 of our own
#     tsan        for a build with ThreadSanitizer
#     a kernel    all hashing goes through this hash kernel
variant()
{
    local tools=$2/tests/tools cpu patience=4
    local -a wrapper=()
    cpu=$(taskset -cp $BASHPID | sed 's/.*: *\([0-9]*\).*/\1/')
    case $1 in
    one-cpu) wrapper=(taskset -c "$cpu") ;;
    bare) wrapper=(QVERITY_HASH_KERNEL=openssl taskset -c "$cpu" "$tools/without-uring") ;;
    tsan)
        # A process that is told to end does not wait for the threads that hash. The rings of io_uring are written
        # to by the kernel and mapped behind TSan's back, which it takes for races where a mapping's address comes
        # again.
        wrapper=("TSAN_OPTIONS=report_thread_leaks=0:exitcode=66:log_path=$3" "$tools/without-uring")
        patience=8
        ;;
    *)
        wrapper=("QVERITY_HASH_KERNEL=$1")
        patience=1
        ;;
    esac
    # Meson takes one program apart as a shell does.
    variant_options=("--timeout-multiplier=$patience"
        "--wrapper=$(printf '%q ' env "QVERITY_TEST_PATIENCE=$patience" "${wrapper[@]}")")
}
