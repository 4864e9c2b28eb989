/* What reading and writing spend their time on, without the GIL: decode blocks of Blosc2 chunks, copy
   what is wanted of them to where it belongs, and take checksums.  raggedstore/kernel.py says what
   each function takes, and all that they do is done in NumPy too, where this could not be compiled.

   Nothing here believes its arguments: every range is held against the buffer that it lies in. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
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

/* With the interpreter's lock where there is so little to do that others may as well wait: so many
   numbers, and so many bytes. */
enum { LITTLE = 4096, LITTLE_COPY = 1 << 20 };

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
    Py_buffer *held = malloc((size_t)(groups + 1) * sizeof *held);
    Py_ssize_t holding = 0;
    if (!held) PyErr_NoMemory();
    else if (row <= 0 || !edges || !starts || !counts || !places) wrong = "arrays that don't belong together";
    for (; held && !wrong && holding < groups; holding++)
        if (PyObject_GetBuffer(PyList_GetItem(sources, holding), &held[holding], PyBUF_SIMPLE)) break;
    if (!wrong && !PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t g = 0; g < groups && !wrong; g++) {
            int64_t rows = held[g].len / row;
            if (edges[g] < 0 || edges[g] > edges[g + 1] || edges[g + 1] > n) {
                wrong = "edges that don't ascend";
                break;
            }
            for (int64_t i = edges[g]; i < edges[g + 1]; i++) {
                if (!within(starts[i], counts[i], rows) || !within(places[i], counts[i], out_rows)) {
                    wrong = "rows outside of what they are copied from or to";
                    break;
                }
                memcpy((char *)of[4].buf + places[i] * row, (const char *)held[g].buf + starts[i] * row,
                       (size_t)(counts[i] * row));
            }
        }
        Py_END_ALLOW_THREADS
    }
    while (holding) PyBuffer_Release(&held[--holding]);
    free(held);
    release(of, 5);
    if (wrong) PyErr_SetString(PyExc_IndexError, wrong);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* How many rows ranges have, whatever their numbers. */
static int64_t sum_of(const int64_t *starts, const int64_t *stops, int64_t n) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (uint64_t)stops[i] - (uint64_t)starts[i];
    return (int64_t)sum;
}

/* Copy ranges of rows from chunks that are all at hand, as they come: none is sorted, nor cut before. */
static PyObject *copy_held(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *chunks, *ends, *targets;
    long long first, each, row;
    enum { STARTS, OUT, STOPS, PLACES, BUFFERS, EARLY = 16, SOME = 64 };
    Py_buffer of[BUFFERS];
    if (!PyArg_ParseTuple(args, "O!LLLy*OOw*", &PyList_Type, &chunks, &first, &each, &row, &of[STARTS],
                          &ends, &targets, &of[OUT]))
        return NULL;
    int64_t n = of[STARTS].len / 8, at = 0;
    Py_ssize_t count = PyList_Size(chunks), holding = 0;
    int has_stops = 0, has_places = 0;
    const char *wrong = NULL;
    Py_buffer *held = malloc((size_t)(count + 1) * sizeof *held);
    if (!held) {
        PyErr_NoMemory();
        goto done;
    }
    if (ends != Py_None && PyObject_GetBuffer(ends, &of[STOPS], PyBUF_SIMPLE)) goto done;
    has_stops = ends != Py_None;
    if (targets != Py_None && PyObject_GetBuffer(targets, &of[PLACES], PyBUF_SIMPLE)) goto done;
    has_places = targets != Py_None;
    for (; holding < count; holding++)
        if (PyObject_GetBuffer(PyList_GetItem(chunks, holding), &held[holding], PyBUF_SIMPLE)) goto done;
    const int64_t *starts = elements(&of[STARTS], n, 8);
    const int64_t *stops = has_stops ? elements(&of[STOPS], n, 8) : NULL;
    const int64_t *places = has_places ? elements(&of[PLACES], n, 8) : NULL;
    if (row <= 0 || each <= 0 || first < 0 || first > INT64_MAX / each - count || !starts ||
        (has_stops && !stops) || (has_places && !places)) {
        wrong = "arrays that don't belong together";
        goto done;
    }
    PyThreadState *state = n > LITTLE || of[OUT].len > LITTLE_COPY ? PyEval_SaveThread() : NULL;
    int64_t room = of[OUT].len / row, base = first * each, all = n;
    /* A chunk mostly has 2**k rows: to divide takes longer than to copy a few tokens. */
    int shift = each & (each - 1) ? -1 : __builtin_ctzll((unsigned long long)each);
    char *out = of[OUT].buf;
    if (stops && !places) all = sum_of(starts, stops, n);
    /* Up to here more may be copied than is wanted, since what belongs there is copied next. */
    int64_t loose = !places && all >= 0 && all <= room ? all * row : 0;
    for (int64_t i = 0; i < n && !wrong; i++) {
        /* What is far apart comes late, unless it is asked for early: two lines of the processor's
           cache, since few ranges lie in one. */
        if (i + EARLY < n && starts[i + EARLY] >= base) {
            int64_t next = starts[i + EARLY] - base, chunk = shift < 0 ? next / each : next >> shift;
            if (chunk < count) {
                uintptr_t byte = (uintptr_t)held[chunk].buf + (uintptr_t)(next - chunk * each) * (uintptr_t)row;
                __builtin_prefetch((const void *)byte);
                if (stops) __builtin_prefetch((const void *)(byte + SOME - 1));
            }
        }
        int64_t start = starts[i], stop = stops ? stops[i] : start < INT64_MAX ? start + 1 : -1;
        if (places) at = places[i];
        if (start < base || stop < start) {
            wrong = "rows outside of the chunks";
            break;
        }
        /* One that goes on where the last ended is one with it. */
        for (; i + 1 < n && starts[i + 1] == stop && stop < INT64_MAX; i++) {
            int64_t then = stops ? stops[i + 1] : stop + 1;
            if (then < stop) break;
            if (places && (uint64_t)places[i + 1] - (uint64_t)at != (uint64_t)(stop - start)) break;
            stop = then;
        }
        if (!within(at, stop - start, room)) wrong = "rows outside of what they are copied to";
        for (start -= base, stop -= base; start < stop && !wrong;) {
            int64_t chunk = shift < 0 ? start / each : start >> shift, low = start - chunk * each;
            int64_t rows = stop - start < each - low ? stop - start : each - low;
            if (chunk >= count || !within(low, rows, held[chunk].len / row)) {
                wrong = "rows outside of the chunks";
                break;
            }
            const char *from = (const char *)held[chunk].buf + low * row;
            int64_t size = rows * row, to = at * row;
            if (size == 16) memcpy(out + to, from, 16);
            else if (size <= SOME && to + SOME <= loose && low * row + SOME <= held[chunk].len)
                memcpy(out + to, from, SOME); /* of a size that is known, it is no call */
            else memcpy(out + to, from, (size_t)size);
            at += rows;
            start += rows;
        }
    }
    if (state) PyEval_RestoreThread(state);
done:
    while (holding) PyBuffer_Release(&held[--holding]);
    free(held);
    release(of, 2);
    if (has_stops) PyBuffer_Release(&of[STOPS]);
    if (has_places) PyBuffer_Release(&of[PLACES]);
    if (wrong) PyErr_SetString(PyExc_IndexError, wrong);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* What a single sample is found by: numbers that `sample` is given as int64s, and its dimensions. */
typedef struct {
    int64_t per_span, per_shape, per_data; /* rows in a chunk of each column */
    int64_t rows, item;                    /* values in data, and bytes of one */
    int64_t ndim, dims[];                  /* -1: of any size */
} Found;

enum { MOST = 1 << 20, FEW = 1 << 16 }; /* bytes to copy at all, and with the interpreter's lock */

/* A chunk of those that are held, now the most recently used, as a buffer; 0 where it is not held. */
static int hold(PyObject *chunks, PyObject *column, int64_t number, Py_buffer *buffer) {
    static PyObject *move;
    if (!move) move = PyUnicode_InternFromString("move_to_end");
    PyObject *which = PyLong_FromLongLong(number), *key = which ? PyTuple_Pack(2, column, which) : NULL;
    PyObject *chunk = key ? PyDict_GetItemWithError(chunks, key) : NULL;
    int fine = 0;
    if (chunk) {
        Py_INCREF(chunk);
        fine = PyObject_GetBuffer(chunk, buffer, PyBUF_SIMPLE) == 0;
        PyObject *moved = move ? PyObject_CallMethodObjArgs(chunks, move, key, NULL) : NULL;
        Py_XDECREF(moved);
        Py_DECREF(chunk);
    }
    Py_XDECREF(which);
    Py_XDECREF(key);
    PyErr_Clear(); /* whoever finds nothing here goes another way */
    return fine;
}

/* `count` int64s of a row of a column whose chunk is held. */
static int row_of(PyObject *chunks, PyObject *column, int64_t per_chunk, int64_t row, int64_t count,
                  int64_t *to) {
    Py_buffer buffer;
    if (per_chunk <= 0 || row < 0 || !hold(chunks, column, row / per_chunk, &buffer)) return 0;
    int64_t at = row % per_chunk;
    int fine = at < INT64_MAX / count - 1 && within(at * count, count, buffer.len / 8);
    if (fine) memcpy(to, (const int64_t *)buffer.buf + at * count, (size_t)count * 8);
    PyBuffer_Release(&buffer);
    return fine;
}

/* One sample from chunks at hand; None where they are not, or anything is unusual about it. */
static PyObject *sample(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    if (given != 6 || !PyDict_Check(args[0]) || !PyBytes_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "sample(chunks, span, shape, data, found, position)");
        return NULL;
    }
    PyObject *chunks = args[0], *raw = NULL, *shape = NULL;
    Py_ssize_t size = PyBytes_Size(args[4]);
    Found found;
    int64_t dims[32], span[2], total = 1;
    long long position = PyLong_AsLongLong(args[5]);
    if (PyErr_Occurred()) return NULL;
    if (size < (Py_ssize_t)sizeof found) Py_RETURN_NONE;
    const Found *by = (const Found *)PyBytes_AsString(args[4]);
    found = *by;
    if (found.ndim < 1 || found.ndim > 32 || size != (Py_ssize_t)(sizeof found + found.ndim * 8) ||
        found.per_data <= 0 || found.item <= 0 || found.item > MOST)
        Py_RETURN_NONE;
    if (!row_of(chunks, args[1], found.per_span, position, 2, span)) Py_RETURN_NONE;
    if (span[0] < 0 || span[1] <= span[0] || span[1] > found.rows ||
        span[1] - span[0] > MOST / found.item)
        Py_RETURN_NONE;
    int64_t count = span[1] - span[0];
    dims[0] = count;
    if (args[2] != Py_None &&
        !row_of(chunks, args[2], found.per_shape, position, found.ndim, dims))
        Py_RETURN_NONE;
    for (int64_t i = 0; i < found.ndim; i++) {
        if (dims[i] <= 0 || dims[i] > count || (by->dims[i] >= 0 && by->dims[i] != dims[i])) Py_RETURN_NONE;
        if (total > count / dims[i]) Py_RETURN_NONE;
        total *= dims[i];
    }
    if (total != count) Py_RETURN_NONE;
    raw = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(count * found.item));
    if (!raw) return NULL;
    char *to = PyByteArray_AsString(raw);
    for (int64_t at = span[0]; at < span[1];) {
        Py_buffer buffer;
        int64_t low = at % found.per_data, left = found.per_data - low;
        int64_t rows = span[1] - at < left ? span[1] - at : left;
        int fine = hold(chunks, args[3], at / found.per_data, &buffer);
        if (fine && !within(low, rows, buffer.len / found.item)) {
            PyBuffer_Release(&buffer);
            fine = 0;
        }
        if (!fine) {
            Py_DECREF(raw);
            Py_RETURN_NONE;
        }
        PyThreadState *state = rows * found.item > FEW ? PyEval_SaveThread() : NULL;
        memcpy(to, (const char *)buffer.buf + low * found.item, (size_t)(rows * found.item));
        if (state) PyEval_RestoreThread(state);
        PyBuffer_Release(&buffer);
        to += rows * found.item;
        at += rows;
    }
    shape = PyTuple_New((Py_ssize_t)found.ndim);
    for (int64_t i = 0; shape && i < found.ndim; i++) {
        PyObject *dim = PyLong_FromLongLong(dims[i]);
        if (!dim || PyTuple_SetItem(shape, (Py_ssize_t)i, dim)) Py_CLEAR(shape);
    }
    if (!shape) {
        Py_DECREF(raw);
        return NULL;
    }
    return Py_BuildValue("(LLNN)", (long long)span[0], (long long)span[1], shape, raw);
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

/* Whether a piece lies in uncompressed blocks that follow one another in the file. */
static int is_raw(const Job *job, int64_t first, int64_t last, int64_t p) {
    int64_t block = job->block, from = job->froms[p], count = job->counts[p];
    if (count < 1 || !within(from - first * block, count, (last - first) * block) ||
        !within(job->places[p], count, job->out_size))
        return 0;
    for (int64_t i = from / block; i <= (from + count - 1) / block; i++)
        if (!job->raw[i] || job->begins[i] < 0 || job->begins[i] > INT64_MAX / 2 || job->sizes[i] != block ||
            (i > from / block && job->begins[i] != job->begins[i - 1] + block))
            return 0;
    return 1;
}

/* Read such a piece to where it belongs, not by way of scratch memory, but for a block that it has only
   a part of where all of that is held against a checksum. */
static int read_raw(const Job *job, int64_t p) {
    int64_t block = job->block, from = job->froms[p], count = job->counts[p], begin = job->begins[from / block];
    int64_t skip = from % block, over = (from + count) % block;
    uint8_t *out = job->out + job->places[p];
    if (!job->checks) return fetch(job, begin + skip, count, out);
    int64_t head = !skip ? 0 : count < block - skip ? count : block - skip;
    int64_t tail = count > head ? over : 0, body = count - head - tail, size = 0;
    struct iovec parts[3];
    int n = 0;
    if (head) parts[n++] = (struct iovec){job->decoded, (size_t)block};
    if (body) parts[n++] = (struct iovec){out + head, (size_t)body};
    if (tail) parts[n++] = (struct iovec){job->decoded + block, (size_t)block};
    for (int i = 0; i < n; i++) size += (int64_t)parts[i].iov_len;
    if (job->fd < 0 || preadv(job->fd, parts, n, (off_t)begin) != size)
        for (int i = 0; i < n; begin += (int64_t)parts[i++].iov_len)
            if (!fetch(job, begin, (int64_t)parts[i].iov_len, parts[i].iov_base)) return 0;
    const uint32_t *check = job->checks + from / block;
    for (int i = 0; i < n; i++)
        for (size_t at = 0; at < parts[i].iov_len; at += (size_t)block)
            if ((uint32_t)library.digest((uint8_t *)parts[i].iov_base + at, (size_t)block) != *check++) return 0;
    memcpy(out, job->decoded + skip, (size_t)head);
    memcpy(out + head + body, job->decoded + block, (size_t)tail);
    return 1;
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
    /* Blocks that many pieces share are better read once. */
    int direct = !at_once && (end - p) * (job->checks ? 2 : 1) <= last - first &&
                 2 * job->block <= job->decoded_size;
    for (int64_t q = p; q < end && direct; q++) direct = is_raw(job, first, last, q);
    if (direct) {
        while (p < end && read_raw(job, p)) p++;
        return p == end;
    }
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

/* Part of a range of rows, within one chunk; bytes, but for the chunk's number. */
typedef struct {
    int64_t chunk, low, count, place;
} Piece;

typedef struct {
    int64_t count;
    const int64_t *starts, *stops, *places;
    int64_t rows, row, chunk; /* how many rows there are, and bytes of a row and a chunk */
} Ranges;

static int make_sense(const Ranges *of) {
    for (int64_t i = 0; i < of->count; i++)
        if (of->starts[i] < 0 || of->stops[i] < of->starts[i] || of->stops[i] > of->rows ||
            of->places[i] < 0 || of->places[i] > INT64_MAX / 4 / of->row)
            return 0;
    return 1;
}

/* Ranges of rows as pieces: those that go on where the one before ended are one with it, and each is
   cut where chunks end.  How many there are; none is written where `to` is NULL.  -1: more than `room`,
   since somebody has changed the ranges meanwhile. */
static int64_t cut_ranges(const Ranges *of, Piece *to, int64_t room) {
    int64_t pieces = 0;
    for (int64_t i = 0; i < of->count;) {
        int64_t start = of->starts[i], stop = of->stops[i], place = of->places[i];
        i++;
        if (start == stop) continue;
        for (; i < of->count; i++) {
            if (of->starts[i] == of->stops[i]) continue;
            if (of->starts[i] != stop || of->places[i] - place != stop - start) break;
            stop = of->stops[i];
        }
        int64_t low = start * of->row, high = stop * of->row, at = place * of->row;
        int64_t number = low / of->chunk, last = (high - 1) / of->chunk;
        if (!to) {
            pieces += last - number + 1;
            continue;
        }
        for (; number <= last; number++) {
            if (pieces == room) return -1;
            int64_t begin = number * of->chunk, end = number < last ? begin + of->chunk : high;
            to[pieces++] = (Piece){number, low - begin, end - low, at};
            at += end - low;
            low = end;
        }
    }
    return pieces;
}

typedef struct {
    uint64_t key;
    int64_t at;
} Key;

/* Sort `n` keys, equal ones as they came: by radix. They end up where it says, in `keys` or `other`. */
static const Key *sort_keys(Key *keys, Key *other, int64_t n) {
    enum { BITS = 11, SIZE = 1 << BITS };
    uint64_t differ = 0;
    for (int64_t i = 1; i < n; i++) differ |= keys[i].key ^ keys[0].key;
    for (int shift = 0; shift < 64; shift += BITS) {
        if (!((differ >> shift) & (SIZE - 1))) continue;
        int64_t at[SIZE + 1] = {0};
        for (int64_t i = 0; i < n; i++) at[((keys[i].key >> shift) & (SIZE - 1)) + 1]++;
        for (int i = 0; i < SIZE; i++) at[i + 1] += at[i];
        for (int64_t i = 0; i < n; i++) other[at[(keys[i].key >> shift) & (SIZE - 1)]++] = keys[i];
        Key *swap = keys;
        keys = other;
        other = swap;
    }
    return keys;
}

/* Put pieces in the order of the blocks that they begin in, those of one block as they came. */
static int sort_pieces(Piece *pieces, int64_t n, int64_t per_chunk, int64_t block) {
    int64_t before = -1, sorted = 1;
    for (int64_t i = 0; i < n && sorted; i++) {
        int64_t number = pieces[i].chunk * per_chunk + pieces[i].low / block;
        sorted = number >= before;
        before = number;
    }
    if (sorted) return 1;
    Key *keys = malloc((size_t)n * 2 * sizeof *keys);
    Piece *copy = malloc((size_t)n * sizeof *copy);
    int fine = keys && copy;
    if (fine) {
        for (int64_t i = 0; i < n; i++)
            keys[i] = (Key){(uint64_t)(pieces[i].chunk * per_chunk + pieces[i].low / block), i};
        const Key *order = sort_keys(keys, keys + n, n);
        memcpy(copy, pieces, (size_t)n * sizeof *copy);
        for (int64_t i = 0; i < n; i++) pieces[i] = copy[order[i].at];
    }
    free(keys);
    free(copy);
    return fine;
}

/* Runs of pieces of one chunk: where they begin, the chunk, and how many of its blocks they lie in. */
static int64_t find_runs(const Piece *pieces, int64_t n, int64_t block, int64_t *edges, int64_t *chunks,
                         int64_t *blocks) {
    int64_t runs = 0, reached = -1;
    for (int64_t i = 0; i < n; i++) {
        if (!i || pieces[i].chunk != pieces[i - 1].chunk) {
            if (edges) {
                edges[runs] = i;
                chunks[runs] = pieces[i].chunk;
                blocks[runs] = 0;
            }
            runs++;
            reached = -1;
        }
        int64_t first = pieces[i].low / block, last = (pieces[i].low + pieces[i].count - 1) / block;
        if (first <= reached) first = reached + 1;
        if (last >= first) {
            if (edges) blocks[runs - 1] += last - first + 1;
            reached = last;
        }
    }
    if (edges) edges[runs] = n;
    return runs;
}

static void *new_bytes(PyObject **bytes, int64_t count, size_t size) {
    *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * size));
    return *bytes ? PyBytes_AsString(*bytes) : NULL;
}

/* The stable order of keys that differ in many bits, as hashes do: two passes by the uppermost all but
   sort them.  0 where that is not so, and `order` is as it was. */
static int order_hashes(const uint64_t *given, int64_t n, uint64_t *made, uint64_t *other, int64_t *order) {
    enum { BITS = 11, SIZE = 1 << BITS };
    uint64_t differ = 0;
    for (int64_t i = 1; i < n; i++) differ |= given[i] ^ given[0];
    int top = 0;
    while (top < 64 && differ >> top) top++;
    if (top < 32 || n > UINT32_MAX) return 0;
    /* The upper half of each is of the key, the lower says whose it is. */
    int64_t counts[2][SIZE + 1] = {{0}};
    for (int64_t i = 0; i < n; i++) {
        made[i] = (given[i] >> (top - 32)) << 32 | (uint64_t)i;
        counts[0][((made[i] >> (64 - 2 * BITS)) & (SIZE - 1)) + 1]++;
        counts[1][(made[i] >> (64 - BITS)) + 1]++;
    }
    for (int pass = 0; pass < 2; pass++) {
        int64_t *at = counts[pass];
        int shift = 64 - (2 - pass) * BITS;
        for (int i = 0; i < SIZE; i++) at[i + 1] += at[i];
        for (int64_t i = 0; i < n; i++) other[at[(made[i] >> shift) & (SIZE - 1)]++] = made[i];
        uint64_t *swap = made;
        made = other;
        other = swap;
    }
    int64_t moves = 4 * n;
    for (int64_t i = 1; i < n; i++) {
        uint64_t one = made[i], key = one >> 32;
        int64_t to = i;
        for (; to && moves; to--, moves--) {
            uint64_t before = made[to - 1], its = before >> 32;
            if (its < key || (its == key && given[(uint32_t)before] <= given[(uint32_t)one])) break;
            made[to] = before;
        }
        if (!moves) return 0;
        made[to] = one;
    }
    for (int64_t i = 0; i < n; i++) order[i] = (int64_t)(uint32_t)made[i];
    return 1;
}

static PyObject *order_of(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer of[2]; /* keys, order */
    if (!PyArg_ParseTuple(args, "y*w*", &of[0], &of[1])) return NULL;
    int64_t n = of[0].len / 8, *order = (int64_t *)elements(&of[1], n, 8);
    const uint64_t *given = of[0].buf;
    Key *keys = malloc((size_t)(n + 1) * 2 * sizeof *keys);
    if (!keys) PyErr_NoMemory();
    else if (!order) PyErr_SetString(PyExc_ValueError, "arrays that don't belong together");
    else {
        PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
        uint64_t *made = (uint64_t *)keys;
        if (!order_hashes(given, n, made, made + n, order)) {
            for (int64_t i = 0; i < n; i++) keys[i] = (Key){given[i], i};
            const Key *sorted = sort_keys(keys, keys + n, n);
            for (int64_t i = 0; i < n; i++) order[i] = sorted[i].at;
        }
        if (state) PyEval_RestoreThread(state);
    }
    free(keys);
    release(of, 2);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* The steps of SplitMix64's mixer. */
static const uint64_t STEP = 0x9E3779B97F4A7C15, FIRST = 0xBF58476D1CE4E5B9, SECOND = 0x94D049BB133111EB;

/* Numbers hashed, each by itself. */
static PyObject *hash(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long key, other;
    Py_buffer of[2]; /* numbers, out */
    if (!PyArg_ParseTuple(args, "y*KKw*", &of[0], &key, &other, &of[1])) return NULL;
    int64_t n = of[0].len / 8;
    const uint64_t *numbers = elements(&of[0], n, 8);
    uint64_t *out = (uint64_t *)elements(&of[1], n, 8);
    if (!numbers || !out) PyErr_SetString(PyExc_ValueError, "arrays that don't belong together");
    PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
    for (int64_t i = 0; numbers && out && i < n; i++) {
        uint64_t mixed = numbers[i] * STEP + key;
        mixed = ((mixed ^ mixed >> 30) * FIRST) ^ other;
        mixed = (mixed ^ mixed >> 27) * SECOND;
        out[i] = mixed ^ mixed >> 31;
    }
    if (state) PyEval_RestoreThread(state);
    release(of, 2);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

enum { ABREAST = 8 }; /* values whose rounds are computed side by side: none waits for another */

/* One round: half of each value is scrambled with the other half, and so comes back when it is repeated. */
static void feistel_round(const uint64_t *from, uint64_t *to, const uint64_t *width, const uint64_t *mask,
                          uint64_t key) {
    for (int i = 0; i < ABREAST; i++) {
        uint64_t mixed = from[i] * STEP + (key ^ width[i]);
        mixed = (mixed ^ mixed >> 30) * FIRST;
        mixed = (mixed ^ mixed >> 27) * SECOND;
        to[i] ^= mixed >> 32 & mask[i];
    }
}

/* Values, each below 2**bits of its own, permuted by a Feistel network. */
static PyObject *permute(PyObject *self, PyObject *args) {
    (void)self;
    int back;
    Py_buffer of[4]; /* values, bits, rounds, out */
    if (!PyArg_ParseTuple(args, "y*y*y*pw*", &of[0], &of[1], &of[2], &back, &of[3])) return NULL;
    int64_t n = of[0].len / 8, rounds = of[2].len / 8;
    const uint64_t *values = elements(&of[0], n, 8), *bits = elements(&of[1], n, 8);
    const uint64_t *keys = elements(&of[2], rounds, 8);
    uint64_t *out = (uint64_t *)elements(&of[3], n, 8);
    int fine = values && bits && keys && out;
    PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
    for (int64_t first = 0; fine && first < n; first += ABREAST) {
        uint64_t width[ABREAST] = {0}, low[ABREAST], mask[2][ABREAST], half[2][ABREAST];
        int count = n - first < ABREAST ? (int)(n - first) : ABREAST;
        for (int i = 0; i < ABREAST; i++) {
            if (i < count) width[i] = bits[first + i];
            fine = fine && width[i] < 64;
            low[i] = width[i] / 2 & 31;
            mask[1][i] = ((uint64_t)1 << low[i]) - 1;
            mask[0][i] = ((uint64_t)1 << ((width[i] - low[i]) & 63)) - 1;
            uint64_t value = i < count ? values[first + i] : 0;
            half[1][i] = value & mask[1][i];
            half[0][i] = value >> low[i];
        }
        for (int64_t r = 0; r < rounds; r++) {
            int64_t turn = back ? rounds - 1 - r : r;
            int which = turn % 2;
            feistel_round(half[!which], half[which], width, mask[which], keys[turn]);
        }
        for (int i = 0; i < count; i++) out[first + i] = half[0][i] << low[i] | half[1][i];
    }
    if (state) PyEval_RestoreThread(state);
    release(of, 4);
    if (fine) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "arrays that don't belong together, or values of 64 bits");
    return NULL;
}

static PyObject *cut(PyObject *self, PyObject *args) {
    (void)self;
    long long rows, row, chunk, block;
    enum { STARTS, STOPS, PLACES, BUFFERS };
    Py_buffer of[BUFFERS];
    if (!PyArg_ParseTuple(args, "y*y*y*LLLL", &of[STARTS], &of[STOPS], &of[PLACES], &rows, &row, &chunk,
                          &block))
        return NULL;
    int64_t n = of[STARTS].len / 8, count = -1, runs = 0;
    Ranges ranges = {n, elements(&of[STARTS], n, 8), elements(&of[STOPS], n, 8),
                     elements(&of[PLACES], n, 8), rows, row, chunk};
    PyObject *made[4] = {NULL, NULL, NULL, NULL};
    PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
    if (ranges.starts && ranges.stops && ranges.places && row > 0 && block > 0 && chunk >= block &&
        chunk % block == 0 && chunk <= INT64_MAX / 4 && rows <= INT64_MAX / 4 / row && make_sense(&ranges))
        count = cut_ranges(&ranges, NULL, 0);
    if (state) PyEval_RestoreThread(state);
    if (count < 0) {
        PyErr_SetString(PyExc_ValueError, "ranges that make no sense");
        goto done;
    }
    Piece *pieces = new_bytes(&made[0], count, sizeof *pieces);
    if (!pieces) goto done;
    state = n > LITTLE || count > LITTLE ? PyEval_SaveThread() : NULL;
    int same = cut_ranges(&ranges, pieces, count) == count;
    int fine = same && sort_pieces(pieces, count, chunk / block, block);
    if (fine) runs = find_runs(pieces, count, block, NULL, NULL, NULL);
    if (state) PyEval_RestoreThread(state);
    if (!fine) {
        if (same) PyErr_NoMemory();
        else PyErr_SetString(PyExc_ValueError, "ranges that change");
        goto done;
    }
    int64_t *edges = new_bytes(&made[1], runs + 1, 8), *chunks = new_bytes(&made[2], runs, 8);
    int64_t *blocks = new_bytes(&made[3], runs, 8);
    if (edges && chunks && blocks) find_runs(pieces, count, block, edges, chunks, blocks);
done:
    release(of, BUFFERS);
    if (PyErr_Occurred()) {
        for (int i = 0; i < 4; i++) Py_XDECREF(made[i]);
        return NULL;
    }
    return Py_BuildValue("NNNN", made[0], made[1], made[2], made[3]);
}

/* Where the blocks of each chunk lie: the chunk table, arrays of whatever strides. */
typedef struct {
    int64_t chunks, per_chunk;
    Py_buffer offsets, edges, checks;
    int checked;
} Table;

static int64_t offset_of(const Table *table, int64_t chunk) {
    uint64_t offset;
    memcpy(&offset, (const char *)table->offsets.buf + chunk * table->offsets.strides[0], 8);
    return offset > INT64_MAX / 4 ? -1 : (int64_t)offset;
}

static uint32_t cell(const Py_buffer *cells, int64_t chunk, int64_t i) {
    uint32_t value;
    memcpy(&value, (const char *)cells->buf + chunk * cells->strides[0] + i * cells->strides[1], 4);
    return value;
}

static int is_shaped(const Py_buffer *buffer, int ndim, int64_t first, int64_t second, Py_ssize_t size) {
    return buffer->ndim == ndim && buffer->shape[0] == first && (ndim < 2 || buffer->shape[1] == second) &&
           buffer->itemsize >= size;
}

/* Of pieces of chunks, where each begins in what their blocks decode to, one after another, and how many
   parts come of them where groups of `group` bytes end.  The blocks, or -1 where it makes no sense. */
static int64_t place_pieces(const Piece *pieces, int64_t runs, const int64_t *edges, const uint8_t *chosen,
                            int64_t n, const Table *table, int64_t block, int64_t group, int64_t *froms,
                            int64_t *parts) {
    int64_t blocks = 0, at = 0, nbytes = table->per_chunk * block;
    *parts = 0;
    for (int64_t r = 0; r < runs; r++) {
        int64_t reached = -1, before = 0;
        if (edges[r] != at || edges[r + 1] <= at || edges[r + 1] > n) return -1;
        if (pieces[at].chunk < 0 || pieces[at].chunk >= table->chunks) return -1;
        for (; at < edges[r + 1]; at++) {
            const Piece *piece = &pieces[at];
            if (!chosen[r]) continue;
            if (piece->chunk != pieces[edges[r]].chunk || piece->count < 1 ||
                !within(piece->low, piece->count, nbytes))
                return -1;
            int64_t first = piece->low / block, last = (piece->low + piece->count - 1) / block;
            if (first < before) return -1;
            before = first;
            /* What is needed anew follows; what was needed before is the end of what there is. */
            int64_t index = first > reached ? blocks : blocks - (reached - first + 1);
            if (last > reached) {
                blocks += last - (first > reached ? first : reached + 1) + 1;
                reached = last;
            }
            froms[at] = index * block + piece->low - first * block;
            *parts += (froms[at] + piece->count - 1) / group - froms[at] / group + 1;
        }
    }
    return at == n ? blocks : -1;
}

static PyObject *lay_out(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *of_table[3], *made[9] = {NULL};
    long long block, group;
    enum { PIECES, EDGES, CHOSEN, BUFFERS };
    Py_buffer of[BUFFERS];
    if (!PyArg_ParseTuple(args, "y*y*y*LLOOO", &of[PIECES], &of[EDGES], &of[CHOSEN], &block, &group,
                          &of_table[0], &of_table[1], &of_table[2]))
        return NULL;
    Table table = {.checked = of_table[2] != Py_None};
    Py_buffer *held[3] = {&table.offsets, &table.edges, &table.checks};
    int holding = 0;
    int64_t *froms = NULL, *next = NULL, most_stored = 0, most_blocks = 0;
    for (; holding < 2 + table.checked; holding++)
        if (PyObject_GetBuffer(of_table[holding], held[holding], PyBUF_STRIDES)) goto done;
    int64_t n = of[PIECES].len / (int64_t)sizeof(Piece), runs = of[CHOSEN].len, parts = 0;
    const Piece *pieces = elements(&of[PIECES], n, sizeof(Piece));
    const int64_t *edges = elements(&of[EDGES], runs + 1, 8);
    const uint8_t *chosen = of[CHOSEN].buf;
    int64_t blocks = -1;
    if (table.edges.ndim == 2) {
        table.chunks = table.edges.shape[0];
        table.per_chunk = table.edges.shape[1] - 1;
    }
    int fine = pieces && edges && block > 0 && block <= INT32_MAX && group >= block && !(group % block) &&
               group <= INT32_MAX && table.per_chunk > 0 && table.per_chunk <= INT32_MAX &&
               is_shaped(&table.offsets, 1, table.chunks, 0, 8) &&
               is_shaped(&table.edges, 2, table.chunks, table.per_chunk + 1, 4) &&
               (!table.checked || is_shaped(&table.checks, 2, table.chunks, table.per_chunk, 4));
    if (fine) {
        if (!(froms = malloc((size_t)(n + 1) * 8))) {
            PyErr_NoMemory();
            goto done;
        }
        PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
        blocks = place_pieces(pieces, runs, edges, chosen, n, &table, block, group, froms, &parts);
        if (state) PyEval_RestoreThread(state);
    }
    if (blocks < 0) {
        PyErr_SetString(PyExc_ValueError, "pieces that make no sense");
        goto done;
    }
    int64_t in_group = group / block, groups = (blocks + in_group - 1) / in_group;
    enum { BEGINS, SIZES, RAWS, CHECKS, FROMS, COUNTS, PLACES, PIECE_EDGES, BLOCK_EDGES, ALL };
    int64_t lengths[ALL] = {blocks, blocks, blocks, table.checked ? blocks : 0, parts,
                            parts,  parts,  groups + 1, groups + 1};
    void *to[ALL];
    for (int i = 0; i < ALL; i++)
        if (!(to[i] = new_bytes(&made[i], lengths[i], i == RAWS ? 1 : i == CHECKS ? 4 : 8))) goto done;
    if (!(next = calloc((size_t)groups + 1, 8))) {
        PyErr_NoMemory();
        goto done;
    }
    PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
    int64_t *begins = to[BEGINS], *sizes = to[SIZES], *piece_edges = to[PIECE_EDGES];
    int64_t *block_edges = to[BLOCK_EDGES], b = 0;
    for (int64_t r = 0; r < runs; r++) {
        int64_t reached = -1, chunk = pieces[edges[r]].chunk;
        if (!chosen[r]) continue;
        int64_t offset = offset_of(&table, chunk);
        uint8_t raw = cell(&table.edges, chunk, 0) >= RAW;
        for (int64_t p = edges[r]; p < edges[r + 1]; p++) {
            for (int64_t g = froms[p] / group; g <= (froms[p] + pieces[p].count - 1) / group; g++)
                next[g + 1]++;
            int64_t first = pieces[p].low / block, last = (pieces[p].low + pieces[p].count - 1) / block;
            for (int64_t i = first > reached ? first : reached + 1; i <= last; i++, b++) {
                int64_t from = cell(&table.edges, chunk, i) & ~RAW, to_edge = cell(&table.edges, chunk, i + 1);
                begins[b] = offset < 0 ? -1 : offset + from;
                sizes[b] = to_edge - from;
                ((uint8_t *)to[RAWS])[b] = raw;
                if (table.checked) ((uint32_t *)to[CHECKS])[b] = cell(&table.checks, chunk, i);
            }
            if (last > reached) reached = last;
        }
    }
    for (int64_t g = 0; g <= groups; g++) {
        if (g) next[g] += next[g - 1];
        piece_edges[g] = next[g];
        block_edges[g] = g < groups ? g * in_group : blocks;
    }
    for (int64_t r = 0; r < runs; r++)
        for (int64_t p = edges[r]; chosen[r] && p < edges[r + 1]; p++) {
            int64_t from = froms[p], end = from + pieces[p].count, place = pieces[p].place;
            while (from < end) {
                int64_t g = from / group, stop = (g + 1) * group < end ? (g + 1) * group : end;
                int64_t at = next[g]++;
                ((int64_t *)to[FROMS])[at] = from;
                ((int64_t *)to[COUNTS])[at] = stop - from;
                ((int64_t *)to[PLACES])[at] = place;
                place += stop - from;
                from = stop;
            }
        }
    for (int64_t g = 0; g < groups; g++) {
        int64_t count = block_edges[g + 1] - block_edges[g], stored = HEADER + 4 * count;
        for (int64_t i = block_edges[g]; i < block_edges[g + 1]; i++) stored += sizes[i] > 0 ? sizes[i] : 0;
        if (stored > most_stored) most_stored = stored;
        if (count > most_blocks) most_blocks = count;
    }
    if (state) PyEval_RestoreThread(state);
done:
    free(froms);
    free(next);
    release(of, BUFFERS);
    for (int i = 0; i < holding; i++) PyBuffer_Release(held[i]);
    if (PyErr_Occurred()) {
        for (int i = 0; i < 9; i++) Py_XDECREF(made[i]);
        return NULL;
    }
    return Py_BuildValue("NNNNNNNNNLL", made[0], made[1], made[2], made[3], made[4], made[5], made[6],
                         made[7], made[8], (long long)most_stored, (long long)(most_blocks * block));
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
    int64_t place = 0, nbytes = of[OUT].len, start = from, group[2] = {0, 1}, blocks[2] = {0, count};
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
            job.froms = &start;
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

/* The checksum of each part of what is stored. */
static PyObject *digests(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer of[3]; /* stored, edges, out */
    if (!PyArg_ParseTuple(args, "y*y*w*", &of[0], &of[1], &of[2])) return NULL;
    int64_t n = of[2].len / 4;
    const uint32_t *edges = elements(&of[1], n + 1, 4);
    int fine = edges && library.digest && of[2].len % 4 == 0;
    if (fine) {
        Py_BEGIN_ALLOW_THREADS
        uint32_t *out = of[2].buf;
        const uint8_t *stored = of[0].buf;
        for (int64_t i = 0; i < n && fine; i++) {
            uint32_t begin = edges[i], end = edges[i + 1];
            fine = begin <= end && end <= (uint64_t)of[0].len;
            if (fine) out[i] = (uint32_t)library.digest(stored + begin, end - begin);
        }
        Py_END_ALLOW_THREADS
    }
    release(of, 3);
    if (!fine) {
        PyErr_SetString(PyExc_IndexError, "edges that don't ascend within what is stored");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Sizes of spans, and where each begins once they lie one after another. */
static PyObject *measure(PyObject *self, PyObject *args) {
    (void)self;
    long long limit;
    Py_buffer of[3]; /* spans, sizes, offsets */
    if (!PyArg_ParseTuple(args, "y*Lw*w*", &of[0], &limit, &of[1], &of[2])) return NULL;
    int64_t n = of[0].len / 16, total = 0;
    const int64_t *spans = elements(&of[0], 2 * n, 8);
    int64_t *sizes = (int64_t *)elements(&of[1], n, 8), *offsets = (int64_t *)elements(&of[2], n + 1, 8);
    int fit = spans && sizes && offsets, joined = 1;
    if (!fit) PyErr_SetString(PyExc_ValueError, "arrays that don't belong together");
    PyThreadState *state = n > LITTLE ? PyEval_SaveThread() : NULL;
    if (fit) offsets[0] = 0;
    for (int64_t i = 0; i < n && fit; i++) {
        int64_t start = spans[2 * i], stop = spans[2 * i + 1];
        fit = start >= 0 && start <= stop && stop <= limit && stop - start <= limit - total;
        if (!fit) break; /* so that no sum can wrap */
        if (i && start != spans[2 * i - 1]) joined = 0;
        sizes[i] = stop - start;
        offsets[i + 1] = total += stop - start;
    }
    if (state) PyEval_RestoreThread(state);
    release(of, 3);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(fit ? 1 + joined : 0);
}

static PyMethodDef methods[] = {
    {"use", use, METH_VARARGS, "use(create, decompress, destroy, digest): addresses of C functions."},
    {"copy", copy, METH_VARARGS, "copy(sources, row, edges, starts, counts, places, out)"},
    {"copy_held", copy_held, METH_VARARGS, "copy_held(chunks, first, each, row, starts, stops, places, out)"},
    {"sample", (PyCFunction)(void (*)(void))sample, METH_FASTCALL, "sample(chunks, span, shape, data, found, position)"},
    {"digests", digests, METH_VARARGS, "digests(stored, edges, out): 32 bits of xxh3 of each part"},
    {"measure", measure, METH_VARARGS, "measure(spans, limit, sizes, offsets) -> 0: not within; 2: side by side"},
    {"order", order_of, METH_VARARGS, "order(keys, out): the stable order of 64-bit keys"},
    {"hash", hash, METH_VARARGS, "hash(numbers, key, other, out)"},
    {"permute", permute, METH_VARARGS, "permute(values, bits, rounds, back, out)"},
    {"cut", cut, METH_VARARGS, "cut(starts, stops, places, rows, row, chunk, block) -> pieces and runs"},
    {"lay_out", lay_out, METH_VARARGS, "lay_out(pieces, ...) -> what decode takes"},
    {"decode", decode, METH_VARARGS, "decode(file, header, block, ...) -> whether all could be"},
    {"decode_run", decode_run, METH_VARARGS, "decode_run(file, header, ...) -> whether it could be"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
