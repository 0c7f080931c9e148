/* What FUSE costs without us: a file system in C that serves memory.
 *
 * memfs MOUNTPOINT FILES BYTES NAMES     has FILES files of BYTES bytes each,
 * block-0, block-1, ..., a directory `many` of NAMES empty files, and takes new
 * files anywhere, whose bytes it counts and throws away. One thread, everything
 * cached by the kernel for long, replies straight from memory: as good as it
 * gets. Stays in front; ends when it is unmounted, or on SIGTERM.
 */
#define FUSE_USE_VERSION 34
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MANY = 2, FIRST_FILE = 16, FIRST_NAME = 1 << 20, FIRST_NEW = 1 << 30 };

static const double LONG = 300;
static unsigned long files, bytes, names, made;
static size_t sizes[1 << 22]; /* of new files */
static char **contents;

static void about(fuse_ino_t ino, struct stat *it)
{
    memset(it, 0, sizeof *it);
    it->st_ino = ino;
    it->st_nlink = 1;
    it->st_blksize = 1 << 20;
    it->st_mode = S_IFREG | 0644;
    if (ino == FUSE_ROOT_ID || ino == MANY)
        it->st_mode = S_IFDIR | 0755;
    else if (ino >= FIRST_NEW)
        it->st_size = (off_t)sizes[ino - FIRST_NEW];
    else if (ino < FIRST_NAME)
        it->st_size = (off_t)bytes;
}

static void entry_of(fuse_ino_t ino, struct fuse_entry_param *it)
{
    memset(it, 0, sizeof *it);
    it->ino = ino;
    it->attr_timeout = it->entry_timeout = LONG;
    about(ino, &it->attr);
}

static void do_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry;
    unsigned long number;
    char rest;
    fuse_ino_t ino = 0;
    if (parent == FUSE_ROOT_ID && strcmp(name, "many") == 0)
        ino = MANY;
    else if (parent == FUSE_ROOT_ID && sscanf(name, "block-%lu%c", &number, &rest) == 1 && number < files)
        ino = FIRST_FILE + number;
    else if (parent == MANY && sscanf(name, "name-%lu%c", &number, &rest) == 1 && number < names)
        ino = FIRST_NAME + number;
    if (ino == 0) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    entry_of(ino, &entry);
    fuse_reply_entry(request, &entry);
}

static void do_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    struct stat it;
    (void)info;
    about(ino, &it);
    fuse_reply_attr(request, &it, LONG);
}

static void do_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *to, int what, struct fuse_file_info *info)
{
    if (ino >= FIRST_NEW && (what & FUSE_SET_ATTR_SIZE))
        sizes[ino - FIRST_NEW] = (size_t)to->st_size;
    do_getattr(request, ino, info);
}

static void do_open(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)ino;
    info->keep_cache = 1;
    fuse_reply_open(request, info);
}

static void do_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)info;
    if (ino >= FIRST_NAME || (size_t)offset >= bytes) {
        fuse_reply_buf(request, NULL, 0);
        return;
    }
    if (size > bytes - (size_t)offset)
        size = bytes - (size_t)offset;
    fuse_reply_buf(request, contents[ino - FIRST_FILE] + offset, size);
}

static void do_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *info)
{
    struct fuse_entry_param entry;
    (void)parent, (void)name, (void)mode;
    if (made == sizeof sizes / sizeof *sizes) {
        fuse_reply_err(request, ENOSPC);
        return;
    }
    entry_of(FIRST_NEW + made++, &entry);
    fuse_reply_create(request, &entry, info);
}

static void do_write(fuse_req_t request, fuse_ino_t ino, const char *data, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)data, (void)info;
    if (ino < FIRST_NEW) {
        fuse_reply_err(request, EROFS);
        return;
    }
    if (sizes[ino - FIRST_NEW] < (size_t)offset + size)
        sizes[ino - FIRST_NEW] = (size_t)offset + size;
    fuse_reply_write(request, size);
}

static void do_flush(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)ino, (void)info;
    fuse_reply_err(request, 0);
}

static void do_unlink(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    (void)parent, (void)name;
    fuse_reply_err(request, 0);
}

static void do_readdirplus(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)info;
    char *reply = malloc(size), name[64];
    size_t used = 0;
    unsigned long count = ino == MANY ? names : files + 1, at = (unsigned long)offset;
    for (; reply != NULL && at < count; at++) {
        struct fuse_entry_param entry;
        fuse_ino_t child = ino == MANY ? FIRST_NAME + at : at < files ? FIRST_FILE + at : MANY;
        if (child == MANY)
            strcpy(name, "many");
        else
            snprintf(name, sizeof name, ino == MANY ? "name-%07lu" : "block-%lu", at);
        entry_of(child, &entry);
        size_t need = fuse_add_direntry_plus(request, reply + used, size - used, name, &entry, (off_t)at + 1);
        if (need > size - used)
            break;
        used += need;
    }
    fuse_reply_buf(request, reply, used);
    free(reply);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = do_lookup, .getattr = do_getattr, .setattr = do_setattr, .open = do_open,
    .read = do_read, .create = do_create, .write = do_write, .flush = do_flush,
    .unlink = do_unlink, .readdirplus = do_readdirplus,
};

int main(int count, char **words)
{
    if (count != 5) {
        fprintf(stderr, "usage: memfs MOUNTPOINT FILES BYTES NAMES\n");
        return 2;
    }
    files = strtoul(words[2], NULL, 10);
    bytes = strtoul(words[3], NULL, 10);
    names = strtoul(words[4], NULL, 10);
    contents = calloc(files ? files : 1, sizeof *contents);
    for (unsigned long i = 0; i < files; i++) {
        contents[i] = malloc(bytes ? bytes : 1);
        for (unsigned long at = 0; at < bytes; at++)
            contents[i][at] = (char)(at * 31 + (at >> 12) + i);
    }
    char *told[] = {"memfs", "-ofsname=memfs,subtype=memfs", NULL};
    struct fuse_args arguments = FUSE_ARGS_INIT(2, told);
    struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
    if (session == NULL || fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, words[1]) != 0)
        return 1;
    fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return 0;
}
