#!/usr/bin/env bash
# Measures reads of a mount beside the other FUSE servers of qcow2 images: qemu-storage-daemon's export, nbdfuse
# with qemu-nbd, and qcowmount, where they are installed.
#
#     tests/bench/serve.sh [--rounds N] [--only REGEX] [--boot] [--json FILE]
#
# In each round every server in turn gets the same requests on the same image, which lies in the page cache;
# the order of the servers changes from round to round. What counts is the median of the rounds' ratios.
# --only leaves out what does not match: dense, zlib, zstd, verified, memory, boot. --boot also boots the demo
# image (./run demo), which takes minutes. Needs fio, qemu-utils, qemu-storage-daemon, python3, 8 GB below
# ${TMPDIR:-/var/tmp}, and as much free memory.
set -euo pipefail
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
qverity=$(realpath "${QVERITY:-$top/build/qverity}")
rounds=3
only=.
boot=
json=/dev/null
seconds=3 # of random reads
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --boot) boot=y; shift ;;
    --json) json=$(realpath "$2"); shift 2 ;;
    *) sed -n '2,12p' "$0"; exit 2 ;;
    esac
done
for program in fio qemu-img qemu-storage-daemon python3 fusermount3; do
    command -v $program >/dev/null || { echo "serve.sh: $program is not installed" >&2; exit 77; }
done
peers=(qemu-storage-daemon)
command -v nbdfuse >/dev/null && command -v qemu-nbd >/dev/null && peers+=(nbdfuse)
command -v qcowmount >/dev/null && peers+=(qcowmount)

work=$(mktemp -d "${TMPDIR:-/var/tmp}/qverity-bench.XXXXXX")
server=
cleanup()
{
    stop 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
cd "$work"
mkdir mnt
: >export
: >measured

# start SERVER IMAGE [OPTION…]: its file is $file, its process $server
start()
{
    local kind=$1 image=$2
    shift 2
    file=$work/mnt/disk
    case $kind in
    qverity)
        "$qverity" mount -f -q --no-tree -p disk "$@" "$image" mnt &
        ;;
    qemu-storage-daemon)
        file=$work/export
        qemu-storage-daemon --blockdev "driver=file,node-name=file,filename=$image,read-only=on" \
            --blockdev driver=qcow2,node-name=disk,file=file,read-only=on \
            --export "type=fuse,id=export,node-name=disk,mountpoint=$file" &
        ;;
    nbdfuse) nbdfuse -r mnt/disk [ qemu-nbd -r -f qcow2 "$image" ] & ;;
    qcowmount)
        file=$work/mnt/qcow1
        qcowmount "$image" mnt >/dev/null & # becomes a daemon
        ;;
    esac
    server=$!
    for _ in {1..200}; do
        [ "$(stat -c %s "$file" 2>/dev/null || echo 0)" -gt 0 ] && return
        sleep 0.05
    done
    echo "serve.sh: $kind does not serve $image" >&2
    exit 1
}

stop()
{
    fusermount3 -u mnt 2>/dev/null || kill "$server"
    wait "$server" || true
    server=
}

note() { echo "$1 $2 $round $3" >>measured; }

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

wanted() { [[ $1 =~ $only ]]; }

# The servers, the n-th first.
in_turn()
{
    local all=(qverity "$@") n=$((round % ($# + 1)))
    echo "${all[@]:n}" "${all[@]:0:n}"
}

echo "making images in $work"
head -c 2G /dev/urandom >dense.raw
qemu-img convert -q -f raw -O qcow2 dense.raw dense.qcow2
root=$("$qverity" hash -q --no-tree -p disk dense.raw | awk '/^Root hash:/ { print $3 }')
rm dense.raw
# What compresses as programs do: half a GiB of this machine's.
tar -cf - -C /usr bin lib share 2>/dev/null | head -c 512M >packed.raw || true
for kind in zlib zstd; do
    wanted $kind && qemu-img convert -q -c -f raw -O qcow2 -o compression_type=$kind packed.raw $kind.qcow2
done
cat ./*.qcow2 >/dev/null

for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds"
    if wanted dense; then
        for kind in $(in_turn "${peers[@]}"); do
            start "$kind" dense.qcow2
            note first "$kind" "$(sequential)"
            note direct "$kind" "$(sequential iflag=direct)"
            note depth32 "$kind" "$(random 32 "$iops")"
            note depth1 "$kind" "$(random 1 "$median")"
            stop
        done
    fi
    for image in zlib zstd; do
        wanted $image || continue
        for kind in $(in_turn "${peers[@]}"); do
            [ "$kind $image" != "qcowmount zstd" ] || continue # does not read it
            start "$kind" $image.qcow2
            note $image-first "$kind" "$(sequential)"
            stop
            start "$kind" $image.qcow2
            note $image-direct "$kind" "$(sequential iflag=direct)"
            stop
        done
    done
    if wanted verified && "$qverity" mount --help | grep -q -- --verify-root-hash; then
        for kind in $(in_turn qemu-storage-daemon); do
            if [ "$kind" = qverity ]; then
                start qverity dense.qcow2 --verify-root-hash "$root"
            else
                start "$kind" dense.qcow2
            fi
            note verified "$kind" "$(sequential iflag=direct)"
            stop
        done
    fi
done

if wanted memory; then
    round=1
    qemu-img create -q -f qcow2 large.qcow2 500G
    python3 -c '
for i in range(32768):
    print(f"write -q -P {i % 255 + 1} {500 * 2**30 // 32768 * i // 65536 * 65536} 65536")' |
        qemu-io -t unsafe large.qcow2 >/dev/null
    start qverity large.qcow2
    random 32 "$iops" >/dev/null
    sequential count=20000 >/dev/null
    fio --name=r --filename="$file" --readonly --rw=randread --bs=1M --direct=1 --ioengine=libaio --iodepth=64 \
        --norandommap --randrepeat=0 --time_based --runtime=$seconds >/dev/null
    note memory qverity "$(awk '/^VmHWM:/ { print $2 * 1024 }' /proc/$server/status)"
    stop
fi

if [ -n "$boot" ] && wanted boot; then
    demo=$top/build/demo
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
        local begun
        begun=$(date +%s%N)
        "${argv[@]}" >console 2>&1 </dev/null &
        server=$!
        until grep -aq 'login:' console; do sleep 0.05; done
        echo $((($(date +%s%N) - begun) / 1000000))
        kill $server
        wait $server 2>/dev/null || true
    }
    mounted()
    {
        local begun
        begun=$(date +%s%N)
        "$qverity" boot "${options[@]}" --until login: "$demo/disk.qcow2" >console 2>&1 </dev/null
        echo $((($(date +%s%N) - begun) / 1000000))
    }
    for ((round = 1; round <= rounds; round++)); do
        echo "boots, round $round of $rounds"
        note boot qverity "$(mounted)"
        note boot qemu "$(direct)"
        server=
    done
fi

python3 - "$json" <<'PY'
import collections, json, statistics, sys

measured = collections.defaultdict(lambda: collections.defaultdict(dict))  # metric, server, round
for line in open("measured"):
    metric, server, number, value = line.split()
    measured[metric][server][int(number)] = float(value)
rows = []


def median(metric, server):
    return statistics.median(measured[metric][server].values())


def ratio(metric, peer):
    """The median over the rounds of ours by the peer's."""
    theirs = measured[metric][peer]
    return statistics.median(value / theirs[n] for n, value in measured[metric]["qverity"].items())


def compare(what, metric, unit, scale, bars, less=False):
    for peer in measured[metric]:
        if peer == "qverity":
            continue
        value = ratio(metric, peer)
        bar = bars.get(peer, bars.get("others"))
        figure = f"{value:.2f}× ({median(metric, 'qverity') / scale:.4g} {unit} against {median(metric, peer) / scale:.4g})"
        rows.append((f"{what}, against {peer}", figure, "" if bar is None else f"{'≤' if less else '≥'} {bar}×",
                     bar is None or (value <= bar if less else value >= bar)))


qsd = "qemu-storage-daemon"
compare("sequential 1 MiB O_DIRECT reads", "direct", "GB/s", 1e9, {qsd: 2.5, "others": 1})
compare("sequential buffered reads, first time", "first", "GB/s", 1e9, {qsd: 2, "others": 1})
compare("random 4 KiB O_DIRECT, queue depth 32", "depth32", "k IOPS", 1e3, {qsd: 3})
compare("random 4 KiB O_DIRECT, queue depth 1, median latency", "depth1", "µs", 1e3, {qsd: 1}, less=True)
for kind in "zlib", "zstd":
    compare(f"{kind} image, sequential buffered reads, first time", f"{kind}-first", "GB/s", 1e9, {qsd: 1.5})
    compare(f"{kind} image, sequential 1 MiB O_DIRECT reads", f"{kind}-direct", "GB/s", 1e9, {qsd: 1.5})
compare("verified, sequential 1 MiB O_DIRECT reads", "verified", "GB/s", 1e9, {qsd: 1})
compare("guest boot to login on the mount", "boot", "s", 1e3, {"qemu": 1.05}, less=True)
if "memory" in measured:
    value = median("memory", "qverity")
    rows.append(("memory under load, 500 GiB image", f"{value / 2**20:.0f} MiB", "≤ 160 MiB", value <= 160 << 20))
for what, figure, bar, met in rows:
    print(f"{what}: {figure}" + (f", bar {bar}: {'yes' if met else 'no'}" if bar else ""))
with open(sys.argv[1], "w") as out:
    json.dump([{"what": w, "figure": f, "bar": b, "met": m} for w, f, b, m in rows], out, ensure_ascii=False)
sys.exit(0 if all(row[3] for row in rows) else 1)
PY
