/*
 * Fuzzes what reads bytes from outside: a request head, parsed at once and in
 * two parts, must come out the same; then the body behind it likewise. The
 * first two bytes say where the parts meet.
 */
#include "sse.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* A copy of its own, so that the sanitizer sees a byte read behind it; the
 * parser decodes the path in place. */
static char *copy(const uint8_t *input, size_t length)
{
    char *bytes = malloc(length ? length : 1);

    check(bytes != NULL);
    memcpy(bytes, input, length);
    return bytes;
}

static void check_inside(struct slice slice, const char *bytes, size_t length)
{
    if (slice.length > 1)
        check(slice.data >= bytes &&
              slice.data + slice.length <= bytes + length);
}

static void check_request(const struct request *request, ssize_t taken,
                          const char *bytes, size_t length)
{
    check(taken <= (ssize_t)length && taken <= HEAD_MAX);
    check((taken < 0) == (request->error != NULL));
    if (taken <= 0)
        return;
    check(request->path.length > 0);
    check_inside(request->path, bytes, length);
    check_inside(request->query, bytes, length);
    check_inside(request->host, bytes, length);
    check_inside(request->last_event_id, bytes, length);
    check(!(request->chunked && request->content_length >= 0));
    check(!memchr(request->path.data, '\0', request->path.length));
}

/* Reads a body in two parts; how many bytes of it, or -400, and a sum of its
 * content. */
static ssize_t read_body(const struct request *request, struct slice data,
                         size_t split, uint64_t *sum)
{
    struct body body;
    size_t at = 0;

    http_body_init(&body, request);
    for (size_t end = split; body.state != BODY_DONE; end = data.length) {
        while (at < end && body.state != BODY_DONE) {
            struct slice piece;
            ssize_t taken = http_body_read(
                &body, (struct slice){ data.data + at, end - at }, &piece);

            if (taken < 0)
                return taken;
            check(taken > 0 && piece.length <= (size_t)taken);
            for (size_t i = 0; i < piece.length; i++)
                *sum = *sum * 31 + (uint8_t)piece.data[i];
            at += (size_t)taken;
        }
        if (end == data.length)
            break;
    }
    return (ssize_t)at;
}

static void fuzz_body(const struct request *request, struct slice data,
                      size_t split)
{
    uint64_t whole = 0, parts = 0;
    ssize_t taken = read_body(request, data, data.length, &whole);

    check(read_body(request, data, split, &parts) == taken);
    check(taken < 0 || whole == parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
    size_t split = length > 2 ? (size_t)input[0] << 8 | input[1] : 0;
    struct request at_once = { 0 }, in_two = { 0 };
    char *bytes, *again;
    ssize_t taken, parts;

    if (length <= 2)
        return 0;
    input += 2;
    length -= 2;
    split %= length + 1;
    bytes = copy(input, length);
    again = copy(input, length);
    taken = http_parse(bytes, length, &at_once);
    check_request(&at_once, taken, bytes, length);
    parts = http_parse(again, split, &in_two);
    if (parts == 0)
        parts = http_parse(again, length, &in_two);
    check(parts == taken);
    if (taken > 0) {
        struct slice rest = { bytes + taken, length - (size_t)taken };

        check(at_once.path.length == in_two.path.length);
        fuzz_body(&at_once, rest, rest.length ? split % rest.length : 0);
    }
    free(bytes);
    free(again);
    return 0;
}
