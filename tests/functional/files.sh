#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity ls`, `cat`, `stat` and `cp`: what they print and make, and what is refused.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
require mke2fs debugfs mkfs.vfat mkswap sfdisk cryptsetup jq script
umask 022
export TZ=UTC

q()
{
    "$QVERITY" "$@"
}

mkdir -p tree/etc/deep tree/dir/sub tree/many tree/odd
echo one >tree/etc/one
echo two >tree/etc/two
echo hidden >tree/etc/.hidden
echo sub >tree/dir/sub/file
ln -s etc/one tree/link
ln -s /dir tree/to-dir
ln -s /nowhere tree/dangling
ln -s ../../../../../../etc/one tree/dir/climb
printf 'odd' >"tree/odd/$(printf 'a\033[31m\nb')"
printf 'raw' >"tree/odd/$(printf '\xff\xfe')"
truncate -s 1G tree/hole
chmod 4755 tree/etc/two
touch -h -d '2021-02-03 04:05:06 UTC' tree/etc/* tree/etc tree/link tree/dir/sub/file tree/dir/sub
mke2fs -q -F -t ext4 -d tree i.img 32M >/dev/null
debugfs -w -R 'mknod null c 1 3' i.img >/dev/null 2>&1

# --- ls ---

is "ls of a directory" "$(q ls i.img:/etc | tr '\n' ' ')" ".hidden deep one two "
is "of the root" "$(q ls i.img:/ | tr '\n' ' ')" "dangling dir etc hole link lost+found many null odd to-dir "
is "of an empty directory" "$(q ls i.img:/many)" ""
is "of a file" "$(q ls i.img:/etc/one)" "i.img:/etc/one"
is "of a link to a directory" "$(q ls i.img:/to-dir | tr '\n' ' ')" "climb sub "
is "of a link, long" "$(q ls -l i.img:/to-dir | grep -c 'i.img:/to-dir -> /dir$')" 1
is "of a link that leads nowhere" "$(q ls i.img:/dangling)" "i.img:/dangling"
is "of a link with a slash, long" "$(q ls -l i.img:/to-dir/ | wc -l)" 2
is "of several" "$(q ls i.img:/etc/one i.img:/many i.img:/dir)" "i.img:/etc/one

i.img:/many:

i.img:/dir:
climb
sub"
is "with . and .." "$(q ls -a i.img:/etc | tr '\n' ' ')" ". .. .hidden deep one two "
is "of the directory itself" "$(q ls -d i.img:/etc)" "i.img:/etc"
is "with all below" "$(q ls -R i.img:/dir)" "i.img:/dir:
climb
sub

i.img:/dir/sub:
file"
is "long" "$(q ls -l i.img:/etc/ | tr -s ' ')" "-rw-r--r-- 1 0 0 7 $(date -d @"$(stat -c %Y tree/etc/.hidden)" '+%F %H:%M') .hidden
drwxr-xr-x 2 0 0 1024 2021-02-03 04:05 deep
-rw-r--r-- 1 0 0 4 2021-02-03 04:05 one
-rwsr-xr-x 1 0 0 4 2021-02-03 04:05 two"
like "a device" "$(q ls -l i.img:/null)" '^c.* 1, 3 .* i.img:/null$'
is "names as they are when it is no terminal" "$(q ls i.img:/odd | od -An -tx1 | tr -d ' \n')" "611b5b33316d0a620afffe0a"
is "and printable when it is one" "$(script -qec "'$QVERITY' ls i.img:/odd" /dev/null </dev/null | tr -d '\r' | tr '\n' ' ')" \
    'a\x1b[31m\x0ab \xff\xfe '
is "as JSON" "$(q ls --json i.img:/etc | jq -c '[.entries[] | [.path, .type, .permissions, .size, .links, .mtime]]' |
    sed 's/"\/etc\/.hidden","regular file","0644",7,1,[0-9]*/HIDDEN/')" \
    '[[HIDDEN],["/etc/deep","directory","0755",1024,2,1612325106],["/etc/one","regular file","0644",4,1,1612325106],["/etc/two","regular file","4755",4,1,1612325106]]'
is "JSON of an empty directory" "$(q ls --json i.img:/many | jq -c .)" '{"entries":[]}'
is "JSON of names that are not UTF-8" "$(q ls --json i.img:/odd | jq -r '.entries[] | .path_hex // .path')" \
    "$(printf '/odd/a\033[31m\nb\n2f6f64642ffffe')"
is "a link to a directory, as JSON" "$(q ls -d --json i.img:/to-dir | jq -r '.entries[0].target')" /dir

# --- stat ---

is "stat" "$(q stat i.img:/etc/two | head -8)" "File:       i.img:/etc/two
Type:       regular file
Size:       4 bytes (1024 allocated)
Inode:      $(q stat --json i.img:/etc/two | jq .entries[0].inode)
Links:      1
Mode:       4755 (-rwsr-xr-x)
Uid:        0
Gid:        0"
like "its time" "$(q stat i.img:/etc/two)" '^Modified:   2021-02-03 04:05:06.000000000 \+0000$'
like "stat of a link" "$(q stat i.img:/link | tr '\n' ' ')" '^File: +i.img:/link -> etc/one Type: +symbolic link Size: +7 bytes'
like "stat -L of a link" "$(q stat -L i.img:/link | tr '\n' ' ')" '^File: +i.img:/link Type: +regular file Size: +4 bytes'
is "stat of a hole" "$(q stat --json i.img:/hole | jq -c '.entries[0] | [.size, .allocated]')" '[1073741824,0]'
is "stat of a device" "$(q stat --json i.img:/null | jq -c '.entries[0] | [.type, .major, .minor]')" '["character device",1,3]'
is "stat of several" "$(q stat --json i.img:/etc i.img:/link | jq -c '[.entries[] | [.image, .path, .target]]')" \
    '[["i.img","/etc",null],["i.img","/link","etc/one"]]'

# --- cat ---

is "cat" "$(q cat i.img:/etc/one)" one
is "cat of links" "$(q cat i.img:/link i.img:/dir/climb i.img:/to-dir/sub/file i.img:/to-dir/../etc/two)" "one
one
sub
two"
is "cat goes on behind what it cannot read" "$(q cat i.img:/etc/one i.img:/nothing i.img:/etc/two 2>err; echo $?; cat err)" \
    "one
two
1
qverity: i.img: /nothing: No such file or directory"
q cat i.img:/hole | head -c 1 >/dev/null
like "a reader that has seen enough" "${PIPESTATUS[0]}" '^(1|141)$'

# --- Operands ---

mkdir -p a:/b
cp i.img a:/b/x:y.img
is "a colon in the image's name" "$(q cat a:/b/x:y.img:/etc/one)" one
debugfs -w -R 'mkdir x:' i.img >/dev/null 2>&1
debugfs -w -R 'mkdir x:/y' i.img >/dev/null 2>&1
is "a colon in the path" "$(q ls i.img:/x:/)" y
for command in ls cat stat; do
    refused "$command of a file of the host" 2 "^qverity: $command: '/etc/passwd' is not IMAGE:/PATH" "$QVERITY" "$command" /etc/passwd
    refused "$command without a path" 2 "is not IMAGE:/PATH" "$QVERITY" "$command" i.img
    refused "$command without operands" 2 'arguments are missing' "$QVERITY" "$command"
    refused "$command of an image that is not there" 1 '^qverity: nothing.img: ' "$QVERITY" "$command" nothing.img:/etc
    refused "$command of what is not there" 1 '^qverity: i.img: /etc/none: No such file or directory$' "$QVERITY" "$command" i.img:/etc/none
    refused "$command of what is below a file" 1 '^qverity: i.img: /etc/one: Not a directory$' "$QVERITY" "$command" i.img:/etc/one/x
    refused "$command of a file with a slash" 1 '^qverity: i.img: /etc/one: Not a directory$' "$QVERITY" "$command" i.img:/etc/one/
done
refused "a link that leads nowhere" 1 '^qverity: i.img: /dangling: /nowhere: No such file or directory$' "$QVERITY" cat i.img:/dangling
refused "a directory" 1 '^qverity: i.img: /etc: is a directory$' "$QVERITY" cat i.img:/etc
refused "a device" 1 '^qverity: i.img: /null: is not a regular file$' "$QVERITY" cat i.img:/null
refused "a name that is too long" 1 'a name of 256 bytes: File name too long$' "$QVERITY" cat "i.img:/$(printf 'x%.0s' {1..256})"

# --- cp ---

mkdir out
q cp i.img:/etc/one out && is "cp into a directory" "$(cat out/one)" one
q cp i.img:/etc/one out/renamed && is "cp to a name" "$(cat out/renamed)" one
q cp i.img:/etc/two out/renamed && is "cp over a file" "$(cat out/renamed)" two
is "no set-user-ID, and as the umask says" "$(stat -c %a out/renamed)" 755
(umask 077 && q cp i.img:/etc/two out/private) && is "another umask" "$(stat -c %a out/private)" 700
(umask 077 && q cp --preserve i.img:/etc/two out/kept) &&
    is "--preserve" "$(stat -c '%a %Y' out/kept)" "755 1612325106"
q cp i.img:/link out/followed && is "cp of a link copies what it leads to" "$(stat -c %F out/followed)" "regular file"
q cp -r i.img:/link out/aslink && is "cp -r copies the link" "$(readlink out/aslink)" etc/one
q cp i.img:/hole out && is "holes stay holes" "$(stat -c '%s %b' out/hole)" "1073741824 0"
q cp i.img:/etc/one i.img:/etc/two out && is "cp of several" "$(cat out/one out/two)" "one
two"
q cp -r i.img:/etc out && is "cp -r into a directory" "$(find out/etc -printf '%P ' | xargs -n1 | sort | xargs)" ".hidden deep one two"
q cp -r i.img:/etc out/new && is "cp -r to a name" "$(cat out/new/one)" one
q cp -r i.img:/etc out/new && is "cp -r to a name that is there now" "$(cat out/new/etc/one)" one
mkdir out/root && q -q cp -r i.img:/ out/root 2>/dev/null && is "cp -r of the root into a directory" "$(cat out/root/etc/one)" one
q cp -r i.img:/etc/.. out/root 2>/dev/null && is "cp -r of .. into a directory" "$(cat out/root/dir/sub/file)" sub
q cp -r i.img:/etc/. out/flat && q cp -r i.img:/dir/ out/flat && is "cp -r of what is in a directory" "$(cat out/flat/one out/flat/dir/sub/file)" "one
sub"
q cp -a i.img:/dir out/archive && is "cp -a keeps times" "$(stat -c %Y out/archive/sub out/archive/sub/file | xargs)" "1612325106 1612325106"
mkfifo fifo
q cp i.img:/etc/one fifo & is "cp into a pipe" "$(cat fifo)" one
wait
ln -s renamed out/mine
q cp i.img:/etc/one out/mine && is "a link of one's own as the destination is followed" "$(readlink out/mine) $(cat out/renamed)" "renamed one"
is "a device is left out, with a warning" "$(q cp -r i.img:/null out/ 2>&1; echo $?; ls out/null 2>/dev/null)" \
    "qverity: warning: i.img: /null: not copied: it is a character device
0"
refused "cp of a directory without -r" 1 '^qverity: i.img: /etc: a directory, which takes -r$' "$QVERITY" cp i.img:/etc out
refused "cp of several to a name" 1 '^qverity: out/none: Not a directory$' "$QVERITY" cp i.img:/etc/one i.img:/etc/two out/none
refused "cp to where there is no directory" 1 '^qverity: out/none/x: No such file or directory$' "$QVERITY" cp i.img:/etc/one out/none/x
refused "cp of a file to a directory that is not there" 1 '^qverity: out/none/: Not a directory$' "$QVERITY" cp i.img:/etc/one out/none/
refused "cp of a directory over a file" 1 '^qverity: out/one: Not a directory$' "$QVERITY" cp -r i.img:/etc out/one
refused "cp into an image" 2 'out of an image, not into one' "$QVERITY" cp i.img:/etc/one i.img:/etc/three
refused "cp of files of the host" 2 'is not IMAGE:/PATH' "$QVERITY" cp /etc/passwd out
ln -s nowhere out/dangling
refused "cp through a link that leads nowhere" 1 '^qverity: out/dangling: a symbolic link that leads nowhere$' "$QVERITY" cp i.img:/etc/one out/dangling
cp i.img before
refused "cp over the image" 1 '^qverity: i.img: the image is in this file$' "$QVERITY" cp i.img:/etc/one i.img
same "and it is as it was" i.img before
refused "cp to a full device" 1 '^qverity: /dev/full: .*No space left on device$' "$QVERITY" cp i.img:/etc/one /dev/full
is "and goes on behind what it cannot copy" "$(q cp i.img:/none i.img:/etc/one out/flat 2>&1; echo $?)" \
    "qverity: i.img: /none: No such file or directory
1"

# What is not complete leaves nothing behind.
for i in {1..2000}; do
    echo "$i" >"tree/many/$i"
done
mke2fs -q -F -t ext4 -d tree/many many.img 32M >/dev/null
mkdir limited
refused "a file that is too large for where it goes" 1 '^qverity: limited/hole: File too large$' \
    bash -c "ulimit -f 100000; exec '$QVERITY' cp i.img:/hole limited"
is "leaves no part of the file" "$(ls -A limited)" ""
# interrupt SIGNAL: ends a copy, which may be quicker
interrupt()
{
    for i in {1..20}; do
        rm -rf interrupted
        "$QVERITY" cp -q -r many.img:/ interrupted 2>err &
        pid=$!
        until [ -e interrupted/1 ]; do
            kill -0 $pid 2>/dev/null || break
        done
        kill "-$1" $pid
        wait $pid
        code=$?
        [ $code -le 128 ] || break
    done 2>/dev/null
}
interrupt TERM
is "SIGTERM ends it" "$code $(cat err)" "143 "
is "and leaves no part of a file" "$(find interrupted -name '.qverity-*')" ""
if python3 -c 'import os; os.close(os.open(".", os.O_TMPFILE | os.O_WRONLY))' 2>err; then
    interrupt KILL
    is "nor does SIGKILL" "$code $(find interrupted -name '.qverity-*')" "137 "
fi

# --- Nothing is written where a file system's maker wants it ---

# One with two entries of one name, and a directory that is within itself. Blocks without checksums can be
# edited.
mkdir -p evil/e/aa evil/e/loop victim
ln -s "$T/victim" evil/e/ab
echo gotcha >evil/e/aa/file
mke2fs -q -F -t ext4 -O ^metadata_csum -d evil evil.img 16M >/dev/null
debugfs -w -R 'link e e/loop/again' evil.img >/dev/null 2>&1
# edit FROM TO: the only place with these bytes
edit()
{
    python3 - "$1" "$2" <<'END'
import sys
data = open("evil.img", "rb").read()
old, new = (eval("b'%s'" % a) for a in sys.argv[1:3])
assert data.count(old) == 1 and len(old) == len(new)
open("edited.img", "wb").write(data.replace(old, new))
END
}
refused "a directory within itself" 1 'evil.img: /e/loop/again: a directory that was copied under another name already$' \
    "$QVERITY" cp -r evil.img:/e out/loop
like "ls tells of it, too" "$(q ls -R evil.img:/e 2>&1)" '/e/loop/again: a directory that was listed under another name already$'
edit '\x02\x07ab' '\x02\x07aa' # a link and a directory of one name
refused "two entries of one name" 1 'edited.img: /e: the directory has the name aa twice$' "$QVERITY" cp -r edited.img:/e out/twice
edit '\x02\x07ab' '\x02\x07a/'
refused "a name with a slash" 1 'edited.img: /e: directory, .*: the name has a slash or a NUL$' "$QVERITY" cp -r edited.img:/e out/slash
refused "ls of it" 1 'the name has a slash or a NUL$' "$QVERITY" ls edited.img:/e
edit '\x02\x02aa' '\x02\x02..'
refused "another .." 1 'edited.img: /e: directory, .*: another one with the name \.\.$' "$QVERITY" ls edited.img:/e
refused "which is not left out in silence" 1 'another one with the name \.\.$' "$QVERITY" cp -r edited.img:/e out/dots
is "a link that was copied is not followed by what is copied next" "$(
    mkdir -p first second/x && ln -s "$T/victim" first/x && echo y >second/x/y
    mke2fs -q -F -t ext4 -d first first.img 4M >/dev/null && mke2fs -q -F -t ext4 -d second second.img 4M >/dev/null
    q cp -r first.img:/. out/both && q cp -r second.img:/. out/both 2>&1
    echo $?)" "qverity: out/both/x: Not a directory
1"
is "nothing was written outside" "$(ls victim)" ""

# --- What is no ext file system ---

truncate -s 40M parts.img
sfdisk -q parts.img <<'END' 2>/dev/null
label: dos
start=2048, size=16384, type=c
start=20480, size=8192, type=82
start=30720, size=8192, type=83
start=40960, size=8192, type=83
END
truncate -s 8M vfat.img && mkfs.vfat vfat.img >/dev/null && dd if=vfat.img of=parts.img bs=1M seek=1 conv=notrunc status=none
truncate -s 4M swap.img && mkswap swap.img >/dev/null 2>&1 && dd if=swap.img of=parts.img bs=1M seek=10 conv=notrunc status=none
mke2fs -q -F -t ext4 -d tree/etc e.img 4M >/dev/null && dd if=e.img of=parts.img bs=1M seek=15 conv=notrunc status=none
truncate -s 20M luks.img
echo -n secret | cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 luks.img - 2>/dev/null
# The label of a physical volume of LVM, as its second sector has it.
truncate -s 8M lvm.img
printf 'LABELONE\1\0\0\0\0\0\0\0\0\0\0\0 \0\0\0LVM2 001%s' AbCdEfGhIjKlMnOpQrStUvWxYz012345 |
    dd of=lvm.img bs=512 seek=1 conv=notrunc status=none
is "the data partition" "$(q ls parts.img:/ | xargs)" ".hidden deep lost+found one two"
refused "FAT" 1 '^qverity: parts.img: partition 1 holds vfat: files can be read on ext2, ext3 and ext4 only$' "$QVERITY" ls -p 1 parts.img:/
refused "swap" 1 '^qverity: parts.img: partition 2 is swap space: ' "$QVERITY" ls -p 2 parts.img:/
refused "nothing" 1 '^qverity: parts.img: partition 4 holds no file system that is known: ' "$QVERITY" ls -p 4 parts.img:/
refused "the disk" 1 '^qverity: parts.img: the disk holds no file system' "$QVERITY" ls -p disk parts.img:/
dd if=luks.img of=parts.img bs=1M count=4 seek=20 conv=notrunc status=none
refused "LUKS" 1 '^qverity: parts.img: partition 4 is encrypted with LUKS: ' "$QVERITY" ls -p 4 parts.img:/
refused "an image cut off" 1 '^qverity: cut.img: file system of the disk: superblock: .* more than the partition of' \
    "$QVERITY" ls "$(head -c 20M i.img >cut.img; echo cut.img)":/
like "LVM" "$(q ls lvm.img:/ 2>&1)" '^qverity: lvm.img: the disk (is a physical volume of LVM|holds no file system)'
finish
