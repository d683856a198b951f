// Preloaded into the server: writes down what it does to the data folder, so that a power cut can be played.
//
// After a SIGKILL the kernel still has everything that the process wrote; after a power cut only what was synced. This
// library appends a record of each change below $POWERLOSS_DIR to $POWERLOSS_LOG, in the order in which they were done;
// powerloss.py computes from it what a disk may hold. It changes nothing of what the calls do.
//
// A change is recorded after it was done, and a sync at its begin and at its successful end: what a sync covers is what
// was recorded before its begin. So a process that dies at any moment never claims too much.
//
// A record: kind (1 byte), file (4), a (8), b (8), length of the data (4), data; little-endian.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 'c', OPEN = 'o', WRITE = 'w', LENGTH = 'l', BEGIN = 'b', END = 'e', RENAME = 'r', REMOVE = 'u',
       BEGIN_NAMES = 'B', END_NAMES = 'E', UNKNOWN = '!' };
enum { FDS = 65536 };
enum what { NOTHING, FILE_OF_STORE, FOLDER };

static const char *dir, *log_path;
static size_t dir_len;
static int log_fd = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static uint32_t next_file = 1, next_sync = 1;
static struct { uint8_t what; uint32_t file; } fds[FDS];

#define REAL(name) ((__typeof__(&name))real(#name, &name##_slot))
#define SLOT(name) static void *name##_slot

static void *real(const char *name, void **slot) {
    if (!*slot) *slot = dlsym(RTLD_NEXT, name);
    return *slot;
}

SLOT(open); SLOT(open64); SLOT(close); SLOT(write); SLOT(writev); SLOT(pwrite); SLOT(pwrite64); SLOT(fsync);
SLOT(fdatasync); SLOT(ftruncate); SLOT(ftruncate64); SLOT(rename); SLOT(unlink); SLOT(dup);

__attribute__((constructor)) static void begin(void) {
    log_path = getenv("POWERLOSS_LOG");
    dir = getenv("POWERLOSS_DIR");
    if (!log_path || !dir) return;
    dir_len = strlen(dir);
    log_fd = REAL(open)(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

// One write a record: with O_APPEND it is there wholly or not at all, short of the machine's own end.
static void record(char kind, uint32_t file, uint64_t a, uint64_t b, const void *data, uint32_t len) {
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &file, 4);
    memcpy(head + 5, &a, 8);
    memcpy(head + 13, &b, 8);
    memcpy(head + 21, &len, 4);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, len}};
    if (REAL(writev)(log_fd, parts, 2) != (ssize_t)(sizeof head + len)) {
        static const char words[] = "powerloss: the log could not be written\n";
        (void)!REAL(write)(2, words, sizeof words - 1);
        _exit(99);
    }
}

// The name below the folder; NULL: lies elsewhere. "" is the folder itself.
static const char *below(const char *path) {
    if (log_fd < 0 || !path || strncmp(path, dir, dir_len) != 0) return NULL;
    if (path[dir_len] == 0) return "";
    return path[dir_len] == '/' ? path + dir_len + 1 : NULL;
}

static int opened(int fd, const char *path, int flags) {
    const char *name = below(path);
    if (fd < 0 || fd >= FDS || !name) return fd;
    int keep = errno;
    pthread_mutex_lock(&one_at_a_time);
    fds[fd].what = *name ? FILE_OF_STORE : FOLDER;
    fds[fd].file = next_file++;
    if (*name) record(flags & O_CREAT ? CREATE : OPEN, fds[fd].file, 0, 0, name, strlen(name));
    if (*name && flags & (O_TRUNC | O_APPEND)) record(UNKNOWN, fds[fd].file, 0, 0, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    errno = keep;
    return fd;
}

#define OPENS(name)                                             \
    int name(const char *path, int flags, ...) {                \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                           \
        return opened(REAL(name)(path, flags, mode), path, flags); \
    }
OPENS(open)
OPENS(open64)

int close(int fd) {
    if (fd >= 0 && fd < FDS) fds[fd].what = NOTHING;
    return REAL(close)(fd);
}

static int is_file(int fd) { return log_fd >= 0 && fd >= 0 && fd < FDS && fds[fd].what == FILE_OF_STORE; }

static ssize_t wrote(int fd, const void *data, off64_t at, ssize_t done) {
    if (done > 0 && is_file(fd)) {
        int keep = errno;
        pthread_mutex_lock(&one_at_a_time);
        record(WRITE, fds[fd].file, at, 0, data, done);
        pthread_mutex_unlock(&one_at_a_time);
        errno = keep;
    }
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t at) { return wrote(fd, data, at, REAL(pwrite)(fd, data, len, at)); }
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) { return wrote(fd, data, at, REAL(pwrite64)(fd, data, len, at)); }

// The store names the place of each write. Should it ever do otherwise, the judge has to refuse and not to guess.
static void unknown(int fd) {
    if (is_file(fd)) record(UNKNOWN, fds[fd].file, 0, 0, NULL, 0);
}

ssize_t write(int fd, const void *data, size_t len) { unknown(fd); return REAL(write)(fd, data, len); }
ssize_t writev(int fd, const struct iovec *parts, int count) { unknown(fd); return REAL(writev)(fd, parts, count); }
int dup(int fd) { unknown(fd); return REAL(dup)(fd); }

static int cut(int fd, off64_t len, int answer) {
    if (answer == 0 && is_file(fd)) {
        pthread_mutex_lock(&one_at_a_time);
        record(LENGTH, fds[fd].file, len, 0, NULL, 0);
        pthread_mutex_unlock(&one_at_a_time);
    }
    return answer;
}

int ftruncate(int fd, off_t len) { return cut(fd, len, REAL(ftruncate)(fd, len)); }
int ftruncate64(int fd, off64_t len) { return cut(fd, len, REAL(ftruncate64)(fd, len)); }

// The length is asked for, since the store reserves blocks by a system call that cannot be preloaded over.
static int synced(int fd, int (*call)(int)) {
    if (log_fd < 0 || fd < 0 || fd >= FDS || fds[fd].what == NOTHING) return call(fd);
    struct stat64 stat = {0};
    fstat64(fd, &stat);
    int names = fds[fd].what == FOLDER;
    pthread_mutex_lock(&one_at_a_time);
    uint32_t sync = next_sync++;
    record(names ? BEGIN_NAMES : BEGIN, fds[fd].file, sync, stat.st_size, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    int answer = call(fd);
    int keep = errno;
    if (answer == 0) {
        pthread_mutex_lock(&one_at_a_time);
        record(names ? END_NAMES : END, fds[fd].file, sync, 0, NULL, 0);
        pthread_mutex_unlock(&one_at_a_time);
    }
    errno = keep;
    return answer;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

// Names change and are recorded under the lock: their order is what the folder has in the end.
int rename(const char *from, const char *to) {
    const char *old = below(from), *new = below(to);
    if (!old || !new) return REAL(rename)(from, to);
    pthread_mutex_lock(&one_at_a_time);
    int answer = REAL(rename)(from, to);
    int keep = errno;
    if (answer == 0) {
        char both[2048];
        int len = snprintf(both, sizeof both, "%s%c%s", old, 0, new);
        record(RENAME, 0, 0, 0, both, len);
    }
    pthread_mutex_unlock(&one_at_a_time);
    errno = keep;
    return answer;
}

int unlink(const char *path) {
    const char *name = below(path);
    if (!name) return REAL(unlink)(path);
    pthread_mutex_lock(&one_at_a_time);
    int answer = REAL(unlink)(path);
    int keep = errno;
    if (answer == 0) record(REMOVE, 0, 0, 0, name, strlen(name));
    pthread_mutex_unlock(&one_at_a_time);
    errno = keep;
    return answer;
}
