/*
 * Fuzzes what reads bytes from outside: a request head, parsed at once and in
 * two parts, must come out the same, in each field; then the body behind it
 * likewise. The first two bytes say where the parts meet.
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

/* The slices that point into the parsed bytes. */
static const size_t slices[] = {
    offsetof(struct request, path),
    offsetof(struct request, query),
    offsetof(struct request, authorization),
    offsetof(struct request, content_type),
    offsetof(struct request, host),
    offsetof(struct request, if_modified_since),
    offsetof(struct request, if_none_match),
    offsetof(struct request, if_range),
    offsetof(struct request, last_event_id),
    offsetof(struct request, origin),
    offsetof(struct request, range),
};

enum {
    SLICES = sizeof(slices) / sizeof(slices[0])
};

static struct slice slice_at(const struct request *request, size_t place)
{
    struct slice slice;

    memcpy(&slice, (const char *)request + place, sizeof(slice));
    return slice;
}

static void check_request(const struct request *request, ssize_t taken,
                          const char *bytes, size_t length)
{
    check(taken <= (ssize_t)length && taken <= HEAD_MAX);
    check((taken < 0) == (request->error != NULL));
    if (taken <= 0)
        return;
    for (size_t i = 0; i < SLICES; i++) {
        struct slice slice = slice_at(request, slices[i]);

        if (slices[i] == offsetof(struct request, path) && slice_is(slice, "/"))
            continue; /* where the target has none, it is not of the bytes */
        check(slice.length == 0 ||
              (slice.data >= bytes &&
               slice.data + slice.length <= bytes + taken));
        for (size_t j = 0; j < slice.length && i > 0; j++)
            check(slice.data[j] == '\t' || (uint8_t)slice.data[j] >= ' ');
    }
    check(request->path.length > 0 && request->host.length <= length);
    check(!(request->chunked && request->content_length >= 0));
    check(request->minor > 0 || (request->close && !request->chunked));
    check(!memchr(request->path.data, '\0', request->path.length));
}

/* Whether two parses of equal bytes found the same. */
static void check_same(const struct request *a, const struct request *b)
{
    for (size_t i = 0; i < SLICES; i++) {
        struct slice one = slice_at(a, slices[i]);
        struct slice other = slice_at(b, slices[i]);

        check(!one.data == !other.data && one.length == other.length);
        check(one.length == 0 || memcmp(one.data, other.data, one.length) == 0);
    }
    check(a->method == b->method && a->minor == b->minor);
    check(a->content_length == b->content_length && a->chunked == b->chunked);
    check(a->close == b->close && a->forwarded == b->forwarded);
    check(a->expect_continue == b->expect_continue && a->error == b->error);
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
    check_same(&at_once, &in_two);
    if (taken > 0) {
        struct slice rest = { bytes + taken, length - (size_t)taken };

        fuzz_body(&at_once, rest, rest.length ? split % rest.length : 0);
    }
    free(bytes);
    free(again);
    return 0;
}
