#!/usr/bin/env bash
# Measures qverity's hashing beside veritysetup on the same data in one run, and writes docs/benchmarks.md
# and docs/benchmarks.svg.
#
#     tests/bench/compare.sh [--rounds N] [--out DIRECTORY]
#
# The commands take turns: in each round hyperfine runs every one of them once, so that a machine whose
# speed drifts is equally unfair to all. Data lies in the page cache. Needs hyperfine, veritysetup,
# qemu-img, qemu-io, python3, about 8 GB of disk below ${TMPDIR:-/var/tmp}, and as much free memory.
set -euo pipefail
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
qverity=$(realpath "${QVERITY:-$top/build/qverity}")
rounds=7
out=$top/docs
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) sed -n '2,10p' "$0"; exit 2 ;;
    esac
done
for program in hyperfine veritysetup qemu-img qemu-io python3; do
    command -v $program >/dev/null || { echo "compare.sh: $program is not installed" >&2; exit 77; }
done

work=$(mktemp -d "${TMPDIR:-/var/tmp}/qverity-bench.XXXXXX")
cleanup()
{
    fusermount3 -u "$work/mnt" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
mkdir mnt

seed_size=535741399040 # 130796240 blocks of 4096 bytes
salt=$(printf '0%.0s' {1..64})
GiB=$((1 << 30))

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

echo "making images in $work"
head -c $((2 * GiB)) /dev/urandom >dense.raw
head -c $GiB dense.raw >dense1.raw
head -c $GiB /dev/zero >zeros.raw
qemu-img convert -q -O qcow2 dense.raw dense.qcow2
qemu-img create -q -f qcow2 empty.qcow2 $seed_size
qemu-img create -q -f qcow2 scattered.qcow2 $seed_size
scatter 32768 $seed_size | qemu-io -t unsafe scattered.qcow2 >/dev/null
qemu-img create -q -f qcow2 -o preallocation=metadata prealloc.qcow2 100G
scatter 16384 $((100 * GiB)) | qemu-io -t unsafe prealloc.qcow2 >/dev/null
sync
cat ./*.raw dense.qcow2 scattered.qcow2 >/dev/null

hash="$qverity hash -q --no-tree -p disk"
names=() commands=()
add() { names+=("$1"); commands+=("$2"); }
add veritysetup "veritysetup format --salt $salt dense.raw hash.img"
add dense-raw "$hash dense.raw"
add dense-raw-1 "$hash --threads 1 dense.raw"
add dense-qcow2 "$hash dense.qcow2"
add dense-qcow2-1 "$hash --threads 1 dense.qcow2"
add seed-empty "$hash empty.qcow2"
add seed-scattered "$hash scattered.qcow2"
add dense-1g "$hash dense1.raw"
add preallocated "$hash prealloc.qcow2"
add zeros-1g "$hash zeros.raw"

root() { $hash "$1" | awk '/^Root hash:/ { print $3 }'; }
expected=$(veritysetup format --salt "$salt" dense.raw hash.img | awk '/^Root hash:/ { print $3 }')
[ "$(root dense.raw)" = "$expected" ] && [ "$(root dense.qcow2)" = "$expected" ] ||
    { echo "compare.sh: the root hashes differ from veritysetup's $expected" >&2; exit 1; }
[ "$(root empty.qcow2)" = 6dda91c517d80f6426cff98c130a3964163eda0f8fef7f7f7d95292883086215 ] ||
    { echo "compare.sh: wrong root hash for the empty image" >&2; exit 1; }

for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds"
    for i in "${!names[@]}"; do
        # The longest cache of the page cache's order: what is measured is read just before.
        hyperfine -N --style none --runs 1 --warmup 1 --export-json "r-${names[$i]}-$round.json" \
            "${commands[$i]}" >/dev/null
    done
done

# One level-0 block after the other, each for the first time, past the mount's page cache.
$qverity mount --no-tree -p disk dense.raw mnt
python3 - mnt/hash >latency.json <<'PY'
import json, mmap, os, random, statistics, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
size = os.fstat(fd).st_size
buffer = mmap.mmap(-1, 4096)
blocks = range(size // 4096 - 4096, size // 4096)  # level 0 lies at the end
times = []
for block in random.sample(blocks, 1000):
    start = time.perf_counter()
    os.preadv(fd, [buffer], block * 4096)
    times.append(time.perf_counter() - start)
json.dump({"median": statistics.median(times), "p99": sorted(times)[990]}, sys.stdout)
PY
fusermount3 -u mnt

python3 - $hash >memory.json <<'PY'
import json, os, subprocess, sys
result = {}
for image, threads in (("dense.raw", 2), ("dense.qcow2", 2), ("empty.qcow2", 2), ("scattered.qcow2", 2),
                       ("prealloc.qcow2", 2)):
    process = subprocess.Popen(sys.argv[1:] + ["--threads", str(threads), image],
                               stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    result[image] = usage.ru_maxrss * 1024
json.dump(result, sys.stdout)
PY

bench=$(dirname "$qverity")/tests/bench/bench-hasher
if [ -x "$bench" ]; then "$bench" >kernels.txt; else : >kernels.txt; fi

python3 "$top/tests/bench/report.py" "$out" "$rounds" "$qverity" "${names[@]}"
echo "written: $out/benchmarks.md, $out/benchmarks.svg"
