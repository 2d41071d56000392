#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Launch digests in the plainest way there is, after AMD's specifications (56860: SEV-SNP firmware ABI;
55766: SEV API; 24593: APM vol. 2), edk2's tables and QEMU's order of things: a second opinion. Also makes
the firmware that is measured, and checks ID blocks with arithmetic of its own.

    naive_measure.py ovmf OUT amdsev|ovmfx64|plain [PAGES]
        makes an OVMF-like image
    naive_measure.py cases DIRECTORY
        makes files there; prints a line a case: its digest, then arguments of `qverity measure`,
        then a dot, separated by the character 0x1f
    naive_measure.py vmsas DIRECTORY FIRMWARE COUNT SIGNATURE FEATURES
        writes the VMSAs of a SEV-SNP guest of QEMU to vmsa0.bin, …
    naive_measure.py block ID_BLOCK ID_AUTH DIGEST POLICY SVN FAMILY_ID IMAGE_ID KEY_DIGEST [AUTHOR_DIGEST]
        checks all of an ID block and of its authentication; KEY_DIGEST and AUTHOR_DIGEST are what
        `qverity measure` tells
"""
import base64
import hashlib
import os
import random
import struct
import sys
import uuid

# --- Firmware ---

FOOTER = '96b582de-1fb2-45f7-baea-a366c55a082d'
RESET = '00f771de-1a7e-4fcb-890e-68c77e2fb44e'
SECRET = '4c2eb361-7d9b-4cc3-8081-127c90d3d294'
HASHES = '7255371f-3a3b-4b04-927b-1da6efa8d454'
METADATA = 'dc886566-984a-4798-a75e-5585a7bf67cc'
SEC_MEM, SECRETS, CPUID, SVSM_CAA, KERNEL_HASHES = 1, 2, 3, 4, 16

# What the two builds of edk2-stable202405 ask for.
BUILDS = {
    'amdsev': {
        'sections': [(0x800000, 0x9000, SEC_MEM), (0x80a000, 0x3000, SEC_MEM), (0x80d000, 0x1000, SECRETS),
                     (0x80e000, 0x1000, CPUID), (0x80f000, 0x1000, SVSM_CAA),
                     (0x810000, 0x1000, KERNEL_HASHES), (0x811000, 0xf000, SEC_MEM)],
        'hashes': (0x810c00, 0x400),
    },
    'ovmfx64': {
        'sections': [(0x800000, 0x9000, SEC_MEM), (0x80a000, 0x3000, SEC_MEM), (0x80d000, 0x1000, SECRETS),
                     (0x80e000, 0x1000, CPUID), (0x80f000, 0x1000, SVSM_CAA), (0x810000, 0x10000, SEC_MEM)],
        'hashes': (0, 0),
    },
}


def guid(text):
    return uuid.UUID(text).bytes_le


def entry(text, data):
    return data + struct.pack('<H', len(data) + 18) + guid(text)


def make_ovmf(build, pages):
    """The code is random, the tables are where and what edk2 makes them."""
    body = random.Random(build + str(pages)).randbytes(4096 * pages)
    if build == 'plain':
        return bytes(4096 * pages)
    b = BUILDS[build]
    metadata = b''.join(struct.pack('<III', *s) for s in b['sections'])
    metadata = b'ASEV' + struct.pack('<III', 16 + len(metadata), 1, len(b['sections'])) + metadata
    table = (entry(METADATA, struct.pack('<I', 0x554)) + entry(HASHES, struct.pack('<II', *b['hashes'])) +
             entry(SECRET, struct.pack('<II', 0x810000, 0xc00)) + entry(RESET, struct.pack('<I', 0x80b004)))
    table += struct.pack('<H', len(table) + 18) + guid(FOOTER)
    body = body[:-0x554] + metadata + body[len(body) - 0x554 + len(metadata):]
    return body[:-32 - len(table)] + table + body[-32:]


def table_entry(firmware, text):
    """The data of the entry whose GUID this is, which stands behind it and its length."""
    at = firmware.rindex(guid(text))
    length, = struct.unpack('<H', firmware[at - 2:at])
    return firmware[at - length + 16:at - 2]


def sections_of(firmware):
    offset, = struct.unpack('<I', table_entry(firmware, METADATA))
    metadata = firmware[-offset:]
    assert metadata[:4] == b'ASEV'
    return [struct.unpack('<III', metadata[16 + 12 * i:28 + 12 * i]) for i in range(metadata[12])]


# --- What QEMU puts in ---

def kernel_table(kernel, initrd, append):
    """target/i386/sev.c: a header and three entries, padded to 16 bytes."""
    table = b''
    for text, blob in (('97d02dd8-bd20-4c94-aa78-e7714d36ab2a', append + b'\0'),
                       ('44baf731-3a2f-4bd7-9af1-41e29169781d', initrd),
                       ('4de79437-abd2-427f-b835-d5b172d2045b', kernel)):
        table += guid(text) + struct.pack('<H', 50) + hashlib.sha256(blob).digest()
    table = guid('9438d606-4f22-4cc9-b479-a793d411fd21') + struct.pack('<H', 18 + len(table)) + table
    return table + bytes(-len(table) % 16)


# APM vol. 2, appendix B: offset of a register in the VMSA, and its size.
REGISTERS = {
    'efer': (0x0d0, 8), 'cr4': (0x148, 8), 'cr0': (0x158, 8), 'dr7': (0x160, 8), 'dr6': (0x168, 8),
    'rflags': (0x170, 8), 'rip': (0x178, 8), 'g_pat': (0x268, 8), 'rdx': (0x310, 8),
    'sev_features': (0x3b0, 8), 'xcr0': (0x3e8, 8), 'mxcsr': (0x408, 4), 'x87_fcw': (0x410, 2),
}
SEGMENTS = ['es', 'cs', 'ss', 'ds', 'fs', 'gs', 'gdtr', 'ldtr', 'idtr', 'tr']


def vmsa(vmm, eip, signature, features):
    registers = {
        'efer': 0x1000, 'cr4': 0x40, 'cr0': 0x10, 'dr7': 0x400, 'dr6': 0xffff0ff0, 'rflags': 2,
        'rip': eip % 0x10000, 'g_pat': 0x0007040600070406, 'sev_features': features, 'xcr0': 1,
    }
    attributes = dict.fromkeys(SEGMENTS, 0x93) | {'gdtr': 0, 'idtr': 0, 'ldtr': 0x82, 'tr': 0x8b, 'cs': 0x9b}
    if vmm == 'qemu':
        registers |= {'rdx': signature, 'mxcsr': 0x1f80, 'x87_fcw': 0x37f}
    elif vmm == 'ec2':
        registers['rdx'] = 0x600
        attributes |= {'ss': 0x92, 'tr': 0x83}
        if eip == 0xfffffff0:
            attributes['cs'] = 0x9a
    elif vmm == 'gce':
        registers |= {'rdx': 0x600, 'g_pat': 0x70106}
    page = bytearray(4096)
    for i, name in enumerate(SEGMENTS):
        selector, base = (0xf000, eip - eip % 0x10000) if name == 'cs' else (0, 0)
        page[16 * i:16 * i + 16] = struct.pack('<HHIQ', selector, attributes[name], 0xffff, base)
    for name, value in registers.items():
        offset, size = REGISTERS[name]
        page[offset:offset + size] = value.to_bytes(size, 'little')
    return bytes(page)


def vmsas(vmm, firmware, count, signature, features):
    reset, = struct.unpack('<I', table_entry(firmware, RESET))
    return [vmsa(vmm, 0xfffffff0 if i == 0 else reset, signature, features) for i in range(count)]


# --- Digests ---

NORMAL, VMSA, ZERO, UNMEASURED, SECRETS_PAGE, CPUID_PAGE = range(1, 7)


class Snp:
    """GCTX.LD and PAGE_INFO of 56860, SNP_LAUNCH_UPDATE."""

    def __init__(self):
        self.digest = bytes(48)

    def page(self, kind, gpa, contents=None):
        contents = bytes(48) if contents is None else hashlib.sha384(contents).digest()
        self.digest = hashlib.sha384(
            self.digest + contents + struct.pack('<HBBIQ', 0x70, kind, 0, 0, gpa)).digest()

    def firmware(self, firmware):
        for offset in range(0, len(firmware), 4096):
            self.page(NORMAL, 2**32 - len(firmware) + offset, firmware[offset:offset + 4096])

    def section(self, vmm, section, hashes_page):
        gpa, size, kind = section
        if kind == KERNEL_HASHES and hashes_page is not None:
            return self.page(NORMAL, gpa, hashes_page)
        page_type = {SEC_MEM: UNMEASURED if vmm == 'gce' else ZERO, SECRETS: SECRETS_PAGE, CPUID: CPUID_PAGE,
                     SVSM_CAA: ZERO, KERNEL_HASHES: ZERO}[kind]
        for page in range(gpa, gpa + size, 4096):
            self.page(page_type, page)


def launch_digest(mode, vmm, firmware, kernel, vcpus, signature, features):
    """`kernel` is (kernel, initrd, append), or None."""
    table = kernel_table(*kernel) if kernel else b''
    if mode in ('sev', 'seves'):
        pages = vmsas(vmm, firmware, vcpus, signature, 0) if mode == 'seves' else []
        return hashlib.sha256(firmware + table + b''.join(pages)).hexdigest()
    snp = Snp()
    snp.firmware(firmware)
    if mode == 'snp:ovmf-hash':
        return snp.digest.hex()
    hashes_page = None
    if kernel:
        place = struct.unpack('<II', table_entry(firmware, HASHES))[0] % 4096
        hashes_page = (bytes(place) + table).ljust(4096, b'\0')
    sections = sections_of(firmware)
    if vmm == 'ec2':
        sections.sort(key=lambda s: s[2] == CPUID)
    for section in sections:
        snp.section(vmm, section, hashes_page)
    for page in vmsas(vmm, firmware, vcpus, signature, features):
        snp.page(VMSA, 0xfffffffff000, page)
    return snp.digest.hex()


# --- Cases ---

def signature(family, model, stepping):
    """APM vol. 3, CPUID Fn0000_0001_EAX."""
    base, extended = min(family, 15), max(family - 15, 0)
    return extended << 20 | model // 16 << 16 | base << 8 | model % 16 << 4 | stepping


MODELS = {'EPYC': (23, 1, 2), 'EPYC-Rome': (23, 49, 0), 'EPYC-Milan': (25, 1, 1), 'EPYC-Genoa': (25, 17, 0),
          'EPYC-Turin': (26, 0, 0)}
VERSIONS = {'EPYC': 5, 'EPYC-Rome': 5, 'EPYC-Milan': 3, 'EPYC-Genoa': 2, 'EPYC-Turin': 2}


def cpus():
    """Ways to tell what CPU it is: arguments, and the signature."""
    for name, numbers in MODELS.items():
        for version in [''] + [f'-v{i + 1}' for i in range(VERSIONS[name])]:
            yield ['--vcpu-type', name + version], signature(*numbers)
    yield ['--vcpu-type', 'EPYC-IBPB'], signature(23, 1, 2)
    yield ['--vcpu-sig', '0x00a20f12'], 0xa20f12
    yield ['--vcpu-sig', '8392466'], 0x800f12
    yield ['--vcpu-family', '26', '--vcpu-model', '17', '--vcpu-stepping', '15'], signature(26, 17, 15)
    yield ['--vcpu-family', '6', '--vcpu-model', '143', '--vcpu-stepping', '8'], signature(6, 143, 8)


def cases(directory):
    dice = random.Random(4096)
    firmware, blobs = {}, {'empty': b'', 'small': b'kernel\n', 'large': random.Random(3).randbytes(3 << 20)}
    for build, pages in (('amdsev', 1), ('amdsev', 64), ('ovmfx64', 1), ('ovmfx64', 3)):
        name = os.path.join(directory, f'{build}-{pages}.fd')
        firmware[name] = make_ovmf(build, pages)
        with open(name, 'wb') as f:
            f.write(firmware[name])
    for name, blob in blobs.items():
        with open(os.path.join(directory, name), 'wb') as f:
            f.write(blob)
    appends = [None, '', 'console=ttyS0 loglevel=7', ' leading, trailing ', 'quote="a b" gr\u00fc\u00df',
               'x' * 2000]
    ways = list(cpus())

    def emit(mode, vmm, name, kernel, vcpus, cpu, features):
        arguments = ['--mode', mode, '--ovmf', name, '--vmm', vmm] + cpu[0]
        blob = None
        if mode != 'snp:ovmf-hash':
            arguments += ['--vcpus', str(vcpus)]
        if features is not None:
            arguments += ['--guest-features', hex(features)]
        if kernel is not None:
            blob = (blobs[kernel[0]], blobs.get(kernel[1], b''), (kernel[2] or '').encode())
            arguments += ['--kernel', os.path.join(directory, kernel[0])]
            arguments += ['--initrd', os.path.join(directory, kernel[1])] if kernel[1] else []
            arguments += ['--append', kernel[2]] if kernel[2] is not None else []
        digest = launch_digest(mode, vmm, firmware[name], blob, vcpus, cpu[1],
                               1 if features is None else features)
        print('\x1f'.join([digest, *arguments, '.']))

    amdsev = sorted(n for n in firmware if 'amdsev' in n)
    for cpu in ways:
        emit('snp', 'qemu', amdsev[0], None, 2, cpu, None)
    for name in sorted(firmware):
        emit('snp:ovmf-hash', 'qemu', name, None, 1, ([], 0), None)
    for vmm in ('qemu', 'ec2', 'gce'):
        for mode in ('snp', 'seves', 'sev'):
            for vcpus in (1, 2, 5, 4096 if mode == 'snp' and vmm == 'qemu' else 64):
                for has_kernel in (False, True):
                    name = dice.choice(amdsev if has_kernel else sorted(firmware))
                    kernel = (dice.choice(sorted(blobs)), dice.choice([None, *sorted(blobs)]),
                              dice.choice(appends)) if has_kernel else None
                    cpu = dice.choice(ways) if vmm == 'qemu' and mode != 'sev' else ([], 0)
                    features = dice.choice([None, 1, 0x21, 0, 2**64 - 1]) if mode == 'snp' else None
                    emit(mode, vmm, name, kernel, vcpus, cpu, features)


# --- ID blocks ---

P = 2**384 - 2**128 - 2**96 + 2**32 - 1
N = 0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973
B = 0xb3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef
G = (0xaa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7,
     0x3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f)


def add(a, b):
    """Points of NIST's P-384; None is the neutral one."""
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    if a == b:
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P)
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(k, point):
    result = None
    while k:
        if k & 1:
            result = add(result, point)
        point = add(point, point)
        k >>= 1
    return result


def signed(key, signature, message):
    """FIPS 186-5, 6.4.2."""
    r, s = (int.from_bytes(signature[i:i + 72], 'little') for i in (0, 72))
    assert not any(signature[144:]) and len(signature) == 512, 'reserved bytes of the signature'
    assert 0 < r < N and 0 < s < N, 'range of the signature'
    e = int.from_bytes(hashlib.sha384(message).digest(), 'big')
    w = pow(s, -1, N)
    point = add(multiply(e * w % N, G), multiply(r * w % N, key))
    return point is not None and point[0] % N == r


def public_key(bytes_):
    curve, = struct.unpack('<I', bytes_[:4])
    x, y = (int.from_bytes(bytes_[i:i + 72], 'little') for i in (4, 76))
    assert curve == 2 and not any(bytes_[148:]) and len(bytes_) == 1028, 'public key'
    assert (y * y - x * x * x + 3 * x - B) % P == 0, 'the key is a point of the curve'
    return x, y


def check_block(block, auth, digest, policy, svn, family, image, key_digest, author_digest=None):
    block, auth = (base64.b64decode(open(name, 'rb').read(), validate=False) for name in (block, auth))
    expected = bytes.fromhex(digest + family + image) + struct.pack('<IIQ', 1, int(svn), int(policy, 0))
    assert block == expected, f'ID block: {block.hex()}, not {expected.hex()}'
    assert len(auth) == 4096, 'size of the authentication'
    assert auth[0:4] == b'\1\0\0\0', 'algorithm of the ID key'
    assert not any(auth[0x8:0x40] + auth[0x644:0x680] + auth[0xc84:]), 'reserved bytes'
    key = auth[0x240:0x644]
    assert hashlib.sha384(key).hexdigest() == key_digest, 'digest of the ID key'
    assert signed(public_key(key), auth[0x40:0x240], block), 'signature of the ID block'
    assert not signed(public_key(key), auth[0x40:0x240], block[::-1]), 'signature of something else'
    if author_digest is None:
        assert not any(auth[0x4:0x8] + auth[0x680:]), 'author key'
        return
    author = auth[0x880:0xc84]
    assert auth[4:8] == b'\1\0\0\0', 'algorithm of the author key'
    assert hashlib.sha384(author).hexdigest() == author_digest, 'digest of the author key'
    assert signed(public_key(author), auth[0x680:0x880], key), 'signature of the ID key'


def main(command, *arguments):
    if command == 'ovmf':
        with open(arguments[0], 'wb') as f:
            f.write(make_ovmf(arguments[1], int(arguments[2]) if len(arguments) > 2 else 1))
    elif command == 'cases':
        cases(*arguments)
    elif command == 'vmsas':
        directory, firmware, count, sig, features = arguments
        pages = vmsas('qemu', open(firmware, 'rb').read(), int(count), int(sig, 0), int(features, 0))
        for i, page in enumerate(pages):
            with open(os.path.join(directory, f'vmsa{i}.bin'), 'wb') as f:
                f.write(page)
    elif command == 'block':
        check_block(*arguments)
    else:
        sys.exit(__doc__)


main(*sys.argv[1:])
