/*
 * http.c: the grammar of request heads, each limit, every split position,
 * bodies, the small parsers, response heads to the byte, files from memory
 * and from a folder, conditions and ranges. Whatever is parsed ends just
 * before a page that cannot be read.
 */
#include "sse.h"

#include <criterion/criterion.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOST "Host: a\r\n"

enum {
    GUARDED = 32768
};

/* A copy whose last byte is the last before a page without access. */
static char *guarded(const char *bytes, size_t length)
{
    static char *memory;
    long page = sysconf(_SC_PAGESIZE);

    if (!memory) {
        memory = mmap(NULL, GUARDED + (size_t)page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        cr_assert(memory != MAP_FAILED);
        cr_assert(mprotect(memory + GUARDED, (size_t)page, PROT_NONE) == 0);
    }
    cr_assert(length <= GUARDED);
    memcpy(memory + GUARDED - length, bytes, length);
    return memory + GUARDED - length;
}

static ssize_t parse(const char *text, struct request *request)
{
    memset(request, 0, sizeof(*request));
    return http_parse(guarded(text, strlen(text)), strlen(text), request);
}

/* ----------------------------------------------------------------- heads */

struct head {
    const char *name;
    const char *text;
    int status; /* 0: it is taken, all of it */
};

static const struct head heads[] = {
    { "plain", "GET / HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "1.0 without Host", "GET / HTTP/1.0\r\n\r\n", 0 },
    { "1.9 is 1.1", "GET / HTTP/1.9\r\n" HOST "\r\n", 0 },
    { "empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 0 },
    { "field name in any case", "GET / HTTP/1.1\r\nhOsT: a\r\n\r\n", 0 },
    { "blanks around a value", "GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n", 0 },
    { "odd field name", "GET / HTTP/1.1\r\n" HOST "!#$%&'*+-.^_`|~: 1\r\n\r\n",
      0 },
    { "bytes over 127 in a value", "GET / HTTP/1.1\r\n" HOST "A: \xE4\r\n\r\n",
      0 },
    { "tab in a value", "GET / HTTP/1.1\r\n" HOST "A: b\tc\r\n\r\n", 0 },
    { "empty lines first", "\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "all that a path may hold",
      "GET /a-._~!$&'()*+,;=:@%20 HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "asterisk", "OPTIONS * HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "absolute", "GET http://b:80/c HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "absolute without path", "GET https://b HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "absolute with query", "GET http://b?c HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "three dots", "GET /... HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "zeros before a length",
      "POST / HTTP/1.1\r\n" HOST "Content-Length: 007\r\n\r\n", 0 },
    { "unknown expectation in 1.0 too", "GET / HTTP/1.0\r\nExpect: x\r\n\r\n",
      417 },
    { "bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400 },
    { "bare LF in the last line", "GET / HTTP/1.1\r\n" HOST "\n", 400 },
    { "bare CR in a value", "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400 },
    { "bare CR before CR LF", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400 },
    { "bare CR at a line's begin", "GET / HTTP/1.1\r\n" HOST "\rA: b\r\n\r\n",
      400 },
    { "bare CR in a name", "GET / HTTP/1.1\r\n" HOST "A\rb: c\r\n\r\n", 400 },
    { "bare CR in a long value",
      "GET / HTTP/1.1\r\n" HOST "A: 0123456789abcdef\rB: c\r\n\r\n", 400 },
    { "tab, then a control byte",
      "GET / HTTP/1.1\r\n" HOST "A: 0123\t56\x02\r\n\r\n", 400 },
    { "tabs and bytes over ASCII",
      "GET / HTTP/1.1\r\n" HOST "A: \t1\t234\xFF\x80\t67890\t\t\r\n\r\n", 0 },
    { "control byte in a value", "GET / HTTP/1.1\r\nHost: a\x01\r\n\r\n", 400 },
    { "DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nA: \x7F\r\n\r\n", 400 },
    { "no Host", "GET / HTTP/1.1\r\n\r\n", 400 },
    { "absolute without Host", "GET http://b/ HTTP/1.1\r\n\r\n", 400 },
    { "two Hosts", "GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400 },
    { "Host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400 },
    { "Host with a name", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400 },
    { "two Hosts in one", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400 },
    { "folded line", "GET / HTTP/1.1\r\n" HOST "A: b\r\n\tc\r\n\r\n", 400 },
    { "folded first field", "GET / HTTP/1.1\r\n " HOST "\r\n", 400 },
    { "blank before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400 },
    { "no name", "GET / HTTP/1.1\r\n" HOST ": a\r\n\r\n", 400 },
    { "no colon", "GET / HTTP/1.1\r\n" HOST "a\r\n\r\n", 400 },
    { "no target", "GET HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "two blanks", "GET  / HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "blank at the end", "GET / HTTP/1.1 \r\n" HOST "\r\n", 400 },
    { "blank first", " GET / HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "tab for blank", "GET\t/ HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "no version", "GET /\r\n" HOST "\r\n", 400 },
    { "small letters", "GET / http/1.1\r\n" HOST "\r\n", 400 },
    { "two digits", "GET / HTTP/1.10\r\n" HOST "\r\n", 400 },
    { "0.9", "GET / HTTP/0.9\r\n" HOST "\r\n", 505 },
    { "2.0", "GET / HTTP/2.0\r\n" HOST "\r\n", 505 },
    { "no method", "G(T / HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "unknown method", "BREW / HTTP/1.1\r\n" HOST "\r\n", 501 },
    { "method in small letters", "get / HTTP/1.1\r\n" HOST "\r\n", 501 },
    { "empty method", "\r\n / HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "DEL in a path", "GET /\x7F HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "tab in a path", "GET /a\tb HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "DEL in a field name", "GET / HTTP/1.1\r\n" HOST "A\x7F: b\r\n\r\n",
      400 },
    { "byte over 127 in a field name",
      "GET / HTTP/1.1\r\n" HOST "A\xE4: b\r\n\r\n", 400 },
    { "blank within a field name", "GET / HTTP/1.1\r\n" HOST "A b: c\r\n\r\n",
      400 },
    { "the greatest length",
      "POST / HTTP/1.1\r\n" HOST "Content-Length: 9223372036854775807\r\n\r\n",
      0 },
    { "a list of lengths",
      "POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\n", 400 },
    { "negative length",
      "POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n", 400 },
    { "chunked in any case",
      "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n", 0 },
    { "no coding", "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n\r\n",
      501 },
    { "chunked but not last",
      "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, gzip\r\n\r\n",
      501 },
    { "two Hosts in 1.0", "GET / HTTP/1.0\r\n" HOST HOST "\r\n", 400 },
    { "asterisk for POST", "POST * HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "asterisk and more", "OPTIONS *a HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "authority", "CONNECT a:80 HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "encoded slash in a query", "GET /?a=%2F%00 HTTP/1.1\r\n" HOST "\r\n",
      0 },
    { "dots in a query", "GET /?/../ HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "two dots in a name", "GET /a..b HTTP/1.1\r\n" HOST "\r\n", 0 },
    { "two dots first", "GET /.. HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "one dot at the end", "GET /a/. HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "percent at the end", "GET /a% HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "fragment", "GET /a#b HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "byte over 127 in a path", "GET /\xE4 HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "relative", "GET a HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "asterisk for GET", "GET * HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "other scheme", "GET ftp://b/ HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "absolute without host", "GET http:///a HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "absolute with a name", "GET http://a@b/ HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "escape cut short", "GET /a%4 HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "escape without hex", "GET /%zz HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "encoded slash", "GET /a%2fb HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "encoded NUL", "GET /a%00 HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "one dot", "GET /./a HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "two dots at the end", "GET /a/.. HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "encoded dots", "GET /%2E%2e/a HTTP/1.1\r\n" HOST "\r\n", 400 },
    { "length and coding",
      "POST / HTTP/1.1\r\n" HOST
      "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
      400 },
    { "coding and length",
      "POST / HTTP/1.1\r\n" HOST
      "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
      400 },
    { "equal lengths",
      "POST / HTTP/1.1\r\n" HOST
      "Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
      400 },
    { "length with a sign",
      "POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\n", 400 },
    { "length in hex", "POST / HTTP/1.1\r\n" HOST "Content-Length: 0x1\r\n\r\n",
      400 },
    { "no length", "POST / HTTP/1.1\r\n" HOST "Content-Length:\r\n\r\n", 400 },
    { "length over all",
      "POST / HTTP/1.1\r\n" HOST "Content-Length: 9223372036854775808\r\n\r\n",
      400 },
    { "two codings",
      "POST / HTTP/1.1\r\n" HOST
      "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
      400 },
    { "chunked twice",
      "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, chunked\r\n\r\n",
      501 },
    { "other coding",
      "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip\r\n\r\n", 501 },
    { "coding in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
      400 },
};

Test(head, each_rule_of_the_grammar)
{
    for (size_t i = 0; i < COUNT(heads); i++) {
        struct request request;
        ssize_t taken = parse(heads[i].text, &request);
        ssize_t expected =
            heads[i].status ? -heads[i].status : (ssize_t)strlen(heads[i].text);

        cr_assert(taken == expected, "%s: %zd (%s)", heads[i].name, taken,
                  request.error ? request.error : "taken");
        cr_assert((request.error != NULL) == (taken < 0), "%s", heads[i].name);
    }
}

static bool same_slice(struct slice a, struct slice b)
{
    return a.data == b.data && a.length == b.length;
}

/* Whether two heads at one place in memory came out the same. */
static bool same_request(const struct request *a, const struct request *b)
{
    return a->start == b->start && a->hosts == b->hosts &&
           a->method == b->method && a->minor == b->minor &&
           same_slice(a->path, b->path) && same_slice(a->query, b->query) &&
           same_slice(a->authorization, b->authorization) &&
           same_slice(a->content_type, b->content_type) &&
           same_slice(a->host, b->host) &&
           same_slice(a->if_modified_since, b->if_modified_since) &&
           same_slice(a->if_none_match, b->if_none_match) &&
           same_slice(a->if_range, b->if_range) &&
           same_slice(a->last_event_id, b->last_event_id) &&
           same_slice(a->origin, b->origin) && same_slice(a->range, b->range) &&
           a->content_length == b->content_length && a->chunked == b->chunked &&
           a->close == b->close && a->expect_continue == b->expect_continue &&
           a->forwarded == b->forwarded && a->cross_site == b->cross_site &&
           a->error == b->error;
}

/* Parses what has come after each `step` bytes, from `first` on, until it is
 * decided: a parse that is complete has decoded the path in place. */
static ssize_t parse_stepwise(const char *text, size_t first, size_t step,
                              struct request *request)
{
    size_t length = strlen(text);
    char *bytes = guarded(text, length);
    ssize_t taken = 0;

    memset(request, 0, sizeof(*request));
    for (size_t end = first; taken == 0; end += step) {
        taken = http_parse(bytes, end < length ? end : length, request);
        if (end >= length)
            break;
    }
    return taken;
}

/* Nothing in a request depends on how its bytes arrive. */
Test(head, every_split_gives_the_same)
{
    for (size_t i = 0; i < COUNT(heads); i++) {
        struct request whole, split;
        ssize_t expected = parse(heads[i].text, &whole);
        size_t length = strlen(heads[i].text);

        for (size_t at = 0; at < length; at++) {
            cr_assert(parse_stepwise(heads[i].text, at, length, &split) ==
                          expected,
                      "%s at %zu", heads[i].name, at);
            cr_assert(same_request(&whole, &split), "%s at %zu", heads[i].name,
                      at);
        }
        for (size_t step = 1; step < 4; step++) {
            cr_assert(parse_stepwise(heads[i].text, 0, step, &split) ==
                          expected,
                      "%s by %zu", heads[i].name, step);
            cr_assert(same_request(&whole, &split), "%s by %zu", heads[i].name,
                      step);
        }
    }
}

/* What is not whole is neither taken nor refused, unless it is bad. */
Test(head, every_begin_of_a_good_one_is_incomplete)
{
    for (size_t i = 0; i < COUNT(heads); i++) {
        if (heads[i].status)
            continue;
        for (size_t end = 0; end < strlen(heads[i].text); end++) {
            struct request request = { 0 };

            cr_assert(http_parse(guarded(heads[i].text, end), end, &request) ==
                          0,
                      "%s at %zu", heads[i].name, end);
            cr_assert(!request.error);
        }
    }
}

/* A long line with a fault in it is the same fault, however it arrives. */
Test(head, a_refusal_depends_on_no_split)
{
    static char line[REQUEST_LINE_MAX + 1000];
    struct request request;
    ssize_t whole;

    memset(line, 'a', sizeof(line) - 1);
    line[100] = '\r';
    line[sizeof(line) - 3] = '\r';
    line[sizeof(line) - 2] = '\n';
    whole = parse(line, &request);
    for (size_t at = REQUEST_LINE_MAX - 1; at <= REQUEST_LINE_MAX + 1; at++)
        cr_assert(parse_stepwise(line, at, sizeof(line), &request) == whole,
                  "at %zu", at);
}

/* No byte of a head may be a control byte but its line ends and tabs. */
Test(head, control_bytes_anywhere)
{
    static const char text[] = "POST /a?b HTTP/1.1\r\n" HOST "A: b c\r\n\r\n";
    size_t length = strlen(text);

    for (size_t at = 0; at < length; at++)
        for (int byte = 0; byte <= 0x7F; byte += byte == 0x1F ? 0x60 : 1) {
            struct request request = { 0 };
            char *bytes = guarded(text, length);
            ssize_t taken;

            if (byte == '\t' || byte == bytes[at])
                continue;
            bytes[at] = (char)byte;
            taken = http_parse(bytes, length, &request);
            /* without its empty line a head is not complete */
            cr_assert(taken == -400 || (taken == 0 && at >= length - 3),
                      "%d at %zu: %zd", byte, at, taken);
        }
}

Test(head, every_method)
{
    static const struct {
        const char *name;
        enum method method;
    } methods[] = {
        { "DELETE", METHOD_DELETE }, { "GET", METHOD_GET },
        { "HEAD", METHOD_HEAD },     { "OPTIONS", METHOD_OPTIONS },
        { "POST", METHOD_POST },     { "PUT", METHOD_OTHER },
        { "PATCH", METHOD_OTHER },   { "TRACE", METHOD_OTHER },
    };

    for (size_t i = 0; i < COUNT(methods); i++) {
        struct request request;
        char text[64];

        snprintf(text, sizeof(text), "%s / HTTP/1.1\r\n" HOST "\r\n",
                 methods[i].name);
        cr_assert(parse(text, &request) > 0, "%s", methods[i].name);
        cr_assert(request.method == methods[i].method, "%s", methods[i].name);
    }
}

Test(head, targets_come_apart)
{
    static const struct {
        const char *target, *path, *query, *host;
    } targets[] = {
        { "/", "/", "", "a" },
        { "/?", "/", "", "a" },
        { "/a/b?c=d?e", "/a/b", "c=d?e", "a" },
        { "/%41%2b%25%c3%A4", "/A+%\xc3\xa4", "", "a" },
        { "/a+b", "/a+b", "", "a" },
        { "/%0A", "/\n", "", "a" },
        { "//b/c", "//b/c", "", "a" },
        { "http://b", "/", "", "b" },
        { "HTTP://b:1/", "/", "", "b:1" },
        { "https://b:1/c?d", "/c", "d", "b:1" },
        { "hTTps://[::1]:2?d/e", "/", "d/e", "[::1]:2" },
    };

    for (size_t i = 0; i < COUNT(targets); i++) {
        struct request request;
        char text[128];

        snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\n" HOST "\r\n",
                 targets[i].target);
        cr_assert(parse(text, &request) > 0, "%s", targets[i].target);
        cr_assert(slice_is(request.path, targets[i].path), "%s", text);
        cr_assert(slice_is(request.query, targets[i].query), "%s", text);
        cr_assert(slice_is(request.host, targets[i].host), "%s", text);
    }
    {
        struct request request;

        cr_assert(parse("OPTIONS * HTTP/1.1\r\n" HOST "\r\n", &request) > 0);
        cr_assert(slice_is(request.path, "*"));
    }
}

Test(head, byte_by_byte_and_others_behind_it)
{
    static const char text[] =
        "GET /%61?b=c HTTP/1.1\r\n" HOST "Last-Event-ID: 7\r\n\r\nGET /next";
    size_t end = strlen(text) - strlen("GET /next");
    char *bytes = guarded(text, strlen(text));
    struct request request = { 0 };

    for (size_t length = 0; length < end; length++)
        cr_assert(http_parse(bytes, length, &request) == 0);
    cr_assert(http_parse(bytes, strlen(text), &request) == (ssize_t)end);
    cr_assert(slice_is(request.path, "/a"));
    cr_assert(slice_is(request.query, "b=c"));
    cr_assert(slice_is(request.last_event_id, "7"));
}

Test(head, what_its_fields_say)
{
    struct request request;

    cr_assert(parse("POST http://B.example:8080/a%20b?c=%20 HTTP/1.1\r\n"
                    "Host: other\r\nAuthorization: Bearer t\r\n"
                    "Content-Type: text/plain\r\nOrigin: http://o\r\n"
                    "If-None-Match: \"x\"\r\nIf-Modified-Since: d\r\n"
                    "If-Range: r\r\nRange: bytes=0-1\r\n"
                    "Content-Length: 12\r\nExpect: 100-Continue\r\n"
                    "Connection: keep-alive, Close\r\nVia: 1.1 p\r\n\r\n",
                    &request) > 0);
    cr_assert(request.method == METHOD_POST && request.minor == 1);
    cr_assert(slice_is(request.path, "/a b"));
    cr_assert(slice_is(request.query, "c=%20"));
    cr_assert(slice_is(request.host, "B.example:8080"));
    cr_assert(slice_is(request.authorization, "Bearer t"));
    cr_assert(slice_is(request.content_type, "text/plain"));
    cr_assert(slice_is(request.origin, "http://o"));
    cr_assert(slice_is(request.if_none_match, "\"x\""));
    cr_assert(slice_is(request.if_modified_since, "d"));
    cr_assert(slice_is(request.if_range, "r"));
    cr_assert(slice_is(request.range, "bytes=0-1"));
    cr_assert(request.content_length == 12 && !request.chunked);
    cr_assert(request.expect_continue && request.close && request.forwarded);
    cr_assert(http_has_body(&request));
    cr_assert(parse("GET / HTTP/1.1\r\n" HOST "\r\n", &request) > 0);
    cr_assert(request.content_length == -1 && !request.close);
    cr_assert(!request.forwarded && !request.expect_continue);
    cr_assert(!request.last_event_id.data && !http_has_body(&request));
    cr_assert(
        parse("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n", &request) > 0);
    cr_assert(request.close && !request.expect_continue);
    cr_assert(request.minor == 0);
}

static void parse_field(const char *field, int minor, struct request *request)
{
    char text[128];

    snprintf(text, sizeof(text), "POST / HTTP/1.%d\r\n" HOST "%s\r\n\r\n",
             minor, field);
    cr_assert(parse(text, request) > 0, "%s", field);
}

Test(head, when_it_closes)
{
    static const struct {
        const char *field;
        int minor;
        bool close;
    } cases[] = {
        { "A: b", 1, false },
        { "A: b", 0, true },
        { "Connection: keep-alive", 0, true },
        { "Connection: close", 1, true },
        { "Connection: CLOSE", 1, true },
        { "Connection: a, \tclose\t,b", 1, true },
        { "Connection: a\r\nConnection: close", 1, true },
        { "Connection: close\r\nConnection: a", 1, true },
        { "Connection: closed", 1, false },
        { "Connection: clos", 1, false },
        { "Connection: not close", 1, false },
        { "Connection:", 1, false },
        { "Connection: ,,", 1, false },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct request request;

        parse_field(cases[i].field, cases[i].minor, &request);
        cr_assert(request.close == cases[i].close, "%s", cases[i].field);
    }
}

Test(head, what_has_passed_a_proxy)
{
    static const char *const by_proxy[] = {
        "Via: a",
        "forwarded: a",
        "X-Forwarded-For: a",
        "X-Forwarded-Host: a",
        "x-forwarded-proto:",
        "X-Forwarded-Server: a",
        "X-FORWARDED-: a",
        "X-Real-IP: a",
        "CF-Connecting-IP: a",
        "true-client-ip: a",
    };
    static const char *const others[] = {
        "Vi: a",        "Via-: a",          "X-Forwarded: a",
        "X-Via: a",     "X-Real-IPs: a",    "XX-Forwarded-For: a",
        "X-Request: a", "CF-Connecting: a", "Sec-Fetch-Site: cross-site",
    };
    struct request request;

    for (size_t i = 0; i < COUNT(by_proxy); i++) {
        parse_field(by_proxy[i], 1, &request);
        cr_assert(request.forwarded, "%s", by_proxy[i]);
    }
    for (size_t i = 0; i < COUNT(others); i++) {
        parse_field(others[i], 1, &request);
        cr_assert(!request.forwarded, "%s", others[i]);
    }
}

Test(head, which_site_a_browser_names)
{
    static const struct {
        const char *field;
        bool cross_site;
    } cases[] = {
        { "Sec-Fetch-Site: cross-site", true },
        { "sec-fetch-site: same-site", true },
        { "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site", true },
        { "Sec-Fetch-Site: same-origin", false },
        { "Sec-Fetch-Site: none", false },
        { "Sec-Fetch-Mode: cross-site", false },
        { "Sec-Fetch-Sites: cross-site", false },
        { "Xec-Fetch-Site: cross-site", false },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct request request;

        parse_field(cases[i].field, 1, &request);
        cr_assert(request.cross_site == cases[i].cross_site, "%s",
                  cases[i].field);
        cr_assert(!request.forwarded);
    }
}

Test(head, of_several_fields_the_first_counts)
{
    struct request request;

    parse_field("Last-Event-ID:\r\nLast-Event-ID: 7\r\n"
                "Authorization: a\r\nAuthorization: b",
                1, &request);
    cr_assert(request.last_event_id.data && request.last_event_id.length == 0);
    cr_assert(slice_is(request.authorization, "a"));
    cr_assert(request.error == NULL);
}

Test(head, when_it_has_a_body)
{
    static const struct {
        const char *field;
        int64_t length;
        bool chunked, body;
    } cases[] = {
        { "A: b", -1, false, false },
        { "Content-Length: 0", 0, false, false },
        { "Content-Length: 000", 0, false, false },
        { "Content-Length: 1", 1, false, true },
        { "content-length: \t 0012 ", 12, false, true },
        { "Transfer-Encoding: chunked", -1, true, true },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct request request;

        parse_field(cases[i].field, 1, &request);
        cr_assert(request.content_length == cases[i].length, "%s",
                  cases[i].field);
        cr_assert(request.chunked == cases[i].chunked);
        cr_assert(http_has_body(&request) == cases[i].body, "%s",
                  cases[i].field);
    }
}

/* A head with a request line and fields of these lengths, line ends
 * included; the last field fills it up to `total`. */
static ssize_t parse_long(size_t line, unsigned field_count, size_t total)
{
    char *text = malloc(GUARDED);
    struct request request = { 0 };
    size_t at = (size_t)sprintf(text, "GET /");
    ssize_t taken;

    memset(text + at, 'a', line - at - strlen(" HTTP/1.1\r\n"));
    at = line - strlen(" HTTP/1.1\r\n");
    at += (size_t)sprintf(text + at, " HTTP/1.1\r\n" HOST);
    for (unsigned i = 2; i < field_count; i++)
        at += (size_t)sprintf(text + at, "A:\r\n");
    if (field_count > 1) {
        size_t value = total > at + 6 ? total - at - 6 : 0;

        at += (size_t)sprintf(text + at, "B:");
        memset(text + at, 'b', value);
        at += value;
        at += (size_t)sprintf(text + at, "\r\n");
    }
    at += (size_t)sprintf(text + at, "\r\n");
    taken = http_parse(guarded(text, at), at, &request);
    free(text);
    return taken > 0 ? (ssize_t)at - taken : taken;
}

Test(head, each_limit_to_the_byte)
{
    cr_assert(parse_long(REQUEST_LINE_MAX, 1, 0) == 0);
    cr_assert(parse_long(REQUEST_LINE_MAX + 1, 1, 0) == -414);
    cr_assert(parse_long(20, FIELD_COUNT_MAX, 0) == 0);
    cr_assert(parse_long(20, FIELD_COUNT_MAX + 1, 0) == -431);
    cr_assert(parse_long(20, 2, HEAD_MAX) == 0);
    cr_assert(parse_long(20, 2, HEAD_MAX + 1) == -431);
}

Test(head, an_endless_one_is_refused_at_the_limit)
{
    char *text = malloc(HEAD_MAX);
    struct request request = { 0 };

    memset(text, 'a', HEAD_MAX);
    cr_assert(http_parse(text, REQUEST_LINE_MAX - 1, &request) == 0);
    cr_assert(http_parse(text, REQUEST_LINE_MAX, &request) == -414);
    request = (struct request){ 0 };
    memcpy(text, "GET / HTTP/1.1\r\n", 16);
    cr_assert(http_parse(text, HEAD_MAX - 1, &request) == 0);
    cr_assert(http_parse(text, HEAD_MAX, &request) == -431);
    request = (struct request){ 0 };
    for (int i = 0; i < HEAD_MAX; i++)
        text[i] = i % 2 ? '\n' : '\r';
    cr_assert(http_parse(text, HEAD_MAX, &request) < 0);
    free(text);
}

/* A head that breaks a limit and is malformed beside it. */
static void check_refusal(bool in_fields, int status)
{
    char *text = malloc(GUARDED);
    size_t length = HEAD_MAX + 200;

    memset(text, 'a', length);
    if (in_fields)
        text[sprintf(text, "GET / HTTP/1.1\r\nA:")] = 'a';
    text[length - 5] = '\r';
    text[length - 1] = '\n';
    for (size_t split = 0; split <= length; split += 64) {
        struct request request = { 0 };
        ssize_t taken = http_parse(text, split, &request);

        if (taken == 0)
            taken = http_parse(text, length, &request);
        cr_assert(taken == -status, "at %zu: %zd", split, taken);
    }
    free(text);
}

Test(head, is_refused_alike_however_it_arrives)
{
    check_refusal(false, 414);
    check_refusal(true, 431);
}

/* Empty lines before it are no part of the request line. */
Test(head, its_limit_is_counted_from_its_start)
{
    char *text = malloc(GUARDED);
    struct request request = { 0 };
    size_t end = 4 + REQUEST_LINE_MAX;

    memset(text, 'a', GUARDED);
    memcpy(text, "\r\n\r\nGET /", 9);
    cr_assert(http_parse(text, end - 1, &request) == 0);
    memcpy(text + end - 11, " HTTP/1.1\r\n", 11);
    memcpy(text + end, "Host: a\r\n\r\n", 11);
    cr_assert(http_parse(text, end + 11, &request) == (ssize_t)end + 11);
    cr_assert(request.path.length == REQUEST_LINE_MAX - strlen("GET ") - 11);
    free(text);
}

/* ---------------------------------------------------------------- bodies */

struct body_case {
    const char *name;
    const char *bytes;
    const char *content; /* NULL: it is malformed */
    size_t rest;         /* bytes that do not belong to it */
};

static const struct body_case bodies[] = {
    { "nothing", "0\r\n\r\n", "", 0 },
    { "two chunks", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde", 0 },
    { "another request behind", "1\r\na\r\n0\r\n\r\nGET", "a", 3 },
    { "hex", "a\r\n0123456789\r\n0\r\n\r\n", "0123456789", 0 },
    { "HEX and zeros", "000A\r\n0123456789\r\n000\r\n\r\n", "0123456789", 0 },
    { "extensions", "1;a=\"b\";c\r\nx\r\n0;d\r\n\r\n", "x", 0 },
    { "blank after the size", "1 2\r\nx\r\n0\r\n\r\n", NULL, 0 },
    { "trailers", "1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n", "x", 0 },
    { "line ends in the content", "4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n", 0 },
    { "no size", "\r\n", NULL, 0 },
    { "no size, an extension", ";a\r\n", NULL, 0 },
    { "a blank first", " 1\r\nx\r\n0\r\n\r\n", NULL, 0 },
    { "a folded size", "1\r\n 1\r\nx\r\n0\r\n\r\n", NULL, 0 },
    { "bare CR in an extension", "1;a\rb\r\nx\r\n0\r\n\r\n", NULL, 0 },
    { "bare CR in the trailer", "0\r\nA\rb\r\n\r\n", NULL, 0 },
    { "bare LF for the trailer", "0\r\n\n", NULL, 0 },
    { "content too short", "3\r\nab\r\n0\r\n\r\n", NULL, 0 },
    { "no hex", "g\r\n", NULL, 0 },
    { "a sign", "-1\r\n", NULL, 0 },
    { "0x", "0x1\r\n", NULL, 0 },
    { "bare LF after the size", "1\nx\r\n0\r\n\r\n", NULL, 0 },
    { "bare LF after an extension", "1;a\nx\r\n0\r\n\r\n", NULL, 0 },
    { "CR and no LF", "1\rx", NULL, 0 },
    { "content too long", "1\r\nxy\r\n0\r\n\r\n", NULL, 0 },
    { "bare LF after the content", "1\r\nx\n0\r\n\r\n", NULL, 0 },
    { "size over 64 bits", "10000000000000000\r\n", NULL, 0 },
    { "bare LF in the trailer", "0\r\nA: b\n\r\n", NULL, 0 },
    { "CR and no LF at the end", "0\r\n\rx", NULL, 0 },
};

/* Reads a body of which `split` bytes come first. Returns how many bytes were
 * taken, or -400. */
static ssize_t read_body(struct body *body, const char *bytes, size_t split,
                         char *content)
{
    size_t length = strlen(bytes), at = 0, out = 0;

    for (size_t end = split; at < length; end = length) {
        while (at < end && body->state != BODY_DONE) {
            struct slice piece, data = { bytes + at, end - at };
            ssize_t taken = http_body_read(body, data, &piece);

            if (taken < 0)
                return taken;
            memcpy(content + out, piece.data, piece.length);
            out += piece.length;
            at += (size_t)taken;
        }
        if (end == length)
            break;
    }
    content[out] = '\0';
    return (ssize_t)at;
}

Test(body, chunks_at_every_split)
{
    struct request request = { .chunked = true, .content_length = -1 };
    char content[64];

    for (size_t i = 0; i < COUNT(bodies); i++) {
        const struct body_case *body_case = &bodies[i];
        size_t length = strlen(body_case->bytes);

        for (size_t split = 0; split <= length; split++) {
            struct body body;
            ssize_t taken;

            http_body_init(&body, &request);
            taken = read_body(&body, guarded(body_case->bytes, length + 1),
                              split, content);
            if (!body_case->content) {
                cr_assert(taken == -400, "%s at %zu", body_case->name, split);
                continue;
            }
            cr_assert(taken == (ssize_t)(length - body_case->rest),
                      "%s at %zu: %zd", body_case->name, split, taken);
            cr_assert(body.state == BODY_DONE, "%s", body_case->name);
            cr_assert_str_eq(content, body_case->content, "%s",
                             body_case->name);
        }
    }
}

Test(body, chunks_byte_by_byte)
{
    struct request request = { .chunked = true, .content_length = -1 };

    for (size_t i = 0; i < COUNT(bodies); i++) {
        struct body body;
        char content[64];
        size_t at = 0, out = 0;
        ssize_t taken = 0;

        http_body_init(&body, &request);
        while (bodies[i].bytes[at] && body.state != BODY_DONE && taken >= 0) {
            struct slice piece, data = { bodies[i].bytes + at++, 1 };

            taken = http_body_read(&body, data, &piece);
            if (taken > 0 && piece.length)
                content[out++] = *piece.data;
        }
        content[out] = '\0';
        cr_assert((taken < 0) == (bodies[i].content == NULL), "%s",
                  bodies[i].name);
        if (bodies[i].content)
            cr_assert_str_eq(content, bodies[i].content, "%s", bodies[i].name);
    }
}

/* A NUL, which a reader in C might take for an end. */
Test(body, a_nul_is_content_and_nothing_else)
{
    struct request request = { .chunked = true, .content_length = -1 };
    static const char text[] = "1;a=b\r\nx\r\n0\r\nA: b\r\n\r\n";
    size_t length = strlen(text), content = strlen("1;a=b\r\n");

    for (size_t at = 0; at < length; at++) {
        char *bytes = guarded(text, length);
        struct body body;
        ssize_t taken = 0;

        bytes[at] = '\0';
        http_body_init(&body, &request);
        for (size_t i = 0; i < length && taken >= 0; i++) {
            struct slice piece;

            taken =
                http_body_read(&body, (struct slice){ bytes + i, 1 }, &piece);
            if (taken > 0 && piece.length)
                cr_assert(i == content && *piece.data == bytes[i]);
        }
        cr_assert((taken > 0) == (at == content), "at %zu", at);
    }
}

/* The greatest size and the one after it; each of content and of framing is
 * told apart though nothing has arrived of it. */
Test(body, sizes_up_to_a_limit)
{
    struct request request = { .chunked = true, .content_length = -1 };
    struct slice piece;
    struct body body;

    http_body_init(&body, &request);
    cr_assert(http_body_read(&body, SLICE("fffffffffffffff\r\n"), &piece) ==
              17);
    cr_assert(body.state == BODY_DATA && piece.length == 0);
    cr_assert(body.left == UINT64_C(0xfffffffffffffff));
    http_body_init(&body, &request);
    cr_assert(http_body_read(&body, SLICE("0000000000000000000fF\r\n"),
                             &piece) == 23);
    cr_assert(body.state == BODY_DATA && body.left == 255);
    http_body_init(&body, &request);
    cr_assert(http_body_read(&body, SLICE(""), &piece) == 0);
    cr_assert(body.state == BODY_SIZE);
}

Test(body, of_a_length)
{
    struct request request = { .content_length = 5 };
    char content[64];

    for (size_t split = 0; split <= 8; split++) {
        struct body body;

        http_body_init(&body, &request);
        cr_assert(read_body(&body, "abcdefgh", split, content) == 5);
        cr_assert(body.state == BODY_DONE);
        cr_assert_str_eq(content, "abcde");
    }
    request.content_length = 0;
    for (int i = 0; i < 2; i++, request.content_length = -1) {
        struct body body;

        http_body_init(&body, &request);
        cr_assert(body.state == BODY_DONE);
    }
}

/* Bytes that are no content are bounded, however they are spread. */
static ssize_t read_overhead(const char *begin, char filler, size_t count)
{
    struct request request = { .chunked = true, .content_length = -1 };
    struct body body;
    char content[64];
    ssize_t taken;

    http_body_init(&body, &request);
    taken = read_body(&body, begin, 0, content);
    for (size_t i = 0; i < count && taken >= 0; i++) {
        struct slice piece;

        taken = http_body_read(&body, (struct slice){ &filler, 1 }, &piece);
    }
    return taken;
}

Test(body, limits_what_is_no_content)
{
    cr_assert(read_overhead("1;", 'a', CHUNK_LINE_MAX - 2) > 0);
    cr_assert(read_overhead("1;", 'a', CHUNK_LINE_MAX - 1) == -400);
    cr_assert(read_overhead("0", '0', CHUNK_LINE_MAX) == -400);
    cr_assert(read_overhead("1\r\nx\r\n1;", 'a', CHUNK_LINE_MAX - 2) > 0);
    cr_assert(read_overhead("1\r\nx\r\n1;", 'a', CHUNK_LINE_MAX - 1) == -400);
    cr_assert(read_overhead("0;aaaaa\r\n", 'a', TRAILER_MAX) > 0);
    cr_assert(read_overhead("0\r\n", 'a', TRAILER_MAX) > 0);
    cr_assert(read_overhead("0\r\n", 'a', TRAILER_MAX + 1) == -400);
}

/* --------------------------------------------------------- small parsers */

Test(text, numbers)
{
    uint64_t number = 0;

    cr_assert(slice_number(slice_of("0"), 9, &number) && number == 0);
    cr_assert(slice_number(slice_of("9007199254740991"), ID_MAX, &number));
    cr_assert(number == ID_MAX);
    cr_assert(
        slice_number(slice_of("18446744073709551615"), UINT64_MAX, &number));
    cr_assert(number == UINT64_MAX);
    cr_assert(!slice_number(slice_of("9007199254740992"), ID_MAX, &number));
    cr_assert(
        !slice_number(slice_of("18446744073709551616"), UINT64_MAX, &number));
    cr_assert(!slice_number(slice_of("3"), 2, &number));
    cr_assert(!slice_number(slice_of("1"), 0, &number));
    cr_assert(!slice_number(slice_of(""), 9, &number));
    cr_assert(!slice_number(slice_of("01"), 9, &number));
    cr_assert(!slice_number(slice_of("00"), 9, &number));
    cr_assert(!slice_number(slice_of("+1"), 9, &number));
    cr_assert(!slice_number(slice_of("-1"), 9, &number));
    cr_assert(!slice_number(slice_of(" 1"), 9, &number));
    cr_assert(!slice_number(slice_of("1 "), 9, &number));
    cr_assert(!slice_number(slice_of("1a"), 99, &number));
}

Test(text, query_parameters)
{
    struct slice query = slice_of("a=1&b=%41%zz+&c&d=&a=2&=e&bb=3&f=%4");
    struct slice value = { NULL, 0 };
    char buffer[8];

    cr_assert(http_query(query, "a", buffer, 8, &value));
    cr_assert(slice_is(value, "1"));
    cr_assert(http_query(query, "b", buffer, 8, &value));
    cr_assert(slice_is(value, "A%zz "));
    cr_assert(http_query(query, "b", buffer, 3, &value));
    cr_assert(slice_is(value, "A%z"));
    cr_assert(http_query(query, "c", buffer, 8, &value));
    cr_assert(slice_is(value, ""));
    cr_assert(http_query(query, "d", buffer, 8, &value));
    cr_assert(slice_is(value, ""));
    cr_assert(http_query(query, "f", buffer, 8, &value));
    cr_assert(slice_is(value, "%4"));
    cr_assert(http_query(query, "a", buffer, 0, &value));
    cr_assert(slice_is(value, ""));
    cr_assert(!http_query(query, "e", buffer, 8, &value));
    cr_assert(!http_query(query, "A", buffer, 8, &value));
    cr_assert(http_query(slice_of("a=b=c"), "a", buffer, 8, &value));
    cr_assert(slice_is(value, "b=c"));
    cr_assert(!http_query((struct slice){ NULL, 0 }, "a", buffer, 8, &value));
    cr_assert(!http_query(slice_of(""), "a", buffer, 8, &value));
}

Test(text, hosts_that_are_local)
{
    static const char *const local[] = { "localhost", "LOCALHOST:3000",
                                         "127.0.0.1", "10.1.2.3:80",
                                         "[::1]",     "[2001:db8::1]:3000",
                                         "localhost:" };
    static const char *const others[] = {
        "",
        "example.com",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "[::1",
        "::1",
        "[example]",
        "1.2.3",
        "localhost:x",
        "127.0.0.1:3000:1",
        "[127.0.0.1]",
        "[",
        "[]",
        ":80",
        "127.0.0.1 ",
        "127.1",
        "0x7f.0.0.1",
    };
    static char endless[4096];

    for (size_t i = 0; i < COUNT(local); i++)
        cr_assert(http_host_is_local(slice_of(local[i])), "%s", local[i]);
    for (size_t i = 0; i < COUNT(others); i++)
        cr_assert(!http_host_is_local(slice_of(others[i])), "%s", others[i]);
    memset(endless, '1', sizeof(endless) - 1);
    cr_assert(!http_host_is_local(slice_of(endless)));
    endless[0] = '[';
    endless[sizeof(endless) - 2] = ']';
    cr_assert(!http_host_is_local(slice_of(endless)));
}

Test(text, origins_of_a_host)
{
    static const struct {
        const char *origin, *host;
        bool same;
    } cases[] = {
        { "http://a", "a", true },
        { "http://A.example", "a.EXAMPLE", true },
        { "https://a", "a", true },
        { "http://a", "a:80", true },
        { "https://a", "a:443", true },
        { "http://a:3000", "a:3000", true },
        { "http://[::1]:3000", "[::1]:3000", true },
        { "https://a:443", "a", true },
        { "HTTPS://a", "a", true },
        { "https://a:80", "a", false },
        { "https://a", "a:80", false },
        { "http://a/", "a", false },
        { "http://:80", "", false },
        { "http://a", "a:443", false },
        { "http://a:3000", "a", false },
        { "http://a", "b", false },
        { "http://a.b", "a", false },
        { "null", "null", false },
        { "ftp://a", "a", false },
        { "http://", "", false },
        { "", "a", false },
    };

    for (size_t i = 0; i < COUNT(cases); i++)
        cr_assert(http_origin_is_host(slice_of(cases[i].origin),
                                      slice_of(cases[i].host)) == cases[i].same,
                  "%s %s", cases[i].origin, cases[i].host);
}

Test(text, media_types)
{
    cr_assert(http_media_type_is(slice_of("text/Event-Stream; charset=utf-8"),
                                 "text/event-stream"));
    cr_assert(http_media_type_is(slice_of("text/event-stream ;x"),
                                 "text/event-stream"));
    cr_assert(!http_media_type_is(slice_of("text/event-streams"),
                                  "text/event-stream"));
    cr_assert(!http_media_type_is((struct slice){ 0 }, "text/event-stream"));
    cr_assert(!http_media_type_is(slice_of(""), "text/event-stream"));
    cr_assert(!http_media_type_is(slice_of("a;text/event-stream"),
                                  "text/event-stream"));
    cr_assert(
        !http_media_type_is((struct slice){ NULL, 0 }, "text/event-stream"),
        "no such field");
}

/* -------------------------------------------------------- response heads */

Test(answer, an_ordinary_head)
{
    char head[512];
    struct response response = { .status = 405,
                                 .date = "D",
                                 .type = "text/plain",
                                 .length = 7,
                                 .allow = "GET",
                                 .close = true };
    size_t length = http_head(head, sizeof(head), &response);

    cr_assert_str_eq(head, "HTTP/1.1 405 Method Not Allowed\r\nDate: D\r\n"
                           "Content-Type: text/plain\r\nContent-Length: 7\r\n"
                           "Connection: close\r\nAllow: GET\r\n"
                           "X-Content-Type-Options: nosniff\r\n\r\n");
    cr_assert(length == strlen(head));
    for (size_t size = 0; size <= length; size++)
        cr_assert(http_head(guarded(head, size), size, &response) == 0);
}

#define NOSNIFF "X-Content-Type-Options: nosniff\r\n\r\n"

static void check_head(const struct response *response, const char *expected)
{
    char head[RESPONSE_HEAD_MAX];

    cr_assert(http_head(head, sizeof(head), response) == strlen(expected));
    cr_assert_str_eq(head, expected);
}

Test(answer, a_stream)
{
    struct response response = {
        .status = 200, .stream = true, .chunked = true, .cors = "*"
    };

    check_head(&response, "HTTP/1.1 200 OK\r\n"
                          "Content-Type: text/event-stream\r\n"
                          "Cache-Control: no-cache, no-transform\r\n"
                          "X-Accel-Buffering: no\r\n"
                          "Connection: keep-alive\r\n"
                          "Transfer-Encoding: chunked\r\n"
                          "Access-Control-Allow-Origin: *\r\n" NOSNIFF);
    response.chunked = false;
    response.cors = "http://a";
    check_head(&response, "HTTP/1.1 200 OK\r\n"
                          "Content-Type: text/event-stream\r\n"
                          "Cache-Control: no-cache, no-transform\r\n"
                          "X-Accel-Buffering: no\r\n"
                          "Connection: close\r\n"
                          "Access-Control-Allow-Origin: http://a\r\n"
                          "Vary: Origin\r\n"
                          "Access-Control-Allow-Credentials: true\r\n" NOSNIFF);
}

Test(answer, a_preflight)
{
    struct response response = {
        .status = 204,
        .preflight = true,
        .allow = "GET, POST",
        .cors = "http://a",
    };

    check_head(&response,
               "HTTP/1.1 204 No Content\r\n"
               "Access-Control-Allow-Origin: http://a\r\nVary: Origin\r\n"
               "Access-Control-Allow-Credentials: true\r\n"
               "Access-Control-Allow-Methods: GET, POST\r\n"
               "Access-Control-Allow-Headers: Last-Event-ID, Cache-Control, "
               "Authorization, Content-Type\r\n"
               "Access-Control-Max-Age: 86400\r\n" NOSNIFF);
    response.cors = NULL;
    check_head(&response, "HTTP/1.1 204 No Content\r\n" NOSNIFF);
}

Test(answer, a_refusal)
{
    struct response response = { .status = 503 };

    check_head(&response, "HTTP/1.1 503 Service Unavailable\r\n"
                          "Content-Length: 0\r\nRetry-After: 2\r\n" NOSNIFF);
    response = (struct response){ .status = 401 };
    check_head(&response, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n"
                          "WWW-Authenticate: Bearer\r\n" NOSNIFF);
    response = (struct response){ .status = 429, .retry_after = 59 };
    check_head(&response, "HTTP/1.1 429 Too Many Requests\r\n"
                          "Content-Length: 0\r\nRetry-After: 59\r\n" NOSNIFF);
}

Test(answer, a_part_of_a_file)
{
    struct response response = {
        .status = 206,
        .length = 6,
        .type = "t",
        .etag = "\"e\"",
        .modified = 784111777,
        .range_first = 4,
        .range_last = 9,
        .range_total = UINT64_MAX,
    };

    check_head(&response,
               "HTTP/1.1 206 Partial Content\r\n"
               "Content-Type: t\r\nContent-Length: 6\r\nETag: \"e\"\r\n"
               "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
               "Accept-Ranges: bytes\r\n"
               "Content-Range: bytes 4-9/18446744073709551615\r\n" NOSNIFF);
    response = (struct response){ .status = 416, .range_total = 10 };
    check_head(&response, "HTTP/1.1 416 Range Not Satisfiable\r\n"
                          "Content-Length: 0\r\n"
                          "Content-Range: bytes */10\r\n" NOSNIFF);
}

/* Only what cannot end a line, a path or a segment of it goes in as it is; of
 * the path, only the last segment does. */
Test(answer, a_location_cannot_end_its_line)
{
    for (int byte = 1; byte < 256; byte++) {
        char path[] = { '/', 'a', '/', (char)byte }, expected[128];
        bool plain = isalnum(byte) || strchr("-._~", byte);
        struct response response = { .status = 301,
                                     .location = { path, sizeof(path) } };
        int at = sprintf(expected, "HTTP/1.1 301 Moved Permanently\r\n"
                                   "Content-Length: 0\r\nLocation: ");

        if (byte == '/')
            continue;
        at += sprintf(expected + at, plain ? "%c" : "%%%02X", byte);
        sprintf(expected + at, "/\r\n" NOSNIFF);
        check_head(&response, expected);
    }
}

Test(answer, a_location_with_a_nul)
{
    struct response response = { .status = 301, .location = SLICE("/a\0b") };

    check_head(&response, "HTTP/1.1 301 Moved Permanently\r\n"
                          "Content-Length: 0\r\n"
                          "Location: a%00b/\r\n" NOSNIFF);
}

Test(answer, a_long_location_is_not_cut)
{
    static char path[2 * RESPONSE_HEAD_MAX], head[RESPONSE_HEAD_MAX];
    struct response response = { .status = 301 };

    memset(path, 'a', sizeof(path));
    for (size_t length = 1; length <= sizeof(path); length++) {
        size_t taken;

        response.location = (struct slice){ path, length };
        taken = http_head(guarded(head, sizeof(head)), sizeof(head), &response);
        cr_assert(taken == 0 || (taken > length && taken < sizeof(head)));
        cr_assert(taken == 0 || length < sizeof(head));
    }
}

/* The longest name that a file system has, each byte of it escaped, after a
 * path of any length: the head has room for it. */
Test(answer, any_folder_can_be_redirected_to)
{
    char path[4096], head[RESPONSE_HEAD_MAX], date[HTTP_DATE_SIZE];
    struct response response = { .status = 301,
                                 .close = true,
                                 .type = "text/plain; charset=utf-8",
                                 .length = 1000000,
                                 .date = date,
                                 .location = { path, sizeof(path) } };

    http_date(date, 0);
    memset(path, '/', sizeof(path));
    memset(path + sizeof(path) - 255, 0xE4, 255);
    cr_assert(http_head(head, sizeof(head), &response) > (size_t)3 * 255);
}

Test(answer, every_status_has_its_phrase)
{
    static const int statuses[] = { 200, 201, 204, 206, 301, 304, 400, 401,
                                    403, 404, 405, 408, 409, 413, 414, 415,
                                    416, 417, 431, 500, 501, 503, 505 };

    for (size_t i = 0; i < COUNT(statuses); i++)
        cr_assert(strcmp(http_reason(statuses[i]), "Unknown") != 0, "%d",
                  statuses[i]);
    cr_assert_str_eq(http_reason(299), "Unknown");
}

Test(answer, dates)
{
    char date[HTTP_DATE_SIZE];

    http_date(date, 784111777);
    cr_assert_str_eq(date, "Sun, 06 Nov 1994 08:49:37 GMT");
    http_date(date, 0);
    cr_assert_str_eq(date, "Thu, 01 Jan 1970 00:00:00 GMT");
    http_date(date, 1709251199);
    cr_assert_str_eq(date, "Thu, 29 Feb 2024 23:59:59 GMT");
}

/* ----------------------------------------------------------------- files */

Test(file, the_bundled_ones)
{
    static const char *const paths[] = {
        "/",           "/index.html",    "/index.js",    "/chat.html",
        "/chat.js",    "/progress.html", "/progress.js", "/monitor.html",
        "/monitor.js", "/inspect.html",  "/inspect.js",  "/clock.html",
        "/bar.js",     "/ssed.js",       "/style.css",
    };
    struct file file, again;

    http_bundle_init(1000);
    for (size_t i = 0; i < COUNT(paths); i++) {
        cr_assert(http_file_open(&file, ROOT_BUNDLED, slice_of(paths[i])) == 0);
        cr_assert(file.data && file.fd == -1 && file.length > 100);
        cr_assert(file.modified == 1000 && file.etag[0] == '"');
    }
    cr_assert(http_file_open(&again, ROOT_BUNDLED, slice_of("/index.html")) ==
              0);
    cr_assert(strcmp(file.etag, again.etag) != 0);
    cr_assert(http_file_open(&file, ROOT_BUNDLED, slice_of("/nothing")) ==
              -404);
    cr_assert(http_file_open(&file, ROOT_BUNDLED, slice_of("")) == -404);
    cr_assert(http_file_open(&file, ROOT_BUNDLED, slice_of("//index.html")) ==
              -404);
}

/* The listener of --admin has a page of its own, and no other. */
Test(file, the_bundled_ones_of_the_admin_listener)
{
    static const char *const shared[] = { "/bar.js", "/style.css" };
    static const char *const admin[] = { "/status.html", "/status.js" };
    struct file file, index;

    http_bundle_init(1000);
    for (size_t i = 0; i < 2; i++) {
        cr_assert(http_file_open(&file, ROOT_ADMIN, slice_of(shared[i])) == 0);
        cr_assert(http_file_open(&file, ROOT_ADMIN, slice_of(admin[i])) == 0);
        cr_assert(http_file_open(&file, ROOT_BUNDLED, slice_of(admin[i])) ==
                  -404);
    }
    cr_assert(http_file_open(&file, ROOT_ADMIN, SLICE("/index.html")) == -404);
    cr_assert(http_file_open(&file, ROOT_ADMIN, SLICE("/ssed.js")) == -404);
    cr_assert(http_file_open(&index, ROOT_ADMIN, SLICE("/")) == 0);
    cr_assert(http_file_open(&file, ROOT_ADMIN, SLICE("/status.html")) == 0);
    cr_assert_str_eq(index.etag, file.etag);
    cr_assert_str_eq(index.type, "text/html; charset=utf-8");
}

/* A folder with a bit of everything; the test's process may leave it. */
static int folder = -1;

static char folder_name[] = "/tmp/ssed-unit-XXXXXX";

static void write_file(const char *name, const char *content)
{
    int fd = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    cr_assert(fd >= 0);
    cr_assert(write(fd, content, strlen(content)) == (ssize_t)strlen(content));
    close(fd);
}

static void make_folder(void)
{
    cr_assert(mkdtemp(folder_name));
    folder = open(folder_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert(folder >= 0);
    cr_assert(mkdirat(folder, "sub", 0755) == 0);
    cr_assert(mkdirat(folder, "sub/deep", 0755) == 0);
    cr_assert(mkdirat(folder, "odd", 0755) == 0);
    cr_assert(mkdirat(folder, "odd/index.html", 0755) == 0);
    cr_assert(mkfifoat(folder, "fifo", 0644) == 0);
    cr_assert(symlinkat("a.TXT", folder, "inside.txt") == 0);
    cr_assert(symlinkat("sub", folder, "inside") == 0);
    cr_assert(symlinkat("/etc/passwd", folder, "absolute.txt") == 0);
    cr_assert(symlinkat("../../etc/passwd", folder, "up.txt") == 0);
    cr_assert(symlinkat("../..", folder, "sub/up") == 0);
    cr_assert(symlinkat("loop", folder, "loop") == 0);
    write_file("a.TXT", "text");
    write_file("dotless", "");
    write_file(".js", "2");
    write_file("index.html", "<p>");
    write_file("sub/index.html", "<p>sub");
    write_file("sub/b.c.js", "1");
}

static void remove_folder(void)
{
    static const char *const files[] = {
        "fifo",       "inside.txt",     "inside", "absolute.txt", "up.txt",
        "sub/up",     "loop",           "a.TXT",  "dotless",      "index.html",
        "sub/b.c.js", "sub/index.html", ".js",
    };
    static const char *const folders[] = { "sub/deep", "sub", "odd/index.html",
                                           "odd" };

    for (size_t i = 0; i < COUNT(files); i++)
        unlinkat(folder, files[i], 0);
    for (size_t i = 0; i < COUNT(folders); i++)
        unlinkat(folder, folders[i], AT_REMOVEDIR);
    close(folder);
    rmdir(folder_name);
}

static int open_and_close(const char *path)
{
    struct file file;
    int status = http_file_open(&file, folder, slice_of(path));

    if (status == 0)
        close(file.fd);
    return status;
}

Test(folder, what_is_in_it, .init = make_folder, .fini = remove_folder)
{
    static const struct {
        const char *path, *content, *type;
    } cases[] = {
        { "/a.TXT", "text", "text/plain; charset=utf-8" },
        { "/dotless", "", "application/octet-stream" },
        { "/.js", "2", "text/javascript; charset=utf-8" },
        { "/", "<p>", "text/html; charset=utf-8" },
        { "/sub/", "<p>sub", "text/html; charset=utf-8" },
        { "/sub/b.c.js", "1", "text/javascript; charset=utf-8" },
        { "/inside.txt", "text", "text/plain; charset=utf-8" },
        { "/inside/index.html", "<p>sub", "text/html; charset=utf-8" },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct file file;
        char content[16] = "";

        cr_assert(http_file_open(&file, folder, slice_of(cases[i].path)) == 0,
                  "%s", cases[i].path);
        cr_assert(file.data == NULL && file.modified > 1600000000);
        cr_assert(file.length == strlen(cases[i].content));
        cr_assert(read(file.fd, content, sizeof(content)) ==
                  (ssize_t)file.length);
        cr_assert_str_eq(content, cases[i].content);
        cr_assert_str_eq(file.type, cases[i].type);
        cr_assert(fcntl(file.fd, F_GETFD) & FD_CLOEXEC);
        close(file.fd);
    }
}

Test(folder, what_is_not, .init = make_folder, .fini = remove_folder)
{
    static const char *const paths[] = { "/missing",
                                         "/sub/missing",
                                         "/sub/deep/",
                                         "/a.TXT/",
                                         "/a.txt",
                                         "/fifo",
                                         "/loop",
                                         "/absolute.txt",
                                         "/up.txt",
                                         "/sub/up",
                                         "/sub/up/",
                                         "/sub/up/etc/passwd",
                                         "/..",
                                         "/../a.TXT",
                                         "/../..",
                                         "/sub/../../a.TXT",
                                         "//a.TXT",
                                         "//etc/passwd",
                                         "//",
                                         "",
                                         "/index.html/sub" };
    int before = dup(0), after;

    close(before);
    for (size_t i = 0; i < COUNT(paths); i++)
        cr_assert(open_and_close(paths[i]) == -404, "%s", paths[i]);
    cr_assert(open_and_close("/sub") == -301);
    cr_assert(open_and_close("/sub/deep") == -301);
    cr_assert(open_and_close("/inside") == -301);
    after = dup(0);
    close(after);
    cr_assert(after == before, "%d left open", after - before);
}

/* Nobody is sent to the path that was asked for, and another slash. */
Test(folder, an_index_that_is_a_folder, .init = make_folder,
     .fini = remove_folder)
{
    cr_assert(open_and_close("/odd") == -301);
    cr_assert(open_and_close("/odd/") == -404);
}

Test(folder, a_path_as_long_as_can_be, .init = make_folder,
     .fini = remove_folder)
{
    static char path[REQUEST_LINE_MAX + 2];

    for (size_t length = 250; length < sizeof(path); length += 11) {
        memset(path, 'a', length);
        path[0] = '/';
        cr_assert(open_and_close(path) == -404);
        path[length - 1] = '/';
        cr_assert(open_and_close(path) == -404);
    }
}

static bool fstat_fails;

/* In the place of the one in libc: a failure says nothing of the file. */
int fstat(int fd, struct stat *status)
{
    if (!fstat_fails)
        return fstatat(fd, "", status, AT_EMPTY_PATH);
    memset(status, 0, sizeof(*status));
    status->st_mode = S_IFDIR;
    errno = EIO;
    return -1;
}

Test(folder, a_file_of_which_nothing_is_known, .init = make_folder,
     .fini = remove_folder)
{
    fstat_fails = true;
    cr_assert(open_and_close("/a.TXT") == -404);
    fstat_fails = false;
    cr_assert(open_and_close("/a.TXT") == 0);
}

Test(folder, its_validators_change, .init = make_folder, .fini = remove_folder)
{
    struct file before, after;
    struct timespec times[2] = { { 784111777, 1 }, { 784111777, 1 } };

    cr_assert(utimensat(folder, "a.TXT", times, 0) == 0);
    cr_assert(http_file_open(&before, folder, slice_of("/a.TXT")) == 0);
    cr_assert(before.modified == 784111777 && before.etag[0] == '"');
    cr_assert(before.etag[strlen(before.etag) - 1] == '"');
    times[1].tv_nsec = 2;
    cr_assert(utimensat(folder, "a.TXT", times, 0) == 0);
    cr_assert(http_file_open(&after, folder, slice_of("/a.TXT")) == 0);
    cr_assert(strcmp(before.etag, after.etag) != 0, "by the nanosecond");
    before = after;
    times[1] = (struct timespec){ 784111778, 2 };
    cr_assert(utimensat(folder, "a.TXT", times, 0) == 0);
    cr_assert(http_file_open(&after, folder, slice_of("/a.TXT")) == 0);
    cr_assert(strcmp(before.etag, after.etag) != 0, "by the second");
    before = after;
    write_file("a.TXT", "other");
    cr_assert(utimensat(folder, "a.TXT", times, 0) == 0);
    cr_assert(http_file_open(&after, folder, slice_of("/a.TXT")) == 0);
    cr_assert(strcmp(before.etag, after.etag) != 0, "by its length");
    cr_assert(after.length == 5);
}

Test(folder, no_descriptor_is_free, .init = make_folder, .fini = remove_folder)
{
    struct rlimit limit, none;
    int status;

    cr_assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = (struct rlimit){ .rlim_cur = 0, .rlim_max = limit.rlim_max };
    cr_assert(setrlimit(RLIMIT_NOFILE, &none) == 0);
    status = open_and_close("/a.TXT");
    cr_assert(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    cr_assert(status == -503, "%d", status);
}

/* Answers to a GET of a file with ten bytes, modified at 784111777. */
struct answer {
    const char *fields;
    int status;
    uint64_t first, length;
};

static void check_answer(const struct answer *answer)
{
    struct file file = {
        .length = 10, .modified = 784111777, .etag = "\"e\"", .type = "t"
    };
    struct response response = { 0 };
    struct request request;
    char text[512];
    uint64_t first;

    snprintf(text, sizeof(text), "GET / HTTP/1.1\r\n" HOST "%s\r\n",
             answer->fields);
    cr_assert(parse(text, &request) > 0);
    http_file_response(&file, &request, &response, &first);
    cr_assert(response.status == answer->status, "%s: %d", answer->fields,
              response.status);
    cr_assert(first == answer->first || response.status == 416, "%s",
              answer->fields);
    if (response.status == 200 || response.status == 206)
        cr_assert(response.length == answer->length, "%s: %d", answer->fields,
                  (int)response.length);
}

Test(file, conditions)
{
    static const struct answer answers[] = {
        { "", 200, 0, 10 },
        { "If-None-Match: \"e\"\r\n", 304, 0, 0 },
        { "If-None-Match: *\r\n", 304, 0, 0 },
        { "If-None-Match: \"a\" , W/\"e\"\r\n", 304, 0, 0 },
        { "If-None-Match: \"ee\"\r\n", 200, 0, 10 },
        { "If-None-Match: e\r\n", 200, 0, 10 },
        { "If-None-Match:\r\n", 200, 0, 10 },
        { "If-None-Match: W/\r\n", 200, 0, 10 },
        { "If-None-Match: \"a\",\"b\",,\t\"e\"\r\n", 304, 0, 0 },
        { "If-None-Match: \"a\" \"e\"\r\n", 200, 0, 10 },
        { "If-None-Match: \"*\"\r\n", 200, 0, 10 },
        { "If-None-Match: \"e\"\r\nRange: bytes=0-1\r\n", 304, 0, 0 },
        { "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 304, 0, 0 },
        { "If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n", 200, 0, 10 },
        { "If-Modified-Since: yesterday\r\n", 200, 0, 10 },
        { "If-Modified-Since:\r\n", 200, 0, 10 },
        { "If-Modified-Since: Mon, 06 Nov 2034 08:49:37 GMT\r\n", 304, 0, 0 },
        { "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 UTC\r\n", 200, 0, 10 },
        { "If-Modified-Since: Sun, 06 Nov 1994 08:49:3x GMT\r\n", 200, 0, 10 },
        { "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMTx\r\n", 200, 0, 10 },
        { "If-None-Match: \"a\"\r\n"
          "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
          200, 0, 10 },
    };

    for (size_t i = 0; i < COUNT(answers); i++)
        check_answer(&answers[i]);
}

Test(file, ranges)
{
    static const struct answer answers[] = {
        { "Range: bytes=0-0\r\n", 206, 0, 1 },
        { "Range: bytes=9-9\r\n", 206, 9, 1 },
        { "Range: bytes=2-\r\n", 206, 2, 8 },
        { "Range: bytes=-3\r\n", 206, 7, 3 },
        { "Range: bytes=-30\r\n", 206, 0, 10 },
        { "Range: bytes=5-18446744073709551615\r\n", 200, 0, 10 },
        { "Range: bytes=5-9223372036854775807\r\n", 206, 5, 5 },
        { "Range: BYTES=007-008\r\n", 206, 7, 2 },
        { "Range: bytes=3-9\r\n", 206, 3, 7 },
        { "Range: bytes=3-10\r\n", 206, 3, 7 },
        { "Range: bytes=-10\r\n", 206, 0, 10 },
        { "Range: bytes=-1\r\n", 206, 9, 1 },
        { "Range: bytes=9-\r\n", 206, 9, 1 },
        { "Range: bytes=10-20\r\n", 416, 0, 0 },
        { "Range: lines=1-2\r\n", 200, 0, 10 },
        { "Range: bytes 1-2\r\n", 200, 0, 10 },
        { "Range: bytes=a-2\r\n", 200, 0, 10 },
        { "Range: bytes=1-b\r\n", 200, 0, 10 },
        { "Range: bytes=--1\r\n", 200, 0, 10 },
        { "Range: bytes=1-2-3\r\n", 200, 0, 10 },
        { "Range: bytes=+1-2\r\n", 200, 0, 10 },
        { "Range:\r\n", 200, 0, 10 },
        { "Range: bytes=10-\r\n", 416, 0, 0 },
        { "Range: bytes=-0\r\n", 416, 0, 0 },
        { "Range: bytes=5-4\r\n", 200, 0, 10 },
        { "Range: bytes=\r\n", 200, 0, 10 },
        { "Range: bytes=-\r\n", 200, 0, 10 },
        { "Range: bytes=1\r\n", 200, 0, 10 },
        { "Range: bytes=1-2,3-4\r\n", 200, 0, 10 },
    };

    for (size_t i = 0; i < COUNT(answers); i++)
        check_answer(&answers[i]);
}

Test(file, ranges_of_what_the_client_has)
{
    static const struct answer answers[] = {
        { "Range: bytes=0-1\r\nIf-Range:\r\n", 200, 0, 10 },
        { "Range: bytes=0-1\r\nIf-Range: Sun, 06 Nov 1994 08:49:36 GMT\r\n",
          200, 0, 10 },
        { "Range: bytes=20-\r\nIf-Range: \"f\"\r\n", 200, 0, 10 },
        { "Range: bytes=0-1\r\nIf-Range: \"e\"\r\n", 206, 0, 2 },
        { "Range: bytes=0-1\r\nIf-Range: \"f\"\r\n", 200, 0, 10 },
        { "Range: bytes=0-1\r\nIf-Range: W/\"e\"\r\n", 200, 0, 10 },
        { "Range: bytes=0-1\r\nIf-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
          206, 0, 2 },
        { "Range: bytes=0-1\r\nIf-Range: Sun, 06 Nov 1994 08:49:38 GMT\r\n",
          200, 0, 10 },
    };

    for (size_t i = 0; i < COUNT(answers); i++)
        check_answer(&answers[i]);
}

Test(file, what_an_answer_bears)
{
    struct file file = {
        .length = 10, .modified = 784111777, .etag = "\"e\"", .type = "t"
    };
    struct response response = { 0 };
    struct request request;
    uint64_t first;

    parse_field("Range: bytes=2-5", 1, &request);
    request.method = METHOD_GET;
    http_file_response(&file, &request, &response, &first);
    cr_assert(response.status == 206);
    cr_assert(response.range_first == 2 && response.range_last == 5);
    cr_assert(response.range_total == 10 && response.length == 4 && first == 2);
    cr_assert(response.type == file.type && response.etag == file.etag);
    cr_assert(response.modified == file.modified);
    request.method = METHOD_HEAD;
    http_file_response(&file, &request, &response, &first);
    cr_assert(response.status == 200 && response.length == 10 && first == 0,
              "RFC 9110, section 14.2: only of a GET");
    request.if_none_match = SLICE("*");
    http_file_response(&file, &request, &response, &first);
    cr_assert(response.status == 304 && first == 0);
    cr_assert(response.etag == file.etag);
}

Test(file, an_empty_one_has_no_part)
{
    static const char *const ranges[] = { "Range: bytes=0-", "Range: bytes=0-0",
                                          "Range: bytes=-1" };
    struct file file = { .length = 0, .etag = "\"e\"", .type = "t" };

    for (size_t i = 0; i < COUNT(ranges); i++) {
        struct response response = { 0 };
        struct request request;
        uint64_t first;

        parse_field(ranges[i], 1, &request);
        request.method = METHOD_GET;
        http_file_response(&file, &request, &response, &first);
        cr_assert(response.status == 416, "%s: %d", ranges[i], response.status);
        cr_assert(response.length == 0 && response.range_total == 0);
    }
}

/* ----------------------------------------------------- queries and UTF-8 */

Test(query, gives_one_after_the_other)
{
    struct slice query = slice_of("x=0&topic=a%2Fb&y&topic=&topic=c&topics=d"),
                 value;
    char buffer[16];
    static const char *const expected[] = { "a/b", "", "c" };

    for (size_t i = 0; i < COUNT(expected); i++) {
        cr_assert(
            http_query_next(&query, "topic", buffer, sizeof(buffer), &value));
        cr_assert(slice_is(value, expected[i]));
    }
    cr_assert(
        !http_query_next(&query, "topic", buffer, sizeof(buffer), &value));
}
