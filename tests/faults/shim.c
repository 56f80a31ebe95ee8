/* Preloaded into a program: makes the n-th system call of a kind, on files below one folder, fail or end the program.

   fault_arm(folder, n, error, signal): from now on count calls in this process; the n-th (from 1) fails with `error`,
   or `signal` is raised just before it. n = 0: count only. With `error` ENOSPC every later call that takes space fails
   too, as on a full disk. fault_count(): calls counted. fault_name(n): what the n-th was, "write run.h5".
   fork has no file: every fork counts. Children of the process are left alone.
   WANLAB_FAULT="n signal folder" in the environment arms it before the program's first line. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_FILES 65536
#define MOST_CALLS 20000
#define NAME 96

static pid_t owner;
static char folder[PATH_MAX];
static int nth, error_number, signal_number;
static int count;
static char *names;                  /* MOST_CALLS x NAME */
static char *paths[MOST_FILES];      /* of open files below the folder */

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void fault_arm(const char *where, int n, int error, int signum) {
    if (!names) names = calloc(MOST_CALLS, NAME);
    snprintf(folder, sizeof folder, "%s", where);
    nth = n; error_number = error; signal_number = signum; count = 0;
    owner = getpid();
}
int fault_count(void) { return count; }
const char *fault_name(int n) { return names + (size_t)(n - 1) * NAME; }

static int inside(int at, const char *path, char *whole) {
    if (!owner || !path) return 0;
    if (path[0] == '/' ) snprintf(whole, PATH_MAX, "%s", path);
    else if (at != AT_FDCWD) {
        if (at < 0 || at >= MOST_FILES || !paths[at]) return 0;
        if (snprintf(whole, PATH_MAX, "%s/%s", paths[at], path) >= PATH_MAX) return 0;
    } else {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        if (snprintf(whole, PATH_MAX, "%s/%s", here, path) >= PATH_MAX) return 0;
    }
    return strncmp(whole, folder, strlen(folder)) == 0;
}

/* Whether the call is to fail; `takes_space` says if a full disk concerns it. */
static int strikes(const char *what, const char *path, int takes_space) {
    if (!owner || owner != getpid()) return 0;
    int k = __sync_add_and_fetch(&count, 1);
    if (k <= MOST_CALLS) {
        const char *base = strrchr(path, '/');
        snprintf(names + (size_t)(k - 1) * NAME, NAME, "%s %s", what, base ? base + 1 : path);
    }
    if (!nth) return 0;
    if (k == nth && signal_number) { kill(getpid(), signal_number); return 0; }
    if (signal_number) return 0;
    if (k == nth || (k > nth && error_number == ENOSPC && takes_space)) {
        if (error_number == ENOSPC && !takes_space) return 0;
        errno = error_number;
        return 1;
    }
    return 0;
}

static void track(int fd, const char *whole) {
    if (fd >= 0 && fd < MOST_FILES) { free(paths[fd]); paths[fd] = strdup(whole); }
}
static int opened(int fd, int is_inside, const char *whole) {
    if (is_inside) track(fd, whole);
    else if (fd >= 0 && fd < MOST_FILES && paths[fd]) { free(paths[fd]); paths[fd] = NULL; }
    return fd;
}

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    mode_t mode = 0; va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
    char whole[PATH_MAX]; int in = inside(AT_FDCWD, path, whole); \
    if (in && strikes("open", whole, flags & O_CREAT)) return -1; \
    return opened(real(path, flags, mode), in, whole); \
}
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int at, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, ...); \
    mode_t mode = 0; va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
    char whole[PATH_MAX]; int in = inside(at, path, whole); \
    if (in && strikes("open", whole, flags & O_CREAT)) return -1; \
    return opened(real(at, path, flags, mode), in, whole); \
}
OPENAT(openat)
OPENAT(openat64)
int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < MOST_FILES && paths[fd] && owner == getpid()) { free(paths[fd]); paths[fd] = NULL; }
    return real(fd);
}

#define ON_FILE(type, name, what, space, parameters, arguments, ...) \
type name parameters { \
    REAL(type, #name, __VA_ARGS__); \
    if (fd >= 0 && fd < MOST_FILES && paths[fd] && strikes(what, paths[fd], space)) return -1; \
    return real arguments; \
}
ON_FILE(ssize_t, write, "write", 1, (int fd, const void *data, size_t n), (fd, data, n), int, const void *, size_t)
ON_FILE(ssize_t, writev, "write", 1, (int fd, const struct iovec *v, int n), (fd, v, n), int, const struct iovec *, int)
ON_FILE(ssize_t, pwrite, "write", 1, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), int, const void *, size_t, off_t)
ON_FILE(ssize_t, pwrite64, "write", 1, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), int, const void *, size_t, off64_t)
ON_FILE(int, fsync, "fsync", 1, (int fd), (fd), int)
ON_FILE(int, fdatasync, "fsync", 1, (int fd), (fd), int)
ON_FILE(int, ftruncate, "truncate", 0, (int fd, off_t n), (fd, n), int, off_t)
ON_FILE(int, ftruncate64, "truncate", 0, (int fd, off64_t n), (fd, n), int, off64_t)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    char whole[PATH_MAX];
    if (inside(AT_FDCWD, to, whole) && strikes("rename", whole, 1)) return -1;
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    char whole[PATH_MAX];
    if (inside(b, to, whole) && strikes("rename", whole, 1)) return -1;
    return real(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    char whole[PATH_MAX];
    if (inside(AT_FDCWD, path, whole) && strikes("mkdir", whole, 1)) return -1;
    return real(path, mode);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    char whole[PATH_MAX];
    if (inside(AT_FDCWD, path, whole) && strikes("rmdir", whole, 0)) return -1;
    return real(path);
}
int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char whole[PATH_MAX];
    if (inside(at, path, whole) && strikes(flags & AT_REMOVEDIR ? "rmdir" : "unlink", whole, 0)) return -1;
    return real(at, path, flags);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    char whole[PATH_MAX];
    if (inside(AT_FDCWD, path, whole) && strikes("unlink", whole, 0)) return -1;
    return real(path);
}
pid_t fork(void) {
    REAL(pid_t, "fork", void);
    if (strikes("fork", "", 0)) return -1;
    return real();
}
pid_t vfork(void) { /* a forked child may not return from here: fork serves the same */
    return fork();
}

__attribute__((constructor)) static void arm_from_environment(void) {
    const char *asked = getenv("WANLAB_FAULT");
    int n, signum, at;
    if (asked && sscanf(asked, "%d %d %n", &n, &signum, &at) == 2) {
        unsetenv("WANLAB_FAULT"); /* of this process alone */
        fault_arm(asked + at, n, 0, signum);
    }
}
