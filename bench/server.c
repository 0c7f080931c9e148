/* A block server that is faster than what is measured with it.
 *
 * It speaks what Keep services speak: GET, HEAD and PUT of /<md5>[+hints] over
 * HTTP/1.1 with connections kept alive, from and into memory that was touched
 * before. It is a measuring device, no Keep service: it believes the MD5 in the
 * URL instead of computing it, checks no token, and forgets the oldest blocks
 * when it has no room. What was put can be read back, and be checked by whoever
 * put it. A PUT with the header `Bench-Pin: yes` is never forgotten.
 *
 * server PORTS KIBIBYTES BLOCK [pace GET PUT]     serves on so many ports of 127.0.0.1 at
 * once, each a service of its own to a client, with one memory behind them of so
 * many KiB, touched in advance in buffers of BLOCK bytes. Prints the ports in one
 * line, and ends when its standard input does.
 *
 * With `pace` and two rates in MB/s it sends and takes the bytes of a body no faster
 * than these, each request by itself: it takes the time of a
 * keepstore on processors of its own.
 * GET /counts answers "GET n HEAD n PUT n".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "blocks.h"

enum { HEAD_SIZE = 16384, PACED_PIECE = 262144, SHORT = 100000 /* ns */ };

static double get_pace, put_pace; /* bytes in a nanosecond; 0 for any number */
static atomic_long gets, heads, puts_;

static long long now(void)
{
    struct timespec it;
    clock_gettime(CLOCK_MONOTONIC, &it);
    return it.tv_sec * 1000000000LL + it.tv_nsec;
}

/* Waits until so many bytes may have gone since `begin`; not where waking up would
 * take longer than that. Who was late (the other side was) doesn't catch up. */
static void keep_pace(double pace, long long *begin, size_t bytes)
{
    if (pace == 0)
        return;
    long long until = *begin + (long long)((double)bytes / pace), left = until - now();
    if (left < -SHORT)
        *begin -= left;
    if (left < SHORT)
        return;
    struct timespec when = {until / 1000000000LL, until % 1000000000LL};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
}

static int send_all(int fd, struct iovec *parts, int count)
{
    while (count > 0) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        while (count > 0 && (size_t)sent >= parts->iov_len) {
            sent -= (ssize_t)parts->iov_len;
            parts++;
            count--;
        }
        if (count > 0) {
            parts->iov_base = (char *)parts->iov_base + sent;
            parts->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

static int answer(int fd, const char *status, const char *more, const void *body, size_t size, size_t sent)
{
    char head[512];
    int length = snprintf(head, sizeof head, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n", status, more, size);
    struct iovec parts[2] = {{head, (size_t)length}, {(void *)body, sent}};
    return send_all(fd, parts, sent ? 2 : 1);
}

static int send_paced(int fd, const char *more, const struct block *it)
{
    long long begin = now();
    for (size_t at = 0, piece;; at += piece) {
        struct iovec part = {it->data + at, 0};
        part.iov_len = piece = it->size - at < PACED_PIECE ? it->size - at : PACED_PIECE;
        keep_pace(get_pace, &begin, at + piece);
        if (at == 0 ? answer(fd, "200 OK", more, it->data, it->size, piece) : send_all(fd, &part, 1))
            return -1;
        if (at + piece == it->size)
            return 0;
    }
}

static const char *header(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = strstr(head, "\r\n"); at != NULL; at = strstr(at + 2, "\r\n"))
        if (strncasecmp(at + 2, name, length) == 0 && at[2 + length] == ':') {
            at += 3 + length;
            while (*at == ' ')
                at++;
            return at;
        }
    return NULL;
}

static int do_get(int fd, const char *path, int with_body)
{
    if (strncmp(path, "/counts ", 8) == 0) {
        char text[128];
        int length = snprintf(text, sizeof text, "GET %ld HEAD %ld PUT %ld\n", gets, heads, puts_);
        return answer(fd, "200 OK", "", text, (size_t)length, (size_t)length);
    }
    if (with_body)
        gets++;
    else
        heads++;
    struct block *it = use(path + 1);
    if (it == NULL)
        return answer(fd, "404 Not Found", "", "Not Found\n", 10, with_body ? 10 : 0);
    const char *type = "Content-Type: application/octet-stream\r\n";
    int failed = !with_body ? answer(fd, "200 OK", type, it->data, it->size, 0)
                 : get_pace ? send_paced(fd, type, it)
                            : answer(fd, "200 OK", type, it->data, it->size, it->size);
    leave(it);
    return failed;
}

static int do_put(int fd, const char *head, const char *path, const char *early, size_t have)
{
    const char *length = header(head, "Content-Length");
    if (length == NULL) {
        answer(fd, "411 Length Required", "", "", 0, 0);
        return -1;
    }
    size_t size = strtoul(length, NULL, 10);
    struct block *it = room_for(size, header(head, "Bench-Pin") != NULL);
    char digest[DIGEST + 1];
    memcpy(it->digest, path + 1, DIGEST);
    it->size = size;
    const char *expect = header(head, "Expect");
    if (expect != NULL && have < size && send(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_NOSIGNAL) < 0)
        return -1;
    if (have > size)
        have = size;
    memcpy(it->data, early, have);
    size_t most = put_pace ? PACED_PIECE : 1048576;
    long long begin = now();
    keep_pace(put_pace, &begin, have);
    while (have < size) {
        ssize_t got = recv(fd, it->data + have, size - have < most ? size - have : most, 0);
        if (got <= 0)
            return -1; /* its room is lost: clients here don't hang up */
        have += (size_t)got;
        keep_pace(put_pace, &begin, have);
    }
    puts_++;
    memcpy(digest, it->digest, DIGEST);
    digest[DIGEST] = 0;
    keep(it);
    char text[80];
    int count = snprintf(text, sizeof text, "%s+%zu\n", digest, size);
    return answer(fd, "200 OK",
                  "X-Keep-Replicas-Stored: 1\r\nX-Keep-Storage-Classes-Confirmed: default=1\r\n",
                  text, (size_t)count, (size_t)count);
}

static void *serve(void *argument)
{
    int fd = (int)(long)argument, one = 1;
    char *head = malloc(HEAD_SIZE + 1);
    size_t have = 0;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (head != NULL) {
        char *end;
        head[have] = 0;
        while ((end = strstr(head, "\r\n\r\n")) == NULL) {
            ssize_t got = have < HEAD_SIZE ? recv(fd, head + have, HEAD_SIZE - have, 0) : -1;
            if (got <= 0)
                goto done;
            have += (size_t)got;
            head[have] = 0;
        }
        end += 4;
        size_t used = (size_t)(end - head), extra = have - used;
        char kept = *end;
        *end = 0;
        char *path = strchr(head, ' ');
        path = path == NULL ? head : path + 1;
        int failed;
        if (strlen(path) < 8) {
            failed = -1;
        } else if (strncmp(head, "PUT ", 4) == 0) {
            const char *length = header(head, "Content-Length");
            size_t size = length ? strtoul(length, NULL, 10) : 0;
            char *body = malloc(extra + 1);
            body[0] = kept;
            memcpy(body + (extra ? 1 : 0), end + 1, extra ? extra - 1 : 0);
            failed = do_put(fd, head, path, body, extra);
            free(body);
            used += extra < size ? extra : size;
        } else if (strncmp(head, "GET ", 4) == 0) {
            failed = do_get(fd, path, 1);
        } else if (strncmp(head, "HEAD ", 5) == 0) {
            failed = do_get(fd, path, 0);
        } else {
            failed = answer(fd, "405 Method Not Allowed", "", "", 0, 0);
        }
        *end = kept;
        if (failed)
            break;
        memmove(head, head + used, have - used);
        have -= used;
    }
done:
    free(head);
    close(fd);
    return NULL;
}

static void *listen_on(void *argument)
{
    int listener = (int)(long)argument;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, &detached, serve, (void *)(long)fd) != 0)
            close(fd);
    }
    return NULL;
}

static int open_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (void *)&address, sizeof address) < 0 || listen(fd, 256) < 0 ||
        getsockname(fd, (void *)&address, &length) < 0)
        die("server: can't listen");
    pthread_t thread;
    if (pthread_create(&thread, NULL, listen_on, (void *)(long)fd) != 0)
        die("server: no thread");
    return ntohs(address.sin_port);
}

int main(int count, char **words)
{
    int ports = count > 1 ? atoi(words[1]) : 1;
    most_bytes = (count > 2 ? strtoul(words[2], NULL, 10) : 524288) << 10;
    if (count > 6 && strcmp(words[4], "pace") == 0) {
        get_pace = atof(words[5]) / 1e3;
        put_pace = atof(words[6]) / 1e3;
    }
    size_t block = count > 3 ? strtoul(words[3], NULL, 10) : 67108864;
    while (bytes + block <= most_bytes) {
        struct block *it = fresh(block);
        memset(it->data, 1, block); /* a page fault costs as much as the transfer */
        bytes += block;
        put_away(it);
    }
    for (int i = 0; i < ports; i++)
        printf("%d%c", open_port(), i + 1 < ports ? ' ' : '\n');
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
