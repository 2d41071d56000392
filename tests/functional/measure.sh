#!/bin/bash
# SPDX-License-Identifier: MIT
# Launch digests: equal to a calculation of its own, and to what sev-snp-measure publishes; what is told of
# them; ID blocks; and what is refused.
. "$(dirname "$0")/lib.sh"
require python3 openssl

naive()
{
    python3 "$here/naive_measure.py" "$@"
}
measure()
{
    "$QVERITY" measure "$@"
}

# --- Against the naive calculation ---

mkdir inputs
naive cases inputs >list || fail "naive_measure.py"
count=0
wrong=0
while IFS=$'\x1f' read -ra fields; do
    count=$((count + 1))
    # The last is a mark: an empty field at the end would be lost.
    fields=("${fields[@]:0:${#fields[@]}-1}")
    got=$(measure "${fields[@]:1}" 2>&1)
    [ "$got" = "${fields[0]}" ] && continue
    wrong=$((wrong + 1))
    note "got:      $got"
    note "expected: ${fields[0]}"
    note "command:  $(printf '%q ' "${fields[@]:1}")"
done <list
is "$count digests equal the naive calculation's" "$wrong" 0
ok "there are many" [ "$count" -ge 90 ]

# --- Published digests ---

# edk2-stable202405's two builds, with the hashes of their own pages: what else is measured of them, the
# images made here have in common with them.
naive ovmf amdsev.fd amdsev
naive ovmf ovmfx64.fd ovmfx64
amdsev=086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74
snp=(--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-type EPYC-v4)
null=(--kernel /dev/null --initrd /dev/null)
is "published: features 0x21, no command line" \
    "$(measure "${snp[@]}" "${null[@]}" --append '' --guest-features 0x21 --ovmf-hash $amdsev)" \
    329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198
is "published: features 0x1, a command line" \
    "$(measure "${snp[@]}" "${null[@]}" --append 'console=ttyS0 loglevel=7' --guest-features 0x1 --ovmf-hash $amdsev)" \
    6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa
is "published: EC2" \
    "$(measure "${snp[@]}" "${null[@]}" --vmm ec2 --ovmf-hash $amdsev)" \
    0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056
is "published: GCE, 4 vCPUs" \
    "$(measure --mode snp --ovmf amdsev.fd --vcpus 4 "${null[@]}" --vmm gce --ovmf-hash $amdsev)" \
    5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7ab81e29d

# The parts of a digest: snp:ovmf-hash, then the rest.
whole=$(measure "${snp[@]}" "${null[@]}")
hash=$(measure --mode snp:ovmf-hash --ovmf amdsev.fd)
is "the hash of the firmware stands for it" "$(measure "${snp[@]}" "${null[@]}" --ovmf-hash "$hash")" "$whole"
is "no --append and an empty one are the same" "$(measure "${snp[@]}" "${null[@]}" --append '')" "$whole"
is "a kernel from a pipe" "$(measure "${snp[@]}" --kernel <(:) --initrd /dev/null)" "$whole"
is "in Base64" "$(measure "${snp[@]}" "${null[@]}" --output-format base64 | base64 -d | od -An -v -tx1 | tr -d ' \n')" \
    "$whole"

# --- VMSAs ---

mkdir expected
naive vmsas expected amdsev.fd 3 0x800f12 0x21
ok "--dump-vmsa makes the directory" \
    measure --mode snp --ovmf amdsev.fd --vcpus 3 --vcpu-type EPYC-v4 --guest-features 0x21 --dump-vmsa vmsas
is "a file a vCPU" "$(ls vmsas)" $'vmsa0.bin\nvmsa1.bin\nvmsa2.bin'
for i in 0 1 2; do
    same "VMSA $i" vmsas/vmsa$i.bin expected/vmsa$i.bin
done
refused "a directory that cannot be made" 1 'no/such: cannot make the directory: No such file' \
    "$QVERITY" measure "${snp[@]}" --dump-vmsa no/such
mkdir full
ln -s /dev/full full/vmsa0.bin
refused "a full disk" 1 'full/vmsa0.bin: cannot write: No space left' "$QVERITY" measure "${snp[@]}" --dump-vmsa full

# --- What is told ---

measure "${snp[@]}" "${null[@]}" --append 'a "b"' -v >verbose
cat >expected.verbose <<END
Mode:            snp, as qemu measures
OVMF:            amdsev.fd
                 0x1000 bytes at 0xfffff000
  SHA-256:       $(sha256sum <amdsev.fd | cut -d' ' -f1)
Kernel:          /dev/null
  SHA-256:       $(sha256sum </dev/null | cut -d' ' -f1)
Initrd:          /dev/null
  SHA-256:       $(sha256sum </dev/null | cut -d' ' -f1)
Command line:    a "b"
  SHA-256:       $(printf 'a "b"\0' | sha256sum | cut -d' ' -f1)
vCPUs:           1, signature 0x00800f12 (EPYC-v4), SEV features 0x1
OVMF hash:       $hash
Section 0:       SNP_SEC_MEM       0x00800000, 0x9000 bytes, measured as ZERO
Section 1:       SNP_SEC_MEM       0x0080a000, 0x3000 bytes, measured as ZERO
Section 2:       SNP_SECRETS       0x0080d000, 0x1000 bytes, measured as SECRETS
Section 3:       CPUID             0x0080e000, 0x1000 bytes, measured as CPUID
Section 4:       SVSM_CAA          0x0080f000, 0x1000 bytes, measured as ZERO
Section 5:       SNP_KERNEL_HASHES 0x00810000, 0x1000 bytes, measured as NORMAL
Section 6:       SNP_SEC_MEM       0x00811000, 0xf000 bytes, measured as ZERO
END
same "--verbose tells all that went in" <(head -n -2 verbose) expected.verbose
is "the VMSA" "$(tail -2 verbose | head -1)" \
    "VMSA 0:          begins at 0xfffffff0, SHA-256 $(measure "${snp[@]}" --dump-vmsa v >/dev/null; sha256sum <v/vmsa0.bin | cut -d' ' -f1)"
is "and the digest last" "$(tail -1 verbose)" "Launch digest:   $(measure "${snp[@]}" "${null[@]}" --append 'a "b"')"
is "twice: the digest after each step" "$(measure "${snp[@]}" -vv | grep -c 'digest then: ')" 8

measure "${snp[@]}" "${null[@]}" --json >json
cat >check.py <<'END'
import json, sys
report = json.load(open(sys.argv[1]))
assert report['launch_digest'] == sys.argv[2]
assert report['mode'] == 'snp' and report['vmm'] == 'qemu' and report['vcpus'] == 1
assert report['vcpu_type'] == 'EPYC-v4' and report['vcpu_signature'] == 0x800f12 and report['guest_features'] == 1
assert report['ovmf'] | {'sha256': 0} == {'file': 'amdsev.fd', 'sha256': 0, 'size': 4096, 'gpa': 0xfffff000}
assert report['append'] == '' and report['kernel']['file'] == report['initrd']['file'] == '/dev/null'
steps = report['steps']
assert [s['step'] for s in steps] == ['firmware'] + ['section'] * 7 + ['vmsa']
assert steps[0]['digest'] == sys.argv[3] and steps[-1]['digest'] == sys.argv[2]
assert steps[6] | {'digest': 0} == {'step': 'section', 'index': 5, 'type': 'SNP_KERNEL_HASHES', 'gpa': 0x810000,
                                    'size': 4096, 'page_type': 'NORMAL', 'digest': 0}
END
ok "--json tells the same" python3 check.py json "$whole" "$hash"
is "of the hash alone, too" "$(measure --mode snp:ovmf-hash --ovmf amdsev.fd --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["ovmf_hash"])')" \
    "$hash"

measure --mode seves --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --guest-features 0x20 >out 2>warning
like "features are not for SEV-ES" "$(cat warning)" '0x20 is not measured in --mode seves'
is "and change nothing" "$(cat out)" "$(measure --mode seves --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1)"

# --- ID blocks ---

openssl ecparam -genkey -name secp384r1 -out id.pem 2>/dev/null   # with its parameters in front
openssl ecparam -genkey -name secp384r1 -noout 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -outform DER -out author.der
id=(--id-key id.pem --id-block block --id-auth auth)

# key_digest NAME: out of the JSON
key_digest()
{
    python3 -c 'import json, sys; print(json.load(open("json"))[sys.argv[1]])' "$1"
}
measure "${snp[@]}" "${id[@]}" --json >json
is "the digest is the same" "$(key_digest launch_digest)" "$(measure "${snp[@]}")"
ok "an ID block without an author" naive block block auth "$(key_digest launch_digest)" 0x30000 0 \
    "$(printf '%032d' 0)" "$(printf '%032d' 0)" "$(key_digest id_key_digest)"
is "the files are lines of Base64" "$(wc -l <block) $(wc -l <auth) $(wc -c <block) $(wc -c <auth)" '1 1 129 5465'
for round in 1 2 3; do # signatures differ each time, and so do leading zeros
    measure "${snp[@]}" "${id[@]}" --author-key author.der --policy 0xb0000 --guest-svn 258 \
        --family-id 00112233445566778899AABBCCDDEEFF --image-id 'sixteen letters!' --json >json
    ok "an ID block with all, $round" naive block block auth "$(key_digest launch_digest)" 0xb0000 258 \
        00112233445566778899aabbccddeeff "$(printf 'sixteen letters!' | od -An -tx1 | tr -d ' \n')" \
        "$(key_digest id_key_digest)" "$(key_digest author_key_digest)"
done
like "--verbose tells the keys' digests" "$(measure "${snp[@]}" "${id[@]}" --author-key author.der -v)" \
    "^Author key:      $(key_digest author_key_digest)\$"

openssl ecparam -genkey -name prime256v1 -noout -out p256.pem 2>/dev/null
openssl genpkey -algorithm RSA -out rsa.pem 2>/dev/null
openssl pkcs8 -topk8 -v2 aes256 -passout pass:x -in id.pem -out secret.pem
openssl ec -in id.pem -aes256 -passout pass:x -out secret-ec.pem 2>/dev/null
openssl pkey -in id.pem -pubout -out public.pem
head -c 100 id.pem >short.pem
: >empty.pem
while IFS='|' read -r file message; do
    refused "a key: $file" 1 "^qverity: $message" "$QVERITY" measure "${snp[@]}" --id-key "$file" --id-block b --id-auth a
done <<'END'
missing.pem|missing.pem: cannot open: No such file
p256.pem|p256.pem: its curve is prime256v1, not P-384
rsa.pem|rsa.pem: not an EC key
secret.pem|secret.pem: the key is encrypted
secret-ec.pem|secret-ec.pem: the key is encrypted
public.pem|public.pem: holds no private key
short.pem|short.pem: holds no private key
empty.pem|empty.pem: holds no private key
/dev/zero|/dev/zero: larger than 65536 bytes
END
is "nothing was written then" "$(ls a b 2>/dev/null)" ""
cp id.pem copy.pem
ln -s copy.pem link.pem
refused "a key is not overwritten" 1 'link.pem: would overwrite copy.pem' \
    "$QVERITY" measure "${snp[@]}" --id-key copy.pem --id-block block --id-auth link.pem
refused "nor is firmware" 1 'amdsev.fd: would overwrite amdsev.fd' \
    "$QVERITY" measure "${snp[@]}" --id-key id.pem --id-block amdsev.fd --id-auth auth
refused "a full disk is told" 1 '/dev/full: cannot write: No space left' \
    "$QVERITY" measure "${snp[@]}" --id-key id.pem --id-block block --id-auth /dev/full
is "and no block without its signature stays" "$(cat block)" ""
refused "nor is one made" 1 'cannot write: No space left' \
    "$QVERITY" measure "${snp[@]}" --id-key id.pem --id-block new-block --id-auth /dev/full
echo kept >block
refused "one that has nowhere to go" 1 'none/auth: cannot open for writing: No such file' \
    "$QVERITY" measure "${snp[@]}" --id-key id.pem --id-block block --id-auth none/auth
refused "neither" 1 'none/block: cannot open for writing: No such file' \
    "$QVERITY" measure "${snp[@]}" --id-key id.pem --id-block none/block --id-auth new-auth
is "leaves the other one as it was" "$(cat block) $(ls new-* 2>/dev/null)" "kept "

# --- What is refused ---

naive ovmf plain.fd plain
head -c 4000 amdsev.fd >odd.fd
truncate -s 17M huge.fd
# The version of the metadata, 8 bytes behind its start.
cp amdsev.fd version.fd
printf '\2' | dd of=version.fd bs=1 seek=$((4096 - 0x554 + 8)) conv=notrunc status=none
while IFS='|' read -r arguments message; do
    # shellcheck disable=SC2086
    refused "refused: $arguments" 1 "^qverity: $message" "$QVERITY" measure --vcpus 2 --vcpu-type EPYC-v4 $arguments
done <<'END'
--mode snp --ovmf ovmfx64.fd --kernel /dev/null|ovmfx64.fd: has no section for kernel hashes, .*AmdSevX64.dsc
--mode seves --ovmf ovmfx64.fd --kernel /dev/null|ovmfx64.fd: has no table for kernel hashes, .*AmdSevX64.dsc
--mode sev --ovmf ovmfx64.fd --kernel /dev/null|ovmfx64.fd: has no table for kernel hashes
--mode snp --ovmf plain.fd|plain.fd: has no SEV metadata, .*OvmfPkgX64.dsc
--mode seves --ovmf plain.fd|plain.fd: has no SEV-ES reset block
--mode snp --ovmf version.fd|version.fd: SEV metadata at offset 0xaac: version 2 is not known
--mode snp:ovmf-hash --ovmf version.fd|version.fd: SEV metadata at offset 0xaac: version 2 is not known
--mode snp --ovmf odd.fd|odd.fd: its size 4000 is not a multiple of 4096
--mode snp --ovmf huge.fd|huge.fd: larger than 16777216 bytes
--mode snp --ovmf /dev/null|/dev/null: is empty
--mode snp --ovmf missing.fd|missing.fd: cannot open: No such file
--mode snp --ovmf .|.: cannot read: Is a directory
--mode snp --ovmf amdsev.fd --kernel missing|missing: cannot open: No such file
--mode snp --ovmf amdsev.fd --kernel /dev/null --initrd .|.: cannot read: Is a directory
END
while IFS='|' read -r arguments message; do
    # shellcheck disable=SC2086
    refused "usage: $arguments" 2 "^qverity: measure: $message" "$QVERITY" measure $arguments
done <<'END'
--ovmf amdsev.fd|--mode is missing
--mode snp|--ovmf FILE is missing
--mode tdx --ovmf amdsev.fd|--mode: 'tdx' is not snp, snp:ovmf-hash, seves or sev
--mode snp --ovmf amdsev.fd --vcpu-sig 1|--vcpus is missing
--mode snp --ovmf amdsev.fd --vcpus 0|--vcpus: '0' is not between 1 and 4096
--mode snp --ovmf amdsev.fd --vcpus 4097|--vcpus: '4097' is not between 1 and 4096
--mode snp --ovmf amdsev.fd --vcpus 1|--vcpu-type, --vcpu-sig or --vcpu-family is missing
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-type EPYC-v99|--vcpu-type: 'EPYC-v99' is none of EPYC EPYC-v1
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-type EPYC --vcpu-sig 1|only one of --vcpu-type
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-family 23|--vcpu-family, --vcpu-model and --vcpu-stepping go together
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-family 23 --vcpu-model 256 --vcpu-stepping 0|CPU model 256 is more than 255
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 0x100000000|--vcpu-sig: '0x100000000' is too large
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --vmm xen|--vmm: 'xen' is not qemu, ec2 or gce
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --guest-features ff|--guest-features: 'ff' is not a number
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --initrd /dev/null|--initrd needs a --kernel
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --append x|--append needs a --kernel
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --ovmf-hash 00|--ovmf-hash: 1 bytes, not 48
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --ovmf-hash xy|--ovmf-hash: character 1 is not a hex digit
--mode seves --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --ovmf-hash 086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74|--ovmf-hash is for --mode snp
--mode sev --ovmf amdsev.fd --dump-vmsa x|there are no VMSAs in --mode sev
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --output-format octal|--output-format: 'octal' is not hex or base64
--mode seves --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --id-key id.pem --id-block a --id-auth b|ID blocks are for --mode snp
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --id-key id.pem --id-block a|an ID block takes
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --policy 0x30000|an ID block takes
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --id-key id.pem --id-block a --id-auth a|--id-block and --id-auth are one file
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --policy 0x10000|--policy: '0x10000' lacks bit 17
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --family-id abc|--family-id: 'abc' is neither 32 hex digits nor 16 characters
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --image-id 0011223344556677889900112233445g|--image-id: character 32 is not a hex digit
--mode snp --ovmf amdsev.fd --vcpus 1 --vcpu-sig 1 --guest-svn 4294967296|--guest-svn: '4294967296' is too large
--mode snp --ovmf amdsev.fd extra|too many arguments
END
finish
