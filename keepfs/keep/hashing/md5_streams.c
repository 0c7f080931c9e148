/* MD5 (RFC 1321) of one, two or three streams at once, in scalar registers.

   Each step of MD5 waits for the step before it, so one stream leaves most of a
   processor's units idle. The steps of two or three streams, taken in turn, fill them; a
   fourth would need more registers than x86-64 has. Compile with -fno-tree-slp-vectorize:
   GCC otherwise packs the streams into vector registers, which is three times as slow,
   since a step takes longer there. */

#include "md5_streams.h"

#include <string.h>

#define ROTATED(x, s) ((x) << (s) | (x) >> (32 - (s)))
#define F(b, c, d) (d ^ (b & (c ^ d)))
#define H(b, c, d) (b ^ (c ^ d))
#define I(b, c, d) (c ^ (b | ~d))

/* Function, registers, number of the word, rotation, constant: RFC 1321, section 3.4. */
#define STEPS(X) \
    X(F, a, b, c, d, 0, 7, 0xd76aa478u) \
    X(F, d, a, b, c, 1, 12, 0xe8c7b756u) \
    X(F, c, d, a, b, 2, 17, 0x242070dbu) \
    X(F, b, c, d, a, 3, 22, 0xc1bdceeeu) \
    X(F, a, b, c, d, 4, 7, 0xf57c0fafu) \
    X(F, d, a, b, c, 5, 12, 0x4787c62au) \
    X(F, c, d, a, b, 6, 17, 0xa8304613u) \
    X(F, b, c, d, a, 7, 22, 0xfd469501u) \
    X(F, a, b, c, d, 8, 7, 0x698098d8u) \
    X(F, d, a, b, c, 9, 12, 0x8b44f7afu) \
    X(F, c, d, a, b, 10, 17, 0xffff5bb1u) \
    X(F, b, c, d, a, 11, 22, 0x895cd7beu) \
    X(F, a, b, c, d, 12, 7, 0x6b901122u) \
    X(F, d, a, b, c, 13, 12, 0xfd987193u) \
    X(F, c, d, a, b, 14, 17, 0xa679438eu) \
    X(F, b, c, d, a, 15, 22, 0x49b40821u) \
    X(G, a, b, c, d, 1, 5, 0xf61e2562u) \
    X(G, d, a, b, c, 6, 9, 0xc040b340u) \
    X(G, c, d, a, b, 11, 14, 0x265e5a51u) \
    X(G, b, c, d, a, 0, 20, 0xe9b6c7aau) \
    X(G, a, b, c, d, 5, 5, 0xd62f105du) \
    X(G, d, a, b, c, 10, 9, 0x02441453u) \
    X(G, c, d, a, b, 15, 14, 0xd8a1e681u) \
    X(G, b, c, d, a, 4, 20, 0xe7d3fbc8u) \
    X(G, a, b, c, d, 9, 5, 0x21e1cde6u) \
    X(G, d, a, b, c, 14, 9, 0xc33707d6u) \
    X(G, c, d, a, b, 3, 14, 0xf4d50d87u) \
    X(G, b, c, d, a, 8, 20, 0x455a14edu) \
    X(G, a, b, c, d, 13, 5, 0xa9e3e905u) \
    X(G, d, a, b, c, 2, 9, 0xfcefa3f8u) \
    X(G, c, d, a, b, 7, 14, 0x676f02d9u) \
    X(G, b, c, d, a, 12, 20, 0x8d2a4c8au) \
    X(H, a, b, c, d, 5, 4, 0xfffa3942u) \
    X(H, d, a, b, c, 8, 11, 0x8771f681u) \
    X(H, c, d, a, b, 11, 16, 0x6d9d6122u) \
    X(H, b, c, d, a, 14, 23, 0xfde5380cu) \
    X(H, a, b, c, d, 1, 4, 0xa4beea44u) \
    X(H, d, a, b, c, 4, 11, 0x4bdecfa9u) \
    X(H, c, d, a, b, 7, 16, 0xf6bb4b60u) \
    X(H, b, c, d, a, 10, 23, 0xbebfbc70u) \
    X(H, a, b, c, d, 13, 4, 0x289b7ec6u) \
    X(H, d, a, b, c, 0, 11, 0xeaa127fau) \
    X(H, c, d, a, b, 3, 16, 0xd4ef3085u) \
    X(H, b, c, d, a, 6, 23, 0x04881d05u) \
    X(H, a, b, c, d, 9, 4, 0xd9d4d039u) \
    X(H, d, a, b, c, 12, 11, 0xe6db99e5u) \
    X(H, c, d, a, b, 15, 16, 0x1fa27cf8u) \
    X(H, b, c, d, a, 2, 23, 0xc4ac5665u) \
    X(I, a, b, c, d, 0, 6, 0xf4292244u) \
    X(I, d, a, b, c, 7, 10, 0x432aff97u) \
    X(I, c, d, a, b, 14, 15, 0xab9423a7u) \
    X(I, b, c, d, a, 5, 21, 0xfc93a039u) \
    X(I, a, b, c, d, 12, 6, 0x655b59c3u) \
    X(I, d, a, b, c, 3, 10, 0x8f0ccc92u) \
    X(I, c, d, a, b, 10, 15, 0xffeff47du) \
    X(I, b, c, d, a, 1, 21, 0x85845dd1u) \
    X(I, a, b, c, d, 8, 6, 0x6fa87e4fu) \
    X(I, d, a, b, c, 15, 10, 0xfe2ce6e0u) \
    X(I, c, d, a, b, 6, 15, 0xa3014314u) \
    X(I, b, c, d, a, 13, 21, 0x4e0811a1u) \
    X(I, a, b, c, d, 4, 6, 0xf7537e82u) \
    X(I, d, a, b, c, 11, 10, 0xbd3af235u) \
    X(I, c, d, a, b, 2, 15, 0x2ad7d2bbu) \
    X(I, b, c, d, a, 9, 21, 0xeb86d391u)

static inline uint32_t word(const unsigned char *block, int number) {
    uint32_t value;
    memcpy(&value, block + 4 * number, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    return value;
}

#define STEP_F(a, b, c, d, s) a += F(b, c, d); a = ROTATED(a, s) + b;
/* The two parts of G have no bit in common, so they can be added one by one: the first
   does not wait for b, which is computed last. */
#define STEP_G(a, b, c, d, s) a += ~d & c; a += d & b; a = ROTATED(a, s) + b;
#define STEP_H(a, b, c, d, s) a += H(b, c, d); a = ROTATED(a, s) + b;
#define STEP_I(a, b, c, d, s) a += I(b, c, d); a = ROTATED(a, s) + b;

#define ONE(n, f, a, b, c, d, k, s, t) \
    a##n += word(p##n, k) + t; \
    STEP_##f(a##n, b##n, c##n, d##n, s)
#define BEGIN(n) \
    uint32_t a##n = states[n].words[0], b##n = states[n].words[1]; \
    uint32_t c##n = states[n].words[2], d##n = states[n].words[3]; \
    const unsigned char *p##n = from[n];
#define ENTER(n) const uint32_t e##n = a##n, f##n = b##n, g##n = c##n, h##n = d##n;
#define LEAVE(n) a##n += e##n; b##n += f##n; c##n += g##n; d##n += h##n; p##n += MD5_BLOCK;
#define END(n) \
    states[n].words[0] = a##n; states[n].words[1] = b##n; \
    states[n].words[2] = c##n; states[n].words[3] = d##n;

#define EACH1(M) M(0)
#define EACH2(M) M(0) M(1)
#define EACH3(M) M(0) M(1) M(2)
#define STEP1(f, a, b, c, d, k, s, t) ONE(0, f, a, b, c, d, k, s, t)
#define STEP2(f, a, b, c, d, k, s, t) STEP1(f, a, b, c, d, k, s, t) ONE(1, f, a, b, c, d, k, s, t)
#define STEP3(f, a, b, c, d, k, s, t) STEP2(f, a, b, c, d, k, s, t) ONE(2, f, a, b, c, d, k, s, t)

#define DEFINE(count) \
    static void hash##count(struct md5 *states, const unsigned char *const *from, \
                            size_t blocks) { \
        EACH##count(BEGIN) \
        for (; blocks; blocks--) { \
            EACH##count(ENTER) \
            STEPS(STEP##count) \
            EACH##count(LEAVE) \
        } \
        EACH##count(END) \
    }

DEFINE(1)
DEFINE(2)
DEFINE(3)

void md5_begin(struct md5 *state) {
    static const uint32_t initial[4] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u};
    memcpy(state->words, initial, sizeof initial);
}

void md5_blocks(int count, struct md5 *states, const unsigned char *const *from,
                size_t blocks) {
    if (count == 3) hash3(states, from, blocks);
    else if (count == 2) hash2(states, from, blocks);
    else hash1(states, from, blocks);
}

void md5_end(struct md5 *state, const unsigned char *rest, uint64_t size,
             unsigned char digest[16]) {
    unsigned char last[2 * MD5_BLOCK] = {0};
    const unsigned char *from = last;
    size_t left = size % MD5_BLOCK, blocks = left < MD5_BLOCK - 8 ? 1 : 2;
    uint64_t bits = size << 3;
    memcpy(last, rest, left);
    last[left] = 0x80;
    for (int i = 0; i < 8; i++)
        last[blocks * MD5_BLOCK - 8 + (size_t)i] = (unsigned char)(bits >> (8 * i));
    hash1(state, &from, blocks);
    for (int i = 0; i < 16; i++)
        digest[i] = (unsigned char)(state->words[i / 4] >> (8 * (i % 4)));
}
