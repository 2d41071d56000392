#!/bin/bash
# SPDX-License-Identifier: MIT
# Wrong recipes: each mistake is told with file and line and the key that is meant, all of a recipe at once,
# before anything is done.
. "$(dirname "$0")/lib.sh"

echo 'echo hello' >file
echo x >a.deb
printf '[Unit]\n' >good.service
mkdir dir

# wrong DESCRIPTION LINE REGEX: the recipe on stdin is refused with this message at this line
wrong()
{
    local description=$1 line=$2 regex=$3 code
    cat >r.yaml
    "$QVERITY" build --work work r.yaml >out 2>err </dev/null
    code=$?
    if [ $code -eq 1 ] && [ ! -s out ] && [ ! -e work ] && grep -qE "^qverity: r\\.yaml:$line: $regex" err &&
        tail -n 1 err | grep -qE '^qverity: r.yaml: [0-9]+ mistakes? in the recipe; nothing was done$'; then
        pass "$description"
    else
        fail "$description"
        note "exit $code, expected line $line: /$regex/"
        note "$(cat out err)"
        rm -rf work
    fi
}

# wrong_step DESCRIPTION REGEX STEP…: a recipe whose only mistake is in its last step
wrong_step()
{
    local description=$1 regex=$2
    shift 2
    wrong "$description" '[0-9]+' "$regex" < <(
        printf 'name: t\nsteps:\n  - disk: 100M\n  - install: mmdebstrap\n'
        printf '%s\n' "$@"
    )
}

# wrong_install DESCRIPTION REGEX KEY: a wrong key of install
wrong_install()
{
    wrong "$1" '[0-9]+' "$2" < <(printf 'name: t\nsteps:\n  - disk: 100M\n  - install: mmdebstrap\n    %s\n' "$3")
}

# wrong_disk DESCRIPTION REGEX STEP
wrong_disk()
{
    wrong "$1" '[0-9]+' "$2" < <(printf 'name: t\nsteps:\n  - %s\n  - install: mmdebstrap\n' "$3")
}

# --- The file ---

wrong "an empty file" 1 'the file is empty' </dev/null
wrong "broken syntax" 2 'not YAML: ' < <(printf 'name: [\n')
wrong "an alias" 2 'aliases \(\*x\) are not for recipes' < <(printf 'name: t\nsteps: *x\n')
wrong "an anchor" 1 'anchors \(&x\) are not for recipes' < <(printf 'name: &x t\nsteps: []\n')
wrong "a tag" 1 'tags \(.*\) are not for recipes' < <(printf 'name: !!str t\nsteps: []\n')
wrong "a list in place of a mapping" 1 'recipe: must be a mapping, not a list' < <(printf -- '- a\n')
wrong "a key twice" 2 'name: given twice, first in line 1' < <(printf 'name: t\nname: u\nsteps: [seal]\n')
wrong "no name" 1 'recipe: name: is missing' < <(printf 'steps: [seal]\n')
wrong "a name with a slash" 1 "recipe: name: '../t' must have only" < <(printf 'name: ../t\nsteps: [seal]\n')
wrong "its line" 2 "recipe: name: '../t' must have only" < <(printf 'steps: [seal]\nname: ../t\n')
wrong "no steps" 1 'recipe: steps: is missing' < <(printf 'name: t\n')
wrong "an empty list of steps" 2 'recipe: steps: must be a list of steps, not an empty one' < <(printf 'name: t\nsteps: []\n')
wrong "steps that are a word" 2 'recipe: steps: must be a list of steps, not a text' < <(printf 'name: t\nsteps: yes\n')
wrong "an unknown key of the recipe" 3 'recipe: foo: unknown key \(there are: name, epoch\)' < <(printf 'name: t\nsteps: [seal]\nfoo: 1\n')
wrong "an epoch that is no number" 2 "recipe: epoch: number: 'soon' is not a number" < <(printf 'name: t\nepoch: soon\nsteps: [seal]\n')
wrong "two documents" 3 'a second document' < <(printf 'name: t\nsteps: [seal]\n---\nname: u\n')
wrong "nested too deep" 2 'nested more than 16 deep' < <(
    printf 'name: t\nsteps: '
    printf '[%.0s' {1..40}
)

wrong "too many keys" 4 'more than 4096 keys' < <(
    printf 'name: t\nsteps:\n- run:\n'
    printf '    k%d: 1\n' {1..5000}
)

# --- Steps ---

wrong_step "an unknown kind of step" "'frobnicate' is no kind of step; there are: disk, install, " "  - frobnicate: x"
wrong_step "a step that is a list" "a step must be a mapping or a word, not a list" "  - [a]"
wrong_step "an empty step" "an empty step" "  - {}"
wrong_step "a step of two kinds" "a step is one of copy and run, not both" "  - {copy: {from: file, to: /x}, run: [x]}"
wrong_step "an unknown key of a step" "step 3, run: tiemout: unknown key \(there are: commands, environment, timeout\)" \
    "  - run: [x]" "    tiemout: 5"
wrong_step "a key in both places" "step 3, seal: compress: given twice" "  - seal: {compress: zlib}" "    compress: zstd"
wrong_step "a word for a step that takes keys" "step 3, seal: takes keys, not a text" "  - seal: now"
wrong_step "a name that is a list" "step 3: name: must be a text of one line" "  - seal:" "    name: [a]"
wrong_step "two steps of one name" "step 4, run: name: 'a' is step 3's already" \
    "  - {run: [x], name: a}" "  - {run: [x], name: a}"

# --- Order ---

wrong "no install step" 3 'step 1, seal: there is no system yet' < <(printf 'name: t\nsteps:\n  - seal\n')
wrong "no disk" 3 'step 1, install: a disk step must come before' < <(printf 'name: t\nsteps:\n  - install: mmdebstrap\n')
wrong_step "a disk behind install" "step 3, disk: must come before install" "  - disk: 10M"
wrong_step "two installs" "step 3, install: the system is installed already" "  - install: mmdebstrap"
wrong_step "a change behind seal" "step 4, run: the image is sealed already" "  - seal" "  - run: [x]"
wrong_step "seal twice" "step 4, seal: the image is sealed already" "  - seal" "  - seal"
wrong_step "a command when the tree has become an image" "step 5, run: no guest runs here: a boot step must come before" \
    "  - hash" "  - run: [x]"
wrong "two disks" 4 'step 2, disk: given twice' < <(printf 'name: t\nsteps:\n  - disk: 100M\n  - disk: 100M\n  - install: mmdebstrap\n')

wrong_step "the step that makes an image counts" "step 7, copy: to: 'x' is not absolute" \
    "  - boot" "  - copy: {to: /x, content: y}" "  - shutdown" "  - copy: {to: x, content: y}"
is "in all messages" "$(grep -c 'step 7, copy: ' err)" 2

# --- Keys of each kind ---

wrong "a disk without a size" 3 'step 1, disk: size: is missing' < <(printf 'name: t\nsteps:\n  - disk:\n  - install: mmdebstrap\n')
wrong_disk "a bad size" "step 1, disk: size: size: '10X' is not a size" 'disk: 10X'
wrong_disk "a tiny size" "step 1, disk: size: '5' is less than" 'disk: 5'
wrong_disk "an uneven size" "step 1, disk: partitions: the disk's size is no multiple of 1M" 'disk: 102401K'
wrong_disk "partitions that do not fit" "step 1, disk: partitions: they are larger than the disk" \
    'disk: {size: 100M, partitions: [{type: efi, size: 64M}, {type: root, size: 64M}]}'
wrong_disk "no root partition" "step 1, disk: partitions: there must be one of type root" \
    'disk: {size: 100M, partitions: [{type: efi, size: 64M}]}'
wrong_disk "a tiny EFI partition" "step 1, disk: partitions: an EFI partition needs 33M" \
    'disk: {size: 100M, partitions: [{type: efi, size: 8M}, {type: root}]}'
wrong_disk "an unknown type" "step 1, disk: type: 'home' is none of: efi, root" \
    'disk: {size: 100M, partitions: [{type: home}]}'
wrong_disk "a partition's unknown key" "step 1, disk: siez: unknown key" \
    'disk: {size: 100M, partitions: [{type: root, siez: 1M}]}'
wrong_disk "a label that breaks out" "step 1, disk: partitions: a label must be" \
    'disk: {size: 100M, partitions: [{type: root, label: "a\", size=1"}]}'
wrong_disk "preallocation" "step 1, disk: preallocation: has no meaning" 'disk: {size: 100M, preallocation: metadata}'

wrong "an unknown way to install" 4 'install: must be one of: .*mmdebstrap' < <(printf 'name: t\nsteps:\n  - disk: 100M\n  - install: windows\n')
wrong_install "a package that is an option" "step 2, install: packages: '-oX' cannot be one" 'packages: [-oX]'
wrong_install "packages that are numbers of lists" "step 2, install: packages: must be a text, not a list" 'packages: [[a]]'
wrong_install "a suite with a blank" "step 2, install: suite: 'a b' cannot be one" 'suite: a b'
wrong_install "a mirror that is none" "step 2, install: mirrors: 'example.org' is neither" 'mirrors: [example.org]'
wrong_install "a time" "step 2, install: timeout: '5x' is not a time" 'timeout: 5x'

wrong_step "a file that is missing" "step 3, copy: from: .*/nothing: No such file" "  - copy: {from: nothing, to: /x}"
wrong_step "a destination that is missing" "step 3, copy: to: is missing" "  - copy: {from: file}"
wrong_step "a relative destination" "step 3, copy: to: 'x' is not absolute" "  - copy: {from: file, to: x}"
wrong_step "a destination that climbs" "step 3, copy: to: '/a/../b' has \. or \.\. in it" "  - copy: {from: file, to: /a/../b}"
wrong_step "nothing to copy" "step 3, copy: one of from, content, link is missing" "  - copy: {to: /x}"
wrong_step "too much to copy" "step 3, copy: from, content, link: only one" "  - copy: {to: /x, from: file, content: y}"
wrong_step "a mode" "step 3, copy: mode: '9' is not a file's mode" "  - copy: {from: file, to: /x, mode: 9}"
wrong_step "an owner" "step 3, copy: owner: 'a:b:c' is not USER" "  - copy: {from: file, to: /x, owner: 'a:b:c'}"
for owner in 4294967295 4294967296 '1:99999999999999999999' 'root:4294967295'; do
    wrong_step "an owner of no number: $owner" "step 3, copy: owner: '$owner' is not USER" \
        "  - copy: {from: file, to: /x, owner: '$owner'}"
done
wrong_step "two files of one name" "step 3, fetch: to: step 3 fetches a file 'x' already" \
    "  - fetch: [{from: /a, to: x}, {from: /b, to: x}]"
wrong_step "in two steps" "step 4, fetch: to: step 3 fetches a file 'x' already" "  - fetch: {from: /a/x}" "  - fetch: {from: /b, to: x}"
wrong_step "a kernel that is missing" "step 4, boot: kernel: .*/nosuch: No such file" "  - boot: {kernel: nosuch, append: x}" \
    "  - shutdown"
wrong_step "a kernel that is a directory" "step 4, boot: kernel: .*/dir: is no file" "  - boot: {kernel: dir, append: x}" \
    "  - shutdown"
wrong_step "a command that is a text" "step 3, run: commands: must be a command.*no shell reads it" "  - run: rm -rf /"
wrong_step "a command without a program" "step 3, run: commands: a command without a program" "  - run: ['']"
wrong_step "words among commands" "step 3, run: commands: a word among commands" "  - run: [[a], b]"
wrong_step "an environment" "step 3, run: environment: 'x' is not NAME=VALUE" "  - {run: [x], environment: [x]}"
wrong_step "a package that is none" "step 3, debs: .*/file: is no package" "  - debs: file"
wrong_step "packages that are missing" "step 3, debs: files: .*/b\*\.deb: no such file" "  - debs: 'b*.deb'"
wrong_step "a module" "step 3, initramfs: modules: 'a b' is no module's name" "  - initramfs: {modules: [a b]}"
wrong_step "a level without compression" "step 3, initramfs: level: needs compress" "  - initramfs: {level: 1}"
wrong_step "yes or no" "step 3, initramfs: verity: 'maybe' is neither yes nor no" "  - initramfs: {verity: maybe}"
wrong_step "a unit that is none" "step 3, service: units: 'file' is no unit's name" "  - service: file"
wrong_step "a unit to mask that is none" "step 3, service: mask: '../x' is no unit's name" "  - service: {mask: [../x]}"
wrong_step "no unit" "step 3, service: nothing to do" "  - service"
wrong_step "a pattern without a name" "step 3, fetch: to: is missing" "  - fetch: {from: '/boot/v*'}"
wrong_step "a name that is taken" "step 3, fetch: to: 'disk.qcow2' cannot be" "  - fetch: {from: /x, to: disk.qcow2}"
wrong_step "a name that climbs" "step 3, fetch: to: '../x' cannot be" "  - fetch: {from: /x, to: ../x}"
wrong_step "compression" "step 3, seal: compress: 'xz' is none of: none, zlib, zstd" "  - seal: {compress: xz}"
wrong_step "a relative pattern" "step 3, seal: remove: 'x' is not absolute" "  - seal: {remove: [x]}"
wrong_step "a salt" "step 4, hash: salt: character 1 is not a hex digit" "  - seal" "  - hash: {salt: xy}"
wrong_step "a block size" "step 4, hash: .*block-size" "  - seal" "  - hash: {data-block-size: 1000}"
wrong_step "an algorithm" "step 4, hash: .*md4711" "  - seal" "  - hash: {algorithm: md4711}"

# --- Guests ---

wrong_step "a guest that runs at the end" "step 4, boot: the recipe ends while the guest runs" "  - boot"
wrong_step "a guest twice" "step 5, boot: a guest runs already" "  - boot" "  - boot" "  - shutdown"
wrong_step "no guest to shut down" "step 3, shutdown: no guest runs here" "  - shutdown"
wrong_step "a seal while the guest runs" "step 5, seal: the guest still runs here: a shutdown step must come before" \
    "  - boot" "  - seal"
wrong_step "an initrd without a kernel" "step 4, boot: initrd: needs kernel" "  - boot: {initrd: file}" "  - shutdown"
wrong_step "a kernel without a command line" "step 4, boot: append: is missing" "  - boot: {kernel: file}" "  - shutdown"
wrong_step "memory" "step 4, boot: memory: is no multiple of 1M" "  - boot: {memory: 1000000000}" "  - shutdown"
wrong_step "no CPU" "step 4, boot: cpus: '0' is less than 1" "  - boot: {cpus: 0}" "  - shutdown"
wrong_step "a user" "step 4, boot: user: 'a b' cannot be one" "  - boot: {user: a b}" "  - shutdown"
wrong_step "OVMF's variables alone" "step 4, boot: ovmf-vars: needs ovmf-code" "  - boot: {ovmf-vars: file}" "  - shutdown"

# --- Installers and images ---

# wrong_iso DESCRIPTION REGEX KEY…
wrong_iso()
{
    local description=$1 regex=$2
    shift 2
    wrong "$description" '[0-9]+' "$regex" < <(
        printf 'name: t\nsteps:\n  - disk: 100M\n  - install: iso\n'
        printf '    %s\n' "$@"
    )
}
wrong_iso "no ISO" "step 2, install: iso: is missing" "user-data: file"
wrong_iso "an ISO that is not there" "step 2, install: iso: .*/gone.iso: No such file" "iso: gone.iso" "user-data: file"
wrong_iso "no answers" "step 2, install: one of user-data and preseed is needed" "iso: file"
wrong_iso "two kinds of answers" "step 2, install: one of user-data and preseed is needed" \
    "iso: file" "user-data: file" "preseed: file"
wrong_iso "a command line without an address" "step 2, install: append: has no @URL@" "iso: file" "user-data: file" "append: x"
wrong_iso "no expression" "step 2, install: failure: '\(' is no regular expression" "iso: file" "user-data: file" "failure: ("
wrong "partitions for an installer" 3 'step 1, disk: partitions: install: iso partitions the disk by itself' < <(
    printf 'name: t\nsteps:\n  - disk: {size: 100M, partitions: [{type: root}]}\n  - install: iso\n    iso: file\n    user-data: file\n'
)
wrong "an ISO without a disk" 3 'step 1, install: a disk step must come before' < <(
    printf 'name: t\nsteps:\n  - install: iso\n    iso: file\n    user-data: file\n'
)
wrong "a cloud image that is not there" 4 'step 1, install: image: .*/gone: No such file' < <(
    printf 'name: t\nsteps:\n  - install: cloud-image\n    image: gone\n'
)
wrong "a command in an image without a guest" 5 'step 2, run: no guest runs here: a boot step must come before' < <(
    printf 'name: t\nsteps:\n  - install: cloud-image\n    image: file\n  - run: [x]\n'
)

# --- All at once ---

cat >r.yaml <<'END'
name: t
steps:
  - disk: 7Q
  - install: mmdebstrap
    packages: [-x]
  - copy:
      - {from: gone, to: /x}
      - {from: file, to: y}
  - run: [x]
    time: 5
END
"$QVERITY" build --work work r.yaml >out 2>err
is "all mistakes are told at once, in the order of the file" \
    "$(grep -o 'r\.yaml:[0-9]*: step [0-9]*, [a-z]*: [a-z]*:' err)" \
    'r.yaml:3: step 1, disk: size:
r.yaml:4: step 2, install: packages:
r.yaml:7: step 3, copy: from:
r.yaml:8: step 3, copy: to:
r.yaml:10: step 4, run: time:'
like "and counted" "$(tail -n 1 err)" 'r.yaml: 5 mistakes in the recipe; nothing was done'

refused "a recipe that is not there" 1 'gone.yaml: No such file' "$QVERITY" build gone.yaml
printf 'name: t\nsteps:\n  - disk: 100M\n  - install: mmdebstrap\n  - run: [x]\n  - run: [y]\n' >r.yaml
refused "an unknown step for --from" 1 "--from: 'seal' is no step of this recipe" "$QVERITY" build --list --from seal r.yaml
refused "an ambiguous step for --until" 1 "--until: 2 steps are called 'run'" "$QVERITY" build --list --until run r.yaml
refused "an unknown accelerator" 2 "--accel: 'x' is not auto, kvm or tcg" "$QVERITY" build --accel x r.yaml

# The program that has the command is beside this one, or where it was installed.
mkdir alone
cp "$QVERITY" alone/qverity
if ! compgen -G '/usr/*/libexec/qverity/qverity-build' >/dev/null; then
    refused "build without its program" 1 'not installed: qverity-build is neither beside this program nor in /' \
        alone/qverity build r.yaml
fi
: >alone/qverity-build
refused "build with one that is none" 1 '/alone/qverity-build: cannot be started: Permission denied' alone/qverity build r.yaml
printf '#!/bin/sh\necho "$0: $*"\n' >alone/qverity-build
chmod 755 alone/qverity-build
mkdir -p alone/bin alone/libexec/qverity
mv alone/qverity alone/bin/
mv alone/qverity-build alone/libexec/qverity/
is "it is found where it was installed, wherever that is" "$(alone/bin/qverity build x)" \
    "$T/alone/bin/../libexec/qverity/qverity-build: build x"
mv alone/bin/qverity alone/
mv alone/libexec/qverity/qverity-build alone/
is "it gets all arguments" "$(alone/qverity -q build --list 'a b')" "$T/alone/qverity-build: -q build --list a b"
ln -sf qverity alone/qverity-build
refused "build with a link to the other one" 1 'qverity-build: is this program' timeout 10 alone/qverity build r.yaml
refused "another version" 1 'version .*, started by 0.0.0' env QVERITY_STARTED_BY=0.0.0 "$(dirname "$QVERITY")/qverity-build" build r.yaml
finish
