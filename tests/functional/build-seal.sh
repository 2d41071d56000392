#!/bin/bash
# SPDX-License-Identifier: MIT
# What seal makes of a system: every file that is kept is as it was, what belongs to the build is gone, and
# no block of the image holds a word of it.
. "$(dirname "$0")/lib.sh"
. "$top/tests/functional/build-lib.sh"
require jq python3 dumpe2fs

make_tree template
play_mmdebstrap
cat >r.yaml <<'END'
name: t
epoch: 1600000000
steps:
  - disk: 160M
    partitions: [{type: efi, size: 40M}, {type: root, label: top}]
  - install: mmdebstrap
  - seal:
      remove: [/opt/secret/**, /opt/*.tmp, /opt/whole]
      keep: [/var/log/keep.me, /var/log/installer/deep/keep.me, '/opt/whole/*/stays', '/tmp/*/*/kept/**']
  - hash
END

# --- A system with all kinds of files ---

tree=template
mkdir -p $tree/files/{many,deep/er} $tree/opt/secret $tree/lost+found
printf small >$tree/files/small
: >$tree/files/empty
head -c 3000000 /dev/urandom >$tree/files/large
truncate -s 5M $tree/files/hole
printf middle | dd of=$tree/files/hole bs=1 seek=2500000 conv=notrunc 2>/dev/null
truncate -s 1234567 $tree/files/zeros
ln $tree/files/small $tree/files/deep/second-name
ln -s short $tree/files/short-link
ln -s "$(printf 'long/%.0s' {1..60})" $tree/files/long-link
ln -s "$(printf 'x%.0s' {1..60})" $tree/files/link-60
mknod $tree/files/null c 1 3
mknod $tree/files/far b 300 70000
mkfifo $tree/files/pipe
python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('$tree/files/socket')"
for i in {1..1500}; do : >"$tree/files/many/a-name-that-takes-some-room-$i"; done
chmod 4755 $tree/files/small
chmod 1777 $tree/files/deep
chown 70000:80000 $tree/files/large
python3 - $tree/files <<'END'
import os, sys
os.chdir(sys.argv[1])
os.setxattr("large", "user.note", b"a note")
os.setxattr("hole", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.setxattr("deep", "user.big", b"v" * 900)
END
touch -d @1500000000 $tree/files/large
touch -h -d @1400000000 $tree/files/short-link
printf 'root:*:19999:0:99999:7:::\ngame:!:0:0:::::\nnone:!::::::\nlast:!:12345:0:9:7:::' >$tree/etc/shadow
printf '/dev/sda2 / ext4 defaults 0 1\n/swap.img none swap sw 0 0\n/dev/sdb none swap sw 0 0\n' >$tree/etc/fstab

# What must go, each file with a word of its own.
planted=0
while read -r path; do
    mkdir -p "$tree$(dirname "$path")"
    planted=$((planted + 1))
    echo "PLANTED-$planted-WORD" >>"$tree$path"
done <<'END'
/etc/machine-id
/etc/shadow-
/etc/ssh/ssh_host_ed25519_key
/etc/ssh/ssh_host_rsa_key.pub
/etc/cloud/cloud.cfg.d/99-installer.cfg
/home/guest/.bash_history
/home/guest/.cache/deep/in/there
/opt/secret/a/b
/opt/whole/a/goes
/opt/whole/b/stays-not
/opt/x.tmp
/root/.bash_history
/root/.python_history
/root/.lesshst
/root/.local/share/fish/fish_history
/root/.local/share/nano/search_history
/home/guest/.local/state/bash/bash_history
/srv/svc/.bash_history
/srv/svc/.ssh/known_hosts.old
/run/lock/x
/swap.img
/tmp/some/file
/var/backups/dpkg.status.0
/var/cache/apt/archives/x.deb
/var/cache/apt/pkgcache.bin
/var/cache/ldconfig/aux-cache
/var/crash/x
/var/lib/apt/lists/deb.example_dists_x_Packages
/var/lib/cloud/instances/i/user-data.txt
/var/lib/dbus/machine-id
/var/lib/dhcp/dhclient.leases
/var/lib/dpkg/status-old
/var/lib/systemd/random-seed
/var/log/installer/autoinstall-user-data
/var/log/journal/0123/system.journal
/var/log/apt/term.log
/var/log/wtmp
/var/tmp/x
END
for path in var/log/keep.me var/log/installer/deep/keep.me opt/whole/a/stays tmp/some/thing/kept/below/it; do
    mkdir -p "$tree/$(dirname $path)"
    echo KEPT-WORD >$tree/$path
done
echo "PLANTED-KEPT-WORD" >$tree/root/.profile

build --work work r.yaml
is "the system is sealed" $? 0
[ -s out ] || note "$(tail -n 5 err)"

# --- What is left ---

qemu-img convert -O raw work/disk.qcow2 disk.raw
is "no block of the image has a planted word" \
    "$(grep -aoE 'PLANTED-[0-9]+-WORD' disk.raw | sort -u | head -5)" ''
like "but what is kept is found that way" "$(grep -aoE 'PLANTED-KEPT-WORD|KEPT-WORD' disk.raw | sort -u | tr '\n' ' ')" \
    'KEPT-WORD PLANTED-KEPT-WORD'
# So could be the words, had they stayed.
cat >unsealed.yaml <<'END'
name: t
epoch: 1600000000
steps:
  - disk: 160M
    partitions: [{type: efi, size: 40M}, {type: root, label: top}]
  - install: mmdebstrap
  - hash
END
build --work unsealed unsealed.yaml
qemu-img convert -O raw unsealed/steps/03-image/disk.qcow2 unsealed.raw
is "without a seal all of them are there" \
    "$(grep -aoE 'PLANTED-[0-9]+-WORD' unsealed.raw | sort -u | wc -l)" "$planted"

start=$((41 * 1024 * 1024))
dd if=disk.raw of=root.raw bs=1M skip=41 count=118 conv=sparse status=none
ok "e2fsck finds nothing wrong" e2fsck -fn root.raw
like "the label is the recipe's" "$(dumpe2fs -h root.raw 2>/dev/null)" 'Filesystem volume name: +top'
is "the partition table is a sound GPT" "$(sfdisk --verify disk.raw 2>&1 | grep -c 'No errors')" 1
like "the EFI partition has a file system" "$("$QVERITY" info work/disk.qcow2)" 'vfat'

mkdir dumped
debugfs -R "rdump / dumped" root.raw >/dev/null 2>&1
# files DIR: what stat tells of what rdump can make
files()
{
    (cd "$1" && find files \( -type f -printf '%p %M %U:%G %s %T@\n' \) -o \( -type d -printf '%p %M %U:%G %T@\n' \) -o \
        \( -type l -printf '%p %M %U:%G\n' \) | tr sSt x | sort)
}
(cd $tree && find files -newermt @1600000000 -exec touch -h -d @1600000000 {} +)
is "names, types, modes, owners, sizes and times are kept" "$(diff <(files $tree) <(files dumped) && echo same)" same
(cd $tree && find files -type f -exec sha256sum {} + | sort) >sums
is "and so are the bytes" "$(cd dumped && sha256sum -c --quiet ../sums && echo all)" all
is "and links" "$(readlink dumped/files/short-link dumped/files/long-link dumped/files/link-60)" \
    "$(readlink $tree/files/short-link $tree/files/long-link $tree/files/link-60)"
stat_of()
{
    debugfs -R "stat $1" root.raw 2>/dev/null
}
like "special bits of modes are kept" "$(stat_of /files/small) $(stat_of /files/deep)" 'Mode: +04755'
like "those of directories, too" "$(stat_of /files/deep)" 'Mode: +01777'
like "times of links are kept" "$(stat_of /files/short-link)" "mtime: $(printf 0x%x 1400000000)"
like "devices are" "$(stat_of /files/null)" 'Device major/minor number: 01:03'
like "with large numbers, too" "$(stat_of /files/far)" 'Device major/minor number: 300:70000'
like "a pipe is one" "$(stat_of /files/pipe)" 'Type: FIFO'
is "two names are one file" "$(stat_of /files/small | grep -oE 'Inode: [0-9]+|Links: [0-9]+')" \
    "$(stat_of /files/deep/second-name | grep -oE 'Inode: [0-9]+|Links: [0-9]+')"
like "with two links" "$(stat_of /files/small)" 'Links: 2 '
like "a socket is one" "$(stat_of /files/socket)" 'Type: socket'
like "attributes are kept" "$(debugfs -R 'ea_list /files/large' root.raw 2>/dev/null)" 'user.note.*"a note"'
like "capabilities, too" "$(debugfs -R 'ea_list /files/hole' root.raw 2>/dev/null)" 'security.capability \(20\)'
like "and large ones" "$(debugfs -R 'ea_list /files/deep' root.raw 2>/dev/null)" 'user.big \(900\)'
is "holes take no blocks" "$(stat_of /files/zeros | grep -oE 'Blockcount: [0-9]+')" 'Blockcount: 0'
is "nor do blocks of zeros" "$(stat_of /files/hole | grep -oE 'Blockcount: [0-9]+')" 'Blockcount: 8'
is "all names of a large directory are there" "$(find dumped/files/many -type f | wc -l)" 1500

# --- What was changed ---

is "passwords' dates are the recipe's, but those that mean something else" "$(cat dumped/etc/shadow)" \
    'root:*:18518:0:99999:7:::
game:!:0:0:::::
none:!::::::
last:!:18518:0:9:7:::'
is "a swap file is not mounted" "$(cat dumped/etc/fstab)" '/dev/sda2 / ext4 defaults 0 1
/dev/sdb none swap sw 0 0'
is "machine-id is empty" "$(stat -c %s dumped/etc/machine-id)" 0
is "directories of logs stay" "$([ -d dumped/var/log/apt ] && [ ! -e dumped/var/log/wtmp ] && echo yes)" yes
is "what the recipe keeps stays" "$(cat dumped/var/log/keep.me)" KEPT-WORD
is "also below directories that go as a whole, with no more of these than leads there" \
    "$(cd dumped && find opt/whole var/log/installer tmp ! -type d | sort)" 'opt/whole/a/stays
tmp/some/thing/kept/below/it
var/log/installer/deep/keep.me'
is "others of them go" "$(find dumped/opt dumped/var/log/installer -name b)" ''
is "temporary directories stay" "$(stat -c %a dumped/tmp dumped/var/tmp 2>/dev/null | wc -l)" 2

"$QVERITY" build --json --work work r.yaml >out 2>/dev/null
is "what was removed is reported" "$(jq -r '[.removed[].what] | sort | join(", ")' out)" \
    "SSH keys, backup copies, cloud-init and installer state, dates of passwords, leases and name servers, logs, machine id, package lists and caches, random seed, shell history and caches of users, swap files, temporary files, what the recipe says"
is "with counts" "$(jq -c '.removed[] | select(.what == "what the recipe says") | [.files, .bytes >= 60]' out)" '[4,true]'

# --- The same again ---

hash=$(jq -r .root_hash out)
is "the root hash is the image's" "$("$QVERITY" hash work/disk.qcow2 | sed -n 's/^Root hash:[[:space:]]*//p')" "$hash"
# Another order of inodes, other times of change, other empty space.
rm -rf template2
mkdir template2
(cd template && find . -mindepth 1 -maxdepth 1 | sort -r | while read -r name; do cp -a "$name" ../template2/; done)
sed -i "s/template\"/template2\"/" fake/mmdebstrap
TZ=Asia/Tokyo build --work second r.yaml
is "a second build of the same files has the same root hash" "$? $(sed -n 's/^Root hash: *//p' out)" "0 $hash"
build --work second --compress zstd r.yaml
is "compressed, too" "$? $(sed -n 's/^Root hash: *//p' out)" "0 $hash"
like "which it is" "$(qemu-img info second/disk.qcow2)" 'compression type: zstd'
[ "$(stat -c %s second/disk.qcow2)" -lt "$(stat -c %s work/disk.qcow2)" ]
is "and smaller" $? 0
finish
