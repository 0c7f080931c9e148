/* keepfs.keep.hashing._md5: MD5 of growing byte strings, computed by a few threads for all
   of them together.

   `extend` only announces bytes that are in memory. The threads of this module, which never
   run Python, take up to three digests that have bytes to hash, hash a chunk of each, and
   choose again. So a digest may be far behind its bytes; the more digests have bytes to
   hash, the faster they are hashed together.

   `mutex` protects everything shared, the fields of the digests included. It is held for
   arithmetic, never while hashing or waiting for the GIL, so a thread may wait for it with
   the GIL. A digest that is `taken` is being hashed without the mutex, from memory that its
   buffers keep alive; its own state changes only when the chunk is complete. Whoever needs
   that memory released waits for the chunk: 100 us of processor time. */

#define _GNU_SOURCE /* CPU_COUNT, pthread_setname_np */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

#include "md5_streams.h"

#ifndef LEAST_THREADS /* scripts/soak-hashing sets more, to test several on any machine */
#define LEAST_THREADS 1
#endif

enum {
    /* Bytes of each digest that are hashed before digests are chosen again. */
    CHUNK = 64 * 1024,
    /* Least bytes for which a digest is chosen, if nothing waits for its result: fewer cost
       more for choosing than for hashing. */
    LEAST = 16 * 1024,
    /* Most bytes that the caller of `hexdigest` hashes: to wake a thread takes as long. */
    CALLERS = 128 * 1024,
    /* Digests with bytes to hash, not taken, for which another thread is started. */
    CROWD = 2,
    MOST_THREADS = 8,
};

struct digest {
    PyObject_HEAD
    struct md5 state;
    uint64_t size;              /* bytes announced */
    uint64_t hashed;            /* bytes hashed, in whole blocks */
    const unsigned char *bytes; /* all announced bytes */
    Py_buffer memory, former;   /* `former` is where they were before, while it may be read */
    bool has_memory, has_former;
    bool taken, reads_former;   /* a thread is hashing it; from `former` */
    bool queued, closed;
    int waiting;                /* calls of `hexdigest` */
    struct digest *previous, *next;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER; /* there are bytes to hash */
static pthread_cond_t left = PTHREAD_COND_INITIALIZER; /* digests are no longer taken */
static struct digest *first, *last;                    /* those with bytes to hash */
static int threads, idle_threads, most_threads = 1;

/* --- with the mutex -------------------------------------------------------------- */

static uint64_t unhashed(const struct digest *it) {
    return (it->size - it->hashed) / MD5_BLOCK * MD5_BLOCK;
}

static void dequeue(struct digest *it) {
    if (!it->queued) return;
    if (it->previous) it->previous->next = it->next;
    else first = it->next;
    if (it->next) it->next->previous = it->previous;
    else last = it->previous;
    it->previous = it->next = NULL;
    it->queued = false;
}

static void enqueue(struct digest *it) {
    if (it->queued) return;
    it->previous = last;
    if (last) last->next = it;
    else first = it;
    last = it;
    it->queued = true;
}

static bool is_ready(const struct digest *it) {
    return !it->taken && unhashed(it) >= (it->waiting ? MD5_BLOCK : LEAST);
}

/* Hash a chunk of `wanted`, unless NULL, and of ready digests beside it. Releases the mutex
   meanwhile. Returns false if there is none. */
static bool hash_chunk(struct digest *wanted) {
    struct digest *group[MD5_STREAMS];
    struct md5 states[MD5_STREAMS];
    const unsigned char *from[MD5_STREAMS];
    uint64_t bytes = CHUNK;
    int count = 0;
    if (wanted) group[count++] = wanted;
    for (int awaited = 1; awaited >= 0; awaited--)
        for (struct digest *it = first; it && count < MD5_STREAMS; it = it->next)
            if (it != wanted && is_ready(it) && (it->waiting > 0) == awaited)
                group[count++] = it;
    if (!count) return false;
    for (int i = 0; i < count; i++) {
        struct digest *it = group[i];
        it->taken = true;
        states[i] = it->state;
        from[i] = it->bytes + it->hashed;
        if (unhashed(it) < bytes) bytes = unhashed(it);
    }
    pthread_mutex_unlock(&mutex);
    md5_blocks(count, states, from, (size_t)(bytes / MD5_BLOCK));
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < count; i++) {
        struct digest *it = group[i];
        it->taken = it->reads_former = false;
        it->state = states[i];
        it->hashed += bytes;
        dequeue(it); /* they take turns */
        if (unhashed(it) && !it->closed) enqueue(it);
    }
    pthread_cond_broadcast(&left);
    return true;
}

static void *run(void *unused) {
    (void)unused;
    pthread_setname_np(pthread_self(), "keepfs-md5");
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (hash_chunk(NULL)) {}
        idle_threads++;
        pthread_cond_wait(&work, &mutex);
        idle_threads--;
    }
    return NULL;
}

/* Wake a thread, or start one, if there is more to hash than the others should do. */
static void ensure_threads(void) {
    int ready = 0;
    for (struct digest *it = first; it; it = it->next) ready += is_ready(it);
    if (!ready || (threads > idle_threads && ready < CROWD)) return;
    if (idle_threads) {
        pthread_cond_signal(&work);
    } else if (threads < most_threads) {
        pthread_t thread;
        sigset_t all, before;
        sigfillset(&all); /* signals are for Python's threads */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        if (!pthread_create(&thread, NULL, run, NULL)) {
            pthread_detach(thread);
            threads++;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
}

/* --- for Python ------------------------------------------------------------------ */

/* Wait while a field of a digest is set, which the end of a chunk unsets. Called with the
   mutex and the GIL, which are released meanwhile: others may have changed everything. */
static void wait_while(const bool *field) {
    while (*field) {
        Py_BEGIN_ALLOW_THREADS
        while (*field) pthread_cond_wait(&left, &mutex);
        pthread_mutex_unlock(&mutex);
        Py_END_ALLOW_THREADS
        pthread_mutex_lock(&mutex);
    }
}

static PyObject *refuse(const char *reason) {
    PyErr_SetString(PyExc_ValueError, reason);
    return NULL;
}

static PyObject *digest_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    if (PyTuple_Size(args) || (keywords && PyDict_Size(keywords))) {
        PyErr_SetString(PyExc_TypeError, "SharedDigest() takes no arguments");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct digest *self = (struct digest *)allocate(type, 0); /* of zeros */
    if (self) md5_begin(&self->state);
    return (PyObject *)self;
}

static PyObject *digest_extend(PyObject *object, PyObject *memory) {
    struct digest *self = (struct digest *)object;
    Py_buffer given, gone[2];
    int count = 0;
    if (PyObject_GetBuffer(memory, &given, PyBUF_SIMPLE) < 0) return NULL;
    pthread_mutex_lock(&mutex);
    if (self->bytes != given.buf) wait_while(&self->reads_former); /* moved twice in a chunk */
    bool moved = self->has_memory && self->bytes != given.buf;
    const char *flaw = NULL;
    if (self->closed) flaw = "the digest is closed";
    else if (self->waiting) flaw = "the digest is being computed";
    else if ((uint64_t)given.len < self->size) flaw = "there are fewer bytes than before";
    if (flaw) {
        gone[count++] = given;
    } else {
        if (self->has_former && !self->reads_former) {
            gone[count++] = self->former;
            self->has_former = false;
        }
        if (moved && self->taken) {
            self->former = self->memory;
            self->has_former = self->reads_former = true;
        } else if (self->has_memory) {
            gone[count++] = self->memory;
        }
        self->memory = given;
        self->has_memory = true;
        self->bytes = given.buf;
        self->size = (uint64_t)given.len;
        if (unhashed(self)) enqueue(self);
        ensure_threads();
    }
    pthread_mutex_unlock(&mutex);
    while (count) PyBuffer_Release(&gone[--count]);
    if (flaw) return refuse(flaw);
    Py_RETURN_NONE;
}

/* Hash zeros, and the end of a message of `size` bytes that has `rest` after its whole
   blocks, so that it has `total` bytes. */
static void finish(struct md5 *state, unsigned char rest[MD5_BLOCK], uint64_t size,
                   uint64_t total, unsigned char result[16]) {
    static const unsigned char zeros[64 * MD5_BLOCK];
    size_t begin = (size_t)(size % MD5_BLOCK);
    const unsigned char *from = rest;
    memset(rest + begin, 0, MD5_BLOCK - begin);
    uint64_t blocks = total / MD5_BLOCK - size / MD5_BLOCK;
    if (blocks) {
        md5_blocks(1, state, &from, 1);
        memset(rest, 0, begin);
        blocks--;
        from = zeros;
    }
    while (blocks) {
        size_t some = blocks < 64 ? (size_t)blocks : 64;
        md5_blocks(1, state, &from, some);
        blocks -= some;
    }
    md5_end(state, rest, total, result);
}

static PyObject *digest_hexdigest(PyObject *object, PyObject *args) {
    struct digest *self = (struct digest *)object;
    Py_ssize_t wanted = -1;
    Py_buffer former;
    struct md5 state;
    unsigned char rest[MD5_BLOCK], result[16];
    char text[33];
    if (!PyArg_ParseTuple(args, "|n:hexdigest", &wanted)) return NULL;
    bool has_former = false, closed;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&mutex);
    self->waiting++;
    ensure_threads();
    while (!self->closed && unhashed(self)) {
        if (!self->taken && (!threads || unhashed(self) <= CALLERS)) hash_chunk(self);
        else pthread_cond_wait(&left, &mutex);
    }
    closed = self->closed;
    uint64_t size = self->size;
    if (!closed) {
        state = self->state;
        if (size > self->hashed)
            memcpy(rest, self->bytes + self->hashed, (size_t)(size - self->hashed));
        if (self->has_former && !self->reads_former) {
            former = self->former;
            has_former = true;
            self->has_former = false;
        }
    }
    self->waiting--;
    pthread_mutex_unlock(&mutex);
    if (!closed)
        finish(&state, rest, size, wanted < 0 || (uint64_t)wanted < size ? size : (uint64_t)wanted,
               result);
    Py_END_ALLOW_THREADS
    if (has_former) PyBuffer_Release(&former);
    if (closed) return refuse("the digest is closed");
    for (int i = 0; i < 16; i++) {
        text[2 * i] = "0123456789abcdef"[result[i] >> 4];
        text[2 * i + 1] = "0123456789abcdef"[result[i] & 15];
    }
    return PyUnicode_FromStringAndSize(text, 32);
}

static PyObject *digest_close(PyObject *object, PyObject *unused) {
    struct digest *self = (struct digest *)object;
    Py_buffer gone[2];
    int count = 0;
    (void)unused;
    pthread_mutex_lock(&mutex);
    self->closed = true;
    dequeue(self);
    if (self->waiting) pthread_cond_broadcast(&left);
    wait_while(&self->taken); /* no other thread takes it any more */
    if (self->has_former) gone[count++] = self->former;
    if (self->has_memory) gone[count++] = self->memory;
    self->has_former = self->has_memory = false;
    pthread_mutex_unlock(&mutex);
    while (count) PyBuffer_Release(&gone[--count]);
    Py_RETURN_NONE;
}

static void digest_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(digest_close(self, NULL));
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef digest_methods[] = {
    {"extend", digest_extend, METH_O, "Announce bytes: those before, and more."},
    {"hexdigest", digest_hexdigest, METH_VARARGS, "Return the MD5 of all announced bytes."},
    {"close", digest_close, METH_NOARGS, "Release the memory."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot digest_slots[] = {
    {Py_tp_doc, "The MD5 of bytes in memory that become more."},
    {Py_tp_new, digest_new},
    {Py_tp_dealloc, digest_dealloc},
    {Py_tp_methods, digest_methods},
    {0, NULL},
};

static PyType_Spec digest_spec = {
    .name = "keepfs.keep.hashing._md5.SharedDigest",
    .basicsize = sizeof(struct digest),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = digest_slots,
};

/* --- the module ------------------------------------------------------------------ */

static void before_fork(void) { pthread_mutex_lock(&mutex); }

static void after_fork(void) { pthread_mutex_unlock(&mutex); }

/* The child has none of the threads. What they were hashing is hashed again. */
static void in_child(void) {
    threads = idle_threads = 0;
    for (struct digest *it = first; it; it = it->next) {
        it->taken = it->reads_former = false;
        it->waiting = 0;
    }
    pthread_cond_init(&work, NULL);
    pthread_cond_init(&left, NULL);
    pthread_mutex_init(&mutex, NULL);
}

/* Compare the MD5 of 64 zero bytes, by one, two and three digests at once, with the known
   one. A compiler that gets it wrong would make each intact block a damaged one. */
static bool is_right(void) {
    static const unsigned char zeros[MD5_BLOCK];
    static const unsigned char known[16] = {0x3b, 0x5d, 0x3c, 0x7d, 0x20, 0x7e, 0x37, 0xdc,
                                            0xee, 0xed, 0xd3, 0x01, 0xe3, 0x5e, 0x2e, 0x58};
    const unsigned char *from[MD5_STREAMS] = {zeros, zeros, zeros};
    for (int count = 1; count <= MD5_STREAMS; count++) {
        struct md5 states[MD5_STREAMS];
        unsigned char result[16];
        for (int i = 0; i < count; i++) md5_begin(&states[i]);
        md5_blocks(count, states, from, 1);
        for (int i = 0; i < count; i++) {
            md5_end(&states[i], zeros, MD5_BLOCK, result);
            if (memcmp(result, known, sizeof known)) return false;
        }
    }
    return true;
}

static int execute(PyObject *module) {
    static bool has_handlers;
    if (!is_right()) {
        PyErr_SetString(PyExc_ImportError, "this build of MD5 gives wrong results");
        return -1;
    }
    cpu_set_t allowed;
    /* Half of the processors: the others receive. Measured with two: a second thread takes
       blocks that the first would soon hash beside its own. */
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) most_threads = CPU_COUNT(&allowed) / 2;
    if (most_threads < LEAST_THREADS) most_threads = LEAST_THREADS;
    if (most_threads > MOST_THREADS) most_threads = MOST_THREADS;
    if (!has_handlers && pthread_atfork(before_fork, after_fork, in_child)) {
        PyErr_NoMemory();
        return -1;
    }
    has_handlers = true;
    PyObject *type = PyType_FromSpec(&digest_spec);
    if (!type) return -1;
    int failed = PyModule_AddObjectRef(module, "SharedDigest", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_md5",
    .m_doc = "MD5 of several growing byte strings at once.",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__md5(void) { return PyModuleDef_Init(&definition); }
