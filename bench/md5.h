/* MD5 (RFC 1321) of bytes that come in pieces; for little-endian machines.
 *
 * About as fast as OpenSSL's: a block server that works as a keepstore does needs
 * that, and no library for it. The loop has no branches and no table of constants.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct md5 {
    uint32_t a, b, c, d;
    uint64_t size;
    unsigned char rest[64];
};

#define MD5_F(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define MD5_G(x, y, z) (((x) & (z)) + (~(z) & (y))) /* a sum: half of it doesn't wait for x */
#define MD5_H(x, y, z) ((x) ^ (y) ^ (z))
#define MD5_I(x, y, z) ((y) ^ ((x) | ~(z)))
#define MD5_STEP(f, a, b, c, d, k, s, t) \
    a += word[k] + t + f(b, c, d);       \
    a = (a << s | a >> (32 - s)) + b;
#define MD5_FOUR(f, k0, k1, k2, k3, s0, s1, s2, s3, t0, t1, t2, t3) \
    MD5_STEP(f, a, b, c, d, k0, s0, t0)                             \
    MD5_STEP(f, d, a, b, c, k1, s1, t1)                             \
    MD5_STEP(f, c, d, a, b, k2, s2, t2)                             \
    MD5_STEP(f, b, c, d, a, k3, s3, t3)

static void md5_blocks(struct md5 *it, const unsigned char *data, size_t count)
{
    uint32_t a = it->a, b = it->b, c = it->c, d = it->d;
    for (; count > 0; count--, data += 64) {
        uint32_t word[16], a0 = a, b0 = b, c0 = c, d0 = d;
        memcpy(word, data, 64);
        MD5_FOUR(MD5_F, 0, 1, 2, 3, 7, 12, 17, 22,
                 0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee)
        MD5_FOUR(MD5_F, 4, 5, 6, 7, 7, 12, 17, 22,
                 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501)
        MD5_FOUR(MD5_F, 8, 9, 10, 11, 7, 12, 17, 22,
                 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be)
        MD5_FOUR(MD5_F, 12, 13, 14, 15, 7, 12, 17, 22,
                 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821)
        MD5_FOUR(MD5_G, 1, 6, 11, 0, 5, 9, 14, 20,
                 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa)
        MD5_FOUR(MD5_G, 5, 10, 15, 4, 5, 9, 14, 20,
                 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8)
        MD5_FOUR(MD5_G, 9, 14, 3, 8, 5, 9, 14, 20,
                 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed)
        MD5_FOUR(MD5_G, 13, 2, 7, 12, 5, 9, 14, 20,
                 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a)
        MD5_FOUR(MD5_H, 5, 8, 11, 14, 4, 11, 16, 23,
                 0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c)
        MD5_FOUR(MD5_H, 1, 4, 7, 10, 4, 11, 16, 23,
                 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70)
        MD5_FOUR(MD5_H, 13, 0, 3, 6, 4, 11, 16, 23,
                 0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05)
        MD5_FOUR(MD5_H, 9, 12, 15, 2, 4, 11, 16, 23,
                 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665)
        MD5_FOUR(MD5_I, 0, 7, 14, 5, 6, 10, 15, 21,
                 0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039)
        MD5_FOUR(MD5_I, 12, 3, 10, 1, 6, 10, 15, 21,
                 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1)
        MD5_FOUR(MD5_I, 8, 15, 6, 13, 6, 10, 15, 21,
                 0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1)
        MD5_FOUR(MD5_I, 4, 11, 2, 9, 6, 10, 15, 21,
                 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391)
        a += a0;
        b += b0;
        c += c0;
        d += d0;
    }
    it->a = a;
    it->b = b;
    it->c = c;
    it->d = d;
}

static void md5_begin(struct md5 *it)
{
    *it = (struct md5){.a = 0x67452301, .b = 0xefcdab89, .c = 0x98badcfe, .d = 0x10325476};
}

static void md5_add(struct md5 *it, const unsigned char *data, size_t size)
{
    size_t have = it->size % 64;
    it->size += size;
    if (have + size >= 64 && have > 0) {
        memcpy(it->rest + have, data, 64 - have);
        md5_blocks(it, it->rest, 1);
        data += 64 - have;
        size -= 64 - have;
        have = 0;
    }
    if (size >= 64) {
        md5_blocks(it, data, size / 64);
        data += size & ~(size_t)63;
        size %= 64;
    }
    memcpy(it->rest + have, data, size);
}

/* Write the digest in hexadecimal, with a zero byte at its end. */
static void md5_end(struct md5 *it, char text[33])
{
    static const unsigned char padding[64] = {0x80};
    uint64_t bits = it->size * 8;
    md5_add(it, padding, 1 + (119 - it->size % 64) % 64);
    md5_add(it, (unsigned char *)&bits, 8);
    const uint32_t sums[4] = {it->a, it->b, it->c, it->d};
    for (int i = 0; i < 16; i++)
        sprintf(text + 2 * i, "%02x", sums[i / 4] >> i % 4 * 8 & 0xff);
}
