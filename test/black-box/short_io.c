/*
 * Loaded before the server's libc (LD_PRELOAD), it has every read and write
 * of a socket do a part of what it was asked for, so that all that goes on
 * after a part is tested, whatever the sockets' buffers hold.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    PART_MAX = 700
};

ssize_t writev(int fd, const struct iovec *iov, int count);
ssize_t send(int fd, const void *bytes, size_t length, int flags);
ssize_t read(int fd, void *bytes, size_t length);

static size_t part_of(size_t length)
{
    size_t part = 1 + (size_t)random() % PART_MAX;

    return part < length ? part : length;
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    (void)count; /* the first is a part, unless it is empty: it never is */
    return send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags)
{
    return sendto(fd, bytes, part_of(length), flags, NULL, 0);
}

ssize_t read(int fd, void *bytes, size_t length)
{
    static ssize_t (*real)(int, void *, size_t);
    struct stat status;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "read");
    if (length && fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode))
        length = part_of(length);
    return real(fd, bytes, length);
}
