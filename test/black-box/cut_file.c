/* Loaded before the server's libc (LD_PRELOAD), it has the file named by
 * CUT_WHEN_MAPPED lose all its bytes as soon as a file is mapped. */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *mmap(void *address, size_t length, int protection, int flags, int fd,
           off_t offset)
{
    long place =
        syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    const char *path = getenv("CUT_WHEN_MAPPED");

    if (place != -1 && fd >= 0 && (flags & MAP_SHARED) && path &&
        truncate(path, 0) < 0)
        abort();
    return (void *)place;
}
