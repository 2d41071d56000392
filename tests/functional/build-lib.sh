# shellcheck shell=bash
# What the tests of `qverity build` share; source it after lib.sh. mmdebstrap is played by a script that
# leaves a tree of a few programs of this machine, so that a build takes a second and no network.
# shellcheck disable=SC2154

[ "$(id -u)" -eq 0 ] || skip_all "building a tree needs root"
require qemu-img mke2fs e2fsck mkfs.vfat sfdisk debugfs

# make_tree DIR: a system that programs can be run in by chroot.
make_tree()
{
    local program file
    mkdir -p "$1"/{bin,boot,dev,etc,proc,root,run,sys,tmp,usr/sbin,var/log,var/tmp,lib/modules}
    for program in sh cat tar find test true false sleep mkdir rm touch cp ln chmod id env mount; do
        file=$(realpath "$(type -P $program)")
        cp "$file" "$1/bin/$program"
        ldd "$file" | grep -o '/[^ ]*' | while read -r file; do
            mkdir -p "$1$(dirname "$file")"
            [ -e "$1$file" ] || cp "$(realpath "$file")" "$1$file"
        done
    done
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\n' >"$1/etc/group"
    printf 'root:*:19999:0:99999:7:::\ndaemon:*:0:0:99999:7:::\n' >"$1/etc/shadow"
}

# Puts a mmdebstrap in front of the real one, which copies $T/template and counts its calls in $T/installs.
play_mmdebstrap()
{
    mkdir -p "$T/fake"
    cat >"$T/fake/mmdebstrap" <<END
#!/bin/bash
cat >/dev/null
tree=\${@: -2:1}
echo "\$*" >>"$T/installs"
cp -a "$T/template" "\$tree"
END
    chmod 755 "$T/fake/mmdebstrap"
    export PATH=$T/fake:$PATH
    : >"$T/installs"
}

# build ARG…: runs the build; its output is in the files `out` and `err`.
build()
{
    "$QVERITY" build "$@" >out 2>err </dev/null
}

# A time to sleep that no other test sleeps, so that its processes can be told.
nap=$((100000000 + $$))

# What is left of a build that is over: itself, the sleep of a recipe, mounts below $T.
left_behind()
{
    local pid
    pgrep -af "sleep $nap"
    for pid in $(pgrep -f 'qverity build '); do
        [ "$(readlink "/proc/$pid/cwd")" != "$T" ] || echo "still running: $pid"
    done
    grep -F "$T/" /proc/self/mounts
}
