/* Signed tokens with claims that --sign does not make: see harness.h. It is
 * apart, for sse.h's names are not the harness's. */
#include "sse.h"

#include <criterion/criterion.h>
#include <unistd.h>

void sign_claims(const char *secret, const char *claims, char *token,
                 size_t size);

void sign_claims(const char *secret, const char *claims, char *token,
                 size_t size)
{
    static struct http http;
    char path[] = "/tmp/ssed-test-secret-XXXXXX", error[ERROR_SIZE];
    int fd = mkstemp(path);
    ssize_t written = write(fd, secret, strlen(secret));
    mode_t mode;
    size_t length;

    cr_assert(written == (ssize_t)strlen(secret));
    close(fd);
    cr_assert(http_load_secret(&http, path, &mode, error) == 0, "%s", error);
    unlink(path);
    length = http_sign(&http, slice_of(claims), token, size - 1);
    cr_assert(length, "a token of more than %zu bytes", size - 1);
    token[length] = '\0';
}
