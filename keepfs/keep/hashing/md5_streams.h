#ifndef KEEPFS_MD5_STREAMS_H
#define KEEPFS_MD5_STREAMS_H

#include <stddef.h>
#include <stdint.h>

enum { MD5_BLOCK = 64, MD5_STREAMS = 3 };

struct md5 {
    uint32_t words[4];
};

/* Set the state of an empty message. */
void md5_begin(struct md5 *state);

/* Hash whole blocks of `count` messages, 1 to MD5_STREAMS, as many of each. */
void md5_blocks(int count, struct md5 *states, const unsigned char *const *from,
                size_t blocks);

/* Hash the last `size % MD5_BLOCK` bytes of a message of `size` bytes, and the padding. */
void md5_end(struct md5 *state, const unsigned char *rest, uint64_t size,
             unsigned char digest[16]);

#endif
