/* What reading spends its time on, without the GIL: decode blocks of Blosc2 chunks and copy what is
   wanted of them to where it belongs.  raggedstore/kernel.py says what each function takes, and all
   that they do is done in NumPy too, where this could not be compiled.

   Nothing here believes its arguments: every range is held against the buffer that it lies in. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER = 32 }; /* bytes, of a Blosc2 chunk */
static const uint32_t RAW = 0x80000000; /* set in a chunk's first edge where it is not compressed */

/* Blosc2's parameters for decoding, which it takes by value.  The first of them is how many threads,
   and all others are to be their defaults, which are zeros; it may come to have more of them. */
typedef struct {
    int16_t threads;
    char others[254];
} Parameters;

typedef void *(*Create)(Parameters);
typedef int (*Decompress)(void *, const void *, int32_t, void *, int32_t);
typedef void (*Destroy)(void *);
typedef uint64_t (*Digest)(const void *, size_t);

static struct {
    Create create;
    Decompress decompress;
    Destroy destroy;
    Digest digest;
} library;

static PyObject *use(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long at[4];
    if (!PyArg_ParseTuple(args, "KKKK", &at[0], &at[1], &at[2], &at[3])) return NULL;
    library.create = (Create)(uintptr_t)at[0];
    library.decompress = (Decompress)(uintptr_t)at[1];
    library.destroy = (Destroy)(uintptr_t)at[2];
    library.digest = (Digest)(uintptr_t)at[3];
    Py_RETURN_NONE;
}

/* The elements of a buffer, or NULL where it holds another number of them than `count`. */
static const void *elements(const Py_buffer *buffer, int64_t count, size_t size) {
    return count >= 0 && buffer->len == (Py_ssize_t)(count * size) ? buffer->buf : NULL;
}

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++) PyBuffer_Release(&buffers[i]);
}

/* Whether `count` from `start` lie among `size`, whatever the numbers. */
static int within(int64_t start, int64_t count, int64_t size) {
    return start >= 0 && count >= 0 && start <= size && count <= size - start;
}

static PyObject *copy(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *sources;
    long long row;
    Py_buffer of[5]; /* edges, starts, counts, places, out */
    if (!PyArg_ParseTuple(args, "O!Ly*y*y*y*w*", &PyList_Type, &sources, &row, &of[0], &of[1], &of[2],
                          &of[3], &of[4]))
        return NULL;
    int64_t n = of[1].len / 8, out_rows = row > 0 ? of[4].len / row : 0;
    Py_ssize_t groups = PyList_Size(sources);
    const int64_t *edges = elements(&of[0], groups + 1, 8), *starts = elements(&of[1], n, 8);
    const int64_t *counts = elements(&of[2], n, 8), *places = elements(&of[3], n, 8);
    const char *wrong = NULL;
    if (row <= 0 || !edges || !starts || !counts || !places) wrong = "arrays that don't belong together";
    for (Py_ssize_t g = 0; g < groups && !wrong; g++) {
        Py_buffer source;
        if (PyObject_GetBuffer(PyList_GetItem(sources, g), &source, PyBUF_SIMPLE)) {
            release(of, 5);
            return NULL;
        }
        if (edges[g] < 0 || edges[g] > edges[g + 1] || edges[g + 1] > n) {
            wrong = "edges that don't ascend";
        } else {
            int64_t rows = source.len / row, bad = 0;
            Py_BEGIN_ALLOW_THREADS
            for (int64_t i = edges[g]; i < edges[g + 1]; i++) {
                if (!within(starts[i], counts[i], rows) || !within(places[i], counts[i], out_rows)) {
                    bad = 1;
                    break;
                }
                memcpy((char *)of[4].buf + places[i] * row, (const char *)source.buf + starts[i] * row,
                       (size_t)(counts[i] * row));
            }
            Py_END_ALLOW_THREADS
            if (bad) wrong = "rows outside of what they are copied from or to";
        }
        PyBuffer_Release(&source);
    }
    release(of, 5);
    if (wrong) {
        PyErr_SetString(PyExc_IndexError, wrong);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* A whole batch's blocks, and the pieces that are copied from them; shared by the threads at it. */
typedef struct {
    int fd; /* or -1, and then: */
    const uint8_t *memory;
    int64_t memory_size;
    const uint8_t *header;
    int64_t block;
    int64_t blocks;
    const int64_t *begins, *sizes; /* stored bytes, in the file */
    const uint8_t *raw;
    const uint32_t *checks; /* or NULL */
    int64_t pieces;
    const int64_t *froms, *counts, *places; /* bytes; from what all blocks decode to */
    uint8_t *out;
    int64_t out_size;
    int64_t groups; /* of pieces that share no block with the others */
    const int64_t *piece_edges, *block_edges;
    int64_t *next, *failed;
    uint8_t *stored, *decoded; /* this thread's */
    int64_t stored_size, decoded_size;
} Job;

static int fetch(const Job *job, int64_t begin, int64_t size, uint8_t *to) {
    if (job->fd < 0) {
        if (!within(begin, size, job->memory_size)) return 0;
        memcpy(to, job->memory + begin, (size_t)size);
        return 1;
    }
    for (int64_t done = 0; done < size;) {
        ssize_t got = pread(job->fd, to + done, (size_t)(size - done), (off_t)(begin + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        done += got;
    }
    return 1;
}

/* Read blocks `a` to `b`, neighbours in the file at once, and see that they are what was stored. */
static int fetch_blocks(const Job *job, int64_t a, int64_t b, uint8_t *to) {
    while (a < b) {
        int64_t end = a, size = 0;
        do {
            size += job->sizes[end];
            end++;
        } while (end < b && job->begins[end] == job->begins[end - 1] + job->sizes[end - 1]);
        if (!fetch(job, job->begins[a], size, to)) return 0;
        for (; a < end; a++) {
            if (job->checks && (uint32_t)library.digest(to, (size_t)job->sizes[a]) != job->checks[a])
                return 0;
            to += job->sizes[a];
        }
    }
    return 1;
}

/* Decode blocks `a` to `b` of one kind: behind a header of their own, they are a chunk. */
static int decode_blocks(const Job *job, void *context, int64_t a, int64_t b, uint8_t *to) {
    int64_t count = b - a, size = HEADER + 4 * count, nbytes = count * job->block;
    if (job->raw[a]) return fetch_blocks(job, a, b, to);
    for (int64_t i = a; i < b && size <= INT32_MAX; i++) size += job->sizes[i];
    if (size > INT32_MAX || size > job->stored_size || nbytes > INT32_MAX) return 0;
    memcpy(job->stored, job->header, HEADER);
    int32_t sizes[3] = {(int32_t)nbytes, (int32_t)job->block, (int32_t)size};
    memcpy(job->stored + 4, sizes, sizeof sizes);
    int32_t start = (int32_t)(HEADER + 4 * count);
    for (int64_t i = a; i < b; i++) {
        memcpy(job->stored + HEADER + 4 * (i - a), &start, 4);
        start += (int32_t)job->sizes[i];
    }
    return fetch_blocks(job, a, b, job->stored + HEADER + 4 * count) &&
           library.decompress(context, job->stored, (int32_t)size, to, (int32_t)nbytes) == nbytes;
}

static int do_group(const Job *job, void *context, int64_t group) {
    int64_t first = job->block_edges[group], last = job->block_edges[group + 1];
    int64_t p = job->piece_edges[group], end = job->piece_edges[group + 1];
    if (first < 0 || first > last || last > job->blocks || p < 0 || p > end || end > job->pieces)
        return 0;
    int64_t nbytes = (last - first) * job->block;
    uint8_t *decoded = job->decoded;
    /* A single piece that is all of it is decoded where it belongs. */
    int at_once = end - p == 1 && job->froms[p] == first * job->block && job->counts[p] == nbytes &&
                  within(job->places[p], nbytes, job->out_size);
    if (at_once)
        decoded = job->out + job->places[p];
    else if (nbytes > job->decoded_size)
        return 0;
    for (int64_t a = first, b; a < last; a = b) {
        for (b = a; b < last && job->raw[b] == job->raw[a]; b++)
            if (job->begins[b] < 0 || job->begins[b] > INT64_MAX / 2 || job->sizes[b] <= 0 ||
                job->sizes[b] > INT32_MAX || (job->raw[b] && job->sizes[b] != job->block))
                return 0;
        if (!decode_blocks(job, context, a, b, decoded + (a - first) * job->block)) return 0;
    }
    for (; p < end && !at_once; p++) {
        int64_t from = job->froms[p] - first * job->block;
        if (!within(from, job->counts[p], nbytes) ||
            !within(job->places[p], job->counts[p], job->out_size))
            return 0;
        memcpy(job->out + job->places[p], decoded + from, (size_t)job->counts[p]);
    }
    return 1;
}

/* Where Blosc2 keeps its own scratch memory; one that nobody uses is kept for who comes next. */
static void *spare;

static void *begin(void) {
    void *context = __atomic_exchange_n(&spare, NULL, __ATOMIC_ACQ_REL);
    return context ? context : library.create((Parameters){.threads = 1});
}

static void end(void *context) {
    context = __atomic_exchange_n(&spare, context, __ATOMIC_ACQ_REL);
    if (context) library.destroy(context);
}

static int work(const Job *job) {
    void *context = begin();
    int fine = context != NULL;
    while (fine && !__atomic_load_n(job->failed, __ATOMIC_RELAXED)) {
        int64_t group = __atomic_fetch_add(job->next, 1, __ATOMIC_RELAXED);
        if (group < 0 || group >= job->groups) break;
        fine = do_group(job, context, group);
    }
    if (!fine) __atomic_store_n(job->failed, 1, __ATOMIC_RELAXED);
    if (context) end(context);
    return fine;
}

/* The file, of a descriptor or in memory; how many buffers are held, or -1 and an error. */
static int use_file(Job *job, PyObject *file, Py_buffer *memory) {
    job->fd = -1;
    if (PyLong_Check(file)) {
        job->fd = (int)PyLong_AsLong(file);
        return PyErr_Occurred() ? -1 : 0;
    }
    if (PyObject_GetBuffer(file, memory, PyBUF_SIMPLE)) return -1;
    job->memory = memory->buf;
    job->memory_size = memory->len;
    return 1;
}

static PyObject *decode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *file;
    int is_checked;
    long long block;
    enum { HEAD, BEGINS, SIZES, RAW, CHECKS, FROMS, COUNTS, PLACES, PIECES, BLOCKS, OUT, STATE, STORED, DECODED, MEMORY };
    Py_buffer of[MEMORY + 1];
    if (!PyArg_ParseTuple(args, "Oy*Ly*y*y*y*py*y*y*y*y*w*w*w*w*", &file, &of[HEAD], &block, &of[BEGINS],
                          &of[SIZES], &of[RAW], &of[CHECKS], &is_checked, &of[FROMS], &of[COUNTS],
                          &of[PLACES], &of[PIECES], &of[BLOCKS], &of[OUT], &of[STATE], &of[STORED],
                          &of[DECODED]))
        return NULL;
    Job job = {.block = block, .blocks = of[BEGINS].len / 8, .pieces = of[FROMS].len / 8};
    job.groups = of[PIECES].len / 8 - 1;
    int held = use_file(&job, file, &of[MEMORY]);
    job.header = elements(&of[HEAD], HEADER, 1);
    job.begins = elements(&of[BEGINS], job.blocks, 8);
    job.sizes = elements(&of[SIZES], job.blocks, 8);
    job.raw = elements(&of[RAW], job.blocks, 1);
    job.checks = is_checked ? elements(&of[CHECKS], job.blocks, 4) : NULL;
    job.froms = elements(&of[FROMS], job.pieces, 8);
    job.counts = elements(&of[COUNTS], job.pieces, 8);
    job.places = elements(&of[PLACES], job.pieces, 8);
    job.piece_edges = elements(&of[PIECES], job.groups + 1, 8);
    job.block_edges = elements(&of[BLOCKS], job.groups + 1, 8);
    job.out = of[OUT].buf;
    job.out_size = of[OUT].len;
    int64_t *state = (int64_t *)elements(&of[STATE], 2, 8);
    job.next = state;
    job.failed = state + 1;
    job.stored = of[STORED].buf;
    job.stored_size = of[STORED].len;
    job.decoded = of[DECODED].buf;
    job.decoded_size = of[DECODED].len;
    int fine = 0;
    if (held >= 0) {
        if (!library.create || !state || !job.header || !job.begins || !job.sizes || !job.raw ||
            (is_checked && !job.checks) || !job.froms || !job.counts || !job.places || job.groups < 0 ||
            !job.piece_edges || !job.block_edges || block <= 0 || block > INT32_MAX ||
            job.blocks > INT64_MAX / block) {
            PyErr_SetString(PyExc_ValueError, "arrays that don't belong together");
        } else {
            Py_BEGIN_ALLOW_THREADS
            fine = work(&job);
            Py_END_ALLOW_THREADS
        }
    }
    release(of, MEMORY + (held > 0));
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

static PyObject *decode_run(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *file;
    int is_checked;
    long long block, offset, first, count, from;
    enum { HEAD, EDGES, CHECKS, OUT, STORED, DECODED, MEMORY };
    Py_buffer of[MEMORY + 1];
    if (!PyArg_ParseTuple(args, "Oy*Ly*y*pLLLLw*w*w*", &file, &of[HEAD], &block, &of[EDGES],
                          &of[CHECKS], &is_checked, &offset, &first, &count, &from, &of[OUT],
                          &of[STORED], &of[DECODED]))
        return NULL;
    int64_t place = 0, nbytes = of[OUT].len, group[2] = {0, 1}, blocks[2] = {0, count};
    Job job = {.block = block, .blocks = count, .pieces = 1, .groups = 1};
    int held = use_file(&job, file, &of[MEMORY]), fine = 0;
    int64_t *numbers = NULL;
    if (held >= 0) {
        int64_t in_chunk = of[EDGES].len / 4 - 1;
        if (!library.create || of[HEAD].len != HEADER || block <= 0 || block > INT32_MAX || count <= 0 ||
            !within(first, count, in_chunk) || offset < 0 || offset > INT64_MAX / 2 ||
            (is_checked && of[CHECKS].len / 4 != in_chunk) || from < 0) {
            PyErr_SetString(PyExc_ValueError, "arrays that don't belong together");
        } else if (!(numbers = malloc((size_t)count * 17))) {
            PyErr_NoMemory();
        } else {
            Py_BEGIN_ALLOW_THREADS
            const uint32_t *edges = of[EDGES].buf;
            int64_t *begins = numbers, *sizes = numbers + count;
            for (int64_t i = 0; i < count; i++) {
                begins[i] = offset + (edges[first + i] & ~RAW);
                sizes[i] = offset + (edges[first + i + 1] & ~RAW) - begins[i];
            }
            memset(numbers + 2 * count, edges[0] >= RAW, (size_t)count);
            job.header = of[HEAD].buf;
            job.begins = begins;
            job.sizes = sizes;
            job.raw = (const uint8_t *)(numbers + 2 * count);
            if (is_checked) job.checks = (const uint32_t *)of[CHECKS].buf + first;
            job.froms = (const int64_t *)&from;
            job.counts = &nbytes;
            job.places = &place;
            job.out = of[OUT].buf;
            job.out_size = nbytes;
            job.piece_edges = group;
            job.block_edges = blocks;
            job.stored = of[STORED].buf;
            job.stored_size = of[STORED].len;
            job.decoded = of[DECODED].buf;
            job.decoded_size = of[DECODED].len;
            void *context = begin();
            fine = context && do_group(&job, context, 0);
            if (context) end(context);
            Py_END_ALLOW_THREADS
        }
    }
    free(numbers);
    release(of, MEMORY + (held > 0));
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

static PyMethodDef methods[] = {
    {"use", use, METH_VARARGS, "use(create, decompress, destroy, digest): addresses of C functions."},
    {"copy", copy, METH_VARARGS, "copy(sources, row, edges, starts, counts, places, out)"},
    {"decode", decode, METH_VARARGS, "decode(file, header, block, ...) -> whether all could be"},
    {"decode_run", decode_run, METH_VARARGS, "decode_run(file, header, ...) -> whether it could be"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
