#!/bin/bash
# SPDX-License-Identifier: MIT
# `qverity boot --snp`, `--sev-es` and `--sev`: what QEMU and the host can do, what is checked and told before
# the guest starts, and what is refused. QEMU is a fake one here that claims to have it all.
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=boot-lib.sh
. "$here/boot-lib.sh"

export XDG_CACHE_HOME=$T/cache
python3 "$here/naive_measure.py" ovmf amdsev.fd amdsev
python3 "$here/naive_measure.py" ovmf ovmfx64.fd ovmfx64
head -c 64K /dev/urandom >plain.fd
echo initrd >initrd
root=$("$QVERITY" hash disk.raw --format raw -p disk --no-tree --json | sed -n 's/.*"root_hash": "\([0-9a-f]*\)".*/\1/p')
default="systemd.mask=ssh.service fsck.mode=skip ro console=ttyS0 overlayroot=tmpfs root=/dev/dm-0 rootflags=noload"
create="dm-mod.create=\"dmverity,,0,ro,0 2048 verity 1 /dev/sda /dev/sdb 4096 4096 256 1 sha256 $root $(
    printf %064d 0) 1 panic_on_corruption\""

# The fake QEMU's kinds.
old()
{
    export FAKE_QEMU_VERSION=7.2.22 FAKE_QEMU_OBJECTS=sev-guest FAKE_QEMU_SEV=47
}
upstream()
{
    export FAKE_QEMU_VERSION=9.1.0 FAKE_QEMU_OBJECTS="sev-guest sev-snp-guest" FAKE_QEMU_SEV=47
}
fork()
{
    export FAKE_QEMU_VERSION=8.0.0 FAKE_QEMU_SEV=47
    export FAKE_QEMU_OBJECTS="sev-guest sev-snp-guest memory-backend-memfd-private"
}
boot_args=(disk.raw --format raw -p disk --no-tree --kernel vmlinuz --initrd initrd --accel kvm)
snp=(--snp --bios amdsev.fd)

# argument OPTION: the values of QEMU's option in its last run
argument()
{
    python3 - "$1" qemu.log <<'END2'
import json, sys
for line in open(sys.argv[2]):
    if line.startswith("argv "):
        argv = json.loads(line[5:])
print(*(argv[i + 1] for i in range(len(argv) - 1) if argv[i] == sys.argv[1]))
END2
}

# cbitpos: that of this CPU, or else the one that the fake QEMU tells
cbitpos()
{
    if grep -qw sev /proc/cpuinfo; then
        "$QVERITY" boot "${boot_args[@]}" "${snp[@]}" --snp-dialect upstream --dry-run | grep -o 'cbitpos=[0-9]*'
    else
        echo cbitpos=47
    fi
}

# --- What a QEMU can do ---

guest 'say up\r\n' "wait"
old
ok "a QEMU without SEV-SNP" boot 1 \
    '^qverity: .*fake-qemu.py: QEMU 7.2.22 cannot start SEV-SNP guests: QEMU 9.1 and later can, and AMD.s fork of it$' "${snp[@]}"
ok "nor with a dialect" boot 1 'QEMU 7.2.22 cannot start SEV-SNP guests' "${snp[@]}" --snp-dialect upstream
ok "no matter what firmware" boot 1 'QEMU 7.2.22 cannot start SEV-SNP guests' --snp
ok "it is asked, not started" [ "$(grep -c '^asked none$' qemu.log) $(grep -c system_powerdown qemu.log)" = "3 0" ]
FAKE_QEMU_VERSION=9.1.0 ok "one that could, but was built without it" boot 1 \
    'QEMU 9.1.0 cannot start SEV-SNP guests: it was built without KVM or SEV, and has no sev-snp-guest$' "${snp[@]}"
refused "nor in a dry run, which tells of another way" 1 'cannot start SEV-SNP guests: .*--snp-dialect upstream or amd-fork' \
    "$QVERITY" boot "${boot_args[@]}" "${snp[@]}" --dry-run

guest 'say up\r\n' "wait"
upstream
ok "upstream's" boot 0 '^qverity: launch digest: [0-9a-f]{96}$' "${snp[@]}" --until up
is "is told so" "$(argument -machine | cut -d' ' -f1)|$(argument -object)|$(argument -bios)|$(argument -cpu)" \
    "q35,confidential-guest-support=sev0,memory-backend=ram1,vmport=off|memory-backend-memfd,id=ram1,size=2048M,share=true,prealloc=false sev-snp-guest,id=sev0,$(
        cbitpos),reduced-phys-bits=1,policy=0x30000,kernel-hashes=on|amdsev.fd|EPYC-v4"
ok "is not AMD's fork" boot 1 'QEMU 9.1.0 is not AMD.s fork with memory-backend-memfd-private' "${snp[@]}" --snp-dialect amd-fork
guest 'say up\r\n' "wait"
fork
ok "AMD's fork" boot 0 '^qverity: launch digest: [0-9a-f]{96}$' "${snp[@]}" --until up
is "is told so" "$(argument -machine)|$(argument -object)|$(argument -bios)" \
    "q35 memory-encryption=sev0,vmport=off memory-backend=ram1,kvm-type=protected|memory-backend-memfd-private,id=ram1,size=2048M,share=true sev-snp-guest,id=sev0,$(
        cbitpos),reduced-phys-bits=1,discard=none,kernel-hashes=on|"
like "has its firmware in flash" "$(argument -drive)" '^if=pflash,format=raw,unit=0,file=amdsev.fd,readonly=on '
ok "is not upstream's" boot 1 'QEMU 8.0.0 is AMD.s fork, which does not know the arguments of QEMU 9.1' "${snp[@]}" \
    --snp-dialect upstream
ok "nothing is left" clean

guest 'say up\r\n' "wait"
old
for mode in sev sev-es; do
    policy=0x1
    [ $mode = sev ] || policy=0x5
    ok "--$mode" boot 0 '^qverity: launch digest: [0-9a-f]{64}$' --$mode --bios amdsev.fd --until up
    is "is told to QEMU" "$(argument -machine | cut -d' ' -f1)|$(argument -object)" \
        "q35,confidential-guest-support=sev0,vmport=off|sev-guest,id=sev0,policy=$policy,$(cbitpos),reduced-phys-bits=1,kernel-hashes=on"
    like "with firmware in flash" "$(argument -drive)" '^if=pflash,format=raw,unit=0,file=amdsev.fd,readonly=on '
done
FAKE_QEMU_OBJECTS=iothread
ok "a QEMU without SEV" boot 1 'QEMU 7.2.22 was built without SEV$' --sev --bios amdsev.fd

# --- A QEMU that does not say ---

upstream
export FAKE_QEMU_ASKED='exit'
ok "QEMU fails when it is asked" boot 1 \
    '^qverity: cannot find out what QEMU can do: .*fake-qemu.py ended with exit status 1: fake: cannot do that$' "${snp[@]}"
FAKE_QEMU_ASKED=garbage
ok "it talks nonsense" boot 1 '^qverity: cannot find out what QEMU can do: .*fake-qemu.py: QMP: not a JSON object' "${snp[@]}"
FAKE_QEMU_ASKED=nothing
ok "it does not tell" boot 1 '^qverity: .*fake-qemu.py: does not tell its version and objects as QEMU does$' "${snp[@]}"
FAKE_QEMU_ASKED=silent
ok "it says nothing" boot 1 '^qverity: cannot find out what QEMU can do: .*fake-qemu.py: does not answer within 10 seconds$' "${snp[@]}"
unset FAKE_QEMU_ASKED
ok "there is no such QEMU" env QVERITY_QEMU="$T/none" bash -c '"$0" boot "$@" 2>&1 | grep -q "none: cannot run: No such file"' \
    "$QVERITY" "${boot_args[@]}" "${snp[@]}"
FAKE_QEMU_SEV="SEV is not enabled in KVM"
ok "a host without SEV" boot 1 \
    '^qverity: the host cannot start encrypted guests: .*fake-qemu.py says: SEV is not enabled in KVM$' "${snp[@]}"
ok "nothing is left" clean

# --- Digests ---

guest 'say up\r\n' "wait"
upstream
digest()
{
    sed -n 's/^qverity: launch digest: //p' "$1"
}
ok "a guest starts" boot 0 'launch digest' "${snp[@]}" --until up --cpus 3 --cpu EPYC-Milan-v2,+invtsc --guest-features 0x21
is "its digest is that of measure" "$(digest err)" "$("$QVERITY" measure --mode snp --ovmf amdsev.fd --kernel vmlinuz \
    --initrd initrd --append "$default $create" --vcpus 3 --vcpu-type EPYC-Milan-v2 --guest-features 0x21)"
ok "by default" boot 0 'launch digest' "${snp[@]}" --until up
is "it is that of 2 EPYC-v4" "$(digest err)" "$("$QVERITY" measure --mode snp --ovmf amdsev.fd --kernel vmlinuz \
    --initrd initrd --append "$default $create" --vcpus 2 --vcpu-type EPYC-v4)"
is "and that of a manifest" "$(digest err)" "$("$QVERITY" manifest disk.raw --format raw -p disk --no-tree --kernel vmlinuz \
    --initrd initrd --ovmf amdsev.fd | sed -n 's/.*"launch_digest": "\([0-9a-f]*\)".*/\1/p')"
expected=$(digest err)
ok "-v tells what it is made of" timeout $((60 * patience)) bash -c '"$@" >out 2>err' - "$QVERITY" boot "${boot_args[@]}" "${snp[@]}" --until up -v
like "all of it" "$(tr '\n' '|' <err)" "Kernel: +vmlinuz\|.*Initrd: +initrd\|.*Command line: .*$root.*vCPUs: +2, .*VMSA 1: .*launch digest: $expected"
ok "-q tells nothing" boot 0 '^$' "${snp[@]}" --until up -q
guest "exit 1"
ok "a guest fails at once" boot 1 "ended with exit status 1$" "${snp[@]}"
is "its digest was told before" "$(head -n 1 err)" "qverity: launch digest: $expected"
guest 'say up\r\n' "wait"
for mode in sev:sev sev-es:seves; do
    ok "--${mode%:*}" boot 0 'launch digest' "--${mode%:*}" --bios amdsev.fd --until up
    is "its digest is that of measure" "$(digest err)" "$("$QVERITY" measure --mode "${mode#*:}" --ovmf amdsev.fd \
        --kernel vmlinuz --initrd initrd --append "$default $create" --vcpus 2 --vcpu-type EPYC-v4)"
done
ok "nothing is left" clean

# --- What the attestation stands for ---

base64()
{
    xxd -r -p <<<"$1" | command base64 -w 0
}
guest 'say up\r\n' "wait"
ok "the root hash as host data" boot 0 'launch digest' "${snp[@]}" --until up --no-dm-init --append ro --host-data root-hash
like "goes to QEMU" "$(argument -object)" ",host-data=$(base64 "$root" | sed 's/[+]/[+]/g')$"
ok "or given" boot 0 'launch digest' "${snp[@]}" --until up --no-dm-init --append ro --host-data "$root"
ok "or on a command line of one's own" boot 0 'launch digest' "${snp[@]}" --until up --no-dm-init --append "roothash=$root"
other=$(printf %064d 7)
ok "something else beside it" boot 0 'launch digest' "${snp[@]}" --until up --host-data "$other"
like "goes to QEMU, too" "$(argument -object)" ",host-data=$(base64 "$other")$"
ok "but not instead of it" boot 1 'root hash' "${snp[@]}" --no-dm-init --append ro --host-data "$other"
ok "nor nothing" boot 1 'root hash' "${snp[@]}" --no-dm-init --append ro
ok "nor for SEV" boot 1 'root hash' --sev --bios amdsev.fd --no-dm-init --append ro
is "no such guest was started" "$(grep -c '^argv .*id=sev0' qemu.log)" 4
ok "a root hash that is too long for it" boot 1 'host-data root-hash: the root hash has 64 bytes, and host data 32' "${snp[@]}" \
    --host-data root-hash --hash sha512
ok "nothing is left" clean

# --- ID blocks ---

openssl ecparam -name secp384r1 -genkey -noout -out key.pem 2>/dev/null
identity=(--mode snp --ovmf amdsev.fd --kernel vmlinuz --initrd initrd --append "$default $create" --vcpus 2 --vcpu-type EPYC-v4
    --id-key key.pem)
"$QVERITY" measure "${identity[@]}" --id-block block --id-auth auth >/dev/null
"$QVERITY" measure "${identity[@]}" --author-key key.pem --id-block block2 --id-auth auth2 >/dev/null
openssl ecparam -name secp384r1 -genkey -noout -out other.pem 2>/dev/null
"$QVERITY" measure "${identity[@]}" --id-key other.pem --append other --id-block other --id-auth other-auth >/dev/null
guest 'say up\r\n' "wait"
ok "an ID block" boot 0 'launch digest' "${snp[@]}" --until up --id-block block --id-auth auth
is "goes to QEMU" "$(argument -object | sed 's/.*kernel-hashes=on//')" ",id-block=$(cat block),id-auth=$(cat auth)"
ok "with an author" boot 0 'launch digest' "${snp[@]}" --until up --id-block block2 --id-auth auth2
is "goes to QEMU" "$(argument -object | sed 's/.*kernel-hashes=on//')" \
    ",id-block=$(cat block2),id-auth=$(cat auth2),author-key-enabled=on"
command base64 -d <block2 >block.bin
command base64 -d <auth2 >auth.bin
fork
ok "as bytes, and to AMD's fork" boot 0 'launch digest' "${snp[@]}" --until up --id-block block.bin --id-auth auth.bin
is "which has another name for it" "$(argument -object | sed 's/.*kernel-hashes=on//')" \
    ",id-block=$(cat block2),id-auth=$(cat auth2),auth-key-enabled=on"
upstream
guest 'say up\r\n' "wait"
ok "not one of another guest, which the processor would refuse" boot 1 \
    "^qverity: --id-block: the ID block is for a guest with the launch digest $(head -c 48 block.bin | od -An -v -tx1 | tr -d ' \n')$" \
    "${snp[@]}" --cpus 3 --id-block block --id-auth auth
ok "nor for another policy" boot 1 '^qverity: --id-block: the ID block is for the policy 0x30000, and the guest.s is 0x30001$' \
    "${snp[@]}" --policy 0x30001 --id-block block --id-auth auth
ok "nor with another one's signature" boot 1 '^qverity: --id-block: the ID key: its signature is not right$' \
    "${snp[@]}" --id-block block --id-auth other-auth
is "none of them was started" "$(grep -c '"-smp"' qemu.log)" 0
ok "not one that is none" boot 1 '^qverity: --id-block: auth: ' "${snp[@]}" --id-block auth --id-auth block
ok "nothing is left" clean

# --- Firmware and CPUs ---

ok "firmware without SEV metadata" boot 1 '^qverity: plain.fd: ' --snp --bios plain.fd
ok "firmware that does not check the kernel" boot 1 'ovmfx64.fd: .*kernel hashes.*AmdSev' --snp --bios ovmfx64.fd
ok "neither for SEV" boot 1 'ovmfx64.fd: .*kernel hashes.*AmdSev' --sev --bios ovmfx64.fd
ok "a CPU that nobody can measure" boot 1 '^qverity: --cpu Nehalem: its launch digest is not known: ' "${snp[@]}" --cpu Nehalem
boot_args=(disk.raw --format raw -p disk --no-tree --accel kvm)
guest 'say up\r\n' "wait"
ok "without a kernel other firmware will do" boot 0 'launch digest' --snp --bios ovmfx64.fd --kernel none --host-data root-hash --until up
is "its digest is that of measure" "$(digest err)" \
    "$("$QVERITY" measure --mode snp --ovmf ovmfx64.fd --vcpus 2 --vcpu-type EPYC-v4)"
ok "but the root hash must be somewhere" boot 1 'root hash' --snp --bios ovmfx64.fd --kernel none
boot_args=(disk.raw --format raw -p disk --no-tree --kernel vmlinuz --accel kvm)
ok "nothing is left" clean

# --- What does not go together ---

refuse()
{
    local description=$1 regex=$2
    shift 2
    refused "$description" 2 "$regex" "$QVERITY" boot disk.raw --format raw -p disk --no-tree --kernel vmlinuz --dry-run "$@"
}
refuse "two modes" 'exclude each other' --snp --sev --bios amdsev.fd
refuse "--writable" 'SEV-SNP and --writable exclude each other' "${snp[@]}" --writable
refuse "--writable with SEV" 'SEV and --writable exclude each other' --sev --bios amdsev.fd --writable
refuse "--no-verity" 'SEV-SNP and --no-verity exclude each other' "${snp[@]}" --no-verity
refuse "emulation" 'SEV-SNP needs KVM, not --accel tcg' "${snp[@]}" --accel tcg
for argument in -cpu --smp -kernel -initrd -append -bios -pflash; do
    refuse "$argument behind --" "boot: $argument behind -- is not in the launch digest" "${snp[@]}" -- $argument x
done
refuse "no firmware" 'SEV-SNP needs OVMF as its firmware: --bios FILE .*AmdSevX64' --snp --snp-dialect upstream
refuse "firmware in two files" 'SEV-SNP takes firmware in one image' --snp --ovmf-code amdsev.fd
refuse "half an identity" 'id-block and --id-auth go together' "${snp[@]}" --id-block amdsev.fd
for option in --guest-features=1 --host-data=root-hash --id-block=amdsev.fd --id-auth=amdsev.fd; do
    refuse "${option%=*} without --snp" "${option%=*} needs --snp" --sev --bios amdsev.fd "$option"
done
refuse "--policy for no guest" 'policy needs --snp, --sev-es or --sev' --policy 1
refuse "a policy that there cannot be" 'policy: 0x10000 is no policy of SEV-SNP: bit 17' "${snp[@]}" --policy 0x10000
refuse "SEV's policy for SEV-ES" 'policy: 0x1 does not ask for SEV-ES' --sev-es --bios amdsev.fd --policy 1
refuse "SEV-ES's policy for SEV" 'policy: 0x5 asks for SEV-ES' --sev --bios amdsev.fd --policy 5
refuse "a policy of too many bits" 'policy: 0x100000001 is no policy of SEV' --sev --bios amdsev.fd --policy 0x100000001
refuse "host data of 31 bytes" 'host-data: 31 bytes, not 32' "${snp[@]}" --host-data "$(printf %062d 0)"
refuse "host data of 33 bytes" 'host-data: 33 bytes, but 32' "${snp[@]}" --host-data "$(printf %066d 0)"
refuse "host data that is none" 'host-data: character 1 is not a hex digit' "${snp[@]}" --host-data root_hash
refuse "a dialect that there is not" "snp-dialect: 'ours' is not auto, upstream or amd-fork" "${snp[@]}" --snp-dialect ours

is "a dry run only warns of firmware" "$("$QVERITY" boot disk.raw --format raw -p disk --no-tree --kernel vmlinuz --snp \
    --snp-dialect upstream --bios vmlinuz --dry-run 2>&1 >/dev/null | grep -c '^qverity: warning: vmlinuz: ')" 1
is "what a script can is not kept" "$(ls cache/qverity 2>/dev/null)" ""
finish
