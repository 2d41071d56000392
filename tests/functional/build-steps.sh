#!/bin/bash
# SPDX-License-Identifier: MIT
# The steps of a build: what is done is not done again, what failed or was killed goes on where it ended, and
# nothing is left behind.
. "$(dirname "$0")/lib.sh"
. "$top/tests/functional/build-lib.sh"
require jq setsid pgrep

make_tree template
play_mmdebstrap

# recipe COMMAND: two runs, of which the second is the one given
recipe()
{
    cat >r.yaml <<END
name: t
steps:
  - disk: 40M
    partitions: [{type: root}]
  - install: mmdebstrap
  - copy: {from: file, to: /etc/file}
  - run: [sh, -c, "echo first >>/etc/runs"]
  - name: second
    run: $1
  - fetch: {from: /etc/runs, to: runs}
  - seal
  - hash
END
}
states()
{
    "$QVERITY" build --list --work work r.yaml | awk '{ print $2 }' | tr '\n' ' '
}
hash_of()
{
    sed -n 's/^Root hash: *//p' out
}

# --- Once, and again ---

echo one >file
recipe '[sh, -c, "echo second >>/etc/runs; echo to stderr >&2"]'
"$QVERITY" build --dry-run --work work r.yaml >out
like "--dry-run tells the commands" "$(cat out)" "sh -c 'echo first >>/etc/runs'"
ok "--dry-run does nothing" test ! -e work
build --work work r.yaml
is "a build ends well" $? 0
like "its output has the programs'" "$(cat err)" '^    to stderr$'
like "and each step's time" "$(cat err)" '^\[8/8\] hash: [0-9.]+ s$'
like "each step has a log" "$(cat work/steps/05-run/log)" '^to stderr$'
is "files are fetched" "$(cat work/runs)" 'first
second'
first=$(hash_of)
is "the root hash is that of the image" "$("$QVERITY" hash work/disk.qcow2 | sed -n 's/^Root hash:[[:space:]]*//p')" "$first"
is "the image is sound" "$(qemu-img check -q work/disk.qcow2 && echo yes)" yes
is "only the owner sees what was before the seal" "$(stat -c %a work/steps)" 700

cp work/disk.qcow2 same.qcow2
sed 's/^  - hash$/  - hash\n  - manifest: {kernel: runs, initrd: runs}/' r.yaml >m.yaml
"$QVERITY" build --work work m.yaml >out 2>err
is "a manifest can be made" $? 0
same "it is what the command tells" work/manifest.json \
    <(cd work && "$QVERITY" manifest --kernel runs --initrd runs disk.qcow2)
is "with the root hash" "$(jq -r .root_hash work/manifest.json)" "$first"

# What a manifest names and no step brings is an input; what lies there without a name is nobody's.
echo mine >work/mine
echo of another recipe >work/vmlinuz
sed 's/^  - hash$/  - hash\n  - manifest: {kernel: mine, initrd: runs}/' r.yaml >m.yaml
build --work work m.yaml
is "a manifest with a file of mine" "$? $(jq -r .kernel.sha256 work/manifest.json)" "0 $(sha256sum <work/mine | cut -d ' ' -f 1)"
echo changed >work/mine
build --work work m.yaml
is "is made again when that changes" "$? $(jq -r .kernel.sha256 work/manifest.json)" "0 $(sha256sum <work/mine | cut -d ' ' -f 1)"
sed 's/^  - hash$/  - hash\n  - manifest: {initrd: runs}/' r.yaml >m.yaml
build --work work m.yaml
is "a kernel that was not fetched is not taken" $? 1
like "that of the image is looked for" "$(cat err)" '^qverity: m.yaml:[0-9]+: step 9 \(manifest\): .* no kernel is given, and /boot of partition 1 has none'
rm work/mine work/vmlinuz work/manifest.json

build --work work r.yaml
is "a second build has nothing to do" "$? $(grep -c 'done already' err)" '0 8'
is "and tells the same" "$(hash_of)" "$first"
is "nothing was installed again" "$(wc -l <installs)" 1
"$QVERITY" build --json --work work r.yaml 2>/dev/null >out
is "--json has the root hash" "$(jq -r .root_hash out)" "$first"
is "and the files" "$(jq -r '.fetched[0], .image' out)" "$T/work/runs
$T/work/disk.qcow2"
is "and the steps" "$(jq -c '[.steps[] | .skipped] | unique' out)" '[true]'

# The name is cut in the middle of a character of two, three or four bytes, whichever way it is counted.
for word in ä aä aaä € a€ aa€ 𝄞 a𝄞 aa𝄞 aaa𝄞; do
    printf 'name: t\nsteps:\n  - disk: 140M\n  - install: mmdebstrap\n  - run: ["%s"]\n' \
        "$(printf "$word%.0s" {1..30})" >long.yaml
    "$QVERITY" build --list --work long long.yaml | grep 'run:'
done >out
ok "long names are cut between characters" iconv -f UTF-8 -t UTF-8 out
is "and are cut" "$(wc -l <out) $(awk 'length > 60' out | wc -l)" '10 0'

# --- What decides about a step ---

echo two >file
is "another file: the steps from copy on are to do" "$(states)" 'done done to to to to to to '
build --work work r.yaml
is "they are done" "$? $(grep -c 'done already' err)" '0 2'
is "on what install left" "$(wc -l <installs) $(cat work/runs)" '1 first
second'
second=$(hash_of)
[ "$first" != "$second" ]
is "and the root hash is another one" $? 0
echo one >file
build --work work r.yaml
is "the first file again, the first root hash again" "$(hash_of)" "$first"
chmod +x file
is "that a file may be executed matters" "$(states | grep -o 'done' | wc -l)" 2
chmod -x file
touch file
is "when it was written does not" "$(states | grep -o 'done' | wc -l)" 8
cp work/disk.qcow2 saved.qcow2
is "a copy is no change" "$(states | grep -o 'done' | wc -l)" 8
printf x | dd of=work/disk.qcow2 bs=1 seek=100000 conv=notrunc 2>/dev/null
is "an image that was changed is sealed again" "$(states)" 'done done done done done done to to '
build --work work r.yaml
is "and is as before" "$(hash_of)" "$first"
is "SOURCE_DATE_EPOCH matters to all" "$(SOURCE_DATE_EPOCH=1600000000 states | grep -o 'done' | wc -l)" 0
refused "a bad SOURCE_DATE_EPOCH" 1 "SOURCE_DATE_EPOCH: 'x' is not a number" \
    env SOURCE_DATE_EPOCH=x "$QVERITY" build --list --work work r.yaml

# --- From, until ---

build --work work --from second r.yaml
# The trees of the steps between are not kept.
is "--from does a step again, on what install left" "$? $(grep -c 'done already' err) $(wc -l <installs) $(hash_of)" \
    "0 2 1 $first"
build --work other --until copy r.yaml
is "--until stops behind a step" "$? $(grep -c ' s$' err)" '0 3'
is "the rest is to do" "$("$QVERITY" build --list --work other r.yaml | awk '{ print $2 }' | grep -c to)" 5
: >installs
build --work other r.yaml
is "another directory, the same root hash" "$? $(hash_of)" "0 $first"
is "and the rest was done on what was there" "$(wc -l <installs)" 0
is "no byte of the images' contents differs" \
    "$("$QVERITY" diff work/disk.qcow2 other/disk.qcow2 -p disk && echo same)" same

refused "--until in front of --from" 1 '^qverity: --until 3: is before --from second$' \
    "$QVERITY" build --work work --from second --until 3 r.yaml

# --- What changes meanwhile ---

# The system's programs cannot change the file, so its copying waits for somebody who does.
cat >late.yaml <<'END'
name: t
steps:
  - disk: 40M
    partitions: [{type: root}]
  - install: mmdebstrap
  - run: [sh, -c, 'touch /ready; while [ ! -e /go ]; do sleep 0.1; done']
  - copy: {from: file, to: /etc/file}
END
"$QVERITY" build --work late late.yaml >out 2>err </dev/null &
pid=$!
t_kill_later $pid
ok "the build has begun" until_true 60 test -e late/steps/03-run/tree/ready
echo three >file
touch late/steps/03-run/tree/go
wait $pid
is "a file that was changed since the build began: it fails" $? 1
like "and says so" "$(cat err)" '^qverity: late.yaml:7: step 4 \(copy\): a file that it takes was changed while the build ran'
build --work late late.yaml
is "the next one takes it as it is" "$? $(cat late/steps/04-copy/tree/etc/file)" '0 three'
echo one >file
rm -r late

# --- Owners ---

cat >owners.yaml <<'END'
name: t
steps:
  - disk: 40M
    partitions: [{type: root}]
  - install: mmdebstrap
  - copy:
      - {content: a, to: /a, owner: 'root:1234'}
      - {link: a, to: /b, owner: '1234:root'}
END
build --work owners owners.yaml
is "owners of files and links" "$? $(cd owners/steps/03-copy/tree && stat -c '%u:%g' a b | tr '\n' ' ')" '0 0:1234 1234:0 '
for owner in nobody-here root:nobody-here nobody-here:0; do
    sed -i "s/{content: .*}/{content: a, to: \/a, owner: '$owner'}/" owners.yaml
    build --work owners owners.yaml
    is "an owner that the system does not know: $owner" $? 1
    like "is told" "$(cat err)" "owner: there is no (user|group) 'nobody-here' in the system"
done
rm -r owners

# --- Directories of others ---

mkdir -p mine/steps/own elsewhere/01-disk linked
echo precious >mine/steps/own/data
refused "a directory of steps that has something else" 1 "^qverity: .*/mine/steps/own: is no step of a build; choose another work directory" \
    "$QVERITY" build --work mine r.yaml
is "which stays" "$(cat mine/steps/own/data)" precious
ln -s ../elsewhere linked/steps
refused "a link in its place" 1 '^qverity: .*/linked/steps: is not a directory' "$QVERITY" build --work linked r.yaml
is "behind which nothing changes" "$(ls elsewhere)" 01-disk
mkdir -p theirs/steps
chown 65534 theirs/steps
refused "somebody else's" 1 '^qverity: .*/theirs/steps: belongs to user 65534' "$QVERITY" build --work theirs r.yaml
rm -r mine elsewhere linked theirs

# --- Half removed ---

# What is mounted there keeps the tree of the step before from being removed to its end.
build --work half --until 4 r.yaml
mount -t tmpfs none half/steps/04-run/tree/tmp
build --work half --until second r.yaml
is "a tree that cannot be removed does not fail the build" $? 0
umount half/steps/*/tree*/tmp
build --work half --from second r.yaml
is "but no step begins on what is left of it" "$? $(grep -c 'done already' err) $(hash_of)" "0 2 $first"
is "which is removed at last" "$(find half/steps -maxdepth 2 -name 'tree*' | sort)" \
    'half/steps/02-install/tree
half/steps/05-run/tree'

# --- After a loss of power ---

build --work lost --until second r.yaml
like "a tree that is not waited for counts until the next boot" "$(jq -r .boot lost/steps/05-run/state.json)" \
    "^$(cat /proc/sys/kernel/random/boot_id)$"
is "what was installed is on disk" "$(jq -r .boot lost/steps/02-install/state.json)" null
sed -i 's/"boot": "[^"]*"/"boot": "00000000-0000-0000-0000-000000000000"/' lost/steps/*/state.json
echo damaged >lost/steps/05-run/tree/etc/passwd
: >installs
build --work lost r.yaml
is "after another boot the build begins at what was installed" "$? $(grep -c 'done already' err) $(wc -l <installs)" '0 2 0'
is "and has the same result" "$(hash_of)" "$first"
sed -i 's/"boot": "[^"]*"/"boot": "00000000-0000-0000-0000-000000000000"/' lost/steps/*/state.json
build --work lost r.yaml
is "an image that is sealed stays" "$? $(grep -c 'done already' err)" '0 8'

# --- Failures ---

rm -rf work
recipe '[sh, -c, "echo second >>/etc/runs; echo it broke >&2; exit 7"]'
build --work work r.yaml
is "a command that fails fails the build" $? 1
like "which names the step, its line, the command and the cause" "$(tail -n 1 err)" \
    "^qverity: r.yaml:8: step 5 \(second\): sh -c '.*exit 7' exited with 7: it broke \(log: $T/work/steps/05-run/log\)$"
is "the steps before are done" "$(states)" 'done done done done to to to to '
: >installs
recipe '[sh, -c, "echo second >>/etc/runs; echo to stderr >&2"]'
build --work work r.yaml
is "mended, it goes on at that step" "$? $(grep -c 'done already' err) $(wc -l <installs)" '0 4 0'
is "on what the step before left" "$(cat work/runs)" 'first
second'
is "and ends with the same root hash" "$(hash_of)" "$first"

recipe '[no-such-program]'
build --work work r.yaml
is "a program that is not there" $? 1
like "is named" "$(tail -n 1 err)" 'step 5 \(second\): no-such-program: cannot be run: No such file or directory'
recipe '[sh, -c, "kill -9 $$"]'
build --work work r.yaml
like "a program that is killed" "$(tail -n 1 err)" 'was killed by SIGKILL'
recipe "[sleep, '$nap']
    timeout: 1"
build --work work r.yaml
like "a program that takes too long" "$(tail -n 1 err)" 'step 5 \(second\): sleep: still ran after 1 seconds'
is "is ended" "$(left_behind)" ''
recipe "[sh, -c, 'sleep $nap & echo x']"
build --work work --until second r.yaml
is "what a program leaves running does not keep the build" $? 0
is "and is ended" "$(left_behind)" ''
recipe '[sh, -c, "mount -t tmpfs x /tmp; echo x >/tmp/y"]'
build --work work r.yaml
is "what it mounts" $? 0
is "is seen by nobody else" "$(left_behind)" ''

ln -s etc template/configuration
sed -i 's/from: .etc.runs, to: runs/from: "\/configuration\/ru*", to: runs/' r.yaml
build --work linked --until fetch r.yaml
is "a file is fetched from behind a link" "$? $(cat linked/runs)" '0 first'
rm -r linked template/configuration
sed -i 's/from: .*, to: runs/from: "\/etc\/*s*", to: runs/' r.yaml
build --work work r.yaml
like "a pattern that means two files" "$(tail -n 1 err)" '/etc/\*s\*: means more than one file: /etc/'
sed -i 's/from: ".etc.\*s\*", to: runs/from: \/etc\/gone, to: runs/' r.yaml
build --work work r.yaml
like "a file that is not there" "$(tail -n 1 err)" '/etc/gone: there is no such file in the system'
recipe '[sh, -c, "echo second >>/etc/runs"]'
sed -i 's/disk: 40M/disk: 16M/' r.yaml
mkdir -p template/big
dd if=/dev/urandom of=template/big/file bs=1M count=20 2>/dev/null
build --work work --from 2 r.yaml
like "a disk that is too small" "$(tail -n 1 err)" 'step 7 \(seal\): /big/file: the file system is too small'
rm -r template/big

# --- Killed ---

rm -rf work
recipe "[sh, -c, 'echo second >>/etc/runs; sleep $nap']"
"$QVERITY" build --work work r.yaml >out 2>err </dev/null &
pid=$!
for ((i = 0; i < 100 * patience; i++)); do
    pgrep -f "sleep $nap" >/dev/null && break
    sleep 0.1
done
refused "another build there" 1 'another build runs in this directory' "$QVERITY" build --work work r.yaml
kill -9 $pid
wait $pid 2>/dev/null
for ((i = 0; i < 50 * patience; i++)); do
    [ -n "$(left_behind)" ] || break
    sleep 0.1
done
is "a build that is killed leaves nothing" "$(left_behind)" ''
recipe '[sh, -c, "echo second >>/etc/runs; echo to stderr >&2"]'
: >installs
build --work work r.yaml
is "and goes on where it was, with the same result" "$? $(wc -l <installs) $(hash_of)" "0 0 $first"

recipe "[sh, -c, 'sleep $nap']"
setsid "$QVERITY" build --work work r.yaml >out 2>err </dev/null &
pid=$!
for ((i = 0; i < 100 * patience; i++)); do
    pgrep -f "sleep $nap" >/dev/null && break
    sleep 0.1
done
kill -INT $pid
wait $pid
is "Ctrl-C ends a build with 1" $? 1
like "and says so" "$(tail -n 1 err)" 'step 5 \(second\): interrupted'
is "leaving nothing" "$(left_behind)" ''
finish
