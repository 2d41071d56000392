#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures hashing beside veritysetup, on the same data in one run.
#
#     tests/bench/compare.sh [OPTION…]
#
# Parts: dense (the whole pipeline, one and two threads), sparse (what holes and zeros cost), block (a hash block read
# through a mount), memory, kernels (SHA-256 alone). Needs hyperfine, veritysetup, qemu-utils, python3, 9 GB
# below ${TMPDIR:-/var/tmp}, and as much free memory.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

rounds=7
options "$@"
need hyperfine veritysetup qemu-img qemu-io python3

salt=$(printf '0%.0s' {1..64})
hash="$qverity hash -q --no-tree -p disk"
export how='`qverity hash` reads the image and computes the root hash; `veritysetup format` reads a raw file with the same bytes,
and also writes the hash device (0.8 % of what it reads), as `hash --write` does. Both use a salt of 32 bytes and
blocks of 4 KiB. All data lies in the page cache, so this is the speed of the programs, not of a disk. Before
anything is timed, the root hashes are compared. Without `--threads`, qverity uses all CPUs; veritysetup knows one.
Scattered data lies in single clusters of 64 KiB, evenly over a disk of 499 GiB. A hash block is read by `pread` with
O_DIRECT from the `hash` file of a mount that has nothing computed yet: 128 data blocks are read and hashed for it.'

make_prealloc() { scattered_image 16384 $((100 * GiB)) preallocation=metadata "$1"; }
make_empty() { qemu-img create -q -f qcow2 "$1" $seed_size; }

image_dense_qcow2
if wanted sparse || wanted memory; then
    image dense1.raw head_of $GiB "$images/dense.raw"
    image zeros.raw head_of $GiB /dev/zero
    image empty.qcow2 make_empty
    image prealloc.qcow2 make_prealloc
    image_scattered_qcow2
fi
images_ready
ln -s "$images"/* .

echo "comparing root hashes"
same_roots()
{
    local expected
    expected=$(root veritysetup format --salt "$salt" "$1" hash.img)
    shift
    for image; do
        [ "$(root $hash "$image")" = "$expected" ] || die "the root hash of $image is not veritysetup's, $expected"
    done
}
same_roots dense.raw dense.raw dense.qcow2
[ "$($qverity hash -q --no-tree -p disk --threads 1 dense.qcow2)" = "$($hash dense.qcow2)" ] ||
    die "one thread has another root hash"
$hash --write written.img dense.raw >/dev/null
[ "$(root $hash dense.raw)" = "$(root veritysetup format --salt "$salt" dense.raw hash.img)" ]
veritysetup verify dense.raw written.img "$(root $hash dense.raw)" || die "veritysetup refuses what hash --write wrote"

if wanted sparse; then
    same_roots zeros.raw zeros.raw
    # Half a terabyte is too much for veritysetup here; this one is what it took ten minutes for.
    [ "$(root $hash empty.qcow2)" = 6dda91c517d80f6426cff98c130a3964163eda0f8fef7f7f7d95292883086215 ] ||
        die "wrong root hash of the empty image"
    # By another kernel and way, at least.
    for image in scattered.qcow2 prealloc.qcow2; do
        [ "$(root $hash $image)" = "$(QVERITY_HASH_KERNEL=openssl root $hash --threads 1 $image)" ] ||
            die "wrong root hash of $image"
    done
fi

if wanted dense; then
    echo "dense, $rounds rounds"
    hot dense.raw dense.qcow2
    part dense
    take_turns veritysetup "veritysetup format --salt $salt dense.raw hash.img" \
        raw "$hash dense.raw" qcow2 "$hash dense.qcow2" \
        raw-1 "$hash --threads 1 dense.raw" qcow2-1 "$hash --threads 1 dense.qcow2" \
        write "$hash --write written.img dense.raw"
    end_part
    save "$rounds" <<'PY'
import os, sys
import results

part = results.Part(int(sys.argv[1]), {"veritysetup": results.version("veritysetup", "--version"),
                                       "libcrypto": results.package("libssl3"), "liburing": results.package("liburing2"),
                                       "qemu-img": results.version("qemu-img", "--version")})
t = results.times()
peer = "veritysetup format"
for name, what, bar in (("raw", "`hash`, 2 GiB dense raw", ">= 5"), ("qcow2", "`hash`, 2 GiB dense qcow2", ">= 5"),
                        ("raw-1", "`hash --threads 1`, 2 GiB dense raw", ">= 2.2"),
                        ("qcow2-1", "`hash --threads 1`, 2 GiB dense qcow2", ">= 2.2"),
                        ("write", "`hash --write`, 2 GiB dense raw", None)):
    part.compare(what, t[name], peer, t["veritysetup"], "peer/ours", bar)
GB = 2**31 / 1e9
panel = "Root hash of 2 GiB of data, GB/s"
part.chart(panel, peer, GB / results.statistics.median(t["veritysetup"]), ours=False)
for name, label in ("raw-1", "qverity, raw, 1 thread"), ("raw", "qverity, raw"), ("qcow2", "qverity, qcow2"):
    part.chart(panel, label, GB / results.statistics.median(t[name]))
results.done(part.save(10, "Hashing", os.environ["how"]))
PY
fi

if wanted sparse; then
    echo "sparse, $rounds rounds"
    hot dense.qcow2 scattered.qcow2 dense1.raw zeros.raw prealloc.qcow2
    part sparse
    take_turns dense "$hash dense.qcow2" scattered "$hash scattered.qcow2" \
        dense1 "$hash dense1.raw" prealloc "$hash prealloc.qcow2" zeros "$hash zeros.raw" \
        empty "$hash empty.qcow2"
    end_part
    save "$rounds" <<'PY'
import os, sys
import results

part = results.Part(int(sys.argv[1]), {"liburing": results.package("liburing2"),
                                       "qemu-img": results.version("qemu-img", "--version")})
t = results.times()
part.figure("499 GiB, all unallocated", [1000 * s for s in t["empty"]], "ms", "<= 100")
part.compare("499 GiB with 2 GiB of data in scattered clusters: times as long", t["scattered"],
             "2 GiB dense qcow2", t["dense"], "ours/peer", "<= 1.3")
part.compare("100 GiB with preallocated metadata and 1 GiB of data: times as long", t["prealloc"],
             "1 GiB dense raw", t["dense1"], "ours/peer", "<= 2")
part.compare("1 GiB of zeros that are allocated: times as fast", t["zeros"], "1 GiB of random data", t["dense1"],
             "peer/ours", ">= 3")
results.done(part.save(10, "Hashing", os.environ["how"]))
PY
fi

if wanted block; then
    echo "hash blocks through a mount"
    hot dense.raw
    mkdir -p mnt
    stop() { fusermount3 -u mnt; }
    $qverity mount -q --no-tree -p disk dense.raw mnt
    part block
    python3 - mnt/hash >latency.json <<'PY'
import json, mmap, os, random, sys, time

# Level 0 lies at the end. Each block is read for the first time, past the mount's page cache.
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
size = os.fstat(fd).st_size
buffer = mmap.mmap(-1, 4096)
times = []
for block in random.sample(range(size // 4096 - 4096, size // 4096), 1000):
    start = time.perf_counter()
    os.preadv(fd, [buffer], block * 4096)
    times.append(time.perf_counter() - start)
json.dump(sorted(times), sys.stdout)
PY
    end_part
    # What the mount says, once it has built all of it.
    cmp written.img mnt/hash || die "the mount's hash device is another one"
    stop
    unset -f stop
    save <<'PY'
import json, os
import results

part = results.Part(1, {})
with open("latency.json") as file:
    times = [1000 * second for second in json.load(file)]
part.add("a level-0 hash block read through a mount, nothing kept: median of 1000", times[500], "ms", "<= 0.5",
         note=f"99 %: {times[990]:.2f} ms")
results.done(part.save(10, "Hashing", os.environ["how"]))
PY
fi

if wanted memory; then
    echo "memory"
    part memory
    python3 - $hash --threads 2 >memory.json <<'PY'
import json, os, subprocess, sys

result = {}
for image in "dense.raw", "dense.qcow2", "empty.qcow2", "scattered.qcow2", "prealloc.qcow2":
    process = subprocess.Popen([*sys.argv[1:], image], stdout=subprocess.DEVNULL)
    status, usage = os.wait4(process.pid, 0)[1:]
    assert status == 0
    result[image] = usage.ru_maxrss / 1024
json.dump(result, sys.stdout)
PY
    end_part
    save <<'PY'
import json, os
import results

part = results.Part(1, {})
with open("memory.json") as file:
    memory = json.load(file)
largest = max(memory, key=memory.get)
part.add("499 GiB, all unallocated: memory (RSS)", memory["empty.qcow2"], "MiB", "<= 32")
part.add("memory (RSS) while hashing with 2 threads, the most of all images above", memory[largest], "MiB", "<= 128",
         note=largest)
results.done(part.save(10, "Hashing", os.environ["how"]))
PY
fi

hasher=$(dirname "$qverity")/tests/bench/bench-hasher
if wanted kernels && [ -x "$hasher" ]; then
    echo "hash kernels"
    part kernels
    "$hasher" --json >kernels.json
    end_part
    save <<'PY'
import json, os
import results

with open("kernels.json") as file:
    kernels = json.load(file)
part = results.Part(kernels["slices"], {"libcrypto": results.package("libssl3")})
cached = kernels["rates"]["cache"]
what = "the hash kernel {}, blocks of 4 KiB, salt of 32 bytes, one core"
for name, bar in ("avx512", ">= 2.1"), ("shani", ">= 1.8"), ("avx2", None):
    if name in cached:
        part.compare(what.format(name), cached[name], "OpenSSL EVP", cached["EVP"], "ours/peer", bar, "GB/s", 1e9)
    else:
        part.unmeasured(what.format(name), bar, "this CPU cannot run it")
for name in "memory", "single":
    rates = kernels["rates"][name]
    best = max((kernel for kernel in rates if kernel != "EVP"), key=lambda kernel: sorted(rates[kernel])[len(rates[kernel]) // 2])
    part.compare(f"the fastest kernel, {best}, " + {"memory": "64 MiB that come from memory",
                                                    "single": "blocks one at a time"}[name],
                 rates[best], "OpenSSL EVP", rates["EVP"], "ours/peer", None, "GB/s", 1e9)
panel = "SHA-256 of 4 KiB blocks on one core, GB/s"
for name, rates in cached.items():
    part.chart(panel, "OpenSSL EVP" if name == "EVP" else f"qverity, {name}", results.statistics.median(rates) / 1e9,
               ours=name != "EVP")
results.done(part.save(10, "Hashing", os.environ["how"]))
PY
fi
finish
