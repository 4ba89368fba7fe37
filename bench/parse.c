/*
 * How fast bytes are understood: the request parser on what a browser sends,
 * the event stream parser on a stream of tokens, each against a pass of
 * memchr(3) over the same bytes, which is the least that looks at each.
 *
 * Built with PICOHTTPPARSER=FOLDER (make bench-parse) the request is also
 * parsed by picohttpparser, whose source is not part of this project.
 *
 * usage: parse [--json]
 *
 * Prints the nanoseconds for each pass over the bytes and the bytes per
 * second, medians of ROUNDS alternating rounds, and their ratios.
 */
#include "sse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef PICOHTTPPARSER
#include "picohttpparser.h"
#endif

enum {
    ROUNDS = 15,
    BYTES_PER_ROUND = 16 << 20,
    STREAM_SIZE = 64 << 10,
    EVENT_DATA_MAX = 4096,
};

/* What Chromium sends for a page, 700 bytes and a little. */
static const char browser_request[] =
    "GET /events?lastEventId=1795421567948603 HTTP/1.1\r\n"
    "Host: localhost:3000\r\n"
    "Connection: keep-alive\r\n"
    "Pragma: no-cache\r\n"
    "Cache-Control: no-cache\r\n"
    "sec-ch-ua: \"Chromium\";v=\"131\", \"Not_A Brand\";v=\"24\"\r\n"
    "sec-ch-ua-mobile: ?0\r\n"
    "sec-ch-ua-platform: \"Linux\"\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, "
    "like Gecko) Chrome/131.0.0.0 Safari/537.36\r\n"
    "Accept: text/event-stream\r\n"
    "Sec-Fetch-Site: same-origin\r\n"
    "Sec-Fetch-Mode: cors\r\n"
    "Sec-Fetch-Dest: empty\r\n"
    "Referer: http://localhost:3000/\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-US,en;q=0.9,zh-CN;q=0.8,zh;q=0.7\r\n"
    "Cookie: session=8c5f2e1b9a7d4c3e; theme=dark\r\n"
    "Last-Event-ID: 1795421567948603\r\n"
    "Priority: u=1, i\r\n"
    "\r\n";

static char request_bytes[sizeof(browser_request)];
static char stream_bytes[STREAM_SIZE];
static size_t stream_length;
static volatile uint64_t seen; /* so that nothing is left out as unused */

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "parse: %s\n", what);
    exit(1);
}

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* ------------------------------------------------------- what is measured */

static void pass_memchr(const char *at, size_t length)
{
    const char *end = at + length;

    while (at && at < end) {
        at = memchr(at, '\n', (size_t)(end - at));
        at += at != NULL;
        seen++;
    }
}

static void request_memchr(void)
{
    pass_memchr(request_bytes, sizeof(browser_request) - 1);
}

static void request_ssed(void)
{
    struct request request = { 0 };
    ssize_t length =
        http_parse(request_bytes, sizeof(browser_request) - 1, &request);

    if (length != sizeof(browser_request) - 1)
        fail("the request was not taken");
    seen += request.last_event_id.length;
}

#ifdef PICOHTTPPARSER
static void request_picohttpparser(void)
{
    const char *method, *path;
    size_t method_length, path_length, field_count = FIELD_COUNT_MAX;
    struct phr_header fields[FIELD_COUNT_MAX];
    int minor,
        length = phr_parse_request(request_bytes, sizeof(browser_request) - 1,
                                   &method, &method_length, &path, &path_length,
                                   &minor, fields, &field_count, 0);

    if (length != (int)sizeof(browser_request) - 1)
        fail("picohttpparser did not take the request");
    seen += field_count;
}
#endif

static void stream_memchr(void)
{
    pass_memchr(stream_bytes, stream_length);
}

static void stream_ssed(void)
{
    static struct event_parser parser;
    static char data[EVENT_DATA_MAX];
    struct slice rest = { stream_bytes, stream_length };

    event_parser_init(&parser, data, sizeof(data));
    while (rest.length > 0) {
        size_t taken = event_parser_read(&parser, rest);

        rest.data += taken;
        rest.length -= taken;
        seen += parser.complete;
    }
}

/* A model's tokens, as its API streams them. */
static void make_stream(void)
{
    for (unsigned i = 0;; i++) {
        char event[512];
        int length =
            snprintf(event, sizeof(event),
                     "event: content_block_delta\ndata: {\"type\":"
                     "\"content_block_delta\",\"index\":0,\"delta\":{\"type\":"
                     "\"text_delta\",\"text\":\" token%u\"}}\n\n",
                     i);

        if (stream_length + (size_t)length > sizeof(stream_bytes))
            return;
        memcpy(stream_bytes + stream_length, event, (size_t)length);
        stream_length += (size_t)length;
    }
}

/* ---------------------------------------------------------------- measure */

static struct subject {
    const char *name;
    void (*pass)(void);
    bool stream;          /* the stream's bytes, else the request's */
    double times[ROUNDS]; /* ns a pass */
} subjects[] = {
    { .name = "request_memchr", .pass = request_memchr },
    { .name = "request_ssed", .pass = request_ssed },
#ifdef PICOHTTPPARSER
    { .name = "request_picohttpparser", .pass = request_picohttpparser },
#endif
    { .name = "stream_memchr", .pass = stream_memchr, .stream = true },
    { .name = "stream_ssed", .pass = stream_ssed, .stream = true },
};

enum {
    SUBJECTS = sizeof(subjects) / sizeof(subjects[0])
};

static size_t bytes_of(const struct subject *subject)
{
    return subject->stream ? stream_length : sizeof(browser_request) - 1;
}

static void measure(struct subject *subject, int round)
{
    size_t passes = BYTES_PER_ROUND / bytes_of(subject);
    double begin = now_ns();

    for (size_t i = 0; i < passes; i++)
        subject->pass();
    subject->times[round] = (now_ns() - begin) / (double)passes;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    bool json = argc == 2 && strcmp(argv[1], "--json") == 0;

    if (argc > 1 && !json) {
        fputs("usage: parse [--json]\n", stderr);
        return 2;
    }
    memcpy(request_bytes, browser_request, sizeof(browser_request));
    make_stream();
    for (int round = 0; round < ROUNDS; round++)
        for (size_t i = 0; i < SUBJECTS; i++)
            measure(&subjects[i], round);
    for (size_t i = 0; i < SUBJECTS; i++) {
        struct subject *subject = &subjects[i];
        const char *format =
            json ? "%s\"%s_ns\": %.1f, \"%s_megabytes_per_second\": %.0f"
                 : "%.0s%-24s %10.1f ns a pass %.0s%8.0f MB/s\n";
        double median;

        qsort(subject->times, ROUNDS, sizeof(double), by_value);
        median = subject->times[ROUNDS / 2];
        printf(format, i ? ", " : "{", subject->name, median, subject->name,
               (double)bytes_of(subject) * 1e3 / median);
    }
    if (json)
        printf("}\n");
    return 0;
}
