#!/bin/bash
# SPDX-License-Identifier: MIT
# blyss.yaml from a blank disk to a guest that boots verified, unattended: an installer from its CD, a guest that
# is set up by SSH with a real kernel's packages, sealed, hashed and described. Emulated; all of it takes about fifteen
# minutes on two CPUs. What is replaced of the recipe:
#
#   - the ISO: the tests' own (tests/guest/installer), which does what Ubuntu's does with the recipe's user-data, but
#     has the system on its CD; with no_timer_check, as an emulated timer may be late;
#   - the kernel: the newest one for clouds of the distribution's mirrors, as .deb packages; so the files that are
#     fetched have other names;
#   - 8 GiB of memory: 1 GiB;
#   - Docker's and NVIDIA's apt repositories: one of stand-in packages, which is put into the guest;
#   - one step is added, which plants words in logs, histories and files that are deleted.
#
# The build is killed in three of its steps and begun again; with QVERITY_TEST_LONG=1, in all of them. Another one, which
# nobody kills, runs meanwhile: in the end both images have the same content. With QVERITY_TEST_SAMPLE there is none, and
# it takes ten minutes.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
. "$top/tests/guest/installer.sh"
require jq pgrep setsid ssh-keygen
[ -e /dev/fuse ] || skip_all "there is no /dev/fuse"
installer_need

# --- Stand-ins for Docker's and NVIDIA's packages ---

# stand_in NAME: a package with the files of ./package
stand_in()
{
    local deb=repository/$1.deb
    mkdir -p package/DEBIAN repository
    printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a stand-in\n' "$1" \
        >package/DEBIAN/control
    dpkg-deb --root-owner-group -Znone -b package "$deb" >/dev/null
    dpkg-deb -f "$deb" >>repository/Packages
    printf 'Filename: ./%s.deb\nSize: %s\nSHA256: %s\n\n' "$1" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d ' ' -f 1)" \
        >>repository/Packages
    rm -r package
}
for name in containerd.io docker-ce-cli fuse-overlayfs; do stand_in $name; done
mkdir -p package/usr/bin
printf '#!/bin/sh\nexit 0\n' >package/usr/bin/curl
chmod 755 package/usr/bin/curl
stand_in curl
mkdir -p package/usr/bin package/lib/systemd/system
cat >package/usr/bin/docker <<'END_OF_DOCKER'
#!/bin/sh
echo "docker $*" >/dev/console
case " $* " in *" app:7 "*) echo "the app runs" >/dev/console; exec sleep infinity ;; esac
END_OF_DOCKER
cat >package/lib/systemd/system/docker.service <<'END_OF_UNIT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
END_OF_UNIT
chmod 755 package/usr/bin/docker
stand_in docker-ce
mkdir -p package/usr/bin
cat >package/usr/bin/nvidia-ctk <<'END_OF_CTK'
#!/bin/sh
echo "$*" >/etc/docker/nvidia-ctk-was-here
END_OF_CTK
chmod 755 package/usr/bin/nvidia-ctk
stand_in nvidia-container-toolkit

# --- The recipe ---

cp -r "$top/provision/recipes/blyss" "$top/provision/recipes/blyss.yaml" .
ln -s "$installer_iso" ubuntu-22.04.2-live-server-amd64.iso
mkdir debs
cp "$installer"/debs/*.deb debs/
version=$(dpkg-deb -f debs/*.deb Package)
version=${version#linux-image-}
sed -i -e 's/memory: 8G/memory: 1G/' -e "s/-\*snp-guest\*/-$version/" \
    -e "s|^    user-data: .*|&\n    append: console=ttyS0 earlyprintk=serial autoinstall ds=nocloud-net;s=@URL@ no_timer_check|" \
    -e "s|^    run: \[/usr/local/sbin/blyss-setup\]|&\n    environment: [DOCKER_KEY=none, 'DOCKER_SOURCE=file:/srv/stand-ins ./', NVIDIA_KEY=none, 'NVIDIA_SOURCE=file:/srv/stand-ins ./']|" \
    -e 's|^      - {from: blyss/daemon.json.*|&\n      - {from: repository, to: /srv/stand-ins}|' \
    -e 's|^  - seal: .*|  - seal: {remove: [/usr/local/sbin/blyss-setup, /srv/stand-ins/**]}|' blyss.yaml
# In front of the second shutdown.
cat >plant <<'END_OF_STEP'
  - name: plant
    run:
      - [sh, -c, 'echo PLANTED-WORD-1 >>/root/.bash_history; echo PLANTED-WORD-2 >>/home/guest/.bash_history']
      - [sh, -c, 'mkdir -p /var/log/journal; journalctl --flush; logger PLANTED-WORD-4; journalctl --sync']
      - [sh, -c, 'echo PLANTED-WORD-3 >>/var/log/auth.log']
      - [sh, -c, 'yes PLANTED-WORD-5 | head -c 3000000 >/usr/deleted; sync; rm /usr/deleted']
      - [sh, -c, 'echo PLANTED-WORD-6 >/etc/overwritten; sync; echo new >/etc/overwritten']
END_OF_STEP
line=$(grep -n '^  - shutdown' blyss.yaml | tail -n 1 | cut -d : -f 1)
sed -i "$((line - 1))r plant" blyss.yaml

# build ARG…
build()
{
    "$QVERITY" build --accel tcg --work work "$@" blyss.yaml >out 2>err </dev/null
}
guests()
{
    pgrep -af "qemu-syste[m].*$T/work"
}
# reached STEP: the build has begun the step (or its guest, of install), or has ended
reached()
{
    kill -0 $pid 2>/dev/null || return 0
    grep -q "^\[$1/" err && { [ "$1" -ne 2 ] || grep -q qemu-system work/steps/02-install/log 2>/dev/null; }
}
no_guests()
{
    [ -z "$(guests)" ]
}
# build_killed STEP: kills the build when it has begun the step
build_killed()
{
    "$QVERITY" build --accel tcg --work work blyss.yaml >out 2>err </dev/null &
    pid=$!
    t_kill_later $pid
    until_true 7200 reached "$1"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    is "the build is killed in step $1" $? 137
    t_pids=(${whole:+"$whole"})
    until_true 60 no_guests
    is "and leaves no guest" "$(guests)" ''
    [ $t_failed -eq 0 ] || give_up
}

# What comes next takes long, and needs this.
give_up()
{
    note "$(tail -n 3 err)"
    note "$(tail -n 5 work/steps/*/console | tr -d '\r')"
    finish
}

# --- From nothing to an image that is not yet sealed ---

whole=
if [ -z "${QVERITY_TEST_SAMPLE:-}" ]; then
    "$QVERITY" build --accel tcg --work whole blyss.yaml >whole.out 2>whole.err </dev/null &
    whole=$!
    t_kill_later $whole
fi
kills=(2 5 15)
[ -z "${QVERITY_TEST_LONG:-}" ] || kills=({2..16})
last=$(grep -n 'shutdown' <(grep '^  - ' blyss.yaml) | tail -n 1 | cut -d : -f 1)
for step in "${kills[@]}"; do
    if [ "$step" -le "$last" ]; then
        build_killed "$step"
        killed=$step
    fi
done
like "the installer asked for what it is to do" "$(cat work/steps/02-install/log)" '3 requests of the installer were answered'
build --until "$last"
is "a system is installed, boots by itself, gets another kernel and is set up" $? 0
[ $t_failed -eq 0 ] || give_up
like "in the end, the build went on in the step that was killed" "$(grep 'done already' err | tail -n 1)" "^\[$((killed - 1))/16\] "
public=$(ssh-keygen -y -f work/key | cut -d ' ' -f 2)
host=$(ssh-keygen -y -f work/host-key | cut -d ' ' -f 2)
# In one line with all else of the key.
private=$(sed -n 2p work/key | cut -c 150-200)
host_private=$(sed -n 2p work/host-key | cut -c 150-200)
is "there are private keys to look for" "${#private} ${#host_private}" '51 51'
# words FILE…: which of the words and keys the files have in some block
words()
{
    cat "$@" | grep -aoF --regexp=PLANTED-WORD-{1..6} -e "$public" -e "$private" -e "$host" -e "$host_private" | sort -u | wc -l
}
is "before the seal, the words and all keys but the build's private one are there" "$(words work/steps/*/disk.qcow2)" 9
for step in "${kills[@]}"; do
    [ "$step" -le "$last" ] || build_killed "$step"
done
build
is "the image is sealed, hashed and described" $? 0
[ $t_failed -eq 0 ] || give_up
is "no block of it has a word of them" "$(words work/disk.qcow2)" 0
is "no key is left" "$(find work -maxdepth 1 -name '*key*')" ''
root=$(sed -n 's/^Root hash: *//p' out)
is "the manifest has the root hash" "$(jq -r .root_hash work/manifest.json)" "$root"
is "the kernel is the packages'" "$(sha256sum <work/vmlinuz)" \
    "$(dpkg-deb --fsys-tarfile debs/*.deb | tar -xO "./boot/vmlinuz-$version" | sha256sum)"
same "the boot loader's link leads to its initramfs" work/initrd.img <("$QVERITY" cat work/disk.qcow2:/initrd.img)
"$QVERITY" cp -q work/disk.qcow2:/etc/docker/daemon.json work/disk.qcow2:/etc/docker/nvidia-ctk-was-here . 2>/dev/null
same "files that were copied are in it" daemon.json blyss/daemon.json
is "the setup script was run" "$(cat nvidia-ctk-was-here)" 'runtime configure --runtime=docker'

# --- The same content as that of the build that nobody killed ---

# contents IMAGE: a line for each file: what it is, whose, and what it holds. Times are those of the build; and the boot
# loader's own file has the places of its blocks in it.
contents()
{
    "$QVERITY" ls -lR --json "$1:/" | jq -r '.entries[] | [.path, .type, .permissions, .uid, .gid, .links,
        if .type == "directory" then "-" else .size end, .target // "-"] | map(tostring) | join("\t")' | sort
    rm -rf copy
    "$QVERITY" cp -qr "$1:/" copy 2>/dev/null
    (cd copy && find . -type f ! -path ./boot/extlinux/ldlinux.sys -print0 | sort -z | xargs -0 sha256sum)
}
if [ -n "$whole" ]; then
    wait $whole
    is "the build that nobody killed ends well, too" $? 0
    t_pids=()
    contents work/disk.qcow2 >contents
    contents whole/disk.qcow2 >contents.whole
    ok "thousands of files are compared" [ "$(wc -l <contents)" -gt 10000 ]
    same "both images have the same content" contents contents.whole
    [ $t_failed -eq 0 ] || note "$(diff contents contents.whole | head -n 60)"
fi

# --- Booted ---

"$QVERITY" boot work/disk.qcow2 --accel tcg --kernel work/vmlinuz --initrd work/initrd.img --memory 1G \
    --append "$(guest_append) blyss_shim_docker_img=\"shim:1\" blyss_docker_img=\"app:7 x\"" \
    --until 'docker run.*app:7' --timeout $((900 * patience)) --console console >stdout 2>stderr </dev/null
is "the guest boots on dm-verity and runs what its command line says" $? 0
like "its kernel verifies what it reads" "$(cat console)" 'qverity: dm-verity is up: dmverity'
like "it is the new kernel" "$(cat console)" "Linux version $version"
[ $t_failed -eq 0 ] || guest_note
finish
