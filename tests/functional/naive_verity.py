#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""dm-verity in the plainest way there is, after the kernel's verity.rst: a second opinion on trees,
and a forger of hash devices for the tests that must not be fooled.

    naive_verity.py root DATA [OPTION=VALUE…]           prints the root hash
    naive_verity.py tree DATA OUT [OPTION=VALUE…]       also writes the tree, without a superblock
    naive_verity.py rehash TREE LEVEL INDEX BYTE [OPTION=VALUE…]
        changes one byte of that hash block of a tree over `blocks` data blocks, makes the blocks
        above it fit, and prints the new root hash: only the blocks below no longer fit

Options: hash, type, data_block_size, hash_block_size, salt (hex), blocks.
"""
import hashlib
import sys


class Tree:
    def __init__(self, options):
        self.name = options.get('hash', 'sha256')
        self.type = int(options.get('type', 1))
        self.data_block_size = int(options.get('data_block_size', 4096))
        self.hash_block_size = int(options.get('hash_block_size', 4096))
        self.salt = bytes.fromhex(options.get('salt', '00' * 32))
        self.blocks = int(options['blocks']) if 'blocks' in options else None
        self.levels = []

    def digest(self, block):
        return hashlib.new(
            self.name, block + self.salt if self.type == 0 else self.salt + block).digest()

    def slot(self):
        size = hashlib.new(self.name).digest_size
        if self.type == 0:
            return size
        slot = 1
        while slot < size:
            slot *= 2
        return slot

    def fanout(self):
        count = 1
        while count * 2 * hashlib.new(self.name).digest_size <= self.hash_block_size:
            count *= 2
        return count

    def build(self, data):
        digests = [self.digest(block) for block in data]
        while len(digests) > 1:
            level = []
            for i in range(0, len(digests), self.fanout()):
                block = b''.join(
                    d.ljust(self.slot(), b'\0') for d in digests[i:i + self.fanout()])
                level.append(block.ljust(self.hash_block_size, b'\0'))
            self.levels.append(level)
            digests = [self.digest(block) for block in level]
        return digests[0]

    def store(self):
        """The levels as they lie in a hash device: the highest first."""
        return b''.join(b''.join(level) for level in reversed(self.levels))

    def load(self, tree):
        """The inverse of store(), by the number of data blocks."""
        sizes = []
        n = self.blocks
        while n > 1:
            n = -(-n // self.fanout())
            sizes.append(n)
        at = sum(sizes) * self.hash_block_size
        for size in sizes:
            at -= size * self.hash_block_size
            self.levels.append([tree[at + i * self.hash_block_size:][:self.hash_block_size]
                                for i in range(size)])

    def rehash(self, level, index, byte):
        block = bytearray(self.levels[level][index])
        block[byte] ^= 1
        self.levels[level][index] = bytes(block)
        for above in range(level + 1, len(self.levels)):
            digest = self.digest(self.levels[above - 1][index])
            at = index % self.fanout() * self.slot()
            index //= self.fanout()
            block = bytearray(self.levels[above][index])
            block[at:at + len(digest)] = digest
            self.levels[above][index] = bytes(block)
        return self.digest(self.levels[-1][0])


def read_blocks(path, tree):
    with open(path, 'rb') as file:
        count = 0
        while tree.blocks is None or count < tree.blocks:
            block = file.read(tree.data_block_size)
            if len(block) < tree.data_block_size:
                break
            count += 1
            yield block


def main(argv):
    plain = [a for a in argv if '=' not in a]
    tree = Tree(dict(a.split('=', 1) for a in argv if '=' in a))
    if plain[0] in ('root', 'tree'):
        print(tree.build(read_blocks(plain[1], tree)).hex())
        if plain[0] == 'tree':
            with open(plain[2], 'wb') as file:
                file.write(tree.store())
    elif plain[0] == 'rehash':
        with open(plain[1], 'rb') as file:
            tree.load(file.read())
        print(tree.rehash(int(plain[2]), int(plain[3]), int(plain[4])).hex())
        with open(plain[1], 'wb') as file:
            file.write(tree.store())
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
