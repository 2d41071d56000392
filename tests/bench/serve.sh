#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Measures reads of a mount beside the other FUSE servers of qcow2 images: qemu-storage-daemon's export, nbdfuse with
# qemu-nbd, and qcowmount, where they are installed.
#
#     tests/bench/serve.sh [OPTION…]
#
# Parts: sequential, random, floor, zlib, zstd, verified, memory, boot. Needs fio, qemu-utils, qemu-storage-daemon,
# python3, 8 GB below the images' directory and as much free memory; floor needs bench-fuse-floor of the build, boot
# the demo image (./run demo).
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

rounds=5
seconds=2 # of random reads
options "$@"
need fio qemu-img qemu-storage-daemon python3 fusermount3
floor=${QVERITY_BENCH:-$(dirname "$QVERITY")/tests/bench}/bench-fuse-floor

export how='The image lies in the page cache. In each round every server in turn gets the same requests: `dd` with blocks of 1 MiB,
through the page cache of a mount that is new or with O_DIRECT, and `fio` (libaio, O_DIRECT, 4 KiB, random). *Floor* is a
server that answers each read with the same bytes of memory, without looking at anything, in as many threads as there
are CPUs: what FUSE itself takes.'

peers=(qemu-storage-daemon)
command -v nbdfuse >/dev/null && command -v qemu-nbd >/dev/null && peers+=(nbdfuse)
command -v qcowmount >/dev/null && peers+=(qcowmount)

# What compresses as programs do: half a GiB of this machine's.
packed_raw() { tar -cf - -C /usr bin lib share 2>/dev/null | head -c 512M >"$1" || true; }
packed_of() { qemu-img convert -q -c -f raw -O qcow2 -o "compression_type=$1" "$images/packed.raw" "$2"; }
root_of() { root "$qverity" hash -q --no-tree -p disk "$images/dense.raw" >"$1"; }
large_of() { scattered_image 32768 $((500 * GiB)) compat=1.1 "$1"; }

image_dense_qcow2
image dense.root root_of
if wanted zlib || wanted zstd; then
    image packed.raw packed_raw
    image zlib.qcow2 packed_of zlib
    image zstd.qcow2 packed_of zstd
fi
! wanted memory || image large.qcow2 large_of
images_ready

mkdir mnt
: >export
server=
stop()
{
    [ -n "$server" ] || return 0
    fusermount3 -u mnt 2>/dev/null || kill "$server"
    wait "$server" || true
    server=
}

# start SERVER IMAGE [OPTION…]: its file is $file, its process $server
start()
{
    local kind=$1 image=$images/$2
    shift 2
    file=$PWD/mnt/disk
    case $kind in
    qverity) "$qverity" mount -f -q --no-tree -p disk "$@" "$image" mnt & ;;
    floor) "$floor" $((2 * GiB)) mnt & ;;
    qemu-storage-daemon)
        file=$PWD/export
        qemu-storage-daemon --blockdev "driver=file,node-name=file,filename=$image,read-only=on" \
            --blockdev driver=qcow2,node-name=disk,file=file,read-only=on \
            --export "type=fuse,id=export,node-name=disk,mountpoint=$file" &
        ;;
    nbdfuse) nbdfuse -r mnt/disk [ qemu-nbd -r -f qcow2 "$image" ] & ;;
    qcowmount)
        file=$PWD/mnt/qcow1
        qcowmount "$image" mnt >/dev/null & # becomes a daemon
        ;;
    esac
    server=$!
    for _ in {1..200}; do
        [ "$(stat -c %s "$file" 2>/dev/null || echo 0)" -gt 0 ] && return
        sleep 0.05
    done
    die "$kind does not serve $image"
}

note() { echo "$1 $2 $3" >>measured; }

# Bytes a second of reading all of $file once, `dd` with these operands.
sequential()
{
    dd if="$file" of=/dev/null bs=1M "$@" 2>&1 | python3 -c '
import re, sys
text = sys.stdin.read()
print(int(re.search(r"(\d+) bytes", text)[1]) / float(re.search(r"copied, ([\d.e+-]+) s", text)[1]))'
}

# random DEPTH EXPRESSION: of what fio tells of 4 KiB reads
random()
{
    fio --name=random --filename="$file" --readonly --rw=randread --bs=4k --direct=1 --ioengine=libaio \
        --iodepth="$1" --norandommap --randrepeat=0 --time_based --runtime=$seconds --lat_percentiles=1 --output-format=json |
        python3 -c 'import json, sys; read = json.load(sys.stdin)["jobs"][0]["read"]; print('"$2"')'
}

iops='read["iops"]'
median='read["lat_ns"]["percentile"]["50.000000"]'

# The servers, another one first in each round.
in_turn()
{
    local all=("$@") n=$((round % $#))
    echo "${all[@]:n}" "${all[@]:0:n}"
}

cat >rows.py <<'PY'
import collections, os, sys
import results

measured = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open("measured"):
    metric, server, value = line.split()
    measured[metric][server].append(float(value))
part = results.Part(int(sys.argv[1]), {"qemu-storage-daemon": results.version("qemu-storage-daemon", "--version"),
                                       "fio": results.version("fio", "--version")})


def compare(what, metric, unit, scale, bar=None, others=None, order="ours/peer"):
    for peer in measured[metric]:
        if peer != "qverity":
            part.compare(what, measured[metric]["qverity"], peer, measured[metric][peer], order,
                         bar if peer == "qemu-storage-daemon" else others, unit, scale)


def done():
    results.done(part.save(40, "Serving", os.environ["how"]))
PY

# rows <<PROGRAM: what rows.py needs to know of this part
rows()
{
    { cat rows.py && cat && echo "done()"; } >part.py
    save "$rounds" <part.py
    rm measured
}

if wanted sequential; then
    hot "$images/dense.qcow2"
    part sequential
    for ((round = 1; round <= rounds; round++)); do
        for kind in $(in_turn qverity "${peers[@]}"); do
            start "$kind" dense.qcow2
            note first "$kind" "$(sequential)"
            note direct "$kind" "$(sequential iflag=direct)"
            stop
        done
    done
    end_part
    rows <<'PY'
compare("sequential 1 MiB O_DIRECT reads", "direct", "GB/s", 1e9, ">= 2.5", ">= 1")
compare("sequential buffered reads, first time", "first", "GB/s", 1e9, ">= 2", ">= 1")
PY
fi

if wanted random; then
    hot "$images/dense.qcow2"
    part random
    for ((round = 1; round <= rounds; round++)); do
        for kind in $(in_turn qverity "${peers[@]}"); do
            start "$kind" dense.qcow2
            note depth32 "$kind" "$(random 32 "$iops")"
            note depth1 "$kind" "$(random 1 "$median")"
            stop
        done
    done
    end_part
    rows <<'PY'
compare("random 4 KiB O_DIRECT reads, queue depth 32", "depth32", "k IOPS", 1e3, ">= 3")
compare("random 4 KiB O_DIRECT reads, queue depth 1, median latency", "depth1", "µs", 1e3, "<= 1")
PY
fi

if wanted floor; then
    [ -x "$floor" ] || die "$floor was not built"
    hot "$images/dense.qcow2"
    part floor
    for ((round = 1; round <= rounds; round++)); do
        for kind in $(in_turn qverity floor qemu-storage-daemon); do
            start "$kind" dense.qcow2
            note depth32 "$kind" "$(random 32 "$iops")"
            stop
        done
    done
    end_part
    rows <<'PY'
part.compare("random 4 KiB O_DIRECT reads, queue depth 32, beside the floor", measured["depth32"]["qverity"], "floor",
             measured["depth32"]["floor"], "ours/peer", None, "k IOPS", 1e3)
part.compare("the floor itself, queue depth 32", measured["depth32"]["floor"], "qemu-storage-daemon",
             measured["depth32"]["qemu-storage-daemon"], "ours/peer", None, "k IOPS", 1e3, "what no FUSE server here can exceed")
PY
fi

for image in zlib zstd; do
    wanted $image || continue
    hot "$images/$image.qcow2"
    part $image
    for ((round = 1; round <= rounds; round++)); do
        for kind in $(in_turn qverity "${peers[@]}"); do
            [ "$kind $image" != "qcowmount zstd" ] || continue # does not read it
            start "$kind" $image.qcow2
            note first "$kind" "$(sequential)"
            stop
            start "$kind" $image.qcow2
            note direct "$kind" "$(sequential iflag=direct)"
            stop
        done
    done
    end_part
    rows <<PY
compare("$image image, sequential buffered reads, first time", "first", "GB/s", 1e9, ">= 1.5")
compare("$image image, sequential 1 MiB O_DIRECT reads", "direct", "GB/s", 1e9, ">= 1.5")
PY
done

if wanted verified; then
    veritysetup format "$images/dense.raw" hash.img --salt "$(printf '%064d' 0)" >/dev/null
    [ "$(veritysetup dump hash.img | awk '/^Salt:/ { print $2 }')" = "$(printf '%064d' 0)" ] || die "another salt"
    hot "$images/dense.qcow2"
    part verified
    for ((round = 1; round <= rounds; round++)); do
        for kind in $(in_turn qverity qemu-storage-daemon); do
            if [ "$kind" = qverity ]; then
                start qverity dense.qcow2 --verify-root-hash "$(<"$images/dense.root")" --hash-device hash.img
            else
                start "$kind" dense.qcow2
            fi
            note direct "$kind" "$(sequential iflag=direct)"
            stop
        done
    done
    end_part
    rows <<'PY'
compare("verified, sequential 1 MiB O_DIRECT reads, beside unverified ones", "direct", "GB/s", 1e9, ">= 1")
PY
fi

if wanted memory; then
    part memory
    for ((round = 1; round <= 1; round++)); do
        start qverity large.qcow2
        random 32 "$iops" >/dev/null
        sequential count=20000 >/dev/null
        fio --name=r --filename="$file" --readonly --rw=randread --bs=1M --direct=1 --ioengine=libaio --iodepth=64 \
            --norandommap --randrepeat=0 --time_based --runtime=$seconds >/dev/null
        note memory qverity "$(awk '/^VmHWM:/ { print $2 * 1024 }' /proc/$server/status)"
        stop
    done
    end_part
    rows <<'PY'
part.figure("memory under load, 500 GiB image", [value / 2**20 for value in measured["memory"]["qverity"]], "MiB", "<= 160")
PY
fi

if wanted boot && [ -e "$top/build/demo/disk.qcow2" ]; then
    demo=$top/build/demo
    boots=$((rounds < 2 ? rounds : 2)) # minutes each
    options=(--accel tcg --no-tree --kernel "$demo/vmlinuz" --initrd "$demo/initrd.img" --memory 1G)
    "$qverity" hash -q --no-tree --write hash.img "$demo/disk.qcow2" >/dev/null
    eval "argv=($("$qverity" boot "${options[@]}" --dry-run "$demo/disk.qcow2"))"
    for i in "${!argv[@]}"; do
        case ${argv[i]} in
        file=*/disk,*) argv[i]="file=$demo/disk.qcow2,if=none,id=disk0,format=qcow2,readonly=on" ;;
        file=*/hash,*) argv[i]="file=hash.img,${argv[i]#*/hash,}" ;;
        esac
    done
    # Seconds until a guest asks who logs in.
    direct()
    {
        local begun guest
        begun=$(date +%s%N)
        "${argv[@]}" >console 2>&1 </dev/null &
        guest=$!
        until grep -aq 'login:' console; do sleep 0.05; done
        echo $((($(date +%s%N) - begun) / 1000000))
        kill $guest
        wait $guest 2>/dev/null || true
    }
    mounted()
    {
        local begun
        begun=$(date +%s%N)
        "$qverity" boot "${options[@]}" --until login: "$demo/disk.qcow2" >console 2>&1 </dev/null
        echo $((($(date +%s%N) - begun) / 1000000))
    }
    part boot
    for ((round = 1; round <= boots; round++)); do
        note boot qverity "$(mounted)"
        note boot qemu "$(direct)"
    done
    end_part
    rows <<'PY'
part.compare("guest boot to login on the mount", measured["boot"]["qverity"], "QEMU on qcow2 and hash image", measured["boot"]["qemu"],
             "ours/peer", "<= 1.05", "s", 1e3)
PY
fi
finish
