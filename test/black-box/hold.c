/*
 * Loaded before the server's libc (LD_PRELOAD), it holds the server up at a
 * call, so that a test can do what another process may do just then: before
 * unlink(2), at the file that HOLD_UNLINK names; after a read(2) of a regular
 * file, at HOLD_READ's; after an epoll_wait(2) that told of something, at
 * HOLD_WAIT's. While that file is there, the call renames it to .reached and
 * waits until that is gone.
 */
#include <dlfcn.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

int unlink(const char *path);
ssize_t read(int fd, void *bytes, size_t length);

static void hold(const char *variable)
{
    const char *path = getenv(variable);
    char reached[PATH_MAX];

    if (!path)
        return;
    snprintf(reached, sizeof(reached), "%s.reached", path);
    if (rename(path, reached) < 0)
        return;
    while (access(reached, F_OK) == 0)
        poll(NULL, 0, 2);
}

int unlink(const char *path)
{
    static int (*real)(const char *);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "unlink");
    hold("HOLD_UNLINK");
    return real(path);
}

ssize_t read(int fd, void *bytes, size_t length)
{
    static ssize_t (*real)(int, void *, size_t);
    struct stat status;
    ssize_t n;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "read");
    n = real(fd, bytes, length);
    if (n > 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
        hold("HOLD_READ");
    return n;
}

int epoll_wait(int epoll, struct epoll_event *events, int room, int timeout)
{
    static int (*real)(int, struct epoll_event *, int, int);
    int count;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "epoll_wait");
    count = real(epoll, events, room, timeout);
    if (count > 0)
        hold("HOLD_WAIT");
    return count;
}
