#!/bin/bash
# SPDX-License-Identifier: MIT
# What seal makes of the partitions of a disk that somebody else set up: FAT file systems keep every file and
# nothing that was deleted, ext4 file systems every extended attribute, swap and unknown contents as they must.
# The judges are dosfstools, mtools, e2fsck and Linux itself.
. "$(dirname "$0")/lib.sh"
. "$top/tests/functional/build-lib.sh"
require mcopy mdel fsck.fat mkfs.vfat mkswap losetup python3
export MTOOLS_SKIP_CHECK=1

mib=$((1024 * 1024))
# Number, first MiB, MiB, of each partition. FAT with each size of its entries, and FAT32 with fewer clusters than
# Microsoft would have it, which mkfs.vfat and Ubuntu's installer make all the same.
truncate -s 300M disk.raw
sfdisk -q disk.raw <<'END_OF_TABLE'
label: gpt
start=2048, size=8192, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=10240, size=65536, type=uefi
start=75776, size=147456, type=uefi
start=223232, size=81920, type=uefi
start=305152, size=163840, type=linux
start=468992, size=16384, type=swap
start=485376, size=8192
END_OF_TABLE
# partition NUMBER: its first MiB and its MiB
partition()
{
    sfdisk --json disk.raw | python3 -c "
import json, sys
p = json.load(sys.stdin)['partitiontable']['partitions'][$1 - 1]
print(p['start'] // 2048, p['size'] // 2048)"
}
# cut DISK NUMBER FILE
cut_out()
{
    local where
    read -r -a where <<<"$(partition "$2")"
    dd if="$1" of="$3" bs=1M skip="${where[0]}" count="${where[1]}" conv=sparse status=none
}
put_back()
{
    local where
    read -r -a where <<<"$(partition "$2")"
    dd if="$3" of="$1" bs=1M seek="${where[0]}" conv=notrunc status=none
}

# --- FAT ---

mkdir -p files/many
for i in {1..120}; do head -c $((i * 137)) /dev/urandom >"files/many/a file with a long name $i.dat"; done
head -c 700000 /dev/urandom >files/large
: >files/empty
mkdir -p files/EFI/BOOT
echo "KEPT-FAT-WORD" >files/EFI/BOOT/GRUB.CFG
yes DELETED-FAT-WORD | head -c 200000 >deleted

# make_fat NUMBER NAME BITS CLUSTER
make_fat()
{
    cut_out disk.raw "$1" fat.raw
    mkfs.vfat -n "$2" -F "$3" -s "$4" fat.raw >/dev/null
    # What is deleted lies between what is kept.
    mcopy -s -i fat.raw files/many ::
    mcopy -i fat.raw deleted ::
    mcopy -s -i fat.raw files/large files/empty files/EFI ::
    mdel -i fat.raw ::deleted '::many/a file with a long name 5*'
    put_back disk.raw "$1" fat.raw
}
make_fat 1 TWELVE 12 4
make_fat 2 SIXTEEN 16 2
make_fat 3 THIRTYTWO 32 1
# mtools goes by the number of clusters, too; so this is written, and read, by hand.
cat >few.py <<'END_OF_PYTHON'
import struct, sys
size, first, root = 700000, 1000, 2
with open(sys.argv[2], "r+b") as file:
    boot = file.read(512)
    sector, per_cluster, reserved = struct.unpack_from("<HBH", boot, 11)
    table = struct.unpack_from("<I", boot, 36)[0] * sector
    cluster = sector * per_cluster
    def at(number): return reserved * sector + 2 * table + (number - 2) * cluster
    count = -(-size // cluster)
    if sys.argv[1] == "write":
        file.seek(at(first))
        file.write(open("files/large", "rb").read())
        file.seek(at(first + count + 7))
        file.write(open("deleted", "rb").read())
        file.seek(at(root) + 32)
        file.write(b"LARGE      " + struct.pack("<BBB7HI", 0x20, 0, 0, 0, 0, 0x5555, first >> 16, 0, 0x5555, first, size))
        for copy in (0, table):
            file.seek(reserved * sector + copy + 4 * first)
            for i in range(1, count):
                file.write(struct.pack("<I", first + i))
            file.write(struct.pack("<I", 0x0fffffff))
        file.seek(sector + 488)
        free = struct.unpack("<I", file.read(4))[0]
        file.seek(sector + 488)
        file.write(struct.pack("<I", free - count))
    else:
        file.seek(at(first))
        sys.stdout.buffer.write(file.read(size))
END_OF_PYTHON
cut_out disk.raw 4 fat.raw
mkfs.vfat -n FEW -F 32 -s 4 fat.raw >/dev/null 2>&1
python3 few.py write fat.raw
put_back disk.raw 4 fat.raw
rm -f 'files/many/a file with a long name 5'*

# --- ext4 ---

cut_out disk.raw 5 root.raw
make_tree tree
mkdir -p tree/attributes/directory
cd tree/attributes || exit 1
for name in none empty one many large both acl capability trusted; do echo $name >$name; done
ln -s one link
python3 - <<'END_OF_PYTHON'
import os, struct
def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
ANY = 0xffffffff
full = acl((1, 6, ANY), (2, 4, 1000), (2, 7, 70000), (4, 4, ANY), (8, 5, 80000), (16, 7, ANY), (32, 0, ANY))
os.setxattr("empty", "user.empty", b"")
os.setxattr("one", "user.one", bytes(range(256))[:60])
for i in range(30):
    os.setxattr("many", f"user.attribute-{i}", b"value %d" % i * 4)
os.setxattr("large", "user.large", b"\x00\xff" * 1500)
os.setxattr("both", "user.small", b"in the inode")
os.setxattr("both", "user.large", b"in a block" * 200)
os.setxattr("acl", "system.posix_acl_access", full)
os.setxattr("directory", "system.posix_acl_access", full)
os.setxattr("directory", "system.posix_acl_default", full)
os.setxattr("capability", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.setxattr("trusted", "trusted.overlay.opaque", b"y")
os.setxattr("link", "trusted.of-a-link", b"yes", follow_symlinks=False)
END_OF_PYTHON
[ $? -eq 0 ] || skip_all "the file system of $T has no extended attributes"
cd "$T" || exit 1
mke2fs -q -t ext4 -b 4096 -d tree -L root root.raw
put_back disk.raw 5 root.raw

# --- The others ---

cut_out disk.raw 6 swap.raw
mkswap -L swapped swap.raw >/dev/null 2>&1
printf 'SWAPPED-OUT-WORD' | dd of=swap.raw bs=1 seek=1000000 conv=notrunc status=none
put_back disk.raw 6 swap.raw
head -c 4M /dev/urandom >unknown.raw
put_back disk.raw 7 unknown.raw

qemu-img convert -f raw -O qcow2 disk.raw base.qcow2
cat >r.yaml <<'END_OF_RECIPE'
name: t
steps:
  - install: cloud-image
    image: base.qcow2
  - seal
  - hash
END_OF_RECIPE
build --work work r.yaml
is "the disk is sealed" $? 0
[ -s out ] || note "$(tail -n 3 err)"
like "as it was found" "$(cat work/steps/02-seal/log)" 'partition 7 \(unknown contents\) is copied as it is'
is "nothing else is" "$(grep -c 'is copied as it is' work/steps/02-seal/log)" 1
[ -e work/disk.qcow2 ] || finish
qemu-img convert -O raw work/disk.qcow2 sealed.raw

# --- What has become of them ---

number=0
for name in twelve sixteen thirtytwo few; do
    number=$((number + 1))
    cut_out sealed.raw $number fat.raw
    ok "$name: fsck.fat finds nothing wrong" fsck.fat -n fat.raw
    rm -rf got
    mkdir got
    if [ $name = few ]; then
        python3 few.py read fat.raw >got/large
        same "$name: all files are what they were" files/large got/large
    else
        mcopy -s -n -i fat.raw :: got 2>/dev/null
        is "$name: all files are what they were" "$(diff -rq files got | head -n 3)" ""
    fi
    cut_out disk.raw $number before.raw
    is "$name: what was deleted was there before" "$(grep -acm1 DELETED-FAT-WORD before.raw)" 1
    is "$name: and is gone" "$(grep -ac DELETED-FAT-WORD fat.raw)" 0
done

cut_out sealed.raw 5 root.raw
ok "e2fsck finds nothing wrong" e2fsck -fn root.raw
cat >attributes.py <<'END_OF_PYTHON'
import os, sys
os.chdir(sys.argv[1])
for folder, folders, files in os.walk("."):
    for name in sorted(folders + files):
        path = folder + "/" + name
        for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
            print(path, attribute, os.getxattr(path, attribute, follow_symlinks=False).hex())
END_OF_PYTHON
mkdir mnt
if mount -o ro,noload,loop root.raw mnt 2>/dev/null; then
    python3 attributes.py tree/attributes | sort >expected
    python3 attributes.py mnt/attributes | sort >got-attributes
    umount mnt
    is "there are attributes" "$(grep -c . expected)" 41
    same "Linux reads every attribute as it was" expected got-attributes
else
    pass "Linux reads every attribute as it was # SKIP no loop devices"
fi

cut_out sealed.raw 6 swap.raw
is "swap keeps its label" "$(blkid -p -o value -s LABEL swap.raw)" swapped
is "but nothing that was swapped out" "$(grep -ac SWAPPED-OUT-WORD swap.raw)" 0
cut_out sealed.raw 7 got.raw
same "unknown contents are as they were" unknown.raw got.raw
finish
