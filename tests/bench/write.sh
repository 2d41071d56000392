#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures a writable mount beside qemu-storage-daemon's writable FUSE export of a qcow2 overlay, and how soon
# the root hash follows an edit.
#
#     tests/bench/write.sh [OPTION…]
#
# Parts: sequential, edit. Needs qemu-utils, qemu-storage-daemon, python3, 8 GB below ${TMPDIR:-/var/tmp},
# and as much free memory.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

rounds=5
options "$@"
need qemu-img qemu-storage-daemon python3 fusermount3 veritysetup

export how='Both servers have an overlay over the same 2 GiB image and are mounted at the same time. A round writes the first GiB
of one after the other, 1 MiB a call, with an fsync at the end; first into fresh clusters, then, twice, into those
that are there. For the edits, 4 KiB at a random place are written and made durable by fsync; what counts is
the time from there until `root-hash` was read.'

image_dense_qcow2
images_ready
servers=()
stop()
{
    [ ${#servers[@]} -eq 0 ] || kill "${servers[@]}"
    wait "${servers[@]}" || true
    servers=()
}

# serve: both overlays, new ones
serve()
{
    rm -f ours.qcow2* theirs.qcow2
    mkdir -p mnt
    : >export
    "$qverity" mount -f -q --overlay ours.qcow2 -p disk "$images/dense.qcow2" mnt &
    servers=($!)
    qemu-img create -q -f qcow2 -F qcow2 -b "$images/dense.qcow2" theirs.qcow2
    qemu-storage-daemon --blockdev driver=file,node-name=file,filename=theirs.qcow2 \
        --blockdev driver=qcow2,node-name=disk,file=file \
        --export type=fuse,id=export,node-name=disk,mountpoint="$BENCH_WORK/export",writable=on &
    servers+=($!)
    until [ -e mnt/disk ] && [ "$(stat -c %s export)" -gt 0 ]; do sleep 0.05; done
    cat mnt/root-hash >/dev/null
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

if wanted sequential; then
    echo "sequential writes, $rounds rounds"
    hot "$images/dense.qcow2"
    part sequential
    for ((round = 1; round <= rounds; round++)); do
        serve
        if [ $((round % 2)) -eq 0 ]; then order=(mnt/disk export); else order=(export mnt/disk); fi
        python3 write.py fresh "${order[@]}"
        python3 write.py again "${order[@]}"
        python3 write.py again "${order[@]}"
        # What was written is there.
        cmp -n $GiB mnt/disk export
        stop
    done
    end_part
    save "$rounds" <<'PY'
import json, os, sys
import results

part = results.Part(int(sys.argv[1]), {"qemu-storage-daemon": results.version("qemu-storage-daemon", "--version")})
for what, name in ("sequential writes, fresh clusters", "fresh"), ("sequential writes, clusters that are there", "again"):
    with open(name) as file:
        times = [json.loads(line) for line in file]  # a round: ours, theirs; of each: written, durable
    for n, suffix in enumerate(("", ", until the fsync has returned")):
        rates = [[2**30 / 1e9 / who[n] for who in line] for line in times]
        part.compare(what + suffix, [ours for ours, _ in rates], "qemu-storage-daemon", [theirs for _, theirs in rates],
                     "ours/peer", ">= 1.0", "GB/s")
results.done(part.save(30, "Writes", os.environ["how"]))
PY
fi

if wanted edit; then
    echo "root hash after an edit"
    hot "$images/dense.qcow2"
    serve
    part edit
    python3 edit.py mnt >edits
    end_part
    [ "$(cat mnt/root-hash)" = "$(root veritysetup format --salt "$(printf '0%.0s' {1..64})" mnt/disk hash.img)" ] ||
        die "root-hash is not veritysetup's"
    stop
    save <<'PY'
import json, os
import results

part = results.Part(1, {})
with open("edits") as file:
    edits = json.load(file)
part.add("`root-hash` after a 4 KiB write and fsync, 2 GiB of data: median of 200", edits[100], "ms", "<= 10",
         note=f"90 %: {edits[180]:.1f} ms")
results.done(part.save(30, "Writes", os.environ["how"]))
PY
fi
finish
