/* Makes the n-th file operation of a process fail.

   Loaded with LD_PRELOAD, so that what HDF5 does in C is met too, and steered by the functions at the
   end, which shim.py calls. Only files below one folder count; each call on one of them has a number,
   and the call with the chosen number gets the chosen error instead of being made. A failing close
   closes all the same, as Linux does. fsync is counted and not carried out: no power is lost here. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { FILES = 4096, CALLS = 200000, WIDTH = 256, SHORT = -1 };
enum { ONCE, ALL, ALIKE };  /* which calls after the chosen one fail as well */

static char root[WIDTH];
static char *path_of[FILES];  /* of each descriptor that is open below the root */
static struct { DIR *folder; char path[WIDTH]; } folders[64];
static char (*calls)[WIDTH];
static long count, target, fired;
static int armed, fault, lasting;
static void (*noted)(long);  /* called for each call, in its thread */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int inside(const char *path) {
    return path && *root && !strncmp(path, root, strlen(root));
}

/* Number the call; the error that it shall fail with, SHORT, or 0. */
static int meet(const char *what, const char *path) {
    int result = 0;
    if (!armed || !inside(path)) return 0;
    pthread_mutex_lock(&lock);
    if (armed && count < CALLS) {
        snprintf(calls[count], WIDTH, "%s %s", what, path);
        count++;
        int later = target && count > target;
        if (count == target || (later && lasting == ALL) ||
            (later && lasting == ALIKE && !strcmp(calls[count - 1], calls[target - 1]))) {
            if (!fired) {
                fired = count;
                dprintf(2, "fails: %s\n", calls[count - 1]);  /* should the process die of it */
            }
            result = fault;
        }
    }
    long number = count;
    pthread_mutex_unlock(&lock);
    if (noted) noted(number);
    return result;
}

static const char *path_at(int fd) {
    return fd >= 0 && fd < FILES ? path_of[fd] : NULL;
}

static void opened(int fd, const char *path) {
    if (fd < 0 || fd >= FILES || !inside(path)) return;
    pthread_mutex_lock(&lock);
    free(path_of[fd]);
    path_of[fd] = strdup(path);
    pthread_mutex_unlock(&lock);
}

static void forget(int fd) {
    if (fd < 0 || fd >= FILES || !path_of[fd]) return;
    pthread_mutex_lock(&lock);
    free(path_of[fd]);
    path_of[fd] = NULL;
    pthread_mutex_unlock(&lock);
}

#define FAIL_ON(what, path, failed) \
    do { \
        int error = meet(what, path); \
        if (error > 0) { errno = error; return failed; } \
    } while (0)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        FAIL_ON(flags & O_CREAT ? "create" : "open", path, -1); \
        int fd = real(path, flags, mode); \
        opened(fd, path); \
        return fd; \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        FAIL_ON(flags & O_CREAT ? "create" : "open", path, -1); \
        int fd = real(at, path, flags, mode); \
        opened(fd, path); \
        return fd; \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(close);
    int error = meet("close", path_at(fd));
    forget(fd);
    int result = real(fd);
    if (error > 0) { errno = error; return -1; }
    return result;
}

/* A short write takes half of the bytes. */
#define HALVE(what, size) \
    do { \
        int error = meet(what, path_at(fd)); \
        if (error > 0) { errno = error; return -1; } \
        if (error == SHORT && size > 1) size /= 2; \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    HALVE("write", size);
    return real(fd, data, size);
}

#define PWRITE(name, offset_t) \
    ssize_t name(int fd, const void *data, size_t size, offset_t at) { \
        REAL(name); \
        HALVE("write", size); \
        return real(fd, data, size, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t read(int fd, void *data, size_t size) {
    REAL(read);
    FAIL_ON("read", path_at(fd), -1);
    return real(fd, data, size);
}

#define PREAD(name, offset_t) \
    ssize_t name(int fd, void *data, size_t size, offset_t at) { \
        REAL(name); \
        FAIL_ON("read", path_at(fd), -1); \
        return real(fd, data, size, at); \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

ssize_t preadv64v2(int fd, const struct iovec *parts, int n, off64_t at, int flags) {
    REAL(preadv64v2);
    FAIL_ON("read", path_at(fd), -1);
    return real(fd, parts, n, at, flags);
}

ssize_t preadv64(int fd, const struct iovec *parts, int n, off64_t at) {
    REAL(preadv64);
    FAIL_ON("read", path_at(fd), -1);
    return real(fd, parts, n, at);
}

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        if (!inside(path_at(fd))) return real(fd); \
        FAIL_ON(#name, path_at(fd), -1); \
        return 0; \
    }
SYNC(fsync)
SYNC(fdatasync)

#define ON_FD(name, arguments, values) \
    int name arguments { \
        REAL(name); \
        FAIL_ON(#name, path_at(fd), -1); \
        return real values; \
    }
ON_FD(flock, (int fd, int how), (fd, how))
ON_FD(ftruncate, (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, (int fd, off64_t size), (fd, size))
ON_FD(fstat, (int fd, struct stat *out), (fd, out))
ON_FD(fstat64, (int fd, struct stat64 *out), (fd, out))

#define ON_PATH(name, arguments, values) \
    int name arguments { \
        REAL(name); \
        FAIL_ON(#name, path, -1); \
        return real values; \
    }
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(link, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(access, (const char *path, int how), (path, how))
ON_PATH(stat, (const char *path, struct stat *out), (path, out))
ON_PATH(stat64, (const char *path, struct stat64 *out), (path, out))
ON_PATH(lstat, (const char *path, struct stat *out), (path, out))
ON_PATH(lstat64, (const char *path, struct stat64 *out), (path, out))
ON_PATH(linkat, (int at, const char *path, int to_at, const char *to, int flags),
        (at, path, to_at, to, flags))
ON_PATH(fstatat64, (int at, const char *path, struct stat64 *out, int flags),
        (at, path, out, flags))

/* The names under which programs built against an older libc ask for the same. */
int __xstat(int version, const char *path, struct stat *out);
int __lxstat(int version, const char *path, struct stat *out);
int __fxstat(int version, int fd, struct stat *out);
ON_PATH(__xstat, (int version, const char *path, struct stat *out), (version, path, out))
ON_PATH(__lxstat, (int version, const char *path, struct stat *out), (version, path, out))
ON_FD(__fxstat, (int version, int fd, struct stat *out), (version, fd, out))

DIR *opendir(const char *path) {
    REAL(opendir);
    FAIL_ON("opendir", path, NULL);
    DIR *folder = real(path);
    if (folder && inside(path))
        for (int i = 0; i < 64; i++)
            if (!folders[i].folder) {
                folders[i].folder = folder;
                snprintf(folders[i].path, WIDTH, "%s", path);
                break;
            }
    return folder;
}

static const char *folder_path(DIR *folder) {
    for (int i = 0; i < 64; i++)
        if (folder && folders[i].folder == folder) return folders[i].path;
    return NULL;
}

#define READDIR(name, entry) \
    struct entry *name(DIR *folder) { \
        REAL(name); \
        FAIL_ON("readdir", folder_path(folder), NULL); \
        return real(folder); \
    }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)

int closedir(DIR *folder) {
    REAL(closedir);
    for (int i = 0; i < 64; i++)
        if (folders[i].folder == folder) folders[i].folder = NULL;
    return real(folder);
}

/* What shim.py calls. */

void shim_watch(const char *folder) {
    snprintf(root, WIDTH, "%s", folder);
    if (!calls) calls = malloc(sizeof(char[WIDTH]) * CALLS);
}

/* Count from 1; let call `number` fail (0: none), and after it those that `on` says. */
void shim_arm(long number, int error, int on) {
    pthread_mutex_lock(&lock);
    count = fired = 0;
    target = number, fault = error, lasting = on;
    armed = 1;
    pthread_mutex_unlock(&lock);
}

/* Have `note` called with the number of each call that is met; NULL: no more. */
void shim_note(void (*note)(long)) { noted = note; }

long shim_disarm(void) {
    pthread_mutex_lock(&lock);
    armed = 0;
    pthread_mutex_unlock(&lock);
    return count;
}

long shim_fired(void) { return fired; }

const char *shim_call(long i) { return i >= 0 && i < count ? calls[i] : ""; }
