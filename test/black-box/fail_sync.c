/* Loaded before the server's libc (LD_PRELOAD), it has msync(2) fail while
 * the file named by FAIL_SYNC_WHILE exists. */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int msync(void *address, size_t length, int flags)
{
    static int (*real)(void *, size_t, int);
    const char *path = getenv("FAIL_SYNC_WHILE");

    if (path && access(path, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "msync");
    return real(address, length, flags);
}
