#!/bin/bash
# SPDX-License-Identifier: MIT
# Manifests: every member is what another command or program says of the same guest; equal inputs give equal
# bytes; and what is refused.
. "$(dirname "$0")/lib.sh"
require python3 mke2fs sfdisk

manifest()
{
    "$QVERITY" manifest "$@"
}
# member FILE PATH: of a JSON file, by a Python expression behind the object
member()
{
    python3 -c 'import json, sys; print(eval("json.load(open(sys.argv[1]))" + sys.argv[2]))' "$1" "$2"
}

# A disk with an EFI partition and a system, whose /boot has two kernels.
mkdir -p root/boot root/etc
head -c 300000 /dev/urandom >root/boot/vmlinuz-6.1.0-9-x
head -c 200000 /dev/urandom >root/boot/initrd.img-6.1.0-9-x
head -c 100000 /dev/urandom >root/boot/vmlinuz-6.1.0-10-x
head -c 400000 /dev/urandom >root/boot/initrd.img-6.1.0-10-x
truncate -s 40M disk.raw
sfdisk -q disk.raw <<'END'
label: gpt
start=2048, size=4096, type=uefi
start=8192, size=65536, type=linux
END
mke2fs -q -t ext4 -d root -E offset=$((8192 * 512)) disk.raw 32M 2>mke2fs.err || note "$(cat mke2fs.err)"
dd if=disk.raw of=part2 bs=512 skip=8192 count=65536 status=none
python3 "$here/naive_measure.py" ovmf amdsev.fd amdsev 4
python3 "$here/naive_measure.py" ovmf ovmfx64.fd ovmfx64
image=(disk.raw --format raw)
new=root/boot/vmlinuz-6.1.0-10-x
sha()
{
    sha256sum <"$1" | cut -d' ' -f1
}

# --- The parts of it ---

manifest "${image[@]}" --ovmf amdsev.fd --vcpus 1,3-4 --vcpu-type EPYC-v4,EPYC-Genoa >m.json
root_hash=$(python3 "$here/naive_verity.py" root part2)
is "the root hash" "$(member m.json "['root_hash']")" "$root_hash"
is "of the disk" "$(member m.json "['disk']")" \
    "{'type': 'dm_verity', 'hash': '$root_hash', 'size': 33554432, 'partition': 2}"
"$QVERITY" hash "${image[@]}" --json >hash.json
cat >same.py <<'END'
import json
manifest, of_hash = json.load(open('m.json'))['verity'], json.load(open('hash.json'))
assert manifest == {k: of_hash[k] for k in manifest}
assert set(of_hash) - set(manifest) <= {'method', 'data_bytes_hashed', 'zero_blocks', 'seconds'}
END
ok "verity is what hash says, but for how it was computed" python3 same.py
is "the newest kernel" "$(member m.json "['kernel']")" \
    "{'file': 'image:/boot/vmlinuz-6.1.0-10-x', 'sha256': '$(sha $new)'}"
is "its initrd" "$(member m.json "['initrd']")" \
    "{'file': 'image:/boot/initrd.img-6.1.0-10-x', 'sha256': '$(sha root/boot/initrd.img-6.1.0-10-x)'}"
is "the firmware" "$(member m.json "['ovmf']")" \
    "{'file': 'amdsev.fd', 'sha256': '$(sha amdsev.fd)', 'size': 16384, 'snp_hash': '$("$QVERITY" measure --mode snp:ovmf-hash --ovmf amdsev.fd)'}"
line=$(member m.json "['command_line']")
"$QVERITY" boot "${image[@]}" --accel tcg --dry-run >argv
eval "set -- $(cat argv)"
while [ "$1" != -append ]; do shift; done
is "the command line is boot's" "$line" "$2"

# digests: count, model and digest of each
digests()
{
    python3 -c '
import json, sys
for d in json.load(open(sys.argv[1]))["launch_digests"]:
    print(d["mode"], d["vmm"], d.get("vcpus"), d.get("vcpu_type"), d.get("guest_features"), d["launch_digest"])' "$1"
}
files=(--ovmf amdsev.fd --kernel "$new" --initrd root/boot/initrd.img-6.1.0-10-x --append "$line")
for vcpus in 1 3 4; do
    for type in EPYC-v4 EPYC-Genoa; do
        echo "snp qemu $vcpus $type 1 $("$QVERITY" measure --mode snp "${files[@]}" --vcpus $vcpus --vcpu-type $type)"
    done
done >expected
same "launch digests for all numbers and models" <(digests m.json) expected

manifest "${image[@]}" --ovmf amdsev.fd --mode seves --vcpus 2 >m.json
is "of SEV-ES" "$(digests m.json)" \
    "seves qemu 2 EPYC-v4 None $("$QVERITY" measure --mode seves "${files[@]}" --vcpus 2 --vcpu-type EPYC-v4)"
manifest "${image[@]}" --ovmf amdsev.fd --mode sev --vcpus 1-20 >m.json
is "of SEV, one" "$(digests m.json)" "sev qemu None None None $("$QVERITY" measure --mode sev "${files[@]}")"
manifest "${image[@]}" --ovmf amdsev.fd --vmm gce --guest-features 0x21 >m.json
is "of GCE" "$(digests m.json)" \
    "snp gce 2 None 33 $("$QVERITY" measure --mode snp --vmm gce "${files[@]}" --vcpus 2 --guest-features 0x21)"

# --- Other inputs ---

manifest "${image[@]}" --kernel root/boot/vmlinuz-6.1.0-9-x --append 'console=ttyS0' --json >m.json
is "a kernel of the host, and no initrd" "$(member m.json "['kernel']['sha256']") $(member m.json "['initrd']")" \
    "$(sha root/boot/vmlinuz-6.1.0-9-x) None"
like "behind a command line of one's own comes dm-verity" "$(member m.json "['command_line']")" \
    "^console=ttyS0 dm-mod.create=\"dmverity,,0,ro,0 65536 verity 1 /dev/sda2 .*$root_hash"
is "without firmware there are no digests" "$(member m.json "['ovmf']") $(member m.json "['launch_digests']")" 'None []'
manifest "${image[@]}" -p disk --kernel image:/boot/vmlinuz-6.1.0-9-x --initrd none --salt - --hash sha512 >m.json
is "parameters of another tree" \
    "$(member m.json "['root_hash']") $(member m.json "['disk']['partition']") $(member m.json "['initrd']")" \
    "$(python3 "$here/naive_verity.py" root disk.raw hash=sha512 salt=) 0 None"

manifest "${image[@]}" --ovmf amdsev.fd >first.json
manifest "${image[@]}" --ovmf amdsev.fd >second.json
same "equal inputs, equal bytes, with a tree file" first.json second.json
manifest "${image[@]}" --ovmf amdsev.fd --no-tree --threads 1 >second.json
same "and without" first.json second.json

manifest "${image[@]}" --ovmf amdsev.fd --no-dm-init --append ro >m.json 2>warning
like "a command line that does not bind the disk" "$(cat warning)" \
    "^qverity: warning: the root hash $root_hash is neither on the measured command line"
is "is none the less what was asked for" "$(member m.json "['command_line']")" ro

manifest "${image[@]}" --ovmf amdsev.fd --append $'caf\xe9' >m.json
is "of one that is not UTF-8 there are the bytes, too" "$(member m.json "['command_line_hex']" | head -c 10)" 636166e920
files[-1]=$(member m.json "['command_line_hex']" | xxd -r -p)
like "which are what is measured" "$(digests m.json)" "$("$QVERITY" measure --mode snp "${files[@]}" --vcpus 2 --vcpu-type EPYC-v4)"
refused "Blyss's shape has no place for them" 1 '^qverity: --as blyss: the command line is not UTF-8$' \
    "$QVERITY" manifest "${image[@]}" --ovmf amdsev.fd --append $'caf\xe9' --as blyss

# --- Blyss's shape ---

line="systemd.mask=ssh.service fsck.mode=skip ro console=ttyS0 overlayroot=tmpfs root=/dev/dm-0 rootflags=noload $(member first.json "['verity']['dm_mod_create']")"
line+=' blyss_shim_docker_img="--env A=b --privileged blintzbase/shim@sha256:00" blyss_ui_docker_img="--env '"'X=y z'"' blintzbase/chatui"'
line+=' "blyss_docker_img=vllm/vllm-openai@sha256:d4 --model mistralai/Mistral-7B"'
manifest "${image[@]}" --ovmf amdsev.fd --no-dm-init --append "$line" --as blyss --author Blyss >blyss.json
cat >expected <<END
{
  "version": "0.0.1",
  "author": "Blyss",
  "requirements": {
    "application": "vllm/vllm-openai",
    "ui": "blintzbase/chatui",
    "shim": "blintzbase/shim",
    "firmware": {
      "name": "6.1.0-10-x",
      "disk": {
        "type": "dm_verity",
        "hash": "$root_hash",
        "size": 33554432
      },
      "ovmf": "$(sha amdsev.fd)",
      "kernel": "$(sha $new)",
      "initrd": "$(sha root/boot/initrd.img-6.1.0-10-x)"
    },
    "security": "systemd.mask=ssh.service"
  }
}
END
same "as blyss" blyss.json expected
manifest "${image[@]}" --ovmf amdsev.fd --as blyss --initrd none --kernel $new >blyss.json
is "what is not on the command line is null" \
    "$(member blyss.json "['requirements']['application']") $(member blyss.json "['requirements']['firmware']['initrd']")" 'None None'

# --- What is refused ---

while IFS='|' read -r code arguments message; do
    # shellcheck disable=SC2086
    refused "refused: $arguments" "$code" "^qverity: $message" "$QVERITY" manifest disk.raw --format raw $arguments
done <<'END'
1|--ovmf ovmfx64.fd|ovmfx64.fd: has no section for kernel hashes
1|--ovmf missing.fd|missing.fd: cannot open
1|--kernel missing|.*missing.*No such file
1|--kernel image:/boot/missing|--kernel: disk.raw: /boot/missing: No such file
1|--append "open|.*quote
1|--ovmf amdsev.fd --as blyss --hash sha512|--as blyss: cannot tell of --hash
1|--ovmf amdsev.fd --as blyss --salt 00|--as blyss: cannot tell of --salt
1|--ovmf amdsev.fd --as blyss --data-block-size 1024|--as blyss: cannot tell of --data-block-size
1|--ovmf amdsev.fd --as blyss --no-superblock|--as blyss: cannot tell of where the hash area begins
2|--append dm-mod.create=x|.*dm-mod.create
2|--mode snp|manifest: launch digests take --ovmf FILE
2|--vcpus 2|manifest: launch digests take --ovmf FILE
2|--as blyss|manifest: --as blyss takes --ovmf FILE
2|--as xml|manifest: --as: 'xml' is not qverity or blyss
2|--kernel none|manifest: --kernel none: a manifest is of a guest that is started with a kernel
2|--author me|manifest: --author is for --as blyss
2|--ovmf amdsev.fd --vmm ec2 --vcpu-type EPYC|manifest: --vcpu-type is for --vmm qemu
2|--ovmf amdsev.fd --vcpu-type EPYC,|manifest: --vcpu-type: '' is none of EPYC
2|--ovmf amdsev.fd --vcpus 1,,2|manifest: --vcpus: '' is not a number
2|--ovmf amdsev.fd --vcpus 4-2|manifest: --vcpus: 4 to 2 is no range
2|--ovmf amdsev.fd --vcpus 1-65|manifest: --vcpus: more than 64 numbers
2|--ovmf amdsev.fd --vcpus 0|manifest: --vcpus: '0' is not between 1 and 4096
2|--ovmf amdsev.fd --mode snp:ovmf-hash|manifest: --mode: 'snp:ovmf-hash' is no mode
END
finish
