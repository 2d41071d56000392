/* SPDX-License-Identifier: MIT */
#include "hashtree/tree-header.h"

#include <assert.h>
#include <string.h>

#include "common/checked.h"
#include "hashtree/hasher.h"
#include "hashtree/hashtree.h"

const uint8_t tree_magic[TREE_MAGIC_SIZE] = HASHTREE_FILE_MAGIC;
_Static_assert(TREE_MAGIC_SIZE == HASHTREE_FILE_MAGIC_SIZE && SLOT_SIZE == HASHTREE_FILE_MAGIC_AT_2,
               "each slot begins with it");

enum { FLAG_LEAN = 1 << 0, FLAG_SETTLED = 1 << 1 };

/* Both directions go through one description of the layout, field after field, little-endian. */
struct codec {
    uint8_t *bytes;
    size_t at;
    bool decode;
};

static void code_bytes(struct codec *c, void *field, size_t size)
{
    assert(c->at + size <= SLOT_SIZE - SHA256_CHECKSUM_SIZE);
    if (c->decode)
        memcpy(field, c->bytes + c->at, size);
    else
        memcpy(c->bytes + c->at, field, size);
    c->at += size;
}

static void code_u64(struct codec *c, uint64_t *field)
{
    uint8_t bytes[8];

    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(*field >> (8 * i));
    code_bytes(c, bytes, sizeof(bytes));
    if (c->decode) {
        *field = 0;
        for (int i = 0; i < 8; i++)
            *field |= (uint64_t)bytes[i] << (8 * i);
    }
}

static uint64_t code_number(struct codec *c, uint64_t value)
{
    code_u64(c, &value);
    return value;
}

static void code_time(struct codec *c, struct timespec *t)
{
    t->tv_sec = (time_t)code_number(c, (uint64_t)t->tv_sec);
    t->tv_nsec = (long)code_number(c, (uint64_t)t->tv_nsec);
}

static void code_text(struct codec *c, char *text, size_t room)
{
    code_bytes(c, text, room);
    if (c->decode)
        text[room - 1] = '\0';
}

static void code_flags(struct codec *c, struct tree_header *h)
{
    uint64_t flags = code_number(c, (h->lean ? FLAG_LEAN : 0u) | (h->settled ? FLAG_SETTLED : 0u));

    h->lean = (flags & FLAG_LEAN) != 0;
    h->settled = (flags & FLAG_SETTLED) != 0;
}

static void code_header(struct codec *c, struct tree_header *h)
{
    struct verity_params *p = &h->params;

    h->generation = code_number(c, h->generation);
    code_flags(c, h);
    code_text(c, p->hash_name, sizeof(p->hash_name));
    p->hash_type = (unsigned)code_number(c, p->hash_type);
    p->data_block_size = (uint32_t)code_number(c, p->data_block_size);
    p->hash_block_size = (uint32_t)code_number(c, p->hash_block_size);
    p->data_blocks = code_number(c, p->data_blocks);
    p->salt_size = (size_t)min_u64(code_number(c, p->salt_size), VERITY_SALT_MAX);
    code_bytes(c, p->salt, sizeof(p->salt));
    h->start = code_number(c, h->start);
    code_bytes(c, h->root, sizeof(h->root));
    h->zero_blocks = code_number(c, h->zero_blocks);
    code_text(c, h->view, sizeof(h->view));
    code_text(c, h->base, sizeof(h->base));
    h->granularity = code_number(c, h->granularity);
    code_bytes(c, h->bitmap_generation, sizeof(h->bitmap_generation));
    h->granules_count = code_number(c, h->granules_count);
    code_bytes(c, h->granules_digest, sizeof(h->granules_digest));
    h->file_count = (uint32_t)min_u64(code_number(c, h->file_count), TREE_FILE_FILES_MAX);
    for (size_t i = 0; i < h->file_count; i++) {
        code_u64(c, &h->files[i].device);
        code_u64(c, &h->files[i].inode);
        code_u64(c, &h->files[i].size);
        code_time(c, &h->files[i].mtime);
        code_time(c, &h->files[i].ctime);
    }
}

void tree_header_encode(const struct tree_header *header, uint8_t slot[static SLOT_SIZE])
{
    struct tree_header copy = *header;
    struct codec c = {.bytes = slot};
    uint8_t head[TREE_MAGIC_SIZE];

    memset(slot, 0, SLOT_SIZE);
    memcpy(head, tree_magic, TREE_MAGIC_SIZE);
    code_bytes(&c, head, sizeof(head));
    code_number(&c, TREE_FILE_VERSION);
    code_header(&c, &copy);
    sha256_checksum(slot, SLOT_SIZE - SHA256_CHECKSUM_SIZE,
                    slot + SLOT_SIZE - SHA256_CHECKSUM_SIZE);
}

const char *tree_header_decode(uint8_t slot[static SLOT_SIZE], struct tree_header *ret)
{
    struct codec c = {.bytes = slot, .decode = true};
    uint8_t head[TREE_MAGIC_SIZE], checksum[SHA256_CHECKSUM_SIZE];

    code_bytes(&c, head, sizeof(head));
    if (memcmp(head, tree_magic, TREE_MAGIC_SIZE) != 0)
        return "not a tree file";
    if (code_number(&c, 0) != TREE_FILE_VERSION)
        return "a version of tree file that this program does not know";
    sha256_checksum(slot, SLOT_SIZE - SHA256_CHECKSUM_SIZE, checksum);
    if (memcmp(checksum, slot + SLOT_SIZE - SHA256_CHECKSUM_SIZE, sizeof(checksum)) != 0)
        return "its header is damaged";
    memset(ret, 0, sizeof(*ret));
    code_header(&c, ret);
    return NULL;
}
