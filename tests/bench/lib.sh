# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# What the benchmark scripts of this directory have in common (README.md tells how to write one): their options,
# a directory to work in, images that several of them read, runs that take turns.
set -euo pipefail
export LC_ALL=C

bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$bench/../.." && pwd)

# Daemons that a script leaves to themselves shall count as its own (results.py).
[ "${BENCH_ADOPTER-}" = $$ ] || BENCH_ADOPTER=$$ exec python3 "$bench/results.py" adopt "$0" "$@"

QVERITY=$(realpath "${QVERITY:-$top/build/qverity}")
BENCH_SCRIPT=$(basename "$0" .sh)
BENCH_DATA=$top/docs/benchmarks
export QVERITY BENCH_SCRIPT BENCH_DATA
qverity=$QVERITY
GiB=$((1 << 30))
seed_size=535741399040 # 130796240 blocks of 4096 bytes
images=
only=.
prepare=
missed=

usage()
{
    sed -n '/^# SPDX/d; 2,/^[^#]/ { s/^# \{0,1\}//p }' "$0"
    cat <<'END'
Options of all benchmark scripts:
    --rounds N      how often everything is measured
    --only REGEX    only the parts that match; the data file keeps the others as they are
    --images DIR    keep the images there, and use those that are there
    --prepare       make the images only
    --data DIR      where the data file is; docs/benchmarks
END
}

# options ARGUMENT…: the script's; `rounds` has its default already
options()
{
    while [ $# -gt 0 ]; do
        case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        --images) mkdir -p "$2"; images=$(realpath "$2"); shift 2 ;;
        --prepare) prepare=y; shift ;;
        --data) mkdir -p "$2"; BENCH_DATA=$(realpath "$2"); shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
        esac
    done
    mkdir -p "$BENCH_DATA"
    BENCH_WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/qverity-bench.XXXXXX")
    export BENCH_WORK
    trap at_exit EXIT
    trap 'exit 1' INT TERM HUP
    : "${images:=$BENCH_WORK/images}"
    mkdir -p "$images"
    cd "$BENCH_WORK"
}

# Scripts that start servers have a function `stop`, which is called here.
at_exit()
{
    ! declare -F stop >/dev/null || stop >/dev/null 2>&1 || true
    cd /
    rm -rf "$BENCH_WORK"
}

die()
{
    echo "$BENCH_SCRIPT: $*" >&2
    exit 1
}

# need PROGRAM…: all of them are installed
need()
{
    local program
    for program; do
        command -v "$program" >/dev/null || { echo "$BENCH_SCRIPT: $program is not installed" >&2; exit 77; }
    done
}

wanted() { [[ $1 =~ $only ]]; }

# --- Images ---

# image NAME COMMAND…: $images/NAME, made by COMMAND with the file's name behind it unless it is there
image()
{
    local file=$images/$1
    shift
    [ -e "$file" ] && return
    "$@" "$file.new"
    mv "$file.new" "$file"
}

# Commands for qemu-io that write a 64 KiB cluster in each of COUNT equal parts of SIZE bytes. Whole
# blocks of one byte are as much work as any other data.
scatter()
{
    python3 - "$1" "$2" <<'PY'
import sys
count, size = int(sys.argv[1]), int(sys.argv[2])
for i in range(count):
    print(f"write -q -P {i % 255 + 1} {size // count * i // 65536 * 65536} 65536")
PY
}

# scattered_image COUNT SIZE OPTION FILE: such clusters in a qcow2 made with -o OPTION
scattered_image()
{
    qemu-img create -q -f qcow2 -o "$3" "$4" "$2"
    scatter "$1" "$2" | qemu-io -f qcow2 -t unsafe "$4" >/dev/null
}

head_of() { head -c "$1" "$2" >"$3"; }
qcow2_of() { qemu-img convert -q -f raw -O qcow2 "$1" "$2"; }

# Those that several scripts use.
image_dense_raw() { image dense.raw head_of $((2 * GiB)) /dev/urandom; }
image_dense_qcow2() { image_dense_raw; image dense.qcow2 qcow2_of "$images/dense.raw"; }
image_scattered_qcow2() { image scattered.qcow2 scattered_image 32768 $seed_size compat=1.1; }

# After all images are there: ends a run that was to make them only. Nothing is written back later, while
# others are measured.
images_ready()
{
    sync -f "$images"
    [ -z "$prepare" ] || exit 0
}

# hot FILE…: their data is in the page cache. It is read into it anew, as the cache's pages are of another kind, which
# costs readers more, when they come from the writes that made the file.
hot()
{
    python3 - "$@" <<'PY'
import errno, os, sys

for name in sys.argv[1:]:
    fd = os.open(name, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    position = 0
    try:
        while True:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
            while start < position:
                start += len(os.pread(fd, min(1 << 20, position - start), start))
    except OSError as error:
        if error.errno != errno.ENXIO:  # no more data
            raise
    os.close(fd)
PY
}

# --- Measuring ---

# part PART: begins what is timed; end_part ends it. Between them nothing but measurements.
part() { python3 "$bench/results.py" begin "$1"; }
end_part() { python3 "$bench/results.py" end; }

# save <<PROGRAM: runs Python that makes rows of what was measured and ends with results.done(part.save(…))
save()
{
    local status=0
    PYTHONPATH=$bench PYTHONDONTWRITEBYTECODE=1 python3 - "$@" || status=$?
    case $status in
    0) ;;
    3) missed=y ;;
    *) die "no results" ;;
    esac
}

# take_turns NAME COMMAND [NAME COMMAND]…: in each round hyperfine runs every command once untimed and once timed,
# so that a machine whose speed drifts is equally unfair to all; each round begins with another one. $before, if it
# is set, is a command to run before each of them.
take_turns()
{
    local -a all=()
    local round count=$(($# / 2)) first
    while [ $# -gt 0 ]; do
        all+=(--command-name "$1" "$2")
        shift 2
    done
    rm -rf times
    mkdir times
    for ((round = 1; round <= rounds; round++)); do
        first=$((round % count * 3))
        hyperfine -N --style none --runs 1 --warmup 1 ${before:+--prepare "$before"} --export-json times/$round.json \
            "${all[@]:first}" "${all[@]:0:first}" >/dev/null 2>&1 || die "a command failed, of: ${all[*]}"
    done
}

# root COMMAND…: the root hash that a command of qverity or veritysetup prints
root() { "$@" | awk '/^Root hash:/ { print $3 }'; }

# finish: the exit status tells whether all bars were met
finish() { [ -z "$missed" ]; }
