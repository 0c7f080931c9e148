/* The memory of the block server: blocks by digest, the oldest of which make room. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 1 << 16, DIGEST = 32 };

struct block {
    char digest[DIGEST + 1];
    unsigned char *data;
    size_t size, room;
    int users;  /* answers being sent from it */
    int pinned, dropped;
    struct block *in_bucket, *newer;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *buckets[BUCKETS], *oldest, *newest, *idle;
static size_t most_bytes, bytes; /* of what isn't pinned, idle ones included */

static unsigned bucket_of(const char *digest)
{
    unsigned sum = 0;
    for (int i = 0; i < 8; i++)
        sum = sum * 31 + (unsigned char)digest[i];
    return sum % BUCKETS;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct block *fresh(size_t room)
{
    struct block *it = calloc(1, sizeof *it);
    if (it == NULL || (it->data = malloc(room ? room : 1)) == NULL)
        die("server: out of memory");
    it->room = room;
    return it;
}

/* With the lock: put away a block nobody is sending. */
static void put_away(struct block *it)
{
    if (it->pinned) {
        free(it->data);
        free(it);
        return;
    }
    it->newer = idle;
    idle = it;
}

static void unhash(struct block *it)
{
    struct block **at = &buckets[bucket_of(it->digest)];
    while (*at != NULL && *at != it)
        at = &(*at)->in_bucket;
    if (*at == it)
        *at = it->in_bucket;
    it->dropped = 1;
}

/* With the lock: forget the oldest block, unless there is none. */
static int forget_oldest(void)
{
    struct block *it = oldest;
    if (it == NULL)
        return 0;
    oldest = it->newer;
    if (oldest == NULL)
        newest = NULL;
    if (!it->dropped)
        unhash(it);
    if (it->users == 0)
        put_away(it);
    else
        it->pinned = 2; /* freed by its last user */
    return 1;
}

static struct block *take_idle(size_t size)
{
    for (struct block **at = &idle; *at != NULL; at = &(*at)->newer)
        if ((*at)->room >= size && (*at)->room <= 2 * size + 65536) {
            struct block *it = *at;
            *at = it->newer;
            it->newer = NULL;
            return it;
        }
    return NULL;
}

static struct block *room_for(size_t size, int pinned)
{
    if (pinned) {
        struct block *it = fresh(size);
        it->pinned = 1;
        return it;
    }
    pthread_mutex_lock(&lock);
    struct block *it = take_idle(size);
    while (it == NULL && bytes + size > most_bytes) {
        if (idle != NULL) { /* of another size: give it back */
            struct block *other = idle;
            idle = other->newer;
            bytes -= other->room;
            free(other->data);
            free(other);
        } else if (!forget_oldest())
            break;
        it = take_idle(size);
    }
    if (it == NULL) {
        bytes += size;
        it = fresh(size);
    }
    pthread_mutex_unlock(&lock);
    it->in_bucket = it->newer = NULL;
    it->users = it->dropped = 0;
    return it;
}

static struct block *find(const char *digest)
{
    struct block *it = buckets[bucket_of(digest)];
    while (it != NULL && memcmp(it->digest, digest, DIGEST) != 0)
        it = it->in_bucket;
    return it;
}

static void keep(struct block *it)
{
    pthread_mutex_lock(&lock);
    struct block *before = find(it->digest);
    if (before != NULL && before->pinned == 1) {
        /* Blocks never change: the pinned one stays. */
        put_away(it);
        pthread_mutex_unlock(&lock);
        return;
    }
    if (before != NULL)
        unhash(before); /* stays in the line of the oldest until its turn */
    struct block **bucket = &buckets[bucket_of(it->digest)];
    it->in_bucket = *bucket;
    *bucket = it;
    if (!it->pinned) {
        if (newest != NULL)
            newest->newer = it;
        else
            oldest = it;
        newest = it;
    }
    pthread_mutex_unlock(&lock);
}

static struct block *use(const char *digest)
{
    pthread_mutex_lock(&lock);
    struct block *it = find(digest);
    if (it != NULL)
        it->users++;
    pthread_mutex_unlock(&lock);
    return it;
}

static void leave(struct block *it)
{
    pthread_mutex_lock(&lock);
    if (--it->users == 0 && it->pinned == 2) {
        bytes -= it->room;
        free(it->data);
        free(it);
    }
    pthread_mutex_unlock(&lock);
}
