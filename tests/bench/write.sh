#!/usr/bin/env bash
# Measures a writable mount beside qemu-storage-daemon's writable FUSE export of a qcow2 overlay, and how soon
# the root hash follows an edit.
#
#     tests/bench/write.sh [--rounds N] [--json FILE]
#
# Both have an overlay over the same 2 GiB image, are mounted at the same time, and take turns: a round writes
# the first GiB of one after the other, 1 MiB a call, with an fsync at the end; first into fresh clusters,
# then into those that are there. Medians of the rounds' ratios. Needs qemu-utils, qemu-storage-daemon,
# python3, 8 GB below ${TMPDIR:-/var/tmp}, and as much free memory.
set -euo pipefail
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
qverity=$(realpath "${QVERITY:-$top/build/qverity}")
rounds=5
json=/dev/null
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2; shift 2 ;;
    --json) json=$(realpath "$2"); shift 2 ;;
    *) sed -n '2,12p' "$0"; exit 2 ;;
    esac
done
for program in qemu-img qemu-storage-daemon python3 fusermount3; do
    command -v $program >/dev/null || { echo "write.sh: $program is not installed" >&2; exit 77; }
done

work=$(mktemp -d "${TMPDIR:-/var/tmp}/qverity-bench.XXXXXX")
servers=()
cleanup()
{
    kill "${servers[@]}" 2>/dev/null && wait "${servers[@]}" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
cd "$work"

# serve: both overlays, new ones
serve()
{
    rm -f ours.qcow2* theirs.qcow2
    mkdir -p mnt
    : >export
    "$qverity" mount -f -q --overlay ours.qcow2 -p disk base.qcow2 mnt &
    servers=($!)
    qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 theirs.qcow2
    qemu-storage-daemon --blockdev driver=file,node-name=file,filename=theirs.qcow2 \
        --blockdev driver=qcow2,node-name=disk,file=file \
        --export type=fuse,id=export,node-name=disk,mountpoint="$work/export",writable=on &
    servers+=($!)
    until [ -e mnt/disk ] && [ "$(stat -c %s export)" -gt 0 ]; do sleep 0.05; done
    cat mnt/root-hash >/dev/null
}

leave()
{
    kill "${servers[@]}"
    wait "${servers[@]}" || true
    servers=()
}

cat >write.py <<'PY'
"""write.py LOG FILE…: writes each in turn, and in the opposite order the next time; seconds go to LOG."""
import json, mmap, os, sys, time

MiB = 1 << 20
buffer = mmap.mmap(-1, MiB)
buffer[:] = os.urandom(MiB)


def write(path):
    fd = os.open(path, os.O_WRONLY)
    start = time.perf_counter()
    for offset in range(0, 1024 * MiB, MiB):
        assert os.pwrite(fd, buffer, offset) == MiB
    written = time.perf_counter() - start
    os.fsync(fd)
    durable = time.perf_counter() - start
    os.close(fd)
    return written, durable


log, *paths = sys.argv[1:]
result = {path: write(path) for path in paths}
with open(log, "a") as out:
    print(json.dumps([result[path] for path in sorted(paths, reverse=True)]), file=out)
PY

cat >edit.py <<'PY'
"""edit.py MNT: milliseconds from an fsync, after 4 KiB were written, until root-hash was read."""
import json, os, random, sys, time

fd = os.open(sys.argv[1] + "/disk", os.O_RDWR)
blocks = os.fstat(fd).st_size // 4096
rng = random.Random(1)
times = []
for _ in range(200):
    os.pwrite(fd, rng.randbytes(4096), rng.randrange(blocks) * 4096)
    os.fsync(fd)
    start = time.perf_counter()
    open(sys.argv[1] + "/root-hash").read()
    times.append((time.perf_counter() - start) * 1000)
json.dump(sorted(times), sys.stdout)
PY

head -c 2G /dev/urandom >base.raw
qemu-img convert -q -f raw -O qcow2 base.raw base.qcow2
rm base.raw
cat base.qcow2 >/dev/null
for ((round = 1; round <= rounds; round++)); do
    serve
    if [ $((round % 2)) -eq 0 ]; then order=(mnt/disk export); else order=(export mnt/disk); fi
    python3 write.py fresh "${order[@]}"
    python3 write.py again "${order[@]}"
    python3 write.py again "${order[@]}"
    leave
done
serve
python3 edit.py mnt >edits
leave

python3 - "$json" <<'PY'
import json, statistics, sys

rows = []


def ratio(what, name):
    times = [json.loads(line) for line in open(name)]  # a round: ours, theirs; of each: written, durable
    for part, suffix in ((0, ""), (1, ", until the fsync has returned")):
        value = statistics.median(theirs[part] / ours[part] for ours, theirs in times)
        ours = statistics.median(1.073741824 / ours[part] for ours, _ in times)
        theirs = statistics.median(1.073741824 / theirs[part] for _, theirs in times)
        rows.append((what + suffix, f"{value:.2f}× ({ours:.2f} GB/s against {theirs:.2f})", "≥ 1.0×", value >= 1))


ratio("sequential writes to a writable mount, fresh clusters, against qemu-storage-daemon", "fresh")
ratio("the same, clusters that are there", "again")
edits = json.load(open("edits"))
median = statistics.median(edits)
rows.append(("`root-hash` in a writable mount after a 4 KiB write and fsync, 2 GiB of data: median",
             f"{median:.1f} ms (90 %: {edits[len(edits) * 9 // 10]:.1f} ms)", "≤ 10 ms", median <= 10))
for what, figure, bar, met in rows:
    print(f"{what}: {figure}, bar {bar}: {'yes' if met else 'no'}")
with open(sys.argv[1], "w") as out:
    json.dump([{"what": w, "figure": f, "bar": b, "met": m} for w, f, b, m in rows], out, ensure_ascii=False)
sys.exit(0 if all(row[3] for row in rows) else 1)
PY
