#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures what a kept tree saves: the root hash of an image that did not change, or that changed a little, and where
# two images differ.
#
#     tests/bench/update.sh [OPTION…]
#
# Parts: unchanged, bitmap, overlay, diff, size. Needs veritysetup, qemu-utils, python3, 16 GB below
# ${TMPDIR:-/var/tmp}, and 6 GB of free memory.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

rounds=11
options "$@"
need veritysetup qemu-img qemu-io python3

salt=$(printf '0%.0s' {1..64})
export how='Disks of 499 GiB with 2 GiB of data, once in one piece and once in single clusters of 64 KiB all over it. Before each
run of `update`, qemu-io writes 1 MiB elsewhere in the data; the tracked image has its bitmaps reset by each run, and the
overlay is a new one for each. What is timed is the whole process, with everything in the page cache. What is read is
measured after the image files and their tree files were dropped from the page cache: of the data, those pages of the host
clusters that hold it which are in the cache afterwards (with read-ahead, with the canaries of change tracking, and with
the 2 MiB in which file systems are looked for); and in all, metadata and tree files included, the blocks that the kernel
had to get from the disk. The root hashes are compared with those that are computed without a tree file, and these with veritysetup over the 2 GiB. veritysetup has to
read everything again; beside it are only the 2 GiB, not the 499.'

make_dense() { qcow2_of "$images/dense.raw" "$1" && qemu-img resize -q "$1" $seed_size; }
copy_of() { cp --sparse=always "$1" "$2"; }
ten_places()
{
    local n
    cp --sparse=always "$images/kept-$1.qcow2" "$2"
    for n in 0 1 2 3 4 5 6 7 8 9; do
        qemu-io -f qcow2 -c "write -q -P 9 $(place "$1" $((3000 * n + 100))) 4096" "$2"
    done
}

# place dense|scattered N: where cluster number N of the data is
place()
{
    case $1 in
    dense) echo $(($2 % 32768 * 65536)) ;;
    scattered) echo $((seed_size / 32768 * ($2 % 32768) / 65536 * 65536)) ;;
    esac
}

image_dense_raw
image_scattered_qcow2
image kept-dense.qcow2 make_dense
image kept-scattered.qcow2 copy_of "$images/scattered.qcow2"
for which in dense scattered; do
    ! wanted bitmap || image edited-$which.qcow2 copy_of "$images/kept-$which.qcow2"
    ! wanted diff || image ten-$which.qcow2 ten_places $which
done
images_ready
export images

hash() { root "$qverity" hash -q -p disk "$@"; }

# correct IMAGE: both hash with its tree file and without it say what veritysetup says, if that can be asked
correct()
{
    local expected
    expected=$(hash --no-tree "$1")
    [ "$(hash "$1")" = "$expected" ] || die "$1: with the tree file it is another root hash than without"
    case $1 in *scattered*) return ;; esac
    qemu-img convert -O raw "json:{\"driver\": \"raw\", \"size\": $((2 * GiB)),
        \"file\": {\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"$1\"}}}" beginning.raw
    [ "$(hash --no-tree --data-blocks $((2 * GiB / 4096)) "$1")" = \
        "$(root veritysetup format --salt "$salt" beginning.raw hashes)" ] || die "$1: veritysetup has another root hash"
    rm beginning.raw
}

cat >measure.py <<'PY'
"""measure.py ROUNDS KIND dense|scattered: writes KIND-dense.json: {"ms": […], "data": [MiB…], "all": [MiB…]}.

KIND: bitmap, overlay (update after an edit, which has to find it by that method), unchanged, diff.
"""
import ctypes, json, mmap, os, resource, subprocess, sys, time

rounds, kind, which = int(sys.argv[1]), *sys.argv[2:4]
qverity = os.environ["QVERITY"]
kept, edited, ten = (f"{os.environ['images']}/{name}-{which}.qcow2" for name in ("kept", "edited", "ten"))
over = f"over-{which}.qcow2"
SEED_SIZE = 535741399040
result = {"ms": [], "data": [], "all": []}
serial = int(time.time()) % 30000  # another place than last time


def place():
    """The first of 16 clusters of the data that lie together, or of the disk where data lies alone."""
    global serial
    serial = (serial + 1009) % 32700
    return serial * 65536 if which == "dense" else SEED_SIZE // 32768 * serial // 65536 * 65536


def timed(*argv, codes=(0,)):
    start = time.perf_counter()
    done = subprocess.run([qverity, *argv], capture_output=True)
    ms = (time.perf_counter() - start) * 1000
    if done.returncode not in codes:
        sys.exit(f"{argv}: {done.stderr.decode()}")
    return ms, done.stdout


def evict(*files):
    for name in files:
        for path in (name, name + ".qvtree"):
            if os.path.exists(path):
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


def resident(path):
    """Of each page of a file, whether it is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    pages = ctypes.create_string_buffer((size + 4095) // 4096)
    at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    os.close(fd)
    if libc.mincore(at, size, pages) != 0:
        sys.exit("mincore fails")
    libc.munmap(at, size)
    return pages.raw


def extents(image):
    return json.loads(subprocess.run(["qemu-img", "map", "--output=json", image], capture_output=True, check=True).stdout)


def data_in_cache(image, extents):
    """MiB of the disk's data, wherever in the chain it lies, that are in the page cache."""
    files = [resident(image)] + ([resident(kept)] if image == over else [])
    count = 0
    for extent in extents:
        if extent["data"]:
            first, end = extent["offset"] // 4096, (extent["offset"] + extent["length"]) // 4096
            count += sum(page & 1 for page in files[extent["depth"]][first:end])
    return count / 256


def edit(image):
    if image == over:
        for name in (over, over + ".qvtree"):
            if os.path.exists(name):
                os.unlink(name)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", kept, "-F", "qcow2", over], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {serial % 255 + 1} {place()} 1M", image], check=True)


def update(image, method):
    ms, out = timed("update", "-q", "--json", "-p", "disk", image)
    told = json.loads(out)
    if told["method"] != method:
        sys.exit(f"{image}: {told['method']}, not {method}: {told.get('reason')}")
    return ms


for n in range(rounds):
    if kind == "unchanged":
        result["ms"].append(timed("hash", "-q", "-p", "disk", kept)[0])
    elif kind == "diff":
        ms, out = timed("diff", "-q", "-p", "disk", kept, ten, codes=(3,))
        if len(out.splitlines()) != 10:
            sys.exit(f"diff found other than ten places: {out.decode()}")
        result["ms"].append(ms)
    else:
        image = edited if kind == "bitmap" else over
        edit(image)
        result["ms"].append(update(image, kind))
        if n < 3:
            edit(image)
            where = extents(image)
            evict(image, kept)
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock
            update(image, kind)
            result["all"].append((resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before) * 512 / (1 << 20))
            result["data"].append(data_in_cache(image, where))
with open(f"{kind}-{which}.json", "w") as file:
    json.dump(result, file)
PY

cat >rows.py <<'PY'
"""Rows of the results of measure.py."""
import json, os, sys
import results

what = {"unchanged": "`hash`, nothing changed", "bitmap": "`update` after 1 MiB was written, by the dirty bitmaps",
        "overlay": "`update` after 1 MiB was written to an overlay", "diff": "`diff`, ten places differ"}
bar = {"unchanged": 50, "bitmap": 100, "overlay": 100, "diff": 50}
where = {"dense": "data in one piece", "scattered": "scattered data"}


def rows(kind, rounds):
    part = results.Part(rounds, {"veritysetup": results.version("veritysetup", "--version"),
                                 "qemu-img": results.version("qemu-img", "--version")})
    for which in where:
        with open(f"{kind}-{which}.json") as file:
            measured = json.load(file)
        part.figure(f"{what[kind]}; {where[which]}", measured["ms"], "ms", f"<= {bar[kind]}")
        if measured["data"]:
            part.figure(f"the same, data that is read; {where[which]}", measured["data"], "MiB", "<= 4")
            part.figure(f"the same, read in all; {where[which]}", measured["all"], "MiB")
    if os.path.exists("peer.json"):
        with open("peer.json") as file:
            theirs = json.load(file)
        with open(f"{kind}-dense.json") as file:
            ours = json.load(file)["ms"]
        ours = ours[:len(theirs)]
        part.compare(f"{what[kind]}; times as fast", ours, "veritysetup format, 2 GiB", theirs, "peer/ours", unit="ms")
    results.done(part.save(20, "Kept trees", os.environ["how"]))


rows(sys.argv[1], int(sys.argv[2]))
PY

# The peer: what has to be done without a kept tree.
peer()
{
    python3 - "$salt" "$images/dense.raw" <<'PY'
import json, subprocess, sys, time
times = []
for _ in range(3):
    start = time.perf_counter()
    subprocess.run(["veritysetup", "format", "--salt", sys.argv[1], sys.argv[2], "hashes"], check=True, stdout=subprocess.DEVNULL)
    times.append((time.perf_counter() - start) * 1000)
with open("peer.json", "w") as file:
    json.dump(times, file)
PY
}

# measured KIND IMAGE…: for dense and scattered data; IMAGE with @ for that
measured()
{
    local kind=$1 which image
    shift
    for which in dense scattered; do
        for image; do
            image=$images/${image/@/$which}
            "$qverity" update -q -p disk "$image" >/dev/null
            correct "$image"
        done
    done
    hot "$images/dense.raw"
    part "$kind"
    for which in dense scattered; do
        python3 measure.py "$rounds" "$kind" $which
    done
    [ "$kind" != bitmap ] || peer
    end_part
    # What the last of the edits led to is right, too.
    for which in dense scattered; do
        case $kind in
        bitmap) correct "$images/edited-$which.qcow2" ;;
        overlay) correct over-$which.qcow2 ;;
        esac
    done
    save "$kind" "$rounds" <rows.py
    rm -f peer.json
}

for kind in unchanged bitmap overlay diff; do
    wanted $kind || continue
    echo "$kind, $rounds rounds"
    case $kind in
    unchanged | overlay) measured $kind kept-@.qcow2 ;;
    bitmap)
        for which in dense scattered; do "$qverity" track "$images/edited-$which.qcow2" on >/dev/null; done
        measured $kind edited-@.qcow2
        ;;
    diff) measured $kind kept-@.qcow2 ten-@.qcow2 ;;
    esac
done

if wanted size; then
    echo size
    part size
    for lean in "" --lean; do
        "$qverity" update -q -p disk $lean --tree tree$lean "$images/dense.raw" >/dev/null
    done
    end_part
    [ "$(hash --tree tree "$images/dense.raw")" = "$(hash --no-tree "$images/dense.raw")" ]
    [ "$(hash --tree tree--lean "$images/dense.raw")" = "$(root veritysetup format --salt "$salt" "$images/dense.raw" hashes)" ] ||
        die "dense.raw: veritysetup has another root hash"
    save "$(du -k tree | cut -f1)" "$(du -k tree--lean | cut -f1)" <<'PY'
import os, sys
import results

part = results.Part(1, {})
for size, what, bar in zip(sys.argv[1:], ("tree file for 2 GiB of dense data", "the same, `--lean`"), (17.5, 0.3)):
    part.figure(what, [int(size) / 1024], "MiB", f"<= {bar}")
results.done(part.save(20, "Kept trees", os.environ["how"]))
PY
fi
finish
