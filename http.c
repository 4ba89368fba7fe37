/*
 * http.c owns the connections and what is said on them, in HTTP/1.1 (RFC 9110,
 * RFC 9112): sockets, request heads and bodies, answers, files, credentials;
 * and in the protocol of Redis, with the log that several nodes share.
 * What a request means is sse.c's business. http.c tells sse.c what has
 * happened through struct handlers; sse.c answers with the respond functions,
 * reads a body with conn_begin_body(), or makes the connection an event stream
 * with conn_begin_stream().
 *
 * Invariants:
 *
 * - A connection is known by its descriptor. It is in one state, in at most
 *   one queue, and has at most one timer. The picture is in sse.h.
 * - No call blocks, except at the start: for the lock of a socket's folder.
 * - Each part of a turn is bounded in time. No connection gets more than a
 *   visit or SEND_BUDGET while others wait.
 * - Answers leave in the order of the requests. A request is parsed only when
 *   there is room for its answer.
 * - What a request holds in memory is counted, and bounded.
 * - The parsers are pure: no I/O, no allocation, no clock. They give the same
 *   result however the bytes are split between reads.
 *
 * A refusal travels as minus the status to answer with. request->error says
 * why, in one line for the client to read.
 *
 * The sections, in order. Parsers and formatters: slices, request heads,
 * queries and hosts, bodies, replies of Redis, signatures, claims, response
 * heads, files. The table of connections: clock and lists, memory of requests,
 * connections by network, connections, accepting. A request's way through a
 * turn: answers, requests and their bodies, credentials, failed tokens, the
 * shared log, a turn. The start and the end: listeners, the start and the end.
 */
#include "sse.h"

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* Sizes that a build for tests may have otherwise, with -D. */
#ifndef IN_FIRST
#define IN_FIRST 2048 /* bytes of a request that are read at first */
#endif
#ifndef PAGES_FROM
#define PAGES_FROM 1 /* smaller buffers never have pages of their own */
#endif
#ifndef SPARE_EXCHANGES
#define SPARE_EXCHANGES 64 /* kept for the next requests */
#endif
#ifndef STEP_EVENTS
#define STEP_EVENTS 16 /* events or so between two looks at the clock */
#endif
#ifndef ACCEPTS_MAX
#define ACCEPTS_MAX 32 /* connections of one listener in one turn */
#endif

#define RANGE_COUNT_TEXT "512"
#define REDIS_WAIT_TEXT "1000" /* ms that Redis holds an XREAD back */

/*
 * TURN_WORK is the time of a turn for a queue of connections, TURN_BUSY that
 * for a queue of busy ones. So a few connections that send without end do not
 * delay the many that ask now and then. VISIT does the same within a queue.
 *
 * SENDBUF and NOTSENT bound what a peer that does not read holds in the kernel.
 */
enum {
    OUT_ROOM = RESPONSE_HEAD_MAX + 512, /* what one answer may need */
    PIECE_SMALL = 512,  /* bytes: copying it costs less than an iovec does */
    TURN_WORK = 1000,   /* us of a turn for a queue of connections */
    TURN_BUSY = 250,    /* and for one of those that are busy */
    VISIT = 100,        /* us for one of them before others have theirs */
    ACCEPT_PAUSE = 100, /* ms without accept when descriptors ran out */
    CONNECTIONS_DEFAULT = 1000000,
    BODY_RATE = 1024,     /* bytes a second that a plain body must keep up */
    LINGER = 2000,        /* ms for a peer to read the last answer */
    SENDBUF = 128 * 1024, /* bytes of kernel memory, for each connection */
    NOTSENT = 64 * 1024,
    USER_TIMEOUT = 120 * 1000, /* ms until an unreachable peer is given up */
    UNIX_MODE_DEFAULT = 0600,  /* of a Unix socket */
    LOCK_PATIENCE = 5000,      /* ms for other servers to make theirs */
    REDIS_PAUSE = 100,         /* ms before Redis is tried again, at first */
    REDIS_PAUSE_MAX = 5000,
    REDIS_PATIENCE = 5000,   /* ms for Redis to answer */
    FLIGHT_PATIENCE = 10000, /* ms for an event to come back from the log */
    REDIS_STEPS = 64,        /* tokens between two looks at the clock */
    REDIS_IN = 65536,        /* bytes that are read at once */
    REDIS_OUT = 1 << 20,     /* bytes that wait to be sent, and an event */
    WORD_REST = 32,          /* bytes around a word of a command */
    TURN_FLIGHTS = 16, /* events for Redis after which a turn sends them */
    RANGE_COUNT = 512, /* entries that are asked for at once */
    TICK_SHIFT = 7,    /* a tick of the timer wheel is 128 ms */
};

/* -------------------------------------------------------------- slices
 *
 * What the parsers need beyond sse.h's slices. These compare without regard to
 * case, as HTTP does with field names, schemes and options.
 */

static bool slices_equal(struct slice a, struct slice b)
{
    return a.length == b.length && strncasecmp(a.data, b.data, b.length) == 0;
}

static bool slice_begins(struct slice slice, const char *text)
{
    size_t length = strlen(text);

    return slice.length >= length && strncasecmp(slice.data, text, length) == 0;
}

/* Without the blanks around it (RFC 9110, section 5.6.3). */
static struct slice slice_trimmed(struct slice slice)
{
    while (slice.length && (*slice.data == ' ' || *slice.data == '\t'))
        slice = slice_from(slice, 1);
    while (slice.length && (slice.data[slice.length - 1] == ' ' ||
                            slice.data[slice.length - 1] == '\t'))
        slice.length--;
    return slice;
}

/* Cuts `rest` at the first `separator`: returns what was before it, and leaves
 * in `rest` what is after it. */
static struct slice slice_split(struct slice *rest, char separator)
{
    const char *end =
        rest->length ? memchr(rest->data, separator, rest->length) : NULL;
    struct slice first = *rest;

    if (end) {
        first.length = (size_t)(end - rest->data);
        *rest = slice_from(*rest, first.length + 1);
    } else {
        rest->length = 0;
    }
    return first;
}

/* Decimal digits as HTTP has them: with leading zeros. */
static bool parse_digits(struct slice text, uint64_t *number)
{
    while (text.length > 1 && text.data[0] == '0')
        text = slice_from(text, 1);
    return slice_number(text, INT64_MAX, number);
}

bool slice_equals(struct slice slice, const char *text)
{
    return slices_equal(slice, slice_of(text));
}

/* ------------------------------------------------------- request heads
 *
 * From bytes to struct request, in two passes. http_parse() looks for the end
 * of the head, line by line, and goes on where it stopped when more bytes have
 * come. It checks the limits and the line ends. parse_head() then reads the
 * whole head once.
 *
 * The limits are checked before anything else, so that a refusal does not
 * depend on how the bytes arrive. What two readers could understand in two ways
 * is refused, as sse.h says. If a proxy in front saw other requests in the same
 * bytes, a client could smuggle one past it.
 *
 * Callers: request_step(); sse.c, for http_has_body(); bench/parse, the fuzzer.
 */

static int refuse(struct request *request, int status, const char *why)
{
    request->error = why;
    return -status;
}

/* What a byte may be a part of. */
enum {
    TOKEN = 1, /* RFC 9110, section 5.6.2: letters, digits, !#$%&'*+-.^_`|~ */
    HOST = 2,  /* RFC 3986, section 3.2: letters, digits, -._~:[]%!$&'()*+,;= */
    TARGET = 4, /* visible ASCII but #; browsers leave more of it unencoded than
                 * RFC 3986 allows */
};

static const unsigned char byte_kinds[256] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 4, 1, 7, 7, 7, 7, 6, 6, 7, 7,
    6, 7, 7, 4, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 6, 4, 6, 4, 4, 4, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 6, 4, 6, 5, 7, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 4, 5, 4, 7, 0,
};

static bool is_kind(char byte, unsigned kind)
{
    return byte_kinds[(unsigned char)byte] & kind;
}

static bool consists_of(unsigned kind, struct slice text)
{
    for (size_t i = 0; i < text.length; i++)
        if (!is_kind(text.data[i], kind))
            return false;
    return true;
}

/* RFC 9110, section 9.1: 501 for a method that is not known. One that is known,
 * but that no resource takes, is METHOD_OTHER: respond_method() answers 405. */
static int parse_method(struct request *request, struct slice name)
{
    static const struct {
        const char *name;
        enum method method;
    } methods[] = {
        { "GET", METHOD_GET },       { "POST", METHOD_POST },
        { "HEAD", METHOD_HEAD },     { "OPTIONS", METHOD_OPTIONS },
        { "DELETE", METHOD_DELETE }, { "PUT", METHOD_OTHER },
        { "PATCH", METHOD_OTHER },   { "TRACE", METHOD_OTHER },
        { "CONNECT", METHOD_OTHER },
    };

    if (!name.length || !consists_of(TOKEN, name))
        return refuse(request, 400, "the method is not a token");
    for (size_t i = 0; i < COUNT(methods); i++) {
        if (slice_is(name, methods[i].name)) {
            request->method = methods[i].method;
            return 0;
        }
    }
    return refuse(request, 501, "the method is not known here");
}

/* A later 1.x is read as 1.1 (RFC 9110, section 2.5). A connection with
 * HTTP/1.0 ends after the answer: keep-alive was never a part of that
 * version. */
static int parse_version(struct request *request, struct slice version)
{
    if (version.length != 8 || memcmp(version.data, "HTTP/", 5) != 0 ||
        !isdigit((unsigned char)version.data[5]) || version.data[6] != '.' ||
        !isdigit((unsigned char)version.data[7]))
        return refuse(request, 400,
                      "the request line does not end in HTTP/1.1");
    if (version.data[5] != '1')
        return refuse(request, 505, "only HTTP/1.1 and HTTP/1.0 here");
    request->minor = version.data[7] == '0' ? 0 : 1;
    request->close = request->minor == 0;
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
        return (c | 0x20) - 'a' + 10;
    return -1;
}

/* The byte that "%XX" at the start of `text` stands for, or -1. */
static int percent_decoded(struct slice text)
{
    int high =
        text.length < 3 || text.data[0] != '%' ? -1 : hex_value(text.data[1]);
    int low = high < 0 ? -1 : hex_value(text.data[2]);

    return low < 0 ? -1 : high * 16 + low;
}

/* An encoded slash would make two segments of one, and a NUL would cut the path
 * where it is opened. Both are refused. */
static int decode_path(struct request *request, char *path, size_t length)
{
    struct slice rest = { path, 0 };

    for (size_t in = 0; in < length; in++) {
        int byte = (unsigned char)path[in];

        if (byte == '%') {
            byte = percent_decoded((struct slice){ path + in, length - in });
            if (byte < 0)
                return refuse(request, 400,
                              "a % in the path without two hex digits");
            if (byte == '/' || byte == 0)
                return refuse(request, 400,
                              "an encoded slash or NUL in the path");
            in += 2;
        }
        path[rest.length++] = (char)byte;
    }
    request->path = rest;
    /* "." and ".." could lead elsewhere, and no path needs them: a client
     * resolves them before it asks (RFC 3986, section 5.2.4). */
    while (rest.length) {
        struct slice segment = slice_split(&rest, '/');

        if (slice_is(segment, ".") || slice_is(segment, ".."))
            return refuse(request, 400, "a . or .. segment in the path");
    }
    return 0;
}

static int parse_target(struct request *request, struct slice target)
{
    struct slice path;

    if (!consists_of(TARGET, target))
        return refuse(request, 400,
                      "the target has a byte that must be encoded");
    if (request->method == METHOD_OPTIONS && slice_is(target, "*")) {
        request->path = target;
        return 0;
    }
    if (slice_begins(target, "http://") || slice_begins(target, "https://")) {
        size_t end = 0;

        /* RFC 9112, section 3.2.2: this host replaces that of a Host field */
        target = slice_from(target, slice_begins(target, "http://") ? 7 : 8);
        while (end < target.length && target.data[end] != '/' &&
               target.data[end] != '?')
            end++;
        request->host = (struct slice){ target.data, end };
        if (end == 0 || !consists_of(HOST, request->host))
            return refuse(request, 400, "the target's host is malformed");
        target = slice_from(target, end);
    } else if (target.length == 0 || target.data[0] != '/') {
        return refuse(request, 400, "the target is not a path");
    }
    path = slice_split(&target, '?');
    request->query = target;
    request->path = SLICE("/");
    return path.length
               ? decode_path(request, (char *)(uintptr_t)path.data, path.length)
               : 0;
}

static int parse_connection(struct request *request, struct slice value)
{
    while (value.length)
        if (slice_equals(slice_trimmed(slice_split(&value, ',')), "close"))
            request->close = true;
    return 0;
}

/* RFC 9110, section 8.6, allows a server to accept the same value twice. It is
 * refused here: no client needs it. */
static int parse_content_length(struct request *request, struct slice value)
{
    uint64_t length = 0;

    if (request->content_length >= 0)
        return refuse(request, 400, "more than one Content-Length");
    if (!parse_digits(value, &length))
        return refuse(request, 400, "Content-Length is not a number");
    request->content_length = (int64_t)length;
    return 0;
}

/* RFC 9112, section 6.1: in HTTP/1.0 the field means that the framing is
 * faulty. A proxy may have passed it on without understanding it. */
static int parse_transfer_coding(struct request *request, struct slice value)
{
    if (request->minor == 0)
        return refuse(request, 400, "Transfer-Encoding in HTTP/1.0");
    if (request->chunked)
        return refuse(request, 400, "more than one Transfer-Encoding");
    if (!slice_equals(value, "chunked"))
        return refuse(request, 501,
                      "the only Transfer-Encoding known is chunked");
    request->chunked = true;
    return 0;
}

static int parse_expect(struct request *request, struct slice value)
{
    if (!slice_equals(value, "100-continue"))
        return refuse(request, 417, "the only Expect known is 100-continue");
    request->expect_continue = request->minor > 0;
    return 0;
}

/* A proxy on this machine makes every client look local, so sse.c does not
 * trust a peer's address where one of these fields is there. */
static int note_forwarded(struct request *request, struct slice value)
{
    (void)value;
    request->forwarded = true;
    return 0;
}

/* Only browsers send it, and no page can change it (Fetch Metadata, section
 * 2.4). "none" means that a person has typed the address or used a bookmark. */
static int parse_fetch_site(struct request *request, struct slice value)
{
    if (slice_equals(value, "cross-site") || slice_equals(value, "same-site"))
        request->cross_site = true;
    return 0;
}

static int parse_host(struct request *request, struct slice value)
{
    if (++request->hosts > 1)
        return refuse(request, 400, "more than one Host");
    if (!consists_of(HOST, value))
        return refuse(request, 400, "Host is malformed");
    if (!request->host.data) /* else the target has one */
        request->host = value;
    return 0;
}

struct field {
    const char *name;
    size_t length; /* of the name */
    int (*parse)(struct request *request, struct slice value);
    size_t member; /* where parse is NULL: a slice in struct request */
};

#define NAME(literal) (literal), sizeof(literal) - 1
#define KEPT(member) NULL, offsetof(struct request, member)

/* The fields that matter here, by their initials in either case. For most that
 * a browser sends the initial is enough to pass over them. */
#define INITIAL(letter) ((letter)&31)

static const struct field fields[32][5] = {
    [INITIAL('A')] = { { NAME("Authorization"), KEPT(authorization) } },
    [INITIAL('C')] = { { NAME("Connection"), parse_connection, 0 },
                       { NAME("Content-Length"), parse_content_length, 0 },
                       { NAME("Content-Type"), KEPT(content_type) },
                       { NAME("Cookie"), KEPT(cookie) },
                       { NAME("CF-Connecting-IP"), note_forwarded, 0 } },
    [INITIAL('E')] = { { NAME("Expect"), parse_expect, 0 } },
    [INITIAL('F')] = { { NAME("Forwarded"), note_forwarded, 0 } },
    [INITIAL('H')] = { { NAME("Host"), parse_host, 0 } },
    [INITIAL('I')] = { { NAME("If-Modified-Since"), KEPT(if_modified_since) },
                       { NAME("If-None-Match"), KEPT(if_none_match) },
                       { NAME("If-Range"), KEPT(if_range) } },
    [INITIAL('L')] = { { NAME("Last-Event-ID"), KEPT(last_event_id) } },
    [INITIAL('O')] = { { NAME("Origin"), KEPT(origin) } },
    [INITIAL('R')] = { { NAME("Range"), KEPT(range) } },
    [INITIAL('S')] = { { NAME("Sec-Fetch-Site"), parse_fetch_site, 0 } },
    [INITIAL('T')] = { { NAME("Transfer-Encoding"), parse_transfer_coding, 0 },
                       { NAME("True-Client-IP"), note_forwarded, 0 } },
    [INITIAL('V')] = { { NAME("Via"), note_forwarded, 0 } },
    /* the first stands for every name that begins with it */
    [INITIAL('X')] = { { NAME("X-Forwarded-"), note_forwarded, 0 },
                       { NAME("X-Real-IP"), note_forwarded, 0 } },
};

/* The field of that name, NULL if it is none that matters here. */
static const struct field *find_field(struct slice name)
{
    const struct field *field = fields[INITIAL(name.data[0])];
    const struct field *end = field + COUNT(fields[0]);

    if (field == fields[INITIAL('X')] && slice_begins(name, field->name))
        return field;
    for (; field < end && field->name; field++)
        if (slices_equal(name, (struct slice){ field->name, field->length }))
            return field;
    return NULL;
}

/* The control characters among eight bytes: the lowest of the bits set in the
 * result is the top bit of the first one's byte; 0: none. It takes eight at a
 * time because most bytes of a head pass through here. */
static uint64_t control_bits(const char *eight)
{
    const uint64_t each = UINT64_C(0x0101010101010101);
    uint64_t bytes, delete;

    memcpy(&bytes, eight, sizeof(bytes));
    bytes = le64toh(bytes);
    delete = bytes ^ each * 0x7F;
    return (((bytes - each * ' ') & ~bytes) | ((delete - each) & ~delete)) &
           each * 0x80;
}

/* Where the first control character but HT is; `end` if there is none. */
static const char *find_control(const char *at, const char *end)
{
    while (end - at >= 8) {
        uint64_t found = control_bits(at);

        at += found ? __builtin_ctzll(found) / 8 : 8;
        if (found && *at != '\t')
            return at;
        at += found != 0;
    }
    while (at < end && *at != 0x7F &&
           ((unsigned char)*at >= ' ' || *at == '\t'))
        at++;
    return at;
}

/* RFC 9112, section 5: no blank before the colon, no folded lines. *at moves to
 * the next line. There is one, because the head ends in an empty line. */
static int parse_field(struct request *request, const char **at,
                       const char *end)
{
    struct slice name = { *at, 0 }, value, *kept;
    const struct field *field;
    const char *stop;

    while (is_kind(name.data[name.length], TOKEN))
        name.length++;
    if (name.length == 0 || name.data[name.length] != ':')
        return refuse(request, 400, "a header line is not a name and a colon");
    value.data = name.data + name.length + 1;
    stop = find_control(value.data, end);
    if (stop[0] != '\r')
        return refuse(request, 400, "a control character in a field");
    if (stop[1] != '\n')
        return refuse(request, 400, "lines must end in CR LF");
    *at = stop + 2;
    value.length = (size_t)(stop - value.data);
    field = find_field(name);
    if (!field)
        return 0;
    value = slice_trimmed(value);
    if (field->parse)
        return field->parse(request, value);
    kept = (struct slice *)(void *)((char *)request + field->member);
    if (!kept->data) /* of several, the first counts */
        *kept = value;
    return 0;
}

/* `head` is whole lines, each with CR LF at its end, the last one empty. */
static int parse_head(struct request *request, struct slice head)
{
    struct slice rest = head, line = slice_split(&rest, '\n'), method, target;
    const char *at = rest.data;
    int status;

    line.length--;
    method = slice_split(&line, ' ');
    target = slice_split(&line, ' ');
    request->content_length = -1;
    status = parse_method(request, method);
    if (status == 0)
        status = parse_version(request, line);
    if (status == 0)
        status = parse_target(request, target);
    while (status == 0 && head.data + head.length - at > 2)
        status = parse_field(request, &at, head.data + head.length);
    if (status == 0 && request->minor > 0 && request->hosts == 0)
        return refuse(request, 400, "HTTP/1.1 needs a Host");
    if (status == 0 && request->chunked && request->content_length >= 0)
        return refuse(request, 400,
                      "Content-Length and Transfer-Encoding together");
    return status;
}

ssize_t http_parse(char *data, size_t length, struct request *request)
{
    size_t begin, end;
    struct slice head;
    int status;

    do {
        const char *lf;

        begin = request->scanned;
        lf = length > begin ? memchr(data + begin, '\n', length - begin) : NULL;
        /* a line without its LF has at least one more byte to come */
        end = lf ? (size_t)(lf - data) + 1 : length + 1;
        if (request->lines == 0 && end - request->start > REQUEST_LINE_MAX)
            return refuse(request, 414, "the request line is too long");
        if (end > HEAD_MAX)
            return refuse(request, 431, "the header fields are too long");
        if (!lf)
            return 0;
        if (end - begin < 2 || data[end - 2] != '\r')
            return refuse(request, 400, "lines must end in CR LF");
        if (end - begin > 2 && ++request->lines > FIELD_COUNT_MAX + 1)
            return refuse(request, 431, "too many header fields");
        if (request->lines == 0) /* RFC 9112, section 2.2: skipped */
            request->start = end;
        request->scanned = end;
    } while (end - begin > 2 || request->lines == 0);
    head = (struct slice){ data + request->start, end - request->start };
    status = parse_head(request, head);
    return status < 0 ? status : (ssize_t)end;
}

bool http_has_body(const struct request *request)
{
    return request->chunked || request->content_length > 0;
}

/* --------------------------------------------------- queries and hosts
 *
 * Some parts of a request stay in struct request as they came. These functions
 * say what is in them: the parameters of a query, the names in Host and Origin,
 * the type in Content-Type. sse.c calls them.
 */

static struct slice without_port(struct slice host)
{
    size_t end = host.length;

    while (end > 0 && isdigit((unsigned char)host.data[end - 1]))
        end--;
    return end > 0 && host.data[end - 1] == ':'
               ? (struct slice){ host.data, end - 1 }
               : host;
}

/* Without a port that is the scheme's default: a browser leaves that out. */
static struct slice without_default_port(struct slice host, const char *port)
{
    struct slice name = without_port(host);

    if (name.length < host.length &&
        slice_equals(slice_from(host, name.length), port))
        return name;
    return host;
}

bool http_query_next(struct slice *query, const char *name, char *value,
                     size_t size, struct slice *result)
{
    while (query->length) {
        struct slice text = slice_split(query, '&');
        struct slice key = slice_split(&text, '=');

        if (!slice_is(key, name))
            continue;
        *result = (struct slice){ value, 0 };
        while (text.length && result->length < size) {
            int byte = percent_decoded(text);
            size_t taken = byte < 0 ? 1 : 3;

            if (byte < 0)
                byte = *text.data == '+' ? ' ' : (unsigned char)*text.data;
            value[result->length++] = (char)byte;
            text = slice_from(text, taken);
        }
        return true;
    }
    return false;
}

bool http_query(struct slice query, const char *name, char *value, size_t size,
                struct slice *result)
{
    return http_query_next(&query, name, value, size, result);
}

bool http_host_is(struct slice host, const char *name)
{
    return slice_equals(without_port(host), name);
}

/* Against DNS rebinding: an attacker's name can resolve to 127.0.0.1, and then
 * a browser sends requests here, but with that name as Host. */
bool http_host_is_local(struct slice host)
{
    char text[64];
    struct in6_addr address;
    bool v6;

    host = without_port(host);
    if (slice_equals(host, "localhost"))
        return true;
    v6 = host.length > 1 && host.data[0] == '[' &&
         host.data[host.length - 1] == ']';
    if (v6)
        host = (struct slice){ host.data + 1, host.length - 2 };
    if (host.length == 0 || host.length >= sizeof(text))
        return false;
    snprintf(text, sizeof(text), "%.*s", (int)host.length, host.data);
    return inet_pton(v6 ? AF_INET6 : AF_INET, text, &address) == 1;
}

bool http_origin_is_host(struct slice origin, struct slice host)
{
    bool tls = slice_begins(origin, "https://");
    const char *port = tls ? ":443" : ":80";

    if (!tls && !slice_begins(origin, "http://"))
        return false;
    origin = without_default_port(slice_from(origin, tls ? 8 : 7), port);
    return origin.length > 0 &&
           slices_equal(origin, without_default_port(host, port));
}

bool http_media_type_is(struct slice content_type, const char *media_type)
{
    return slice_equals(slice_trimmed(slice_split(&content_type, ';')),
                        media_type);
}

/* -------------------------------------------------------------- bodies
 *
 * The framing of a body (RFC 9112, section 7.1). Content is passed on in runs
 * of bytes; the lines around chunks are read byte by byte. A byte that is
 * refused never makes body->state BODY_DONE. respond() depends on that: it
 * closes the connection if the body has not been read to its end.
 *
 * Callers: request_step(), to begin; body_step().
 */

/* The states in which one byte alone is allowed, and the states after it. */
static const struct {
    char byte;
    unsigned char next;
} fixed_bytes[BODY_DONE] = {
    [BODY_DATA_END_CR] = { '\r', BODY_DATA_END_LF },
    [BODY_DATA_END_LF] = { '\n', BODY_SIZE },
    [BODY_SIZE_LF] = { '\n', BODY_TRAILER }, /* BODY_DATA if the size is > 0 */
    [BODY_TRAILER_LF] = { '\n', BODY_TRAILER },
    [BODY_END_LF] = { '\n', BODY_DONE },
};

/* A byte of the line before a chunk: its size in hex, then perhaps extensions,
 * which are passed over. */
static bool read_size_byte(struct body *body, char byte)
{
    int digit = hex_value(byte);

    if (++body->overhead > CHUNK_LINE_MAX || byte == '\n' || byte == '\0')
        return false;
    if (body->state != BODY_EXTENSION && digit >= 0) {
        if (body->left > (UINT64_MAX >> 8)) /* room for one more digit */
            return false;
        body->left = body->left * 16 + (unsigned)digit;
        body->state = BODY_SIZE_MORE;
    } else if (body->state != BODY_SIZE && byte == '\r') {
        body->state = BODY_SIZE_LF;
    } else if (body->state == BODY_EXTENSION ||
               (body->state == BODY_SIZE_MORE && byte == ';')) {
        body->state = BODY_EXTENSION;
    } else {
        return false;
    }
    return true;
}

static bool read_framing_byte(struct body *body, char byte)
{
    unsigned state = body->state;

    if (fixed_bytes[state].byte) {
        if (byte != fixed_bytes[state].byte)
            return false;
        body->state = fixed_bytes[state].next;
        if (state == BODY_SIZE_LF) {
            body->overhead = 0;
            if (body->left)
                body->state = BODY_DATA;
        }
        return true;
    }
    if (state != BODY_TRAILER && state != BODY_TRAILER_LINE)
        return read_size_byte(body, byte);
    /* the trailer section is passed over */
    if (++body->overhead > TRAILER_MAX || byte == '\n' || byte == '\0')
        return false;
    body->state = byte != '\r'            ? BODY_TRAILER_LINE
                  : state == BODY_TRAILER ? BODY_END_LF
                                          : BODY_TRAILER_LF;
    return true;
}

void http_body_init(struct body *body, const struct request *request)
{
    uint64_t left =
        request->content_length > 0 ? (uint64_t)request->content_length : 0;

    *body = (struct body){ .chunked = request->chunked };
    body->left = request->chunked ? 0 : left;
    body->state = request->chunked ? BODY_SIZE : left ? BODY_DATA : BODY_DONE;
}

ssize_t http_body_read(struct body *body, struct slice data,
                       struct slice *piece)
{
    size_t taken = 0;

    while (taken < data.length && body->state != BODY_DATA &&
           body->state != BODY_DONE)
        if (!read_framing_byte(body, data.data[taken++]))
            return -400;
    *piece = slice_from(data, taken);
    if (body->state != BODY_DATA)
        piece->length = 0;
    else if (piece->length > body->left)
        piece->length = (size_t)body->left;
    if (piece->length && piece->length == body->left)
        body->state = body->chunked ? BODY_DATA_END_CR : BODY_DONE;
    body->left -= piece->length;
    return (ssize_t)(taken + piece->length);
}

/* ---------------------------------------------------------- replies of Redis
 *
 * resp_read() reads RESP2. It keeps how many elements each open array still
 * has, and the line under way; a bulk string's bytes it hands on. So memory
 * does not depend on what comes.
 *
 * Callers: the section "the shared log".
 */

static enum resp_token resp_malformed(struct resp *resp, const char *why)
{
    resp->piece = slice_of(why);
    return resp->token = RESP_MALFORMED;
}

/* A value is complete, and with it each array whose last element it is. */
static void resp_value(struct resp *resp)
{
    while (resp->depth && --resp->left[resp->depth - 1] == 0)
        resp->depth--;
    resp->done = resp->depth == 0;
}

/* The number in a line: decimal digits, perhaps after a minus. */
static bool resp_number(const struct resp *resp, int64_t *number)
{
    struct slice digits = { resp->line, resp->line_length };
    bool negative = digits.length && digits.data[0] == '-';
    uint64_t value;

    if (!slice_number(slice_from(digits, negative), INT64_MAX, &value))
        return false;
    *number = negative ? -(int64_t)value : (int64_t)value;
    return true;
}

static enum resp_token resp_length(struct resp *resp)
{
    bool is_array = resp->type == '*';
    int64_t number;

    if (!resp_number(resp, &number) || number < -1 ||
        (!is_array && number > RESP_BULK_MAX))
        return resp_malformed(resp, "a length that cannot be");
    resp->number = number;
    if (number < 0) {
        resp_value(resp);
        return resp->token = RESP_NIL;
    }
    if (!is_array) {
        resp->piece.length = 0;
        resp->bulk_left = (size_t)number;
        resp->state = number ? RESP_IN_BULK : RESP_AT_BULK_CR;
        return RESP_NOTHING;
    }
    if (resp->depth == RESP_DEPTH_MAX)
        return resp_malformed(resp, "too many arrays in arrays");
    if (number)
        resp->left[resp->depth++] = number;
    else
        resp_value(resp);
    return resp->token = RESP_ARRAY;
}

/* A line is complete. */
static enum resp_token resp_line(struct resp *resp)
{
    resp->state = RESP_AT_TYPE;
    resp->piece = (struct slice){ resp->line, resp->line_length };
    switch (resp->type) {
    case '+':
        resp->last = true;
        resp->token = RESP_TEXT;
        break;
    case '-':
        resp->token = RESP_ERROR;
        break;
    case ':':
        if (!resp_number(resp, &resp->number))
            return resp_malformed(resp, "an integer that is none");
        resp->token = RESP_INTEGER;
        break;
    default:
        return resp_length(resp);
    }
    resp_value(resp);
    return resp->token;
}

/* Takes a byte that is in no bulk string. */
static enum resp_token resp_byte(struct resp *resp, char byte)
{
    switch (resp->state) {
    case RESP_AT_TYPE:
        if (!byte || !strchr("+-:$*", byte))
            return resp_malformed(resp, "a type that RESP2 does not have");
        resp->type = byte;
        resp->line_length = 0;
        resp->level = resp->depth;
        resp->state = RESP_IN_LINE;
        break;
    case RESP_IN_LINE:
        if (byte == '\r')
            resp->state = RESP_AT_LINE_LF;
        else if (resp->line_length < RESP_LINE_MAX)
            resp->line[resp->line_length++] = byte;
        else if (resp->type != '-')
            return resp_malformed(resp, "a line that is too long");
        break;
    case RESP_AT_LINE_LF:
        return byte == '\n' ? resp_line(resp)
                            : resp_malformed(resp, "a CR without LF");
    case RESP_IN_BULK:
        break;
    case RESP_AT_BULK_CR:
        if (byte != '\r')
            return resp_malformed(resp, "a string that is too long");
        resp->state = RESP_AT_BULK_LF;
        break;
    case RESP_AT_BULK_LF:
        if (byte != '\n')
            return resp_malformed(resp, "a CR without LF");
        resp->state = RESP_AT_TYPE;
        resp->last = true;
        resp_value(resp);
        return resp->token = RESP_TEXT;
    }
    return RESP_NOTHING;
}

size_t resp_read(struct resp *resp, struct slice data)
{
    size_t taken = 0;

    if (resp->token == RESP_MALFORMED)
        return 0;
    resp->token = RESP_NOTHING;
    resp->last = resp->done = false;
    resp->piece.length = 0;
    while (taken < data.length) {
        size_t length = data.length - taken;

        if (resp->state != RESP_IN_BULK) {
            if (resp_byte(resp, data.data[taken++]) != RESP_NOTHING)
                break;
            continue;
        }
        if (length > resp->bulk_left)
            length = resp->bulk_left;
        resp->piece = (struct slice){ data.data + taken, length };
        resp->token = RESP_TEXT;
        resp->bulk_left -= length;
        taken += length;
        if (resp->bulk_left)
            break;
        resp->state = RESP_AT_BULK_CR;
        /* mostly its end is there as well: then this is the last piece */
        if (data.length - taken >= 2 && data.data[taken] == '\r' &&
            data.data[taken + 1] == '\n') {
            resp->state = RESP_AT_BULK_LF;
            resp_byte(resp, '\n');
            taken += 2;
        }
        break;
    }
    return taken;
}

/* -------------------------------------------------------------- signatures
 *
 * HMAC (RFC 2104) with SHA-256 (FIPS 180-4), and base64url without padding (RFC
 * 4648, section 5; RFC 7515, section 2). No branch and no index into a table
 * depends on a byte of the secret.
 *
 * Callers: the sections "claims" and "credentials".
 */

enum {
    SHA256_SIZE = 32,
    SHA256_BLOCK = 64,
    SIGNATURE_SIZE = 43, /* SHA256_SIZE bytes in base64url */
};

struct sha256 {
    uint32_t state[8];
    uint64_t length;             /* bytes so far */
    uint8_t block[SHA256_BLOCK]; /* the last length % SHA256_BLOCK of them */
};

/* The fractions of the square roots of the first eight primes, and of the cube
 * roots of the first 64. */
static const struct sha256 sha256_begun = {
    .state = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
               0x9b05688c, 0x1f83d9ab, 0x5be0cd19 },
};
static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t word, unsigned bits)
{
    return word >> bits | word << (32 - bits);
}

/* FIPS 180-4, section 6.2.2; s[0] to s[7] are its a to h. */
static void sha256_take_block(struct sha256 *sha)
{
    uint32_t words[64], s[8];

    memcpy(words, sha->block, SHA256_BLOCK);
    for (size_t i = 0; i < 16; i++)
        words[i] = be32toh(words[i]);
    for (size_t i = 16; i < 64; i++) {
        uint32_t x = words[i - 15], y = words[i - 2];

        words[i] = words[i - 16] + words[i - 7] +
                   (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) +
                   (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
    }
    memcpy(s, sha->state, sizeof(s));
    for (size_t i = 0; i < 64; i++) {
        uint32_t a = s[0], e = s[4];
        uint32_t one = s[7] + sha256_constants[i] + words[i] +
                       (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) +
                       ((e & s[5]) ^ (~e & s[6]));
        uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) +
                       ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

        memmove(&s[1], &s[0], 7 * sizeof(*s));
        s[4] += one;
        s[0] = one + two;
    }
    for (size_t i = 0; i < 8; i++)
        sha->state[i] += s[i];
}

static void sha256_add(struct sha256 *sha, const void *data, size_t length)
{
    const uint8_t *bytes = data;

    while (length) {
        size_t at = sha->length % SHA256_BLOCK, taken = SHA256_BLOCK - at;

        if (taken > length)
            taken = length;
        memcpy(sha->block + at, bytes, taken);
        sha->length += taken;
        bytes += taken;
        length -= taken;
        if (at + taken == SHA256_BLOCK)
            sha256_take_block(sha);
    }
}

static void sha256_end(struct sha256 *sha, uint8_t digest[SHA256_SIZE])
{
    static const uint8_t padding[SHA256_BLOCK] = { 0x80 };
    uint64_t bits = htobe64(sha->length * 8);

    /* the length fills up a block */
    sha256_add(sha, padding, 1 + (119 - sha->length % 64) % 64);
    sha256_add(sha, &bits, sizeof(bits));
    for (size_t i = 0; i < 8; i++) {
        uint32_t word = htobe32(sha->state[i]);

        memcpy(digest + 4 * i, &word, 4);
    }
}

/* What HMAC makes of a secret at first. */
static void hmac_key(struct slice secret, uint8_t key[SECRET_KEY])
{
    struct sha256 sha = sha256_begun;

    memset(key, 0, SECRET_KEY);
    if (secret.length <= SECRET_KEY) {
        memcpy(key, secret.data, secret.length);
        return;
    }
    sha256_add(&sha, secret.data, secret.length);
    sha256_end(&sha, key);
}

static void hmac_pass(const uint8_t key[SECRET_KEY], uint8_t pad,
                      struct slice text, uint8_t mac[SHA256_SIZE])
{
    struct sha256 sha = sha256_begun;
    uint8_t block[SECRET_KEY];

    for (size_t i = 0; i < SECRET_KEY; i++)
        block[i] = key[i] ^ pad;
    sha256_add(&sha, block, sizeof(block));
    sha256_add(&sha, text.data, text.length);
    sha256_end(&sha, mac);
}

static void hmac(const uint8_t key[SECRET_KEY], struct slice text,
                 uint8_t mac[SHA256_SIZE])
{
    uint8_t inner[SHA256_SIZE];

    hmac_pass(key, 0x36, text, inner);
    hmac_pass(key, 0x5C, (struct slice){ (const char *)inner, SHA256_SIZE },
              mac);
}

/* Returns how many bytes of text that makes: four for three, and no padding. */
static size_t base64_encode(struct slice bytes, char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "abcdefghijklmnopqrstuvwxyz0123456789-_";
    uint32_t bits = 0;
    unsigned count = 0;
    size_t length = 0;

    for (size_t i = 0; i < bytes.length; i++) {
        bits = bits << 8 | (unsigned char)bytes.data[i];
        for (count += 8; count >= 6; count -= 6)
            text[length++] = digits[bits >> (count - 6) & 63];
    }
    if (count)
        text[length++] = digits[bits << (6 - count) & 63];
    return length;
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

/* Returns how many bytes the text stands for, or -1. The bits that are left
 * over must be zero: so the same bytes have no second spelling. */
static ssize_t base64_decode(struct slice text, void *result)
{
    uint8_t *bytes = result;
    uint32_t bits = 0;
    unsigned count = 0;
    ssize_t length = 0;

    for (size_t i = 0; i < text.length; i++) {
        int value = base64_value(text.data[i]);

        if (value < 0)
            return -1;
        bits = bits << 6 | (uint32_t)value;
        count += 6;
        if (count >= 8) {
            count -= 8;
            bytes[length++] = (uint8_t)(bits >> count);
        }
    }
    return count == 6 || (bits & ((1U << count) - 1)) ? -1 : length;
}

/* ------------------------------------------------------------------ claims
 *
 * What is in a signed token: a header and a claims set, each a JSON object (RFC
 * 8259). The reader takes all of JSON, so that it passes over the members that
 * are not known here, and nothing else. It works on a copy with a NUL at its
 * end, where it unescapes strings: they get no longer. It does not call itself,
 * and the number of levels and of members is bounded.
 *
 * The functions return false where something is refused; json->refused says
 * why. They skip the blanks before what they look for.
 *
 * Callers: http_verify_token().
 */

enum {
    JSON_DEPTH_MAX = 16,
    JSON_MEMBERS_MAX = 64, /* of the outermost object: all are compared */
};

#define TIME_MAX 9007199254740991.0 /* exact in a double: 2^53 - 1 */

struct json {
    char *at, *end; /* *end is NUL */
    const char *refused;
};

/* A header and a claims set. */
struct claims {
    struct json json; /* the one that is being read */
    bool is_hs256, expires;
    double exp, nbf; /* seconds since 1970 */
    struct slice read, write;
};

static bool json_refuse(struct json *json, const char *why)
{
    json->refused = why;
    return false;
}

static bool json_malformed(struct json *json)
{
    return json_refuse(json, "the token's JSON is malformed");
}

/* Takes one of these bytes, without blanks before it. */
static bool json_byte(struct json *json, const char *bytes)
{
    if (!*json->at || !strchr(bytes, *json->at))
        return false;
    json->at++;
    return true;
}

static char json_next(struct json *json)
{
    while (json_byte(json, " \t\r\n"))
        ;
    return *json->at;
}

static bool json_take(struct json *json, char byte)
{
    bool is_next = json_next(json) == byte;

    json->at += is_next;
    return is_next;
}

/* Four hex digits. */
static bool json_unit(struct json *json, uint32_t *unit)
{
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_value(*json->at);

        if (digit < 0)
            return json_malformed(json);
        *unit = *unit << 4 | (uint32_t)digit;
        json->at++;
    }
    return true;
}

/* RFC 3629, section 3. Returns what is behind the sequence. */
static char *utf8_encode(uint32_t code, char *out)
{
    static const unsigned char leads[] = { 0, 0xC0, 0xE0, 0xF0 };
    unsigned more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;

    *out++ = (char)(leads[more] | code >> 6 * more);
    while (more--)
        *out++ = (char)(0x80 | (code >> 6 * more & 0x3F));
    return out;
}

/* What follows a backslash. Half of a surrogate pair is refused. */
static bool json_escape(struct json *json, char **out)
{
    static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
    const char *name = *json->at ? strchr(names, *json->at) : NULL;
    uint32_t code, low = 0;

    if (name) {
        json->at++;
        *(*out)++ = bytes[name - names];
        return true;
    }
    if (!json_byte(json, "u"))
        return json_malformed(json);
    if (!json_unit(json, &code))
        return false;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || !json_byte(json, "\\") || !json_byte(json, "u") ||
            !json_unit(json, &low) || low < 0xDC00 || low >= 0xE000)
            return json_malformed(json);
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *out = utf8_encode(code, *out);
    return true;
}

static bool json_string(struct json *json, struct slice *string)
{
    char *out;

    if (!json_take(json, '"'))
        return json_malformed(json);
    string->data = out = json->at;
    while (!json_byte(json, "\"")) {
        struct slice rest = { json->at, (size_t)(json->end - json->at) };
        size_t length = 0;

        if (json_byte(json, "\\")) {
            if (!json_escape(json, &out))
                return false;
            continue;
        }
        if ((unsigned char)*json->at >= ' ') /* NUL is at the end too */
            length = utf8_sequence(rest);
        if (!length)
            return json_malformed(json);
        memmove(out, json->at, length);
        out += length;
        json->at += length;
    }
    string->length = (size_t)(out - string->data);
    return true;
}

static bool json_digits(struct json *json)
{
    if (!json_byte(json, "0123456789"))
        return json_malformed(json);
    while (json_byte(json, "0123456789"))
        ;
    return true;
}

static bool json_number(struct json *json)
{
    json_next(json);
    json_byte(json, "-");
    if (!json_byte(json, "0") && !json_digits(json))
        return false;
    if (json_byte(json, ".") && !json_digits(json))
        return false;
    if (!json_byte(json, "eE"))
        return true;
    json_byte(json, "+-");
    return json_digits(json);
}

/* A string, a number, or a word. */
static bool json_scalar(struct json *json)
{
    static const char *const words[] = { "true", "false", "null" };
    char next = json_next(json);
    struct slice string;

    if (next == '"')
        return json_string(json, &string);
    for (size_t i = 0; i < COUNT(words); i++) {
        size_t length = strlen(words[i]);

        if (strncmp(json->at, words[i], length) == 0) {
            json->at += length;
            return true;
        }
    }
    return json_number(json);
}

static bool json_name(struct json *json, struct slice *name)
{
    return json_string(json, name) &&
           (json_take(json, ':') || json_malformed(json));
}

/* Passes over a value of any kind. */
static bool json_skip(struct json *json)
{
    char ends[JSON_DEPTH_MAX]; /* what closes each that is open */
    unsigned depth = 0;
    struct slice name;

    do {
        char next = json_next(json);
        bool opens = next == '[' || next == '{';

        if (opens && depth == JSON_DEPTH_MAX)
            return json_refuse(json, "the token's JSON has too many levels");
        if (opens)
            ends[depth++] = next == '[' ? ']' : '}';
        if (opens ? !json_byte(json, "[{") : !json_scalar(json))
            return false;
        while (depth && json_take(json, ends[depth - 1])) {
            depth--;
            opens = false;
        }
        if (depth && !opens && !json_take(json, ','))
            return json_malformed(json);
        if (depth && ends[depth - 1] == '}' && !json_name(json, &name))
            return false;
    } while (depth);
    return true;
}

/* A NumericDate (RFC 7519, section 2). A fraction is allowed. */
static bool json_time(struct json *json, double *seconds)
{
    char next = json_next(json);
    const char *begin = json->at;

    if (next == '-' || isdigit((unsigned char)next)) {
        if (!json_number(json))
            return false;
        *seconds = strtod(begin, NULL);
        if (*seconds >= 0 && *seconds <= TIME_MAX)
            return true;
    }
    return json_refuse(json, "the token's exp and nbf are no seconds since "
                             "1970");
}

/*
 * Takes an array of patterns and moves them together where they lie, each with
 * a NUL behind it: there is room, since each has lost its quotes. One with a
 * NUL in it would become two. It is left out: it is no name of a topic.
 */
static bool json_patterns(struct json *json, struct slice *patterns)
{
    static const char why[] = "the token's read and write are no arrays of "
                              "strings";
    struct slice pattern;
    char *out;

    if (!json_take(json, '['))
        return json_refuse(json, why);
    patterns->data = out = json->at;
    patterns->length = 0;
    if (json_take(json, ']'))
        return true;
    do {
        if (json_next(json) != '"')
            return json_refuse(json, why);
        if (!json_string(json, &pattern))
            return false;
        if (memchr(pattern.data, '\0', pattern.length))
            continue;
        memmove(out, pattern.data, pattern.length);
        out[pattern.length] = '\0';
        out += pattern.length + 1;
    } while (json_take(json, ','));
    patterns->length = (size_t)(out - patterns->data);
    return json_take(json, ']') || json_malformed(json);
}

/* RFC 7515, section 4.1. What crit names must be understood, and nothing of
 * that kind is here. */
static bool take_header(struct claims *header, struct slice name)
{
    struct json *json = &header->json;
    struct slice value = { 0 };

    if (slice_is(name, "crit"))
        return json_refuse(json, "the token's header has crit, of which "
                                 "nothing is known here");
    if (!slice_is(name, "alg"))
        return json_skip(json);
    header->is_hs256 = true;
    if (json_next(json) == '"' && !json_string(json, &value))
        return false;
    return slice_is(value, "HS256") ||
           json_refuse(json, "the token's alg is not HS256");
}

/* RFC 7519, section 4.1. */
static bool take_claim(struct claims *claims, struct slice name)
{
    struct json *json = &claims->json;

    if (slice_is(name, "exp")) {
        claims->expires = true;
        return json_time(json, &claims->exp);
    }
    if (slice_is(name, "nbf"))
        return json_time(json, &claims->nbf);
    if (slice_is(name, "read"))
        return json_patterns(json, &claims->read);
    if (slice_is(name, "write"))
        return json_patterns(json, &claims->write);
    return json_skip(json);
}

/* Takes the members of an object. A name that is there twice is refused: two
 * readers could understand it in two ways. */
static bool read_members(struct claims *claims,
                         bool (*take)(struct claims *claims, struct slice name))
{
    struct json *json = &claims->json;
    struct slice names[JSON_MEMBERS_MAX];
    unsigned count = 0;

    do {
        struct slice *name = &names[count];

        if (count == JSON_MEMBERS_MAX)
            return json_refuse(json, "the token's JSON has too many members");
        if (!json_name(json, name))
            return false;
        for (unsigned i = 0; i < count; i++)
            if (names[i].length == name->length &&
                memcmp(names[i].data, name->data, name->length) == 0)
                return json_refuse(json, "the token's JSON has a name twice");
        if (!take(claims, *name))
            return false;
        count++;
    } while (json_take(json, ','));
    return json_take(json, '}') || json_malformed(json);
}

/* Reads a part of a token into `bytes`, which has room for CLAIMS_MAX and a
 * NUL. NULL, or why it is refused. */
static const char *
read_part(struct claims *claims, struct slice part, char *bytes,
          bool (*take)(struct claims *claims, struct slice name))
{
    ssize_t length = base64_decode(part, bytes);
    struct json *json = &claims->json;

    if (length < 0)
        return "the token is not base64url";
    bytes[length] = '\0';
    *json = (struct json){ bytes, bytes + length, NULL };
    if (!json_take(json, '{'))
        return "the token's parts are no JSON objects";
    if (!json_take(json, '}') && !read_members(claims, take))
        return json->refused;
    json_next(json);
    if (json->at != json->end)
        return "the token's JSON has something behind it";
    return NULL;
}

/* ------------------------------------------------------ response heads
 *
 * How a struct response is written. http_head() puts the fields of every answer
 * in one order and leaves out what is zero. A head that does not fit is not
 * cut: http_head() returns 0, and respond() sends a short 500 in its place.
 *
 * Callers: respond(), stream_head(); http_update_time(), for http_date().
 */

const char *http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {
        { 201, "Created" },
        { 200, "OK" },
        { 204, "No Content" },
        { 301, "Moved Permanently" },
        { 206, "Partial Content" },
        { 405, "Method Not Allowed" },
        { 304, "Not Modified" },
        { 413, "Content Too Large" },
        { 400, "Bad Request" },
        { 415, "Unsupported Media Type" },
        { 401, "Unauthorized" },
        { 416, "Range Not Satisfiable" },
        { 403, "Forbidden" },
        { 417, "Expectation Failed" },
        { 404, "Not Found" },
        { 421, "Misdirected Request" },
        { 408, "Request Timeout" },
        { 429, "Too Many Requests" },
        { 431, "Request Header Fields Too Large" },
        { 409, "Conflict" },
        { 500, "Internal Server Error" },
        { 414, "URI Too Long" },
        { 503, "Service Unavailable" },
        { 501, "Not Implemented" },
        { 505, "HTTP Version Not Supported" },
    };

    for (size_t i = 0; i < COUNT(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Unknown";
}

void http_date(char *buffer, time_t when)
{
    struct tm tm;

    gmtime_r(&when, &tm);
    strftime(buffer, HTTP_DATE_SIZE, "%a, %d %b %Y %H:%M:%S GMT", &tm);
}

/* A head being written; `length` goes beyond `size` if it does not fit. */
struct head {
    char *buffer;
    size_t size, length;
};

__attribute__((format(printf, 2, 3))) static void
put_line(struct head *head, const char *format, ...)
{
    size_t room = head->length < head->size ? head->size - head->length : 0;
    va_list arguments;

    va_start(arguments, format);
    head->length += (size_t)vsnprintf(room ? head->buffer + head->length : NULL,
                                      room, format, arguments);
    va_end(arguments);
}

static void put_field(struct head *head, const char *name, const char *value)
{
    if (value)
        put_line(head, "%s: %s\r\n", name, value);
}

/* Only the last segment, relative to the path that was asked for. It is as
 * short as a file's name, and it cannot lead to another host. */
static void put_location(struct head *head, struct slice path)
{
    const char *slash = memrchr(path.data, '/', path.length);
    size_t begin = slash ? (size_t)(slash - path.data) + 1 : 0;

    put_line(head, "Location: ");
    for (size_t i = begin; i < path.length; i++) {
        unsigned char c = (unsigned char)path.data[i];

        put_line(head, isalnum(c) || (c && strchr("-._~", c)) ? "%c" : "%%%02X",
                 c);
    }
    put_line(head, "/\r\n");
}

/* A cache must not give one origin's answer to another: Vary (Fetch, section
 * 3.2.5, "CORS protocol and HTTP caches"). The one origin that is named may
 * send cookies; with "*" a browser would refuse that anyway (the same, "CORS
 * protocol and credentials"). */
static void put_cors(struct head *head, const struct response *response)
{
    put_field(head, "Access-Control-Allow-Origin", response->cors);
    if (strcmp(response->cors, "*") != 0) {
        put_field(head, "Vary", "Origin");
        put_field(head, "Access-Control-Allow-Credentials", "true");
    }
    if (response->position)
        put_field(head, "Access-Control-Expose-Headers", "Last-Event-ID");
    if (!response->preflight)
        return;
    put_field(head, "Access-Control-Allow-Methods", response->allow);
    put_field(head, "Access-Control-Allow-Headers",
              "Last-Event-ID, Cache-Control, Authorization, Content-Type");
    put_field(head, "Access-Control-Max-Age", "86400");
}

static void put_content(struct head *head, const struct response *response)
{
    put_field(head, "Content-Type", response->type);
    if (response->made)
        put_field(head, "Transfer-Encoding",
                  response->chunked ? "chunked" : NULL);
    else if (response->status != 204 && response->status != 304)
        put_line(head, "Content-Length: %" PRIu64 "\r\n", response->length);
    put_field(head, "ETag", response->etag);
    if (response->modified) {
        char modified[HTTP_DATE_SIZE];

        http_date(modified, response->modified);
        put_field(head, "Last-Modified", modified);
    }
    if (response->etag) /* it is a file */
        put_field(head, "Accept-Ranges", "bytes");
    if (response->status == 206)
        put_line(head,
                 "Content-Range: bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64 "\r\n",
                 response->range_first, response->range_last,
                 response->range_total);
    if (response->status == 416)
        put_line(head, "Content-Range: bytes */%" PRIu64 "\r\n",
                 response->range_total);
    put_field(head, "Cache-Control", response->no_cache ? "no-cache" : NULL);
    put_field(head, "Connection", response->close ? "close" : NULL);
}

size_t http_head(char *buffer, size_t size, const struct response *response)
{
    struct head head = { .buffer = buffer, .size = size };
    bool later = response->status == 429 || response->status == 503;
    unsigned retry_after =
        later && !response->retry_after ? 2 : response->retry_after;

    put_line(&head, "HTTP/1.1 %d %s\r\n", response->status,
             http_reason(response->status));
    put_field(&head, "Date", response->date);
    if (response->stream) {
        put_field(&head, "Content-Type", "text/event-stream");
        /* a proxy that compressed or buffered would hold events back */
        put_field(&head, "Cache-Control", "no-cache, no-transform");
        put_field(&head, "X-Accel-Buffering", "no");
        put_line(&head, "Connection: %s\r\n",
                 response->chunked ? "keep-alive" : "close");
        put_field(&head, "Transfer-Encoding",
                  response->chunked ? "chunked" : NULL);
    } else {
        put_content(&head, response);
    }
    put_field(&head, "Allow", response->preflight ? NULL : response->allow);
    put_field(&head, "WWW-Authenticate",
              response->status == 401 ? "Bearer" : NULL);
    if (retry_after)
        put_line(&head, "Retry-After: %u\r\n", retry_after);
    if (response->location.length)
        put_location(&head, response->location);
    if (response->position)
        put_line(&head, "Last-Event-ID: %" PRIu64 "\r\n", *response->position);
    if (response->cors)
        put_cors(&head, response);
    /* text that was published must not be run as a script or a page */
    put_line(&head, "X-Content-Type-Options: nosniff\r\n\r\n");
    return head.length < size ? head.length : 0;
}

/* --------------------------------------------------------------- files
 *
 * Which file a path names: one of the bundled pages, or a file below --root.
 * Then which part of it answers a request, by the request's conditions (RFC
 * 9110, section 13) and range (section 14).
 *
 * The path has been decoded and has no dot segments. Below --root this is not
 * relied on, because symbolic links could still lead out: openat2(2) resolves
 * the path, and the kernel refuses what leaves the folder. The ETag is strong:
 * it changes whenever the bytes may have changed, so a client never puts parts
 * of two versions together.
 *
 * Callers: respond_page(); http_serve_root() and sse.c at the start.
 */

/* The bundled pages: a symbol, the file in static/, and the listeners that
 * serve it. */
enum {
    ON_PUBLIC = 1,
    ON_ADMIN = 2,
};

#define PAGES(PAGE)                                 \
    PAGE(index_html, "index.html", ON_PUBLIC)       \
    PAGE(index_js, "index.js", ON_PUBLIC)           \
    PAGE(chat_html, "chat.html", ON_PUBLIC)         \
    PAGE(chat_js, "chat.js", ON_PUBLIC)             \
    PAGE(progress_html, "progress.html", ON_PUBLIC) \
    PAGE(progress_js, "progress.js", ON_PUBLIC)     \
    PAGE(monitor_html, "monitor.html", ON_PUBLIC)   \
    PAGE(monitor_js, "monitor.js", ON_PUBLIC)       \
    PAGE(inspect_html, "inspect.html", ON_PUBLIC)   \
    PAGE(inspect_js, "inspect.js", ON_PUBLIC)       \
    PAGE(clock_html, "clock.html", ON_PUBLIC)       \
    PAGE(ssed_js, "ssed.js", ON_PUBLIC)             \
    PAGE(status_html, "status.html", ON_ADMIN)      \
    PAGE(status_js, "status.js", ON_ADMIN)          \
    PAGE(bar_js, "bar.js", ON_PUBLIC | ON_ADMIN)    \
    PAGE(style_css, "style.css", ON_PUBLIC | ON_ADMIN)

/* The assembler puts them into the binary as they are: the server is one file
 * that can be copied anywhere. */
#define INCLUDE(symbol, name, where)        \
    __asm__(".pushsection .rodata\n"        \
            "bundle_" #symbol ":\n"         \
            ".incbin \"static/" name "\"\n" \
            "bundle_" #symbol "_end:\n"     \
            ".byte 0\n"                     \
            ".popsection\n");               \
    extern const char bundle_##symbol[], bundle_##symbol##_end[];
PAGES(INCLUDE)

#define BUNDLED(symbol, name, where) \
    { "/" name, bundle_##symbol, bundle_##symbol##_end, where, { 0 } },
static struct bundled {
    const char *path, *data, *end;
    unsigned where;
    struct file file;
} bundle[] = { PAGES(BUNDLED) };

#define UTF8 "; charset=utf-8"

static const char *media_type(struct slice path)
{
    static const struct {
        const char *ending, *type;
    } types[] = {
        { "css", "text/css" UTF8 },       { "csv", "text/csv" UTF8 },
        { "gif", "image/gif" },           { "htm", "text/html" UTF8 },
        { "html", "text/html" UTF8 },     { "ico", "image/vnd.microsoft.icon" },
        { "jpeg", "image/jpeg" },         { "jpg", "image/jpeg" },
        { "js", "text/javascript" UTF8 }, { "json", "application/json" },
        { "map", "application/json" },    { "mjs", "text/javascript" UTF8 },
        { "md", "text/markdown" UTF8 },   { "mp3", "audio/mpeg" },
        { "mp4", "video/mp4" },           { "pdf", "application/pdf" },
        { "png", "image/png" },           { "txt", "text/plain" UTF8 },
        { "svg", "image/svg+xml" UTF8 },  { "wasm", "application/wasm" },
        { "webm", "video/webm" },         { "webp", "image/webp" },
        { "woff", "font/woff" },          { "woff2", "font/woff2" },
        { "xml", "application/xml" },
    };
    const char *dot = memrchr(path.data, '.', path.length);
    struct slice ending =
        dot ? slice_from(path, (size_t)(dot + 1 - path.data)) : path;

    for (size_t i = 0; i < COUNT(types); i++)
        if (slice_equals(ending, types[i].ending))
            return types[i].type;
    return "application/octet-stream";
}

static int open_bundled(struct file *file, unsigned where, const char *path)
{
    for (size_t i = 0; i < COUNT(bundle); i++) {
        if ((bundle[i].where & where) && strcmp(bundle[i].path, path) == 0) {
            *file = bundle[i].file;
            return 0;
        }
    }
    return -404;
}

static int open_beneath(int root, const char *path)
{
    /* struct open_how of openat2(2), for which some libcs have no header:
     * flags, mode, and RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS. O_NONBLOCK:
     * opening a FIFO must not wait for its other end. */
    const uint64_t how[] = { O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0,
                             8 | 2 };
    int fd, tries = 0;

    /* EAGAIN: something was renamed meanwhile, and the kernel cannot tell
     * whether the path led out. */
    do
        fd = (int)syscall(SYS_openat2, root, path, how, sizeof(how));
    while (fd < 0 && (errno == EAGAIN || errno == EINTR) && ++tries < 16);
    return fd;
}

/* The ETag is made of inode, modification time in ns, and length: a file that
 * is replaced or written gets another one. */
static int open_in_root(struct file *file, int root, const char *path)
{
    struct stat status;
    int fd = open_beneath(root, path + 1);

    if (fd < 0)
        return errno == ENOSYS ? -501
               : errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
                       errno == EAGAIN
                   ? -503
                   : -404;
    if (fstat(fd, &status) < 0)
        status.st_mode = 0;
    if (!S_ISREG(status.st_mode)) {
        close(fd);
        return S_ISDIR(status.st_mode) ? -301 : -404;
    }
    *file = (struct file){ .fd = fd,
                           .length = (uint64_t)status.st_size,
                           .modified = status.st_mtime };
    snprintf(file->etag, sizeof(file->etag),
             "\"%" PRIx64 "-%" PRIx64 "-%" PRIx64 "\"", (uint64_t)status.st_ino,
             (uint64_t)status.st_mtim.tv_sec * 1000000000 +
                 (uint64_t)status.st_mtim.tv_nsec,
             file->length);
    return 0;
}

void http_bundle_init(time_t modified)
{
    for (struct bundled *page = bundle; page < bundle + COUNT(bundle); page++) {
        uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */

        for (const char *p = page->data; p < page->end; p++)
            hash = (hash ^ (unsigned char)*p) * UINT64_C(1099511628211);
        page->file = (struct file){ .data = page->data, .fd = -1 };
        page->file.length = (uint64_t)(page->end - page->data);
        page->file.modified = modified;
        snprintf(page->file.etag, sizeof(page->file.etag), "\"%016" PRIx64 "\"",
                 hash);
    }
}

/* A path that begins with "//" is refused: browsers take it for a host. */
int http_file_open(struct file *file, int root, struct slice path)
{
    char name[REQUEST_LINE_MAX + sizeof("status.html")];
    bool folder = path.length && path.data[path.length - 1] == '/';
    bool is_admin = root == ROOT_ADMIN;
    const char *index = is_admin ? "status.html" : "index.html";
    int status;

    if (path.length == 0 || path.length > REQUEST_LINE_MAX ||
        (path.length > 1 && path.data[1] == '/'))
        return -404;
    snprintf(name, sizeof(name), "%.*s%s", (int)path.length, path.data,
             folder ? index : "");
    status = root < 0
                 ? open_bundled(file, is_admin ? ON_ADMIN : ON_PUBLIC, name)
                 : open_in_root(file, root, name);
    if (folder && status == -301)
        status = -404; /* its index.html is a folder */
    if (status == 0)
        file->type = media_type(slice_of(name));
    return status;
}

/* RFC 9110, section 13.1.2: weak comparison with each of a list. */
static bool etag_matches(struct slice list, const char *etag)
{
    if (slice_is(list, "*"))
        return true;
    while (list.length) {
        struct slice one = slice_trimmed(slice_split(&list, ','));

        if (one.length > 2 && memcmp(one.data, "W/", 2) == 0)
            one = slice_from(one, 2);
        if (slice_is(one, etag))
            return true;
    }
    return false;
}

/* Only the form that senders must use. The two obsolete ones (RFC 9110, section
 * 5.6.7) are not known here: the condition is then as if it were absent. */
static bool parse_date(struct slice text, time_t *when)
{
    char copy[HTTP_DATE_SIZE];
    struct tm tm = { 0 };
    const char *end;

    if (text.length != sizeof(copy) - 1)
        return false;
    snprintf(copy, sizeof(copy), "%.*s", (int)text.length, text.data);
    end = strptime(copy, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    if (!end || *end)
        return false;
    *when = timegm(&tm);
    return true;
}

/* RFC 9110, section 13.2.2: If-Modified-Since only counts without an
 * If-None-Match. */
static bool is_not_modified(const struct file *file,
                            const struct request *request)
{
    time_t since;

    if (request->if_none_match.data)
        return etag_matches(request->if_none_match, file->etag);
    return request->if_modified_since.data &&
           parse_date(request->if_modified_since, &since) &&
           file->modified <= since;
}

/* RFC 9110, section 13.1.5: a client that has a part of another version gets
 * the whole file. */
static bool range_applies(const struct file *file,
                          const struct request *request)
{
    struct slice condition = request->if_range;
    time_t when;

    if (request->method != METHOD_GET || !request->range.data)
        return false;
    if (!condition.data)
        return true;
    if (condition.length && condition.data[0] == '"')
        return slice_is(condition, file->etag);
    return parse_date(condition, &when) && when == file->modified;
}

/* The status for a range of a file with that length (RFC 9110, section 14.1.2):
 * 206, or 416 if it has no byte of the file. A range that is malformed, or one
 * of several, is ignored, as section 14.2 allows: 200. */
static int parse_range(struct slice range, uint64_t length, uint64_t *first,
                       uint64_t *last)
{
    struct slice from, to;
    uint64_t count;

    if (!slice_begins(range, "bytes="))
        return 200;
    to = slice_from(range, 6);
    if (to.length == 0 || !memchr(to.data, '-', to.length))
        return 200;
    from = slice_split(&to, '-');
    if (from.length == 0) { /* the last so many bytes */
        if (!parse_digits(to, &count))
            return 200;
        *first = count < length ? length - count : 0;
        *last = length - 1;
        return count && length ? 206 : 416;
    }
    *last = UINT64_MAX;
    if (!parse_digits(from, first) || (to.length && !parse_digits(to, last)) ||
        *last < *first)
        return 200;
    if (*last >= length)
        *last = length - 1;
    return *first < length ? 206 : 416;
}

void http_file_response(const struct file *file, const struct request *request,
                        struct response *response, uint64_t *first)
{
    *first = 0;
    response->status = is_not_modified(file, request) ? 304 : 200;
    response->type = file->type;
    response->etag = file->etag;
    response->modified = file->modified;
    response->length = response->range_total = file->length;
    if (response->status == 200 && range_applies(file, request))
        response->status =
            parse_range(request->range, file->length, &response->range_first,
                        &response->range_last);
    if (response->status == 206) {
        *first = response->range_first;
        response->length = response->range_last - *first + 1;
    } else if (response->status == 416) {
        response->length = 0;
    }
}

/* ------------------------------------------------------ clock and lists
 *
 * The queues and the timers are doubly linked lists through the table of
 * connections, by descriptor: nothing is allocated, and any connection can
 * leave from anywhere.
 *
 * The timers are a wheel of WHEEL_SLOTS slots, one for each tick; a timer is in
 * the slot of its tick modulo WHEEL_SLOTS. A timer that is further away than
 * one round of the wheel stays in its slot until its own round.
 *
 * Callers: the sections below; sse.c, for its streams.
 */

uint64_t clock_us(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t clock_ms(clockid_t clock)
{
    return clock_us(clock) / 1000;
}

#define QUEUE_LINK offsetof(struct conn, queue_link)
#define TIMER_LINK offsetof(struct conn, timer_link)

static struct link *link_of(struct http *http, uint32_t fd, size_t of)
{
    return (struct link *)(void *)((char *)conn_at(http, fd) + of);
}

static void list_add(struct http *http, struct list *list, uint32_t fd,
                     size_t of)
{
    *link_of(http, fd, of) = (struct link){ list->last, NONE };
    if (list->last == NONE)
        list->first = fd;
    else
        link_of(http, list->last, of)->next = fd;
    list->last = fd;
}

static void list_remove(struct http *http, struct list *list, uint32_t fd,
                        size_t of)
{
    const struct link *link = link_of(http, fd, of);

    if (link->previous == NONE)
        list->first = link->next;
    else
        link_of(http, link->previous, of)->next = link->next;
    if (link->next == NONE)
        list->last = link->previous;
    else
        link_of(http, link->next, of)->previous = link->previous;
}

/* When the next connection's timer may be due, in ms. */
static uint64_t wheel_next(const struct http *http)
{
    for (uint64_t tick = http->wheel_tick + 1;
         tick <= http->wheel_tick + WHEEL_SLOTS; tick++)
        if (http->wheel[tick % WHEEL_SLOTS].first != NONE)
            return tick << TICK_SHIFT;
    return NEVER;
}

void queue_push(struct http *http, enum queue_name name, struct conn *conn)
{
    struct queue *queue = &http->queues[name];

    assert(conn->queue == QUEUE_NONE);
    conn->queue = (uint8_t)name;
    list_add(http, &queue->list, conn_fd(http, conn), QUEUE_LINK);
    queue->count++;
}

void queue_remove(struct http *http, struct conn *conn)
{
    struct queue *queue = &http->queues[conn->queue];

    if (conn->queue == QUEUE_NONE)
        return;
    list_remove(http, &queue->list, conn_fd(http, conn), QUEUE_LINK);
    queue->count--;
    conn->queue = QUEUE_NONE;
}

struct conn *queue_pop(struct http *http, enum queue_name name)
{
    struct conn *conn = conn_at(http, http->queues[name].list.first);

    queue_remove(http, conn);
    return conn;
}

static void timer_stop(struct http *http, struct conn *conn)
{
    if (conn->deadline == 0)
        return;
    list_remove(http, &http->wheel[conn->deadline % WHEEL_SLOTS],
                conn_fd(http, conn), TIMER_LINK);
    conn->deadline = 0;
}

void timer_start(struct http *http, struct conn *conn, uint64_t delay)
{
    timer_stop(http, conn);
    conn->deadline = (uint32_t)((http->now + delay) >> TICK_SHIFT) + 1;
    list_add(http, &http->wheel[conn->deadline % WHEEL_SLOTS],
             conn_fd(http, conn), TIMER_LINK);
}

/* ------------------------------------------------------ memory of requests
 *
 * All that requests hold is counted in http->request_memory and bounded by
 * http->memory_limit: the exchanges with their buffers, and what sse.c takes
 * with memory_grow() for what it makes of requests.
 *
 * A buffer of a page or more has pages of its own, mmap(2). Clients choose the
 * sizes and what is let go of. From malloc(3), gaps would be left that what is
 * asked for next does not fit into, until the process has a multiple of what is
 * counted.
 *
 * A connection has an exchange only while something of a request is there. One
 * that idles costs no more than its entry in the table. Exchanges that are not
 * in use are kept for the next requests, and are not counted.
 *
 * Callers: the sections below, for exchanges; sse.c.
 */

/* Counts memory as the requests'. False if --request-memory does not allow
 * it. */
static bool memory_take(struct http *http, size_t bytes)
{
    if (bytes > http->memory_limit ||
        http->request_memory > http->memory_limit - bytes) {
        http->limits_hit[LIMIT_MEMORY]++;
        return false;
    }
    http->request_memory += bytes;
    return true;
}

static void memory_return(struct http *http, size_t bytes)
{
    http->request_memory -= bytes;
}

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

size_t memory_cost(size_t room)
{
    size_t page = page_size();

    return room < page ? room : (room + page - 1) & ~(page - 1);
}

static bool is_paged(size_t room)
{
    return room >= page_size() && room >= PAGES_FROM;
}

/* munmap(2) fails if the process has as many maps as it may have: then only the
 * memory is given back. */
static void bytes_free(char *bytes, size_t room)
{
    if (!is_paged(room))
        free(bytes);
    else if (munmap(bytes, room) < 0)
        madvise(bytes, room, MADV_DONTNEED);
}

static char *bytes_get(size_t room)
{
    void *pages;

    if (!is_paged(room))
        return malloc(room);
    pages = mmap(NULL, room, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* As realloc(3), of `room` bytes; NULL has 0. */
static char *bytes_move(char *bytes, size_t room, size_t wanted)
{
    char *moved;

    if (!is_paged(room) && !is_paged(wanted))
        return realloc(bytes, wanted);
    if (is_paged(room) && is_paged(wanted)) {
        moved = mremap(bytes, room, wanted, MREMAP_MAYMOVE);
        return moved == MAP_FAILED ? NULL : moved;
    }
    moved = bytes_get(wanted);
    if (!moved)
        return NULL;
    if (bytes)
        memcpy(moved, bytes, room < wanted ? room : wanted);
    bytes_free(bytes, room);
    return moved;
}

bool memory_grow(struct http *http, char **bytes, size_t *room, size_t wanted)
{
    size_t more;
    char *moved;

    if (wanted <= *room)
        return true;
    more = memory_cost(wanted) - memory_cost(*room);
    if (!memory_take(http, more))
        return false;
    moved = bytes_move(*bytes, *room, wanted);
    if (!moved) {
        memory_return(http, more);
        return false;
    }
    *bytes = moved;
    *room = wanted;
    return true;
}

void memory_free(struct http *http, char **bytes, size_t *room)
{
    bytes_free(*bytes, *room);
    memory_return(http, memory_cost(*room));
    *bytes = NULL;
    *room = 0;
}

static void exchange_free(struct exchange *exchange)
{
    if (!exchange)
        return;
    bytes_free(exchange->in.bytes, exchange->in.room);
    bytes_free(exchange->out.bytes, exchange->out.room);
    free(exchange);
}

static size_t exchange_size(const struct exchange *exchange)
{
    return sizeof(*exchange) + memory_cost(exchange->in.room) +
           memory_cost(exchange->out.room);
}

/* NULL if there is no memory for it: errno is EAGAIN if --request-memory is
 * used up, else ENOMEM. Those who watch have theirs whatever others hold: there
 * are ADMIN_MAX at the most. */
static struct exchange *exchange_take(struct http *http, bool is_admin)
{
    struct exchange *exchange = http->spare;

    if (exchange) {
        http->spare = exchange->next_spare;
        http->spare_count--;
    } else if ((exchange = calloc(1, sizeof(*exchange)))) {
        exchange->in = (struct buffer){ bytes_get(IN_FIRST), IN_FIRST, 0, 0 };
        exchange->out = (struct buffer){ bytes_get(OUT_ROOM), OUT_ROOM, 0, 0 };
    }
    if (!exchange || !exchange->in.bytes || !exchange->out.bytes) {
        exchange_free(exchange);
        errno = ENOMEM;
        return NULL;
    }
    if (is_admin) {
        http->request_memory += exchange_size(exchange);
    } else if (!memory_take(http, exchange_size(exchange))) {
        exchange_free(exchange);
        errno = EAGAIN;
        return NULL;
    }
    exchange->in.start = exchange->in.end = 0;
    exchange->out.start = exchange->out.end = 0;
    memset(&exchange->request, 0,
           sizeof(*exchange) - offsetof(struct exchange, request));
    exchange->file.fd = -1;
    return exchange;
}

static void exchange_drop_file(struct http *http, struct exchange *exchange)
{
    if (exchange->file.fd >= 0) {
        close(exchange->file.fd);
        http->files--;
    }
    exchange->file.fd = -1;
    exchange->file_left = 0;
    exchange->makes = false;
}

static void exchange_release(struct http *http, struct exchange *exchange)
{
    exchange_drop_file(http, exchange);
    memory_return(http, exchange_size(exchange));
    if (http->spare_count >= SPARE_EXCHANGES) {
        exchange_free(exchange);
        return;
    }
    exchange->next_spare = http->spare;
    http->spare = exchange;
    http->spare_count++;
}

/* -------------------------------------------------- connections by network
 *
 * With --max-per-address: how many connections each network has, that is
 * conn_network(). A hash table by open addressing, with an entry for each
 * network that has a connection and for no other. It has twice as many entries
 * as there can be connections, so a search is short and ends at a free one.
 *
 * Clients choose their addresses, but not what these hash to: that is by random
 * tables. With this hash the expected time is constant for any set of
 * addresses: M. Patrascu and M. Thorup, "The Power of Simple Tabulation
 * Hashing", Journal of the ACM 59 (2012), section 3, "Linear probing".
 *
 * Callers: conn_open(), reap(); http_init().
 */

struct network {
    struct in6_addr address;
    uint32_t count; /* 0: the entry is free */
};

struct networks {
    uint32_t random[sizeof(struct in6_addr)][256];
    uint32_t mask;
    struct network entries[]; /* mask + 1 of them */
};

static uint64_t networks_size(uint32_t entries)
{
    return sizeof(struct networks) + entries * sizeof(struct network);
}

/* How many entries there are for so many connections: a power of two. */
static uint32_t network_entries(uint32_t connections)
{
    uint32_t entries = 2;

    while (entries < 2 * connections)
        entries *= 2;
    return entries;
}

/* False with errno if there are no random numbers. */
static bool fill_random(void *bytes, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = getrandom((char *)bytes + got, size - got, 0);

        if (n < 0 && errno != EINTR)
            return false;
        got += n < 0 ? 0 : (size_t)n;
    }
    return true;
}

/* Returns NULL without memory, or without random numbers. */
static struct networks *networks_make(uint32_t connections)
{
    uint32_t entries = network_entries(connections);
    struct networks *networks = calloc(1, networks_size(entries));

    if (!networks || !fill_random(networks->random, sizeof(networks->random))) {
        free(networks);
        return NULL;
    }
    networks->mask = entries - 1;
    return networks;
}

/* Where a network's entry is if none is in the way. */
static uint32_t network_home(const struct networks *networks,
                             const struct in6_addr *address)
{
    uint32_t hash = 0;

    for (size_t i = 0; i < sizeof(*address); i++)
        hash ^= networks->random[i][address->s6_addr[i]];
    return hash & networks->mask;
}

/* A network's entry, or the free one where it would be. */
static struct network *network_find(struct networks *networks,
                                    const struct in6_addr *address)
{
    uint32_t at = network_home(networks, address);

    while (networks->entries[at].count &&
           memcmp(&networks->entries[at].address, address, sizeof(*address)) !=
               0)
        at = (at + 1) & networks->mask;
    return &networks->entries[at];
}

static void network_add(struct networks *networks,
                        const struct in6_addr *address)
{
    struct network *network = network_find(networks, address);

    network->address = *address;
    network->count++;
}

/* Where the last connection of a network ends, entries behind move up that
 * would not be found beyond a free one (D. E. Knuth, "The Art of Computer
 * Programming", volume 3, section 6.4, algorithm R). */
static void network_remove(struct networks *networks,
                           const struct in6_addr *address)
{
    struct network *network = network_find(networks, address);
    uint32_t mask = networks->mask;
    uint32_t hole = (uint32_t)(network - networks->entries);

    assert(network->count > 0);
    if (--network->count > 0)
        return;
    for (uint32_t at = (hole + 1) & mask; networks->entries[at].count;
         at = (at + 1) & mask) {
        uint32_t home = network_home(networks, &networks->entries[at].address);

        if (((at - home) & mask) < ((at - hole) & mask))
            continue;
        networks->entries[hole] = networks->entries[at];
        hole = at;
    }
    networks->entries[hole].count = 0;
}

/* ------------------------------------------------------------- connections
 *
 * The life of a connection, apart from what is said on it: its state, what
 * epoll is asked for, its peer, the queues for its turn, its end.
 *
 * Only conn_set_state() changes a state, and only conn_set_interest() changes
 * what epoll is asked for. conn_close() is the only end. It leaves the
 * descriptor open until reap() closes it at the end of the turn: until then no
 * new connection can get the same number, so a later event of this turn cannot
 * be taken for one of the new connection.
 *
 * Callers: the sections below; sse.c.
 */

/* The interest in a connection that is read. */
#define READABLE ((uint32_t)(EPOLLIN | EPOLLRDHUP))

#define MAY(state) (1U << (state))

/* Which states may follow; the picture is in sse.h. */
static const unsigned next_states[CONN_STATES] = {
    [CONN_FREE] = MAY(CONN_LISTENER) | MAY(CONN_REDIS) | MAY(CONN_REQUEST) |
                  MAY(CONN_BODY),
    [CONN_LISTENER] = MAY(CONN_FREE),
    [CONN_REDIS] = MAY(CONN_CLOSED),
    [CONN_REQUEST] = MAY(CONN_REQUEST) | MAY(CONN_BODY) | MAY(CONN_WAITING) |
                     MAY(CONN_RESPOND) | MAY(CONN_STREAM) | MAY(CONN_STATUS) |
                     MAY(CONN_LINGER) | MAY(CONN_CLOSED),
    [CONN_BODY] = MAY(CONN_REQUEST) | MAY(CONN_WAITING) | MAY(CONN_CLOSED),
    [CONN_WAITING] = MAY(CONN_REQUEST) | MAY(CONN_BODY) | MAY(CONN_CLOSED),
    [CONN_RESPOND] = MAY(CONN_REQUEST) | MAY(CONN_RESPOND) | MAY(CONN_LINGER) |
                     MAY(CONN_CLOSED),
    [CONN_STREAM] = MAY(CONN_CLOSED),
    [CONN_STATUS] = MAY(CONN_CLOSED),
    [CONN_LINGER] = MAY(CONN_CLOSED),
    [CONN_CLOSED] = MAY(CONN_FREE),
};

static void conn_set_state(struct http *http, struct conn *conn,
                           enum conn_state state)
{
    assert(next_states[conn->state] & MAY(state));
    http->in_state[conn->state]--;
    http->in_state[state]++;
    conn->state = (uint8_t)state;
}

static void conn_set_interest(struct http *http, struct conn *conn,
                              uint32_t interest)
{
    uint32_t fd = conn_fd(http, conn);
    struct epoll_event event = { .events = interest, .data.u32 = fd };
    int operation = EPOLL_CTL_MOD;

    if (conn->interest == interest)
        return;
    /* epoll reports the end of a pipe even without interest, so standard input
     * is taken out. A file, which epoll refuses (EPERM), can always be read. */
    if (conn->flags & FLAG_INPUT)
        operation = interest ? EPOLL_CTL_ADD : EPOLL_CTL_DEL;
    conn->interest = (uint16_t)interest;
    /* MOD cannot fail: the descriptor was added, and no memory is needed */
    epoll_ctl(http->epoll, operation, (int)fd, &event);
}

/* An IPv4 address is kept as IPv6 maps it (RFC 4291, section 2.5.5.2). */
static void set_peer(struct conn *conn, const struct sockaddr_storage *peer)
{
    const struct sockaddr_in *v4 = (const void *)peer;
    const struct sockaddr_in6 *v6 = (const void *)peer;

    if (peer->ss_family == AF_INET6) {
        conn->address = v6->sin6_addr;
        conn->port = ntohs(v6->sin6_port);
    } else if (peer->ss_family == AF_INET) {
        conn->address.s6_addr[10] = conn->address.s6_addr[11] = 0xFF;
        memcpy(&conn->address.s6_addr[12], &v4->sin_addr, 4);
        conn->port = ntohs(v4->sin_port);
    } else {
        conn->flags |= FLAG_UNIX;
    }
}

static void conn_set_busy(struct conn *conn, bool busy)
{
    conn->flags &= (uint8_t)~FLAG_BUSY;
    conn->flags |= busy ? FLAG_BUSY : 0;
}

/* Moves a connection to the end of a queue, or to the end of the queue of busy
 * ones, which is the next one in the enum. */
static void requeue(struct http *http, struct conn *conn, enum queue_name name,
                    bool busy)
{
    queue_remove(http, conn);
    queue_push(http, busy ? name + 1 : name, conn);
}

/* Has a connection looked at when others have had their visit. */
static void work_push(struct http *http, struct conn *conn)
{
    requeue(http, conn, QUEUE_WORK, conn->flags & FLAG_BUSY);
}

/* Has a connection's answers sent. Files take longer than other answers, so
 * they are in the queue that is served last. */
static void answers_push(struct http *http, struct conn *conn)
{
    requeue(http, conn, QUEUE_ANSWERS,
            (conn->flags & FLAG_BUSY) || conn->exchange->file_left ||
                conn->exchange->makes);
}

struct in6_addr conn_network(const struct conn *conn)
{
    struct in6_addr network = conn->address;

    if (!IN6_IS_ADDR_V4MAPPED(&network))
        memset(&network.s6_addr[8], 0, 8);
    return network;
}

/* Whether the connection counts for its network. */
static bool is_counted(const struct http *http, const struct conn *conn)
{
    return http->networks &&
           !(conn->flags & (FLAG_UNIX | FLAG_OWN | FLAG_ADMIN));
}

/* Counts a connection that has begun (1) or ended (-1). */
static void count_conn(struct http *http, const struct conn *conn, int change)
{
    if (conn->flags & FLAG_ADMIN)
        http->admin_connections += (uint32_t)change;
    else if (!(conn->flags & FLAG_OWN))
        http->connections += (uint32_t)change;
}

static void reap(struct http *http)
{
    while (http->queues[QUEUE_CLOSED].count) {
        struct conn *conn = queue_pop(http, QUEUE_CLOSED);

        conn_set_state(http, conn, CONN_FREE);
        if (!(conn->flags & FLAG_INPUT)) {
            struct in6_addr network = conn_network(conn);

            count_conn(http, conn, -1);
            if (is_counted(http, conn))
                network_remove(http->networks, &network);
            close((int)conn_fd(http, conn));
            continue;
        }
        /* standard input itself stays open: other processes may have it */
        conn_set_interest(http, conn, 0);
        if (http->input_fd != STDIN_FILENO)
            close(http->input_fd);
    }
}

void conn_await_room(struct http *http, struct conn *conn, bool awaits)
{
    conn_set_interest(http, conn, READABLE | (awaits ? EPOLLOUT : 0));
}

bool conn_is_local(const struct conn *conn)
{
    const uint8_t *bytes = conn->address.s6_addr;

    return (conn->flags & FLAG_UNIX) || IN6_IS_ADDR_LOOPBACK(&conn->address) ||
           (IN6_IS_ADDR_V4MAPPED(&conn->address) && bytes[12] == 127);
}

const char *conn_peer(char *buffer, const struct conn *conn)
{
    bool v4 = IN6_IS_ADDR_V4MAPPED(&conn->address);
    char host[INET6_ADDRSTRLEN];

    if (conn->flags & FLAG_UNIX)
        return "unix";
    inet_ntop(v4 ? AF_INET : AF_INET6, &conn->address.s6_addr[v4 ? 12 : 0],
              host, sizeof(host));
    snprintf(buffer, PEER_SIZE, v4 ? "%s:%u" : "[%s]:%u", host, conn->port);
    return buffer;
}

static void conn_release_exchange(struct http *http, struct conn *conn)
{
    if (conn->exchange)
        exchange_release(http, conn->exchange);
    conn->exchange = NULL;
}

void conn_close(struct http *http, struct conn *conn, const char *reason)
{
    if (conn->state == CONN_CLOSED)
        return;
    http->handlers->closing(http->server, conn, reason);
    if (conn->state != CONN_STREAM && conn->state != CONN_STATUS)
        conn_release_exchange(http, conn);
    timer_stop(http, conn);
    queue_remove(http, conn);
    conn_set_state(http, conn, CONN_CLOSED);
    queue_push(http, QUEUE_CLOSED, conn);
}

/* Has close(2) reset the connection, so that nothing of it is left. */
static void reset_at_close(int fd)
{
    struct linger none = { .l_onoff = 1, .l_linger = 0 };

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
}

void conn_cut(struct http *http, struct conn *conn, const char *reason)
{
    reset_at_close((int)conn_fd(http, conn));
    conn_close(http, conn, reason);
}

void conn_wait(struct http *http, struct conn *conn, enum queue_name queue)
{
    bool busy = queue == QUEUE_WAITING && (conn->flags & FLAG_BUSY);

    if (conn->state != CONN_WAITING)
        conn_set_state(http, conn, CONN_WAITING);
    timer_stop(http, conn);
    if (queue == QUEUE_NONE)
        queue_remove(http, conn);
    else if (conn->queue != (uint8_t)(queue + busy))
        requeue(http, conn, queue, busy);
}

void conn_go_on(struct http *http, struct conn *conn)
{
    if (conn->state != CONN_WAITING)
        return;
    conn_set_interest(http, conn, READABLE);
    conn_set_state(http, conn, CONN_BODY);
    conn->exchange->left = true;
    work_push(http, conn);
}

void conn_park(struct http *http, struct conn *conn, uint64_t patience)
{
    conn_set_state(http, conn, CONN_WAITING);
    queue_remove(http, conn);
    queue_push(http, QUEUE_LOG, conn);
    if (patience)
        timer_start(http, conn, patience);
}

void conn_resume(struct http *http, struct conn *conn)
{
    queue_remove(http, conn);
    conn_set_state(http, conn, CONN_REQUEST);
    http->handlers->request(http->server, conn);
}

void conn_begin_stream(struct http *http, struct conn *conn,
                       enum conn_state state)
{
    queue_remove(http, conn);
    timer_stop(http, conn);
    exchange_release(http, conn->exchange);
    conn_set_state(http, conn, state);
    conn->subscriber = (struct subscriber){ 0 };
}

/* ---------------------------------------------------------------- accepting
 *
 * New connections. When descriptors run out, or there are as many connections
 * as there may be, nothing is accepted for ACCEPT_PAUSE; clients wait in the
 * kernel's queue meanwhile. SURPLUS more than --max-connections are accepted,
 * so that those clients get an answer that says why they are refused. So are
 * ADDRESS_SURPLUS more than --max-per-address, of each network; what comes
 * beyond that is reset at once. A file that is being sent takes the place of a
 * connection, since it has a descriptor as well, or of half the surplus. The
 * listener of --admin has places of its own, and is accepted from while all
 * others are taken.
 *
 * Callers: http_event(), http_end_turn().
 */

/* Pauses accepting or goes on: by the listener of --admin, and by others. */
static void accept_pause(struct http *http, bool pause, bool pause_admin)
{
    http->accepting = !pause;
    http->accept_again = http->now + ACCEPT_PAUSE;
    for (unsigned i = 0; i < http->listener_count; i++) {
        int fd = http->listeners[i].fd;
        struct conn *conn = conn_at(http, fd < 0 ? 0 : (uint32_t)fd);
        uint32_t interest = EPOLLIN;

        if (conn->flags & FLAG_ADMIN ? pause_admin : pause)
            interest = 0;
        if (fd >= 0)
            conn_set_interest(http, conn, interest);
    }
}

/* Decides what a new connection may do. False: there are too many from where it
 * comes. */
static bool admit(struct http *http, struct conn *conn)
{
    struct in6_addr network = conn_network(conn);
    uint64_t count;

    if (conn->flags & FLAG_ADMIN) {
        http->limits_hit[LIMIT_ADMIN] += http->admin_connections >= ADMIN_MAX;
        return http->admin_connections < ADMIN_MAX;
    }
    if (http->connections >= http->max_connections) {
        conn->flags |= FLAG_SURPLUS;
        http->limits_hit[LIMIT_CONNECTIONS]++;
    }
    if (!is_counted(http, conn))
        return true;
    count = network_find(http->networks, &network)->count;
    if (count < http->max_per_address)
        return true;
    conn->flags |= FLAG_SURPLUS | FLAG_CROWDED;
    http->limits_hit[LIMIT_ADDRESS]++;
    http->handlers->crowded(http->server, conn);
    return count < http->max_per_address + ADDRESS_SURPLUS;
}

/* Begins a connection on a descriptor that was just accepted; returns 0 or an
 * errno. The table has no entry for it if the limit on descriptors has been
 * raised from outside, prlimit(2), since the start. */
static int conn_open(struct http *http, int fd,
                     const struct sockaddr_storage *peer, uint8_t flags)
{
    struct epoll_event event = { .events = READABLE, .data.u32 = (uint32_t)fd };
    struct conn new = { .flags = FLAG_BUSY | flags, .interest = READABLE };
    bool fits = (uint32_t)fd < http->conn_limit;
    struct in6_addr network;
    struct conn *conn;

    set_peer(&new, peer);
    if (!admit(http, &new)) {
        reset_at_close(fd);
        close(fd);
        return 0;
    }
    if (!fits || epoll_ctl(http->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        int error = fits ? errno : EMFILE;

        close(fd);
        return error;
    }
    conn = conn_at(http, (uint32_t)fd);
    *conn = new;
    network = conn_network(conn);
    if (is_counted(http, conn))
        network_add(http->networks, &network);
    count_conn(http, conn, 1);
    if (http->conn_end <= (uint32_t)fd)
        http->conn_end = (uint32_t)fd + 1;
    conn_set_state(http, conn, CONN_REQUEST);
    timer_start(http, conn, http->head_timeout);
    /* most clients send the request at once, so it is looked for in this turn:
     * otherwise it would wait until what sse.c does between turns is done */
    work_push(http, conn);
    return 0;
}

static bool is_full(const struct http *http)
{
    return http->connections + http->files >= http->max_connections + SURPLUS;
}

static void accept_all(struct http *http, int listener)
{
    uint8_t flags = conn_at(http, (uint32_t)listener)->flags;

    for (int i = 0; i < ACCEPTS_MAX; i++) {
        struct sockaddr_storage peer = { 0 };
        socklen_t length = sizeof(peer);
        bool full = !(flags & FLAG_ADMIN) && is_full(http);
        int error = 0;

        if (!full) {
            int fd = accept4(listener, (struct sockaddr *)&peer, &length,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);

            error = fd < 0 ? errno : conn_open(http, fd, &peer, flags);
        }
        if (error == EAGAIN)
            return;
        if (full || (error && error != EINTR && error != ECONNABORTED)) {
            /* told once, and not again while one pause follows another */
            if (http->now >= http->accept_again + 1000)
                http->handlers->accept_paused(http->server, error);
            http->limits_hit[LIMIT_ACCEPT]++;
            accept_pause(http, true, flags & FLAG_ADMIN);
            return;
        }
    }
}

/* ----------------------------------------------------------------- answers
 *
 * respond() puts answers into exchange->out, one behind the other, while
 * requests are worked on. send_answers() sends them later in the turn, all of a
 * connection's with one call, after what they promise has become true. A file
 * is sent from where it is, after the answers in `out`; the next request is
 * parsed when the file has been sent.
 *
 * A request is parsed only when there is room for its answer, so respond()
 * cannot fail. What becomes of the connection is decided in send_answers(),
 * which sets interest and timer; until then head_timeout runs.
 *
 * Callers: sse.c's handlers, for the respond functions; request_step() and
 * conn_expired(); http_serve(); sse.c's delivery, for stream_send_iovecs().
 */

void respond(struct http *http, struct conn *conn, struct response *response,
             struct slice content)
{
    struct exchange *exchange = conn->exchange;
    char *out = exchange->out.bytes + exchange->out.end;
    size_t room = exchange->out.room - exchange->out.end, length;

    /* what is left of a body would be taken for the next request */
    response->close = response->close || exchange->request.close ||
                      exchange->body.state != BODY_DONE;
    response->date = http->date;
    length = http_head(out, room, response);
    if (!length || room - length < content.length) {
        *response = (struct response){ .status = 500,
                                       .close = true,
                                       .date = http->date };
        content.length = 0;
        length = http_head(out, room, response);
    }
    if (exchange->request.method != METHOD_HEAD) {
        memcpy(out + length, content.data, content.length);
        length += content.length;
    }
    exchange->out.end += length;
    exchange->close = response->close;
    http->handlers->answered(http->server, conn, response->status,
                             response->length);
    exchange->request = (struct request){ 0 };
    exchange->piece.length = 0;
    exchange->streams = false;
    conn_set_state(http, conn, CONN_REQUEST);
    timer_start(http, conn, http->head_timeout);
    answers_push(http, conn);
}

void respond_text(struct http *http, struct conn *conn,
                  struct response response, const char *text)
{
    char line[256];
    int length = snprintf(line, sizeof(line), "%s\n", text);

    response.type = "text/plain; charset=utf-8";
    response.length = (uint64_t)length;
    respond(http, conn, &response, (struct slice){ line, (size_t)length });
}

/* What the answers promise must be true before they are sent. If it cannot be
 * made true, the answers from the first that promises are taken back, a 503
 * takes their place, and the connection ends: false. */
static bool keep_promises(struct http *http, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    const char *why;

    if (!exchange->promises)
        return true;
    exchange->promises = false;
    why = http->handlers->keep_promises(http->server);
    if (!why)
        return true;
    exchange->out.end = exchange->promise;
    exchange_drop_file(http, exchange);
    respond_text(http, conn, (struct response){ .status = 503, .close = true },
                 why);
    return false;
}

/* Puts the next piece of content into `out`, which is empty. False if others
 * have their turn first. */
static bool make_content(struct http *http, struct conn *conn)
{
    static const char last[] = "0\r\n\r\n";
    enum {
        HEAD = 10,
        TAIL = 2 + sizeof(last)
    };
    struct exchange *exchange = conn->exchange;
    struct buffer *out = &exchange->out;
    struct text text = { out->bytes + HEAD, out->room - HEAD - TAIL, 0 };

    exchange->makes = http->handlers->content(http->server, conn, &text);
    out->start = HEAD;
    out->end = HEAD + text.length;
    if (exchange->chunked && text.length) {
        char size[HEAD + 1];

        snprintf(size, sizeof(size), "%08x\r\n", (unsigned)text.length);
        memcpy(out->bytes, size, HEAD);
        out->start = 0;
        memcpy(out->bytes + out->end, "\r\n", 2);
        out->end += 2;
    }
    if (exchange->chunked && !exchange->makes) {
        memcpy(out->bytes + out->end, last, strlen(last));
        out->end += strlen(last);
    }
    if (out->start == out->end)
        out->start = out->end = 0;
    return text.length > 0 || !exchange->makes;
}

/* Sends until all is sent, the socket is full, or it is others' turn. MSG_MORE
 * puts a head into one segment with the file's first bytes. */
static enum io write_answers(struct http *http, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct buffer *out = &exchange->out;
    int fd = (int)conn_fd(http, conn);

    for (size_t total = 0;
         buffer_length(out) > 0 || exchange->file_left || exchange->makes;) {
        size_t length = buffer_length(out);
        size_t part = exchange->file_left < SEND_BUDGET ? exchange->file_left
                                                        : SEND_BUDGET;
        off_t at = (off_t)exchange->file_at;
        ssize_t sent;

        if (total >= SEND_BUDGET)
            return IO_BUDGET;
        if (!length && exchange->makes) {
            if (!make_content(http, conn))
                return IO_BUDGET;
            continue;
        }
        if (length)
            sent = send(fd, out->bytes + out->start, length,
                        MSG_NOSIGNAL | (exchange->file_left ? MSG_MORE : 0));
        else if (exchange->file.data)
            sent = send(fd, exchange->file.data + at, part, MSG_NOSIGNAL);
        else
            sent = sendfile(fd, exchange->file.fd, &at, part);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return IO_FULL;
        if (sent <= 0) /* 0: the file has become shorter */
            return IO_ERROR;
        total += (size_t)sent;
        if (length) {
            out->start += (size_t)sent;
            if (out->start == out->end)
                out->start = out->end = 0;
        } else {
            exchange->file_at += (size_t)sent;
            exchange->file_left -= (size_t)sent;
        }
    }
    return IO_DONE;
}

/* All answers have been sent: what has arrived after the request is looked at,
 * or the next request is waited for, or the connection ends. */
static void answers_sent(struct http *http, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;

    exchange_drop_file(http, exchange);
    conn_set_interest(http, conn, READABLE);
    conn_set_state(http, conn, exchange->close ? CONN_LINGER : CONN_REQUEST);
    exchange->left = buffer_length(&exchange->in) > 0;
    if (exchange->close) {
        /* to close with bytes of the peer unread would reset the connection,
         * and the answer could be lost: RFC 9112, section 9.6 */
        conn_release_exchange(http, conn);
        shutdown((int)conn_fd(http, conn), SHUT_WR);
        timer_start(http, conn, LINGER);
    } else if (exchange->left) {
        conn_set_busy(conn, true);
        work_push(http, conn);
    } else {
        conn_release_exchange(http, conn);
        timer_start(http, conn, http->idle_timeout);
    }
}

/* Sends the answers that wait. The requests after them are looked at when
 * others have had their visit. */
static void send_answers(struct http *http, struct conn *conn)
{
    enum io outcome;

    keep_promises(http, conn);
    queue_remove(http, conn); /* a 503 of keep_promises() queues it again */
    outcome = write_answers(http, conn);
    if (outcome == IO_ERROR) {
        conn_cut(http, conn, "cannot send");
        return;
    }
    if (conn->state == CONN_BODY) { /* a 100, or answers to requests before */
        conn_await_room(http, conn, outcome == IO_FULL);
        if (conn->exchange->left && outcome != IO_BUDGET)
            work_push(http, conn);
    } else if (outcome == IO_DONE) {
        answers_sent(http, conn);
    } else {
        conn_set_state(http, conn, CONN_RESPOND);
        conn_set_interest(http, conn, outcome == IO_FULL ? EPOLLOUT : 0);
        timer_start(http, conn, http->idle_timeout);
    }
    if (outcome == IO_BUDGET)
        answers_push(http, conn);
}

void respond_promise(struct http *http, struct conn *conn,
                     struct response *response, struct slice content)
{
    struct exchange *exchange = conn->exchange;

    if (!exchange->promises)
        exchange->promise = exchange->out.end;
    exchange->promises = true;
    respond(http, conn, response, content);
}

void respond_error(struct http *http, struct conn *conn, int status,
                   const char *text)
{
    respond_text(http, conn, (struct response){ .status = status }, text);
}

void respond_method(struct http *http, struct conn *conn, const char *allow)
{
    struct response response = { .status = 204, .allow = allow };
    char text[128];

    if (conn->exchange->request.method == METHOD_OPTIONS) {
        respond(http, conn, &response, SLICE(""));
        return;
    }
    response.status = 405;
    snprintf(text, sizeof(text), "this resource takes %s", allow);
    respond_text(http, conn, response, text);
}

void respond_made(struct http *http, struct conn *conn,
                  struct response *response)
{
    struct exchange *exchange = conn->exchange;
    struct buffer *out = &exchange->out;
    bool head_only = exchange->request.method == METHOD_HEAD;

    response->made = true;
    response->chunked = exchange->request.minor > 0;
    response->close = !response->chunked;
    respond(http, conn, response, SLICE(""));
    if (head_only)
        return;
    /* without memory the pieces are smaller */
    memory_grow(http, &out->bytes, &out->room, OUT_SIZE);
    exchange->makes = true;
    exchange->chunked = response->chunked;
    conn_set_state(http, conn, CONN_RESPOND);
    answers_push(http, conn);
}

size_t stream_head(struct http *http, struct conn *conn,
                   struct response *response, char *bytes, size_t size)
{
    const struct buffer *out = &conn->exchange->out;
    size_t length;

    if (!keep_promises(http, conn))
        return 0;
    length = buffer_length(out);
    memcpy(bytes, out->bytes + out->start, length);
    response->date = http->date;
    return length + http_head(bytes + length, size - length, response);
}

void respond_page(struct http *http, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    enum method method = exchange->request.method;
    struct response response = { .location = exchange->request.path };
    bool is_admin = conn->flags & FLAG_ADMIN;
    int root = is_admin ? ROOT_ADMIN : http->root;

    if (method != METHOD_OPTIONS)
        response.status =
            -http_file_open(&exchange->file, root, exchange->request.path);
    if (response.status == 0 && exchange->file.fd >= 0 &&
        ++http->files + http->connections >
            http->max_connections + SURPLUS / 2) {
        exchange_drop_file(http, exchange);
        response.status = 503;
    }
    if (response.status == 0 && method != METHOD_GET && method != METHOD_HEAD) {
        exchange_drop_file(http, exchange);
        respond_method(http, conn, "GET, HEAD, OPTIONS");
        return;
    }
    if (response.status != 301)
        response.location.length = 0;
    if (response.status != 0) {
        respond_text(http, conn, response,
                     response.status == 301
                         ? "this is a folder: its path ends in a slash"
                     : response.status != 404 ? "no descriptor is free for it"
                     : is_admin ? "here are /, /status, /metrics, /topics "
                                  "and /healthz; --listen serves all else"
                                : "there is no such page");
        return;
    }
    http_file_response(&exchange->file, &exchange->request, &response,
                       &exchange->file_at);
    respond(http, conn, &response, SLICE(""));
    if (method == METHOD_HEAD || response.status == 304 ||
        response.length == 0) {
        exchange_drop_file(http, exchange);
        return;
    }
    exchange->file_left = response.length;
    conn_set_state(http, conn, CONN_RESPOND);
    answers_push(http, conn);
}

/* Most calls have one piece. For one, send(2) costs the kernel less than
 * writev(2). Small pieces are joined: an iovec costs it more than the copy. */
ssize_t stream_send_iovecs(const struct http *http, const struct conn *conn,
                           const struct iovec *iov, int count, size_t bytes)
{
    static char joined[IOV_ROOM * PIECE_SMALL];
    int fd = (int)conn_fd(http, conn);
    const char *one = NULL;
    ssize_t sent;

    if (count == 1) {
        one = iov->iov_base;
    } else if (bytes < (size_t)count * PIECE_SMALL) {
        char *end = joined;

        for (int i = 0; i < count; i++) {
            memcpy(end, iov[i].iov_base, iov[i].iov_len);
            end += iov[i].iov_len;
        }
        one = joined;
    }
    do
        sent =
            one ? send(fd, one, bytes, MSG_NOSIGNAL) : writev(fd, iov, count);
    while (sent < 0 && errno == EINTR);
    return sent;
}

/* ------------------------------------------------- requests and their bodies
 *
 * Reading, and working on what has been read, a step at a time: a request that
 * has arrived whole, or a piece of a body. A visit reads once and makes steps
 * until the bytes are used up, something has to be waited for, or VISIT is
 * over. What is left waits until other connections have had their visit.
 *
 * exchange->left: `in` has bytes that no step has looked at. The next visit
 * goes on with them and does not read. A connection becomes busy when its bytes
 * take more than a visit or fill the buffer; a read that brings less ends that.
 *
 * Callers: http_serve(), for visits; sse.c's handlers, for conn_begin_body().
 */

/* Whether a read that has returned `n` is to be made again later. */
static bool is_not_yet(ssize_t n)
{
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

/* Takes in a request that has arrived whole, if there is room for its answer.
 * False if there is none. */
static bool request_step(struct http *http, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct buffer *in = &exchange->in, *out = &exchange->out;
    size_t twice = out->room * 2;
    ssize_t taken;

    if (exchange->close)
        return false;
    if (out->room - out->end < OUT_ROOM)
        memory_grow(http, &out->bytes, &out->room,
                    twice < OUT_SIZE ? twice : OUT_SIZE);
    if (out->room - out->end < OUT_ROOM) /* there is room if none waits */
        return false;
    taken = http_parse(in->bytes + in->start, buffer_length(in),
                       &exchange->request);
    exchange->body.state = BODY_DONE;
    if (taken < 0) {
        exchange->request.close = true;
        respond_error(http, conn, (int)-taken, exchange->request.error);
    } else if (taken > 0) {
        in->start += (size_t)taken;
        http_body_init(&exchange->body, &exchange->request);
        http->handlers->request(http->server, conn);
        http->steps += STEP_EVENTS;
    }
    return taken != 0;
}

/* Takes in a piece of a body, or finds the next one in what has arrived. False
 * if that is used up. */
static bool body_step(struct http *http, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct buffer *in = &exchange->in;
    struct slice data;
    ssize_t taken;

    if (exchange->piece.length > 0 || exchange->body.state == BODY_DONE) {
        http->handlers->body(http->server, conn);
        return true;
    }
    data = (struct slice){ in->bytes + in->start, buffer_length(in) };
    taken = http_body_read(&exchange->body, data, &exchange->piece);
    if (taken < 0) {
        http->handlers->body_failed(http->server, conn, 400,
                                    "a chunk is malformed");
        return true;
    }
    in->start += (size_t)taken;
    return taken > 0 || exchange->body.state == BODY_DONE;
}

/* Begins an exchange on a connection that has none now. */
static bool conn_begin_exchange(struct http *http, struct conn *conn)
{
    timer_start(http, conn, http->head_timeout);
    conn->exchange = exchange_take(http, conn->flags & FLAG_ADMIN);
    if (conn->exchange)
        return true;
    if (errno == EAGAIN) {
        queue_push(http, QUEUE_STARVED, conn);
        conn_set_interest(http, conn, 0);
    } else {
        conn_close(http, conn, "no memory");
    }
    return false;
}

/* As read(2). Standard input must not be waited for either: another process
 * that reads it may have taken what epoll has reported. Its end is a body's
 * end. */
static ssize_t conn_receive(struct http *http, struct conn *conn, char *bytes,
                            size_t size)
{
    struct exchange *exchange = conn->exchange;
    struct pollfd data = { .fd = STDIN_FILENO, .events = POLLIN };
    ssize_t n = -1;

    if (!(conn->flags & FLAG_INPUT))
        return read((int)conn_fd(http, conn), bytes, size);
    if (http->input_is_socket)
        n = recv(STDIN_FILENO, bytes, size, MSG_DONTWAIT);
    else if (http->input_fd == STDIN_FILENO && poll(&data, 1, 0) == 0)
        errno = EAGAIN; /* open_input() could not make it non-blocking */
    else
        n = read(http->input_fd, bytes, size);
    if (n > 0 || is_not_yet(n))
        return n;
    exchange->error = n < 0 ? errno : 0;
    exchange->body.state = BODY_DONE;
    return 0;
}

/* Reads as much as there is room for. If that fills the room, there is more
 * room next time. False if nothing has come, or if the connection has ended. */
static bool conn_fill(struct http *http, struct conn *conn)
{
    bool first = !conn->exchange;
    struct buffer *in;
    ssize_t n;

    if (first && !conn_begin_exchange(http, conn))
        return false;
    in = &conn->exchange->in;
    if (in->start > 0) { /* to have room behind what has not been parsed */
        in->end -= in->start;
        memmove(in->bytes, in->bytes + in->start, in->end);
        in->start = 0;
    }
    if (in->end == in->room) {
        conn->exchange->request.close = true;
        http->handlers->body_failed(
            http->server, conn, 503,
            "no memory for requests now: --request-memory");
        return false;
    }
    n = conn_receive(http, conn, in->bytes + in->end, in->room - in->end);
    if (n == 0 && (conn->flags & FLAG_INPUT))
        return true;
    if (n <= 0 && !is_not_yet(n)) {
        conn_close(http, conn, "closed");
    } else if (n < 0 && first) {
        conn_release_exchange(http, conn);
        conn_set_interest(http, conn, READABLE);
    }
    if (n <= 0)
        return false;
    in->end += (size_t)n;
    conn_set_busy(conn, in->end == in->room || conn->exchange->streams);
    /* without memory it goes on with the room that there is */
    if (in->end == in->room && in->room < HEAD_MAX)
        memory_grow(http, &in->bytes, &in->room, in->room * 2);
    return true;
}

/* Whether other connections are to have their visit. The clock is read after
 * each request, but only after some pieces of a body: they are that short. */
static bool visit_is_over(struct http *http)
{
    if (++http->steps < STEP_EVENTS)
        return false;
    http->steps = 0;
    return clock_us(CLOCK_MONOTONIC) >= http->visit_end;
}

/* A streamed body that is silent, with all that came taken in, keeps no memory
 * beyond IN_FIRST: there can be one for each connection. */
static void shrink(struct http *http, struct conn *conn)
{
    struct buffer *in = &conn->exchange->in;
    char *smaller;

    if (!conn->exchange->streams || buffer_length(in) > 0)
        return;
    http->handlers->silent(http->server, conn);
    if (in->room == IN_FIRST)
        return;
    smaller = bytes_move(in->bytes, in->room, IN_FIRST);
    if (!smaller)
        return;
    memory_return(http, memory_cost(in->room) - memory_cost(IN_FIRST));
    in->bytes = smaller;
    in->room = IN_FIRST;
}

/* After the steps, what comes next for the connection: its answers are sent, or
 * another visit, or epoll is asked. A busy body is read until nothing comes. */
static void conn_visit(struct http *http, struct conn *conn)
{
    bool came =
        (conn->exchange && conn->exchange->left) || conn_fill(http, conn);
    bool left = came, body;
    struct exchange *exchange;

    http->visit_end = clock_us(CLOCK_MONOTONIC) + VISIT;
    while (left && !visit_is_over(http))
        left = conn->state == CONN_REQUEST
                   ? request_step(http, conn)
                   : conn->state == CONN_BODY && body_step(http, conn);
    body = conn->state == CONN_BODY;
    if ((!body && conn->state != CONN_REQUEST) || !conn->exchange)
        return;
    exchange = conn->exchange;
    exchange->left = left && (body || buffer_length(&exchange->in) > 0);
    if (exchange->left)
        conn_set_busy(conn, true);
    if (buffer_length(&exchange->out) > 0)
        answers_push(http, conn);
    else if (exchange->left || (body && came && (conn->flags & FLAG_BUSY)))
        work_push(http, conn);
    else if (body)
        shrink(http, conn);
    if (conn->queue == QUEUE_NONE)
        conn_set_interest(http, conn, READABLE);
}

void conn_begin_body(struct http *http, struct conn *conn, bool streams,
                     uint64_t size)
{
    static const char asked[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct exchange *exchange = conn->exchange;
    struct buffer *out = &exchange->out;

    conn_set_state(http, conn, CONN_BODY);
    exchange->streams = streams;
    if (streams) {
        conn_set_busy(conn, true);
        timer_stop(http, conn);
    } else { /* a body that trickles in must not hold its memory for long */
        timer_start(http, conn, http->head_timeout + size * 1000 / BODY_RATE);
    }
    /* RFC 9110, section 10.1.1: no 100 if some of the body has arrived */
    if (!exchange->request.expect_continue || buffer_length(&exchange->in) > 0)
        return;
    memcpy(out->bytes + out->end, asked, strlen(asked));
    out->end += strlen(asked);
    answers_push(http, conn);
}

/* -------------------------------------------------------------- credentials
 *
 * The token that a request has to bear: one that is known, or one that is
 * signed with a secret and says itself what it allows. sse.c has the token or
 * the secret read from its file at the start and at SIGHUP. If the file is
 * refused, it stays as it was. No text for a client or the log has a byte of a
 * token in it.
 *
 * Callers: sse.c.
 */

/* Whether two looks at a file have found the same file, unchanged. */
static bool is_unchanged(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
           a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Reads a file, and refuses it if it is written or replaced meanwhile: half of
 * a token would be a valid token. NULL, or why it is refused. */
static const char *read_unchanged(const char *path, int fd, char *bytes,
                                  size_t size, size_t *length,
                                  struct stat *status)
{
    struct stat after, at_path;
    ssize_t n = 0;

    if (fstat(fd, status) < 0)
        return strerror(errno);
    if (!S_ISREG(status->st_mode))
        return "it is not a regular file";
    while (*length < size &&
           (n = read(fd, bytes + *length, size - *length)) > 0)
        *length += (size_t)n;
    if (n < 0 || fstat(fd, &after) < 0 || stat(path, &at_path) < 0)
        return strerror(errno);
    if (!is_unchanged(status, &after) || !is_unchanged(status, &at_path))
        return "it changed while it was read";
    return NULL;
}

/* Reads what a file has, without a line end behind it. `size` leaves room for
 * one, and for a byte more than there may be. Returns 0, or -1 with `error`. */
static int read_credential(const char *path, char *bytes, size_t size,
                           size_t *length, mode_t *mode, char error[ERROR_SIZE])
{
    const char *refused;
    struct stat status;
    /* O_NONBLOCK: opening a FIFO must not wait for its other end */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    *length = 0;
    if (fd < 0)
        return fail_with(error, "%s", strerror(errno));
    refused = read_unchanged(path, fd, bytes, size, length, &status);
    close(fd);
    if (refused)
        return fail_with(error, "%s", refused);
    *mode = status.st_mode;
    if (*length && bytes[*length - 1] == '\n')
        --*length;
    if (*length && bytes[*length - 1] == '\r')
        --*length;
    return 0;
}

int http_load_token(struct http *http, const char *path, mode_t *mode,
                    char error[ERROR_SIZE])
{
    char bytes[TOKEN_MAX + 3]; /* a line end, a byte too many */
    size_t length;

    if (read_credential(path, bytes, sizeof(bytes), &length, mode, error) < 0)
        return -1;
    if (length == 0)
        return fail_with(error, "it is empty");
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r')
            return fail_with(error, "it has more than one line");
        if ((unsigned char)bytes[i] <= ' ' || bytes[i] == 0x7F)
            return fail_with(error, "it has a blank or a control character");
    }
    if (length > TOKEN_MAX)
        return fail_with(error, "it has more than %d bytes", TOKEN_MAX);
    memcpy(http->token, bytes, length);
    http->token_length = length;
    return 0;
}

int http_load_secret(struct http *http, const char *path, mode_t *mode,
                     char error[ERROR_SIZE])
{
    char bytes[SECRET_MAX + 3]; /* a line end, a byte too many */
    size_t length;

    if (read_credential(path, bytes, sizeof(bytes), &length, mode, error) < 0)
        return -1;
    if (length < SECRET_MIN)
        return fail_with(error, "it has %zu bytes, and a secret %d or more",
                         length, SECRET_MIN);
    if (length > SECRET_MAX)
        return fail_with(error, "it has more than %d bytes", SECRET_MAX);
    hmac_key((struct slice){ bytes, length }, http->secret);
    http->has_secret = true;
    return 0;
}

/* The credentials of "Authorization: Bearer" (RFC 6750, section 2.1), which may
 * be empty. False if the field is another. */
static bool bearer(struct slice authorization, struct slice *token)
{
    struct slice scheme = slice_split(&authorization, ' ');

    *token = slice_trimmed(authorization);
    return slice_equals(scheme, "Bearer");
}

/* The value of the first cookie of that name (RFC 6265, section 4.2.1). */
static bool find_cookie(struct slice cookies, const char *name,
                        struct slice *value)
{
    while (cookies.length) {
        *value = slice_trimmed(slice_split(&cookies, ';'));
        if (!slice_is(slice_split(value, '='), name))
            continue;
        if (value->length > 1 && value->data[0] == '"' &&
            value->data[value->length - 1] == '"')
            *value = (struct slice){ value->data + 1, value->length - 2 };
        return true;
    }
    return false;
}

/* No branch depends on a byte, so the time does not tell how many are right. */
static bool bytes_match(struct slice given, const char *bytes, size_t length)
{
    size_t difference = given.length ^ length;

    for (size_t i = 0; i < given.length; i++)
        difference |=
            (unsigned char)given.data[i] ^ (unsigned char)bytes[i % length];
    return difference == 0;
}

bool http_token_matches(const struct http *http, const struct request *request)
{
    struct slice given;

    return bearer(request->authorization, &given) &&
           bytes_match(given, http->token, http->token_length);
}

bool http_find_token(const struct request *request,
                     char buffer[SIGNED_TOKEN_MAX + 1], struct slice *token)
{
    /* one that is cut has a byte more than a token may have */
    return bearer(request->authorization, token) ||
           find_cookie(request->cookie, "ssed_token", token) ||
           http_query(request->query, "token", buffer, SIGNED_TOKEN_MAX + 1,
                      token);
}

static void mac_of(const struct http *http, struct slice text,
                   uint8_t mac[SHA256_SIZE])
{
    assert(http->has_secret);
    hmac(http->secret, text, mac);
}

static void put_signature(const struct http *http, struct slice text,
                          char signature[SIGNATURE_SIZE])
{
    uint8_t mac[SHA256_SIZE];

    mac_of(http, text, mac);
    base64_encode((struct slice){ (const char *)mac, sizeof(mac) }, signature);
}

/* The one that is given is decoded: to encode the right one would take time
 * that depends on its bytes. */
static bool is_signature(const struct http *http, struct slice text,
                         struct slice signature)
{
    uint8_t mac[SHA256_SIZE];
    char given[SHA256_SIZE];

    if (signature.length != SIGNATURE_SIZE ||
        base64_decode(signature, given) < 0)
        return false;
    mac_of(http, text, mac);
    return bytes_match((struct slice){ given, sizeof(given) },
                       (const char *)mac, sizeof(mac));
}

const char *http_verify_token(const struct http *http, struct slice token,
                              uint64_t time, struct rights *rights)
{
    struct slice signature = token, header = slice_split(&signature, '.');
    struct slice payload = slice_split(&signature, '.');
    struct slice text = { token.data, header.length + 1 + payload.length };
    struct claims claims = { .json = { 0 } };
    const char *refused;

    if (token.length > SIGNED_TOKEN_MAX)
        return "a token has at most 8192 bytes";
    if (!header.length || !payload.length || !signature.length ||
        memchr(signature.data, '.', signature.length))
        return "a token has three parts with a dot between them";
    if (!is_signature(http, text, signature))
        return "the token's signature is wrong";
    refused = read_part(&claims, header, rights->bytes, take_header);
    if (!refused && !claims.is_hs256)
        return "the token's header has no alg";
    if (!refused)
        refused = read_part(&claims, payload, rights->bytes, take_claim);
    if (refused)
        return refused;
    if (!claims.expires)
        return "the token has no exp";
    if ((double)time > claims.exp + TOKEN_LEEWAY)
        return "the token has expired";
    if ((double)time + TOKEN_LEEWAY < claims.nbf)
        return "the token is not valid yet";
    rights->expires = (uint64_t)claims.exp;
    rights->read = claims.read;
    rights->write = claims.write;
    return NULL;
}

/* A pattern that is malformed covers no topic, since no topic has such a name
 * or such a prefix. */
bool patterns_cover(struct slice patterns, struct slice topic)
{
    while (patterns.length) {
        struct slice pattern = slice_split(&patterns, '\0');
        size_t length = pattern.length;
        bool is_prefix = length > 1 && pattern.data[length - 2] == '/' &&
                         pattern.data[length - 1] == '*';

        if (is_prefix)
            length--;
        if (slice_is(pattern, "*") ||
            ((is_prefix ? topic.length > length : topic.length == length) &&
             (length == 0 || memcmp(pattern.data, topic.data, length) == 0)))
            return true;
    }
    return false;
}

size_t http_sign(const struct http *http, struct slice claims, char *token,
                 size_t size)
{
    /* {"alg":"HS256","typ":"JWT"} and a dot */
    static const char header[] = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.";
    size_t length = sizeof(header) - 1;

    if (size < length + (claims.length * 4 + 2) / 3 + 1 + SIGNATURE_SIZE)
        return 0;
    memcpy(token, header, length);
    length += base64_encode(claims, token + length);
    token[length] = '.';
    put_signature(http, (struct slice){ token, length }, token + length + 1);
    return length + 1 + SIGNATURE_SIZE;
}

/* ------------------------------------------------------------ failed tokens
 *
 * How often each network has failed, in a table that does not grow. A network
 * has FAILURE_WAYS places, by its hash, and shares them with others. Where all
 * are taken, the one with the fewest failures is forgotten: so a flood from
 * many networks does not free the worst. A network is refused for its own
 * failures only, whatever others do.
 *
 * Callers: sse.c.
 */

enum {
    FAILURE_TIME = 60 * 1000, /* ms */
};

/* By a random key, so that nobody knows which networks share a set. Multiplied
 * by odd numbers: the top bits depend on all. */
static size_t failure_set(const struct http *http,
                          const struct in6_addr *network)
{
    uint64_t first, last;

    memcpy(&first, network->s6_addr, 8);
    memcpy(&last, network->s6_addr + 8, 8);
    return (first * (http->failure_key[0] | 1) ^
            last * (http->failure_key[1] | 1)) *
               UINT64_C(0xC2B2AE3D27D4EB4F) >>
           56;
}

static bool is_of_network(const struct failures *failures,
                          const struct in6_addr *network)
{
    return memcmp(&failures->network, network, sizeof(*network)) == 0;
}

unsigned http_failure_wait(const struct http *http, const struct conn *conn)
{
    struct in6_addr network = conn_network(conn);
    const struct failures *failures =
        http->failures[failure_set(http, &network)];

    if (conn_is_local(conn))
        return 0;
    for (size_t i = 0; i < FAILURE_WAYS; i++, failures++)
        if (is_of_network(failures, &network) && failures->until > http->now &&
            failures->count >= http->max_failures)
            return (unsigned)((failures->until - http->now + 999) / 1000);
    return 0;
}

void http_count_failure(struct http *http, const struct conn *conn)
{
    struct in6_addr network = conn_network(conn);
    struct failures *set = http->failures[failure_set(http, &network)];
    struct failures *place = set;

    if (conn_is_local(conn))
        return;
    for (size_t i = 0; i < FAILURE_WAYS; i++) {
        if (set[i].until <= http->now)
            set[i].count = 0;
        if (set[i].count && is_of_network(&set[i], &network)) {
            set[i].count++;
            return;
        }
        if (set[i].count < place->count)
            place = &set[i];
    }
    *place = (struct failures){ network, 1, http->now + FAILURE_TIME };
}

/* -------------------------------------------------------------- the shared log
 *
 * A Redis stream that several nodes share: what is said to Redis, and what its
 * replies mean. What an entry is for, and who waits for a flight, is sse.c's
 * business. The picture is in sse.h, at struct redis.
 *
 * Invariants:
 *
 * - The two connections are made and broken together, and lead to one run of
 *   one server: redis->run_id.
 * - The reader has one XRANGE under way at most. Where there may be nothing to
 *   read an XREAD goes before it, which Redis holds back until there is.
 * - Entries are handed on in order, each once, with one entry's memory.
 * - A flight is over when its entry has been read, and not before: who
 *   publishes here and then subscribes here finds the event. That entries were
 *   read without a hole since it began makes its id prove that.
 *
 * Callers: http_event(), http_serve() and http_next(); sse.c, to append.
 */

/* The greatest of Redis's clock, the last id + 1, the floor + 1 is the id. An
 * XADD that is refused for its id shows that the clock is behind. */
const char redis_script[] =
    "-- Appends an event to the log of ssed; returns its id, 0-N.\n"
    "-- KEYS[1]  the stream\n"
    "-- ARGV[1]  how many events to keep, about\n"
    "-- ARGV[2]  the newest N that the caller has seen, or 0\n"
    "-- ARGV[3]  and so on: fields and values: t topic, d data, e event name,\n"
    "--          r retry, k end or abort; or nothing but k begin: returns the\n"
    "--          newest id, and appends a begin only where the log needs one\n"
    "local time = redis.call('TIME')\n"
    "local ms = string.format('%.0f',\n"
    "    time[1] * 1000 + math.floor(time[2] / 1000))\n"
    "local id = math.max(time[1] * 1000000 + time[2], ARGV[2] + 1)\n"
    "\n"
    "local function last_id()\n"
    "  local info = redis.pcall('XINFO', 'STREAM', KEYS[1])\n"
    "  for i = 1, #info, 2 do\n"
    "    if info[i] == 'last-generated-id' then return info[i + 1] end\n"
    "  end\n"
    "end\n"
    "\n"
    "local function add(...)\n"
    "  local name = string.format('0-%.0f', id)\n"
    "  local added = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1],\n"
    "      name, 'm', ms, ...)\n"
    "  if type(added) ~= 'table' or not added.err then return added end\n"
    "  local last = last_id()\n"
    "  if not last then return added end\n"
    "  local high, low = string.match(last, '^(%d+)%-(%d+)$')\n"
    "  if high ~= '0' then\n"
    "    return redis.error_reply('SSED the newest id is ' .. last)\n"
    "  end\n"
    "  if tonumber(low) < id then return added end\n"
    "  id = tonumber(low) + 1\n"
    "  if id > 9007199254740991 then\n"
    "    return redis.error_reply('SSED all ids are used up')\n"
    "  end\n"
    "  return add(...)\n"
    "end\n"
    "\n"
    "-- The log begins (anew) where there is no stream, where it has not come\n"
    "-- as far as the caller has seen, and with each run of the server, since\n"
    "-- one that was restarted may have lost the end of it.\n"
    "local run = KEYS[1] .. ':run'\n"
    "\n"
    "local function run_id()\n"
    "  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')\n"
    "end\n"
    "\n"
    "local function begin()\n"
    "  local begun = add('k', 'begin')\n"
    "  if type(begun) == 'table' then return begun end\n"
    "  redis.call('SET', run, run_id())\n"
    "  id = id + 1\n"
    "  return begun\n"
    "end\n"
    "\n"
    "if ARGV[3] == 'k' and ARGV[4] == 'begin' then\n"
    "  local last = last_id()\n"
    "  local n = tonumber(string.match(last or '', '^0%-(%d+)$') or 2 ^ 53)\n"
    "  if last and n >= tonumber(ARGV[2]) and\n"
    "      redis.call('GET', run) == run_id() then\n"
    "    return last\n"
    "  end\n"
    "  return begin()\n"
    "end\n"
    "if redis.call('EXISTS', KEYS[1]) == 0 then\n"
    "  local begun = begin()\n"
    "  if type(begun) == 'table' then return begun end\n"
    "end\n"
    "return add(unpack(ARGV, 3))\n";

/* Errors that say what is to be done. After one that breaks, the connections
 * are made anew: they may then lead to another server. */
static const struct redis_error {
    const char *code, *meaning;
    bool breaks;
} redis_errors[] = {
    { "LOADING", "Redis is loading its data", true },
    { "MASTERDOWN", "Redis is a replica without its master", true },
    { "MISCONF", "Redis cannot write its file: see its log", false },
    { "NOAUTH", "Redis asks for a password: --redis-auth-file", true },
    { "NOPERM", "Redis does not permit it: the user's rights, ACL SETUSER",
      false },
    { "NOREPLICAS", "Redis has too few replicas: its min-replicas-to-write",
      false },
    { "OOM", "Redis has no memory left: its maxmemory, --redis-length", false },
    { "READONLY", "Redis is a replica: the log is where its master is", true },
    { "SSED",
      "the stream's newest entry has an id that is not 0-N: XDEL it, "
      "then XSETID to the newest 0-N",
      false },
    { "UNBLOCKED", "Redis has become a replica", true },
    { "WRONGPASS", "Redis does not accept what is in --redis-auth-file", true },
    { "WRONGTYPE",
      "the key is no stream: DEL or RENAME it, or take another --redis-key",
      true },
};

static const struct redis_error *find_error(struct slice line)
{
    static const struct redis_error other = { "", "Redis refuses it", false };
    const char *end = memchr(line.data, ' ', line.length);
    struct slice code = { line.data,
                          end ? (size_t)(end - line.data) : line.length };

    for (size_t i = 0; i < COUNT(redis_errors); i++)
        if (slice_is(code, redis_errors[i].code))
            return &redis_errors[i];
    return &other;
}

static void peer_drop(struct http *http, struct redis_peer *peer)
{
    struct conn *conn = peer->fd < 0 ? NULL : conn_at(http, (uint32_t)peer->fd);

    peer->fd = -1;
    if (!conn)
        return;
    conn_set_state(http, conn, CONN_CLOSED);
    queue_push(http, QUEUE_CLOSED, conn);
}

static struct flight *flight_at(struct redis *redis, uint64_t flight)
{
    return &redis->flights[flight % FLIGHTS_MAX];
}

/* Those at the front that are over, and have been answered, make room. */
static void flights_leave(struct redis *redis)
{
    while (redis->flight_first < redis->flight_answered &&
           flight_at(redis, redis->flight_first)->state == FLIGHT_OVER)
        redis->flight_first++;
}

static void flight_over(struct http *http, struct flight *flight,
                        enum flight_end end, const char *why)
{
    if (flight->state == FLIGHT_OVER)
        return;
    flight->state = FLIGHT_OVER;
    if (flight->context == &http->redis) /* ask_log() */
        http->redis.asks = end == FLIGHT_AGAIN;
    else
        http->handlers->flight_ended(http->server, flight->fd, flight->context,
                                     end, flight->id, why);
}

/* Whether a flight's event is in the log is not known any more; but one of
 * whose command no byte was sent, up to `sent` of all, is not. */
static void flights_lost(struct http *http, uint64_t sent, const char *why)
{
    struct redis *redis = &http->redis;

    for (uint64_t i = redis->flight_first; i < redis->flight_next; i++) {
        struct flight *flight = flight_at(redis, i);

        flight_over(http, flight,
                    flight->begin >= sent ? FLIGHT_REFUSED : FLIGHT_UNKNOWN,
                    why);
    }
}

/* Ends both connections for a while: longer each time until they have been
 * ready, and at random, so that nodes do not all come back at once. */
__attribute__((format(printf, 2, 3))) static void
redis_break(struct http *http, const char *format, ...)
{
    struct redis *redis = &http->redis;
    uint64_t pause = (uint64_t)REDIS_PAUSE << redis->failures;
    va_list arguments;

    if (redis->state == REDIS_RESTING)
        return;
    if (redis->failures < 6)
        redis->failures++;
    va_start(arguments, format);
    vsnprintf(redis->reason, sizeof(redis->reason), format, arguments);
    va_end(arguments);
    /* it is told in lines and in JSON, and may have Redis's own words */
    for (char *byte = redis->reason; *byte; byte++)
        if (*byte < ' ' || *byte > '~' || *byte == '"' || *byte == '\\')
            *byte = '\'';
    if (pause > REDIS_PAUSE_MAX)
        pause = REDIS_PAUSE_MAX;
    redis->again =
        http->now + pause / 2 + clock_us(CLOCK_MONOTONIC) % (pause / 2 + 1);
    redis->state = REDIS_RESTING;
    flights_lost(http,
                 redis->writer.out_total - buffer_length(&redis->writer.out),
                 redis->reason);
    redis->flight_first = redis->flight_answered = redis->flight_next;
    redis->asks = redis->entry_waits = false;
    peer_drop(http, &redis->writer);
    peer_drop(http, &redis->reader);
    http->handlers->log_changed(http->server);
}

static enum redis_reply peer_expects(const struct redis *redis,
                                     const struct redis_peer *peer)
{
    if (peer->expected_count)
        return peer->expected[0];
    if (peer == &redis->writer && redis->flight_answered < redis->flight_next)
        return REPLY_APPEND;
    return REPLY_NONE;
}

/* A number as text, in a buffer for 21 bytes. A command has a dozen of them:
 * with printf(3) they were a tenth of what publishing costs. */
static struct slice decimal(char text[21], uint64_t number)
{
    char *digit = text + 20;

    *digit = '\0';
    do
        *--digit = (char)('0' + number % 10);
    while (number /= 10);
    return slice_of(digit);
}

static void put_bytes(struct buffer *out, struct slice bytes)
{
    memcpy(out->bytes + out->end, bytes.data, bytes.length);
    out->end += bytes.length;
}

/* "*3\r\n" or "$3\r\n". */
static void put_length(struct buffer *out, char type, size_t length)
{
    char text[21];

    out->bytes[out->end++] = type;
    put_bytes(out, decimal(text, length));
    put_bytes(out, SLICE("\r\n"));
}

/* Has a command sent with the others of this turn. False if there is no room
 * for it now. */
static bool peer_say(struct http *http, struct redis_peer *peer,
                     enum redis_reply expected, const struct slice *words,
                     unsigned count)
{
    struct buffer *out = &peer->out;
    size_t size = WORD_REST;

    for (unsigned i = 0; i < count; i++)
        size += words[i].length + WORD_REST;
    if (out->room - out->end < size) {
        memmove(out->bytes, out->bytes + out->start, buffer_length(out));
        out->end -= out->start;
        out->start = 0;
    }
    if (out->room - out->end < size)
        return false;
    if (peer_expects(&http->redis, peer) == REPLY_NONE)
        peer->since = http->now;
    if (expected != REPLY_APPEND)
        peer->expected[peer->expected_count++] = expected;
    size = out->end;
    put_length(out, '*', count);
    for (unsigned i = 0; i < count; i++) {
        put_length(out, '$', words[i].length);
        put_bytes(out, words[i]);
        put_bytes(out, SLICE("\r\n"));
    }
    peer->out_total += out->end - size;
    return true;
}

static void say_script(struct http *http)
{
    const struct slice words[] = { SLICE("SCRIPT"), SLICE("LOAD"),
                                   slice_of(redis_script) };

    peer_say(http, &http->redis.writer, REPLY_SCRIPT, words, 3);
}

/* The entry that was read last, or what stands before all. */
static struct slice cursor_text(const struct redis *redis, char text[48])
{
    snprintf(text, 48, "%" PRIu64 "-%" PRIu64, redis->cursor_ms, redis->cursor);
    return slice_of(text);
}

static void say_range(struct http *http)
{
    struct redis *redis = &http->redis;
    char cursor[48];
    const struct slice words[] = {
        SLICE("XRANGE"), slice_of(redis->key), cursor_text(redis, cursor),
        SLICE("+"),      SLICE("COUNT"),       SLICE(RANGE_COUNT_TEXT)
    };

    redis->rounds_begun++;
    peer_say(http, &redis->reader, REPLY_RANGE, words, COUNT(words));
}

/* Waits until the log goes on, for REDIS_WAIT at the most, and then reads. */
static void say_wait(struct http *http)
{
    struct redis *redis = &http->redis;
    char cursor[48];
    const struct slice words[] = { SLICE("XREAD"),
                                   SLICE("COUNT"),
                                   SLICE("1"),
                                   SLICE("BLOCK"),
                                   SLICE(REDIS_WAIT_TEXT),
                                   SLICE("STREAMS"),
                                   slice_of(redis->key),
                                   cursor_text(redis, cursor) };

    peer_say(http, &redis->reader, REPLY_WAIT, words, COUNT(words));
    say_range(http);
}

uint64_t redis_append(struct http *http, const struct slice *pairs,
                      unsigned count, uint32_t fd, void *context)
{
    struct redis *redis = &http->redis;
    struct slice words[REDIS_WORDS_MAX];
    uint64_t begin = redis->writer.out_total;
    char length[21], floor[21];
    unsigned n = 0;

    assert(count + 6 <= REDIS_WORDS_MAX);
    if (!redis->sha[0] ||
        redis->flight_next - redis->flight_first >= FLIGHTS_MAX)
        return 0;
    words[n++] = SLICE("EVALSHA");
    words[n++] = slice_of(redis->sha);
    words[n++] = SLICE("1");
    words[n++] = slice_of(redis->key);
    words[n++] = decimal(length, redis->length);
    words[n++] = decimal(floor, redis->newest);
    for (unsigned i = 0; i < count; i++)
        words[n++] = pairs[i];
    if (!peer_say(http, &redis->writer, REPLY_APPEND, words, n))
        return 0;
    *flight_at(redis, redis->flight_next) = (struct flight){
        .fd = fd, .context = context, .begin = begin, .since = http->now
    };
    return redis->flight_next++;
}

void redis_abandon(struct http *http, uint64_t flight, void *context)
{
    flight_at(&http->redis, flight)->fd = NONE;
    flight_at(&http->redis, flight)->context = context;
}

/* Asks for the newest id of the log, and has it begun where it needs that: it
 * has not come as far as was read here, or is that of another run of the
 * server. The answer is for log_told(). The reader says nothing meanwhile. */
static void ask_log(struct http *http)
{
    const struct slice pairs[] = { SLICE("k"), SLICE("begin") };

    http->redis.asks =
        redis_append(http, pairs, COUNT(pairs), NONE, &http->redis) == 0;
}

/* All that there was has been read. */
static void round_ended(struct http *http)
{
    struct redis *redis = &http->redis;

    redis->rounds = redis->rounds_begun;
    redis->doubts = 0;
    if (redis->state == REDIS_CATCHING_UP) {
        redis->failures = 0;
        redis->state = REDIS_READY;
        http->handlers->log_changed(http->server);
    }
    http->handlers->log_round(http->server);
    say_wait(http);
}

static bool is_event_id(uint64_t ms, uint64_t id)
{
    return ms == 0 && id > 0 && id <= ID_MAX;
}

static void move_cursor(struct redis *redis, uint64_t ms, uint64_t id)
{
    redis->has_cursor = true;
    redis->cursor_ms = ms;
    redis->cursor = id;
    if (is_event_id(ms, id) && id > redis->newest)
        redis->newest = id;
}

/* Something is missing between the cursor and what follows: the entry of that
 * id, or (`after`) what comes behind it. */
static void redis_gap(struct http *http, uint64_t ms, uint64_t id, bool after)
{
    struct redis *redis = &http->redis;

    if (redis->has_cursor)
        flights_lost(http, UINT64_MAX, "the log has a gap");
    http->handlers->log_gap(
        http->server, is_event_id(ms, id) ? id - !after : redis->newest + 1);
}

/* "ms-id". */
static bool parse_entry_id(struct slice text, uint64_t *ms, uint64_t *id)
{
    const char *minus = memchr(text.data, '-', text.length);
    size_t length = minus ? (size_t)(minus - text.data) : 0;

    return minus &&
           slice_number((struct slice){ text.data, length }, UINT64_MAX, ms) &&
           slice_number(slice_from(text, length + 1), UINT64_MAX, id);
}

/* The newest id is told, at first, or when nothing followed the cursor and not
 * even the cursor was there. */
static void log_told(struct http *http, uint64_t ms, uint64_t id)
{
    struct redis *redis = &http->redis;
    bool is_cursor =
        redis->has_cursor && ms == redis->cursor_ms && id == redis->cursor;

    if (redis->doubts && is_cursor) { /* it has been deleted, and is the last */
        round_ended(http);
    } else if (redis->doubts < 2) { /* the log goes on, or has begun anew */
        if (redis->doubts && redis->has_cursor &&
            !is_event_id(redis->cursor_ms, redis->cursor)) /* repaired */
            move_cursor(redis, 0, redis->newest);
        say_range(http);
    } else { /* all that followed has been deleted */
        redis_gap(http, ms, id, true);
        move_cursor(redis, ms, id);
        round_ended(http);
    }
}

static void range_ended(struct http *http)
{
    struct redis *redis = &http->redis;

    if (redis->range_count == 0) {
        redis->doubts++;
        ask_log(http);
    } else if (redis->range_count < RANGE_COUNT) {
        round_ended(http);
    } else {
        redis->doubts = 0;
        say_range(http);
    }
}

/* The reply under way is complete. */
static void peer_answered(struct http *http, struct redis_peer *peer)
{
    peer->expected_count--;
    memmove(peer->expected, peer->expected + 1,
            peer->expected_count * sizeof(*peer->expected));
    peer->text_length = 0;
    peer->since = http->now;
}

/* Hands on the entry that has been read; false if there is no room for it. */
static bool take_entry(struct http *http)
{
    struct redis *redis = &http->redis;
    const struct log_entry *entry = &redis->entry;

    if (!http->handlers->entry(http->server, entry)) {
        redis->reader.since = http->now; /* it is not Redis that is late */
        return false;
    }
    redis->entry_waits = false;
    move_cursor(redis, entry->ms, entry->id);
    if (redis->reader.resp.done) {
        peer_answered(http, &redis->reader);
        range_ended(http);
    }
    return true;
}

/* An entry is complete. The first one has to be the cursor. */
static void entry_ended(struct http *http)
{
    struct redis *redis = &http->redis;
    struct log_entry *entry = &redis->entry;
    struct slice id = { redis->entry_id, redis->entry_id_length };

    redis->reader.since = http->now;
    if (!parse_entry_id(id, &entry->ms, &entry->id)) {
        redis_break(http, "Redis: an entry without an id");
        return;
    }
    if (redis->range_count++ == 0 && redis->has_cursor &&
        entry->ms == redis->cursor_ms && entry->id == redis->cursor) {
        if (!redis->reader.resp.done)
            return;
        peer_answered(http, &redis->reader);
        range_ended(http);
        return;
    }
    if (redis->has_cursor &&
        (entry->ms != redis->cursor_ms ? entry->ms < redis->cursor_ms
                                       : entry->id <= redis->cursor)) {
        redis_break(http, "Redis: entries that are not in order");
        return;
    }
    if (redis->range_count == 1)
        redis_gap(http, entry->ms, entry->id, false);
    redis->entry_waits = true;
}

/* The values lie in entry_bytes one behind the other, each with room for what
 * it may be at the most, and a byte. */
static size_t field_room(const struct redis *redis, enum entry_field field)
{
    switch (field) {
    case ENTRY_TOPIC:
        return TOPIC_NAME_MAX + 1;
    case ENTRY_DATA:
        return redis->max_event + 1;
    case ENTRY_EVENT:
        return EVENT_NAME_MAX + 1;
    default:
        return EVENT_NUMBER_MAX + 1;
    }
}

static size_t field_begin(const struct redis *redis, enum entry_field field)
{
    size_t begin = 0;

    for (enum entry_field i = 0; i < field; i++)
        begin += field_room(redis, i);
    return begin;
}

/* A name is complete: the value that follows is that field's, or nobody's. */
static void begin_field(struct redis *redis)
{
    static const char names[] = "tderkm";
    const char *found = memchr(names, redis->name, ENTRY_FIELDS);
    enum entry_field field = ENTRY_FIELDS;

    if (redis->name_length == 1 && found)
        field = (enum entry_field)(found - names);
    redis->field = field;
    if (field < ENTRY_FIELDS)
        redis->entry.fields[field] =
            (struct slice){ redis->entry_bytes + field_begin(redis, field), 0 };
}

static void take_value(struct redis *redis, struct slice piece)
{
    enum entry_field field = redis->field;
    struct slice *value = &redis->entry.fields[field];
    size_t room;

    if (field == ENTRY_FIELDS)
        return;
    room = field_room(redis, field) - value->length;
    if (piece.length > room)
        piece.length = room;
    memcpy(redis->entry_bytes + field_begin(redis, field) + value->length,
           piece.data, piece.length);
    value->length += piece.length;
}

/* A piece of a name or a value; they alternate. */
static void take_field(struct redis *redis, const struct resp *resp)
{
    bool is_name = redis->field_count % 2 == 0;

    if (is_name && resp->piece.length) {
        redis->name = resp->piece.data[0];
        redis->name_length += resp->piece.length;
    } else if (!is_name) {
        take_value(redis, resp->piece);
    }
    if (!resp->last)
        return;
    if (is_name)
        begin_field(redis);
    redis->name_length = 0;
    redis->field_count++;
}

static void take_entry_id(struct redis *redis, struct slice piece)
{
    size_t room = sizeof(redis->entry_id) - redis->entry_id_length;

    if (piece.length > room)
        piece.length = room;
    memcpy(redis->entry_id + redis->entry_id_length, piece.data, piece.length);
    redis->entry_id_length += piece.length;
}

/* XRANGE: an array of entries; each is an id and an array of names and values.
 * False if this is none. */
static bool range_token(struct http *http)
{
    struct redis *redis = &http->redis;
    const struct resp *resp = &redis->reader.resp;
    bool is_array = resp->token == RESP_ARRAY;

    switch (resp->level) {
    case 0:
        if (!is_array)
            return false;
        redis->range_count = 0;
        if (resp->done) {
            peer_answered(http, &redis->reader);
            range_ended(http);
        }
        return true;
    case 1:
        redis->entry = (struct log_entry){ 0 };
        redis->entry_id_length = 0;
        return is_array && resp->number == 2;
    case 2:
        if (!is_array && resp->token != RESP_TEXT)
            return false;
        if (!is_array)
            take_entry_id(redis, resp->piece);
        redis->field_count = redis->name_length = 0;
        break;
    default:
        if (resp->token != RESP_TEXT || resp->level > 3)
            return false;
        take_field(redis, resp);
    }
    if (resp->depth < 2)
        entry_ended(http);
    return true;
}

static void keep_text(struct redis_peer *peer)
{
    size_t room = sizeof(peer->text) - 1 - peer->text_length;
    struct slice piece = peer->resp.piece;

    if (piece.length > room)
        piece.length = room;
    memcpy(peer->text + peer->text_length, piece.data, piece.length);
    peer->text_length += piece.length;
    peer->text[peer->text_length] = '\0';
}

/* The value of "NAME:" in INFO's reply. */
static struct slice info_value(const char *text, const char *name)
{
    const char *found = strstr(text, name);

    if (!found)
        return SLICE("");
    found += strlen(name);
    return (struct slice){ found, strcspn(found, "\r\n") };
}

/* Each connection has said which server it leads to. */
static void take_info(struct http *http, const struct redis_peer *peer)
{
    struct redis *redis = &http->redis;
    struct slice version = info_value(peer->text, "redis_version:");
    struct slice run_id = info_value(peer->text, "run_id:");

    if (strtol(version.data, NULL, 10) < 7)
        redis_break(http, "Redis 7.0 or newer is needed");
    else if (run_id.length == 0 || run_id.length >= RUN_ID_SIZE)
        redis_break(http, "Redis: INFO has no run_id");
    else if (redis->run_id[0] && !slice_is(run_id, redis->run_id))
        redis_break(http, "two connections have led to two servers");
    else
        snprintf(redis->run_id, RUN_ID_SIZE, "%.*s", (int)run_id.length,
                 run_id.data);
}

/* The reader begins when the writer has all that it needs. */
static void take_sha(struct http *http, struct slice sha)
{
    struct redis *redis = &http->redis;

    snprintf(redis->sha, SHA_SIZE, "%.*s", (int)sha.length, sha.data);
    if (redis->state != REDIS_OPENING)
        return;
    redis->state = REDIS_CATCHING_UP;
    redis->doubts = 0;
    ask_log(http);
}

/* The reply to what was appended first. */
static void take_flight(struct http *http, struct slice text)
{
    struct redis *redis = &http->redis;
    struct flight *flight = flight_at(redis, redis->flight_answered++);
    bool asked = flight->context == redis;
    uint64_t ms = 0, id = 0;
    bool is_id = parse_entry_id(text, &ms, &id) && (ms == 0 || asked);

    redis->writer.text_length = 0;
    redis->writer.since = http->now;
    if (!is_id) {
        redis_break(http, "Redis: the script has returned no id");
    } else if (asked) {
        flight->state = FLIGHT_OVER;
        log_told(http, ms, id);
    } else if (flight->state != FLIGHT_OVER) {
        flight->state = FLIGHT_HAS_ID;
        flight->id = id;
    }
}

/* A reply that is one string is complete. */
static void take_text(struct http *http, struct redis_peer *peer)
{
    enum redis_reply reply = peer_expects(&http->redis, peer);
    struct slice text = { peer->text, peer->text_length };

    if (reply == REPLY_APPEND) {
        take_flight(http, text);
        return;
    }
    peer_answered(http, peer);
    if (reply == REPLY_INFO)
        take_info(http, peer);
    else if (reply == REPLY_SCRIPT)
        take_sha(http, text);
}

/* A refused flight is told why. Without the script it is not even refused: it
 * is loaded again when all flights have come back. */
static void take_error(struct http *http, struct redis_peer *peer)
{
    struct redis *redis = &http->redis;
    const struct redis_error *error = find_error(peer->resp.piece);
    bool lacks_script = slice_begins(peer->resp.piece, "NOSCRIPT");

    if (peer_expects(redis, peer) == REPLY_APPEND) {
        struct flight *flight = flight_at(redis, redis->flight_answered++);
        bool asked = flight->context == redis;

        if (lacks_script)
            redis->sha[0] = '\0';
        flight_over(http, flight, lacks_script ? FLIGHT_AGAIN : FLIGHT_REFUSED,
                    error->meaning);
        peer->since = http->now;
        if (lacks_script || (!error->breaks && !asked))
            return;
    }
    redis_break(http, *error->code ? "%s" : "%s: %.*s", error->meaning,
                (int)peer->resp.piece.length, peer->resp.piece.data);
}

/* What Redis says is taken by what was asked for. */
static void take_token(struct http *http, struct redis_peer *peer)
{
    const struct resp *resp = &peer->resp;
    enum redis_reply reply = peer_expects(&http->redis, peer);
    bool well = true;

    if (resp->token == RESP_MALFORMED) {
        redis_break(http, "not the protocol of Redis: %s", resp->piece.data);
        return;
    }
    if (resp->token == RESP_ERROR && resp->level == 0) {
        take_error(http, peer);
        return;
    }
    if (reply == REPLY_RANGE) {
        well = range_token(http);
    } else if (reply == REPLY_WAIT) {
        if (resp->done)
            peer_answered(http, peer);
    } else if (resp->token != RESP_TEXT || resp->level || !reply) {
        well = false;
    } else {
        keep_text(peer);
        if (resp->last)
            take_text(http, peer);
    }
    if (!well)
        redis_break(http, "a reply that does not fit what was asked");
}

/* Takes what has been received. False if it cannot go on now. */
static bool peer_take(struct http *http, struct redis_peer *peer, uint64_t end)
{
    struct redis *redis = &http->redis;
    bool reads = peer == &redis->reader;

    for (unsigned n = 1; peer->in.start < peer->in.end; n++) {
        struct slice data = { peer->in.bytes + peer->in.start,
                              buffer_length(&peer->in) };

        if (reads && redis->entry_waits && !take_entry(http))
            return false;
        if (n % REDIS_STEPS == 0 && clock_us(CLOCK_MONOTONIC) >= end)
            return false;
        peer->in.start += resp_read(&peer->resp, data);
        if (peer->resp.token != RESP_NOTHING)
            take_token(http, peer);
        if (redis->state == REDIS_RESTING)
            return false;
    }
    peer->in.start = peer->in.end = 0;
    return !reads || !redis->entry_waits || take_entry(http);
}

static void peer_read(struct http *http, struct redis_peer *peer)
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_WORK;

    while (http->redis.state != REDIS_RESTING && peer_take(http, peer, end) &&
           peer->readable) {
        ssize_t n = recv(peer->fd, peer->in.bytes, peer->in.room, 0);

        if (n > 0)
            peer->in.end = (size_t)n;
        peer->readable = n == (ssize_t)peer->in.room;
        if (n == 0)
            redis_break(http, "Redis has closed the connection");
        else if (n < 0 && !is_not_yet(n))
            redis_break(http, "Redis: %s", strerror(errno));
    }
}

static void peer_write(struct http *http, struct redis_peer *peer)
{
    struct buffer *out = &peer->out;
    ssize_t n = 0;

    while (peer->fd >= 0 && buffer_length(out) > 0) {
        n = send(peer->fd, out->bytes + out->start, buffer_length(out),
                 MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            break;
        out->start += (size_t)n;
        if (out->start == out->end)
            out->start = out->end = 0;
    }
    if (n < 0 && errno != EAGAIN)
        redis_break(http, "Redis: %s", strerror(errno));
    else if (peer->fd >= 0)
        conn_set_interest(http, conn_at(http, (uint32_t)peer->fd),
                          EPOLLIN | (n < 0 ? (uint32_t)EPOLLOUT : 0));
}

static void say_auth(struct http *http, struct redis_peer *peer,
                     struct slice credentials)
{
    struct slice words[3] = { SLICE("AUTH") };
    const char *blank = memchr(credentials.data, ' ', credentials.length);
    size_t user = blank ? (size_t)(blank - credentials.data) : 0;
    unsigned count = 1;

    if (blank)
        words[count++] = (struct slice){ credentials.data, user };
    words[count++] = blank ? slice_from(credentials, user + 1) : credentials;
    if (credentials.length)
        peer_say(http, peer, REPLY_AUTH, words, count);
}

/* A connection to Redis, which may be under way; -1 with errno. */
static int connect_redis(const struct http *http)
{
    const struct redis *redis = &http->redis;
    const struct sockaddr *address = (const void *)&redis->peer_address;
    int one = 1, error = 0;
    int fd = socket(address->sa_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)fd };

    if (fd < 0)
        return -1;
    if (address->sa_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if ((uint32_t)fd >= http->conn_limit)
        error = EMFILE;
    else if ((connect(fd, address, redis->peer_address_length) < 0 &&
              errno != EINPROGRESS) ||
             epoll_ctl(http->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        error = errno;
    if (!error)
        return fd;
    close(fd);
    errno = error;
    return -1;
}

/* Connects and says what is said first. False if that fails. */
static bool peer_open(struct http *http, struct redis_peer *peer,
                      struct slice credentials)
{
    const struct slice info[] = { SLICE("INFO"), SLICE("server") };
    struct conn *conn;

    peer->fd = connect_redis(http);
    if (peer->fd < 0)
        return false;
    conn = conn_at(http, (uint32_t)peer->fd);
    *conn = (struct conn){ .flags = FLAG_OWN, .interest = EPOLLIN };
    conn_set_state(http, conn, CONN_REDIS);
    peer->in.start = peer->in.end = peer->out.start = peer->out.end = 0;
    peer->resp = (struct resp){ 0 };
    peer->expected_count = 0;
    peer->text_length = 0;
    peer->readable = false;
    say_auth(http, peer, credentials);
    peer_say(http, peer, REPLY_INFO, info, COUNT(info));
    return true;
}

/* Reads the file with the password. NULL, or why that cannot be. */
static const char *read_credentials(const char *path, struct slice *credentials)
{
    static char bytes[REDIS_KEY_MAX + 1];
    const char *refused;
    struct stat status;
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return strerror(errno);
    refused = read_unchanged(path, fd, bytes, sizeof(bytes), &length, &status);
    close(fd);
    while (length && strchr("\r\n", bytes[length - 1]))
        length--;
    *credentials = (struct slice){ bytes, length };
    if (!refused && length == 0)
        refused = "it is empty";
    if (!refused && length > REDIS_KEY_MAX)
        refused = "it is too long";
    return refused;
}

/* The password is read at each connect, so it can be changed at any time. */
static void redis_open(struct http *http)
{
    struct redis *redis = &http->redis;
    struct slice credentials = SLICE("");
    const char *refused = NULL;

    redis->state = REDIS_OPENING;
    redis->run_id[0] = redis->sha[0] = '\0';
    if (redis->auth_file)
        refused = read_credentials(redis->auth_file, &credentials);
    if (refused)
        redis_break(http, "--redis-auth-file: %s", refused);
    else if (!peer_open(http, &redis->writer, credentials) ||
             !peer_open(http, &redis->reader, credentials))
        redis_break(http, "Redis: %s", strerror(errno));
    else
        say_script(http);
}

/* Flights whose entry has been read are over; so are those whose entry should
 * have been read long ago. */
static void flights_land(struct http *http)
{
    struct redis *redis = &http->redis;

    for (uint64_t i = redis->flight_first; i < redis->flight_answered; i++) {
        struct flight *flight = flight_at(redis, i);

        if (flight->state == FLIGHT_OVER)
            continue;
        if (flight->id <= redis->newest)
            flight_over(http, flight, FLIGHT_LOGGED, NULL);
        else if (http->now >= flight->since + FLIGHT_PATIENCE)
            flight_over(http, flight, FLIGHT_UNKNOWN,
                        "the event has not come back from the log");
        else
            break;
    }
    flights_leave(redis);
}

static bool is_late(const struct http *http, const struct redis_peer *peer)
{
    return peer_expects(&http->redis, peer) != REPLY_NONE &&
           http->now >= peer->since + REDIS_PATIENCE;
}

/* A turn's part before the requests. */
static void redis_serve(struct http *http)
{
    struct redis *redis = &http->redis;

    if (redis->state == REDIS_RESTING) {
        if (http->now >= redis->again)
            redis_open(http);
        return;
    }
    peer_read(http, &redis->writer);
    peer_read(http, &redis->reader);
    flights_land(http);
    if (redis->state == REDIS_RESTING)
        return;
    if (!redis->sha[0] && redis->state > REDIS_OPENING &&
        peer_expects(redis, &redis->writer) == REPLY_NONE)
        say_script(http);
    if (redis->asks && redis->sha[0])
        ask_log(http);
    if (is_late(http, &redis->writer) || is_late(http, &redis->reader))
        redis_break(http, "Redis has not answered for %d s",
                    REDIS_PATIENCE / 1000);
}

/* Whether there is enough for Redis to begin with: it works on that while the
 * next turn takes in more, and neither waits for the other. */
static bool redis_has_work(const struct redis *redis)
{
    return redis->flight_next - redis->flight_flushed >= TURN_FLIGHTS;
}

/* And after them: all that was said goes out. */
static void redis_flush(struct http *http)
{
    http->redis.flight_flushed = http->redis.flight_next;
    peer_write(http, &http->redis.writer);
    peer_write(http, &http->redis.reader);
}

static void redis_event(struct http *http, uint32_t fd)
{
    struct redis *redis = &http->redis;

    if ((int)fd == redis->writer.fd)
        redis->writer.readable = true;
    else if ((int)fd == redis->reader.fd)
        redis->reader.readable = true;
}

/* When something is to be done: ms, 0 for at once. */
static uint64_t redis_next(const struct http *http)
{
    const struct redis *redis = &http->redis;
    const struct redis_peer *peers[] = { &redis->writer, &redis->reader };
    uint64_t next =
        redis->flight_first < redis->flight_answered
            ? redis->flights[redis->flight_first % FLIGHTS_MAX].since +
                  FLIGHT_PATIENCE
            : NEVER;

    if (!redis->address)
        return NEVER;
    if (redis->state == REDIS_RESTING)
        return redis->again;
    for (int i = 0; i < 2; i++) {
        const struct redis_peer *peer = peers[i];
        uint64_t late = peer_expects(redis, peer) == REPLY_NONE
                            ? NEVER
                            : peer->since + REDIS_PATIENCE;

        /* what waits for EPOLLOUT is not to be waited for otherwise */
        if (buffer_length(&peer->in) > 0 || peer->readable ||
            (buffer_length(&peer->out) > 0 &&
             !(conn_at(http, (uint32_t)peer->fd)->interest & EPOLLOUT)))
            return 0;
        if (late < next)
            next = late;
    }
    return redis->entry_waits ? 0 : next;
}

/* ------------------------------------------------------------------ a turn
 *
 * The parts of a turn, in the order in which sse.c's loop calls them. An event
 * of epoll only queues its connection, or ends it. The later parts stop when
 * their time is used up and go on in the next turn; http_next() is 0 then.
 *
 * So http_expire() and http_serve() take about 3.5 ms of a turn at most,
 * however many connections have something to do.
 */

/* Reads and throws away. False if the peer has ended. */
static bool conn_discard(struct http *http, struct conn *conn)
{
    char bytes[16384];
    ssize_t n = read((int)conn_fd(http, conn), bytes, sizeof(bytes));

    return n > 0 || is_not_yet(n);
}

static void conn_expired(struct http *http, struct conn *conn)
{
    if (conn->state == CONN_STREAM) {
        http->handlers->expired(http->server, conn);
    } else if (conn->state == CONN_BODY) {
        http->handlers->body_failed(http->server, conn, 408,
                                    "the body did not get on");
    } else if (conn->state == CONN_RESPOND) {
        conn_cut(http, conn, "cannot send");
    } else if (conn->state == CONN_LINGER) {
        conn_close(http, conn, "closed");
    } else if (conn->state == CONN_WAITING) {
        http->handlers->waited(http->server, conn);
    } else {
        assert(conn->state == CONN_REQUEST);
        if (conn->exchange && conn->exchange->in.end > 0)
            respond_text(http, conn,
                         (struct response){ .status = 408, .close = true },
                         "the request's head did not arrive in time");
        else
            conn_close(http, conn, "idle");
    }
}

/* Serves the connections of a queue for a part of the turn, or until Redis has
 * something to do. */
static void serve(struct http *http, enum queue_name queue, enum budget budget,
                  unsigned time,
                  void (*act)(struct http *http, struct conn *conn))
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + time;

    while (http->queues[queue].count && !redis_has_work(&http->redis) &&
           clock_us(CLOCK_MONOTONIC) < end)
        act(http, queue_pop(http, queue));
    http->used_up[budget] += http->queues[queue].count > 0;
}

void http_update_time(struct http *http)
{
    time_t second = time(NULL);

    http->turn = clock_us(CLOCK_MONOTONIC);
    http->now = http->turn / 1000;
    if (second != http->date_of)
        http_date(http->date, second);
    http->date_of = second;
}

void http_event(struct http *http, const struct epoll_event *event)
{
    struct conn *conn = conn_at(http, event->data.u32);
    bool ended = event->events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP);

    switch (conn->state) {
    case CONN_LISTENER:
        accept_all(http, (int)event->data.u32);
        break;
    case CONN_REDIS:
        redis_event(http, event->data.u32);
        break;
    case CONN_REQUEST:
    case CONN_BODY:
        /* no interest is left while one waits for memory, so this is its end;
         * one that is queued has its turn anyway, and needs no more events */
        if (conn->queue == QUEUE_STARVED)
            conn_close(http, conn, "closed");
        else if (conn->queue != QUEUE_NONE)
            conn_set_interest(http, conn, 0);
        else if (event->events & EPOLLOUT)
            answers_push(http, conn);
        else
            work_push(http, conn);
        break;
    case CONN_RESPOND:
        if (conn->queue == QUEUE_NONE)
            answers_push(http, conn);
        break;
    case CONN_WAITING:
        /* without interest it is an error, or both ends have closed; mostly
         * nothing comes, and the interest can stay as it is */
        if (conn->interest)
            conn_set_interest(http, conn, 0);
        else
            conn_close(http, conn, "closed");
        break;
    case CONN_STREAM:
    case CONN_STATUS:
        /* the peer's FIN ends a stream at once: browsers that go away send no
         * more than that. What a peer sends is thrown away. */
        if (ended || ((event->events & EPOLLIN) && !conn_discard(http, conn)))
            conn_close(http, conn, "closed");
        else if (event->events & EPOLLOUT)
            http->handlers->writable(http->server, conn);
        break;
    case CONN_LINGER:
        if (!conn_discard(http, conn))
            conn_close(http, conn, "closed");
        break;
    default: /* it ended in this turn */
        break;
    }
}

void http_expire(struct http *http)
{
    uint64_t tick = http->now >> TICK_SHIFT;
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_WORK;

    if (tick - http->wheel_tick > WHEEL_SLOTS)
        http->wheel_tick = tick - WHEEL_SLOTS;
    for (; http->wheel_tick < tick; http->wheel_tick++) {
        uint32_t due = (uint32_t)http->wheel_tick + 1;
        uint32_t fd = http->wheel[due % WHEEL_SLOTS].first;

        while (fd != NONE) {
            struct conn *conn = conn_at(http, fd);

            fd = conn->timer_link.next;
            /* a later round; the difference holds when 32 bits overflow */
            if ((int32_t)(conn->deadline - due) > 0)
                continue;
            timer_stop(http, conn);
            conn_expired(http, conn);
            if (clock_us(CLOCK_MONOTONIC) >= end) {
                http->used_up[BUDGET_TIMERS]++;
                return;
            }
        }
    }
}

void http_serve(struct http *http)
{
    if (http->redis.address)
        redis_serve(http);
    serve(http, QUEUE_WORK, BUDGET_REQUESTS, TURN_WORK, conn_visit);
    serve(http, QUEUE_WORK_BUSY, BUDGET_REQUESTS_BUSY, TURN_BUSY, conn_visit);
    if (http->redis.address)
        redis_flush(http);
    serve(http, QUEUE_ANSWERS, BUDGET_ANSWERS, TURN_WORK, send_answers);
    serve(http, QUEUE_ANSWERS_BUSY, BUDGET_ANSWERS_BUSY, TURN_BUSY,
          send_answers);
}

void http_end_turn(struct http *http)
{
    uint64_t used = http->request_memory, limit = http->memory_limit;
    uint64_t left = limit > used ? limit - used : 0;
    uint64_t each = sizeof(struct exchange) + IN_FIRST + OUT_ROOM;

    /* those that wait for memory, as far as it goes; at the end of the turn,
     * because any part of it may have returned some */
    for (; http->queues[QUEUE_STARVED].count && left >= each; left -= each) {
        struct conn *conn = queue_pop(http, QUEUE_STARVED);

        conn_set_interest(http, conn, READABLE);
        work_push(http, conn);
    }
    reap(http);
    if (!http->accepting && http->now >= http->accept_again)
        accept_pause(http, is_full(http), false);
}

uint64_t http_next(const struct http *http)
{
    uint64_t next = wheel_next(http), redis = redis_next(http);

    if (redis < next)
        next = redis;
    for (int i = QUEUE_WORK; i <= QUEUE_READY; i++)
        if (http->queues[i].count)
            return 0;
    return !http->accepting && http->accept_again < next ? http->accept_again
                                                         : next;
}

bool http_is_idle(const struct http *http)
{
    uint32_t count = http->in_state[CONN_RESPOND] +
                     http->in_state[CONN_LINGER] + http->in_state[CONN_WAITING];

    for (int i = QUEUE_WORK; i <= QUEUE_ANSWERS_BUSY; i++)
        count += http->queues[i].count;
    return count == 0;
}

/* --------------------------------------------------------------- listeners
 *
 * Listening sockets, made here or handed over by the service manager; the
 * folder of --root; standard input, which is read like a body.
 *
 * A Unix socket is a file that outlives its server. A new server removes it
 * only if nothing listens on it. A server that ends removes it only if it is
 * still the file that it has made.
 *
 * Callers: sse.c at the start; http_close_listeners() when a drain begins.
 */

/* Accepted sockets inherit these from their listener, so that no call is needed
 * for each. A failure only costs performance. */
static void tune_listener(int fd)
{
    static const struct {
        int level, name, value;
    } settings[] = {
        { IPPROTO_TCP, TCP_NODELAY, 1 },
        { IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT },
        { IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT },
        { SOL_SOCKET, SO_KEEPALIVE, 1 },
        { IPPROTO_TCP, TCP_KEEPIDLE, 60 },
        { IPPROTO_TCP, TCP_KEEPINTVL, 20 },
        { IPPROTO_TCP, TCP_KEEPCNT, 3 },
        { SOL_SOCKET, SO_SNDBUF, SENDBUF },
    };

    for (size_t i = 0; i < COUNT(settings); i++)
        setsockopt(fd, settings[i].level, settings[i].name, &settings[i].value,
                   sizeof(settings[i].value));
}

/* Servers that start at the same time must not remove each other's sockets:
 * under the lock one at a time looks, removes what is stale, and listens. The
 * lock ends when *fd is closed. It is -1 if the folder cannot be locked, for
 * example because it is not readable: that is no reason not to serve. */
static int lock_folder(const char *path, int *fd, char error[ERROR_SIZE])
{
    uint64_t deadline = clock_ms(CLOCK_MONOTONIC) + LOCK_PATIENCE;
    char folder[sizeof(((struct sockaddr_un *)0)->sun_path)];

    snprintf(folder, sizeof(folder), "%s", path);
    *fd = open(dirname(folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (*fd >= 0 && flock(*fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            close(*fd);
            *fd = -1;
        } else if (clock_ms(CLOCK_MONOTONIC) >= deadline) {
            close(*fd);
            return fail_with(
                error,
                "cannot listen on 'unix:%s': another process has kept "
                "its folder locked for %d s, see flock(2)",
                path, LOCK_PATIENCE / 1000);
        } else {
            poll(NULL, 0, 10);
        }
    }
    return 0;
}

/* Removes a socket file that a server has left behind. If another server
 * listens on it, connect(2) succeeds, or fails with EAGAIN when its queue is
 * full. */
static void remove_stale_socket(const struct sockaddr_un *address)
{
    struct stat status;
    int fd;

    if (lstat(address->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode))
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
        errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(fd);
}

/* Names a listener by what it is bound to, since with port 0 the kernel has
 * chosen one, and has epoll watch it. */
static int add_listener(struct http *http, int fd, uint8_t flags,
                        char error[ERROR_SIZE])
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)fd };
    struct listener *listener = &http->listeners[http->listener_count];
    struct conn *conn = conn_at(http, (uint32_t)fd);
    struct sockaddr_storage address = { 0 };
    const struct sockaddr_un *local = (const void *)&address;
    socklen_t length = sizeof(address);
    char host[64] = "", port[8] = "";

    *listener = (struct listener){ .fd = fd };
    if (epoll_ctl(http->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        return fail_with(error, "cannot wait for connections: %s",
                         strerror(errno));
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0 ||
        (address.ss_family != AF_UNIX &&
         getnameinfo((struct sockaddr *)&address, length, host, sizeof(host),
                     port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV)))
        return fail_with(error, "cannot tell the address: %s", strerror(errno));
    if (address.ss_family == AF_UNIX)
        snprintf(listener->address, sizeof(listener->address), "unix:%.*s",
                 (int)sizeof(local->sun_path), local->sun_path);
    else
        snprintf(listener->address, sizeof(listener->address),
                 address.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
                 port);
    *conn = (struct conn){ .flags = flags, .interest = EPOLLIN };
    set_peer(conn, &address);
    if (!(conn->flags & FLAG_UNIX) && conn_is_local(conn))
        conn->flags |= FLAG_LOOPBACK;
    conn_set_state(http, conn, CONN_LISTENER);
    http->listener_count++;
    return 0;
}

static int listen_on(struct http *http, const char *name, uint8_t flags,
                     const struct sockaddr *address, socklen_t length,
                     char error[ERROR_SIZE])
{
    const char *way_out;
    int one = 1;
    int fd = socket(address->sa_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return fail_with(error, "cannot make a socket for '%s': %s", name,
                         strerror(errno));
    /* a restart must not wait for old connections in TIME_WAIT; and [::] must
     * not take the port of 0.0.0.0, which can be listened on as well */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (address->sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    /* the figures are those of one process */
    if (address->sa_family != AF_UNIX && http->reuse_port &&
        !(flags & FLAG_ADMIN))
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
    if (address->sa_family != AF_UNIX)
        tune_listener(fd);
    if (bind(fd, address, length) == 0 && listen(fd, SOMAXCONN) == 0)
        return add_listener(http, fd, flags, error);
    way_out = errno != EADDRINUSE ? ""
              : address->sa_family == AF_UNIX
                  ? ": a server listens there, or it "
                    "is a file of another kind"
              : flags & FLAG_ADMIN ? "; choose another with --admin"
                                   : "; choose another with --port or --listen";
    fail_with(error, "cannot listen on '%s': %s%s", name, strerror(errno),
              way_out);
    close(fd);
    return -1;
}

/* Cuts "unix:PATH,mode=MODE" or "unix:PATH" in two. */
static int split_unix(const char *name, struct sockaddr_un *address,
                      mode_t *mode, char error[ERROR_SIZE])
{
    static const char key[] = ",mode=";
    const char *path = name + strlen("unix:"), *comma = strrchr(path, ',');
    size_t length = strlen(path);

    if (comma && strncmp(comma, key, strlen(key)) == 0) {
        size_t digits = strlen(comma + strlen(key));

        length = (size_t)(comma - path);
        comma += strlen(key);
        if (strspn(comma, "01234567") != digits ||
            !(digits == 3 || (digits == 4 && *comma == '0')))
            return fail_with(
                error,
                "'%s': the mode is not 3 or 4 octal digits up to 0777, "
                "such as mode=660",
                name);
        *mode = (mode_t)strtoul(comma, NULL, 8);
    }
    if (length == 0 || length >= sizeof(address->sun_path))
        return fail_with(error, "'%s' needs a path of 1 to %zu bytes", name,
                         sizeof(address->sun_path) - 1);
    memcpy(address->sun_path, path, length);
    return 0;
}

static int listen_unix(struct http *http, const char *name, uint8_t flags,
                       char error[ERROR_SIZE])
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct listener *listener = &http->listeners[http->listener_count];
    mode_t mode = UNIX_MODE_DEFAULT, before;
    struct stat status;
    int folder, outcome;

    if (split_unix(name, &address, &mode, error) < 0)
        return -2;
    if (lock_folder(address.sun_path, &folder, error) < 0)
        return -1;
    remove_stale_socket(&address);
    /* bind(2) makes the file: the umask gives it its mode at once, so that
     * there is no moment in which others can connect */
    before = umask(0777 & ~mode);
    outcome = listen_on(http, name, flags, (const struct sockaddr *)&address,
                        sizeof(address), error);
    umask(before);
    if (outcome == 0 && lstat(address.sun_path, &status) == 0) {
        listener->device = status.st_dev;
        listener->inode = status.st_ino;
    }
    listener->unix_path = listener->address + strlen("unix:");
    if (folder >= 0)
        close(folder);
    return outcome;
}

/* Cuts "ADDR:PORT", "[V6]:PORT" or "PORT" in two; false if it is none. */
static bool split_address(const char *name, char host[64], const char **port)
{
    const char *colon = strrchr(name, ':');
    struct slice address = { name, colon ? (size_t)(colon - name) : 0 };
    uint64_t number;

    *port = colon ? colon + 1 : name;
    if (address.length > 2 && name[0] == '[' && name[address.length - 1] == ']')
        address = (struct slice){ name + 1, address.length - 2 };
    else if (colon && memchr(name, ':', address.length))
        return false; /* IPv6 without brackets */
    if (!colon || slice_is(address, "localhost"))
        address = SLICE("127.0.0.1");
    if (address.length == 0 || address.length >= 64)
        return false;
    memcpy(host, address.data, address.length);
    host[address.length] = '\0';
    return slice_number(slice_of(*port), 65535, &number);
}

static int listen_tcp(struct http *http, const char *name, uint8_t flags,
                      char error[ERROR_SIZE])
{
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                              .ai_socktype = SOCK_STREAM };
    struct addrinfo *found;
    const char *port;
    char host[64];
    int outcome;

    if (!split_address(name, host, &port) ||
        getaddrinfo(host, port, &hints, &found) != 0) {
        fail_with(
            error,
            "'%s' is not ADDR:PORT such as 127.0.0.1:3000 or [::1]:3000, nor "
            "unix:PATH",
            name);
        return -2;
    }
    outcome =
        listen_on(http, name, flags, found->ai_addr, found->ai_addrlen, error);
    freeaddrinfo(found);
    return outcome;
}

/*
 * O_NONBLOCK belongs to the open file description, which standard input may
 * share with other processes. So a pipe or a terminal is opened anew, for a
 * description of our own. A file is not: it is read from the offset that others
 * have left.
 *
 * Of a pipe, descriptor 0 stays open and is what epoll watches. Of a device,
 * two descriptions may be two different streams, so the new one replaces the
 * old.
 */
static void open_input(struct http *http)
{
    struct stat status;
    int fd;

    http->input_fd = STDIN_FILENO;
    if (fstat(STDIN_FILENO, &status) < 0)
        return;
    http->input_is_socket = S_ISSOCK(status.st_mode);
    if (!S_ISFIFO(status.st_mode) && !S_ISCHR(status.st_mode))
        return;
    fd = open("/proc/self/fd/0", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (S_ISFIFO(status.st_mode)) {
        http->input_fd = fd;
        return;
    }
    dup2(fd, STDIN_FILENO);
    close(fd);
}

int http_listen(struct http *http, const char *name, uint8_t flags,
                char error[ERROR_SIZE])
{
    return strncmp(name, "unix:", 5) == 0
               ? listen_unix(http, name, flags, error)
               : listen_tcp(http, name, flags, error);
}

/* O_NONBLOCK: another process may accept the connection that epoll has reported
 * before this one does. */
int http_take_listener(struct http *http, int fd, char error[ERROR_SIZE])
{
    int family = AF_UNSPEC, listens = 0, type = 0, flags = fcntl(fd, F_GETFL);
    socklen_t size = sizeof(int);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) < 0 || !listens ||
        type != SOCK_STREAM ||
        (family != AF_INET && family != AF_INET6 && family != AF_UNIX))
        return fail_with(error,
                         "descriptor %d is not a listening stream socket", fd);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return fail_with(error, "descriptor %d: %s", fd, strerror(errno));
    if (family != AF_UNIX)
        tune_listener(fd);
    return add_listener(http, fd, 0, error);
}

/* O_PATH: whatever somebody else puts at the path, what changes its owner is
 * the file that was looked at. */
int http_give_sockets(struct http *http, uid_t user, gid_t group,
                      char error[ERROR_SIZE])
{
    for (unsigned i = 0; i < http->listener_count; i++) {
        const struct listener *listener = &http->listeners[i];
        struct stat status;
        int fd, outcome;

        if (!listener->unix_path)
            continue;
        fd = open(listener->unix_path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &status) < 0 ||
            status.st_dev != listener->device ||
            status.st_ino != listener->inode)
            return fail_with(error, "'%s' is gone", listener->address);
        /* a folder with its g+s bit has given it another group */
        outcome = fchownat(fd, "", user,
                           status.st_gid == getegid() ? group : (gid_t)-1,
                           AT_EMPTY_PATH);
        close(fd);
        if (outcome < 0)
            return fail_with(error, "cannot give away '%s': %s",
                             listener->address, strerror(errno));
    }
    return 0;
}

void http_close_listeners(struct http *http, uint8_t kept)
{
    for (unsigned i = http->listener_count; i-- > 0;) {
        struct listener *listener = &http->listeners[i];
        uint32_t fd = (uint32_t)listener->fd;
        struct stat status;

        if (listener->fd < 0 || (conn_at(http, fd)->flags & kept))
            continue;
        /* the path may be another server's by now. The listener is still open:
         * a server that starts now finds the socket in use, and no new file can
         * have got the number of its inode. */
        if (listener->unix_path && lstat(listener->unix_path, &status) == 0 &&
            status.st_dev == listener->device &&
            status.st_ino == listener->inode)
            unlink(listener->unix_path);
        close(listener->fd);
        conn_set_state(http, conn_at(http, fd), CONN_FREE);
        listener->fd = -1;
    }
}

struct conn *http_read_input(struct http *http, char error[ERROR_SIZE])
{
    struct conn *conn = conn_at(http, STDIN_FILENO);
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = STDIN_FILENO };
    struct exchange *exchange = exchange_take(http, false);

    if (!exchange) {
        fail_with(error, "no memory for standard input");
        return NULL;
    }
    open_input(http);
    exchange->body = (struct body){ .state = BODY_DATA, .left = UINT64_MAX };
    exchange->streams = true;
    *conn = (struct conn){ .flags = FLAG_INPUT | FLAG_BUSY,
                           .interest = READABLE,
                           .exchange = exchange };
    conn_set_state(http, conn, CONN_BODY);
    if (epoll_ctl(http->epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) == 0)
        return conn;
    if (errno != EPERM) {
        fail_with(error, "cannot wait for standard input: %s", strerror(errno));
        return NULL;
    }
    work_push(http, conn); /* a file: it is never without anything to read */
    return conn;
}

int http_serve_root(struct http *http, const char *root, char error[ERROR_SIZE])
{
    struct file file;
    int status;

    http->root = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (http->root < 0)
        return fail_with(error, "cannot open the folder '%s': %s", root,
                         strerror(errno));
    status = http_file_open(&file, http->root, SLICE("/"));
    if (status == -501)
        return fail_with(error, "needs openat2(2), which this kernel does not "
                                "have: Linux 5.6 or later");
    if (status == 0)
        close(file.fd);
    return status != 0;
}

/* ------------------------------------------------------- the start, the end
 *
 * The table of connections has an entry for every descriptor that the process
 * may have. calloc(3) takes its memory from the kernel as zero pages, so
 * entries that are never used cost nothing.
 */

/* Raises the limit on descriptors to what the connections need, or as far as it
 * goes, and sets how many connections that allows. */
static int raise_limit(struct http *http, char error[ERROR_SIZE])
{
    uint64_t asked = http->max_connections, allowed = 0;
    uint64_t wanted = asked ? asked : CONNECTIONS_DEFAULT;
    uint64_t reserve = http->admin ? RESERVE + ADMIN_MAX : RESERVE;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return fail_with(error, "cannot read the limit on descriptors: %s",
                         strerror(errno));
    limit.rlim_cur =
        limit.rlim_max > wanted + reserve ? wanted + reserve : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        return fail_with(error, "cannot raise the limit on descriptors: %s",
                         strerror(errno));
    if (limit.rlim_cur > reserve)
        allowed = limit.rlim_cur - reserve;
    if (allowed == 0 || allowed < asked)
        return fail_with(error,
                         "--max-connections: the limit on descriptors allows "
                         "%" PRIu64 "; raise it with ulimit -Hn %" PRIu64,
                         allowed, wanted + reserve);
    http->max_connections = allowed < wanted ? allowed : wanted;
    http->conn_limit = (uint32_t)(http->max_connections + reserve);
    return 0;
}

/* Begins with no connection; the table is there. */
static void begin_table(struct http *http)
{
    static const struct list empty = { NONE, NONE };

    for (int i = 0; i < QUEUES; i++)
        http->queues[i].list = empty;
    for (int i = 0; i < WHEEL_SLOTS; i++)
        http->wheel[i] = empty;
    http->in_state[CONN_FREE] = http->conn_limit;
    http_update_time(http);
    http->wheel_tick = http->now >> TICK_SHIFT;
    http->accepting = true;
    http->root = ROOT_BUNDLED;
}

int http_init(struct http *http, char error[ERROR_SIZE])
{
    if (raise_limit(http, error) < 0)
        return -1;
    http->conns = calloc(http->conn_limit, sizeof(struct conn));
    if (!http->conns)
        return fail_with(error,
                         "no memory for %u connections: --max-connections",
                         http->conn_limit);
    if (!fill_random(http->failure_key, sizeof(http->failure_key)))
        return fail_with(error, "cannot get random numbers: %s",
                         strerror(errno));
    if (http->max_per_address)
        http->networks = networks_make(http->conn_limit);
    if (http->max_per_address && !http->networks)
        return fail_with(error,
                         "--max-per-address: cannot count connections: "
                         "%s",
                         strerror(errno));
    begin_table(http);
    http->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (http->epoll < 0)
        return fail_with(error, "cannot begin to wait for events: %s",
                         strerror(errno));
    return 0;
}

uint64_t http_table_size(const struct http *http)
{
    return (uint64_t)http->conn_limit * sizeof(struct conn) +
           (http->networks ? networks_size(http->networks->mask + 1) : 0);
}

uint64_t http_spare_size(void)
{
    return SPARE_EXCHANGES *
               (uint64_t)(sizeof(struct exchange) + memory_cost(HEAD_MAX) +
                          memory_cost(OUT_SIZE)) +
           ADMIN_MAX *
               (uint64_t)(sizeof(struct exchange) + memory_cost(IN_FIRST) +
                          memory_cost(OUT_ROOM));
}

/* The address of Redis. */
static int find_redis(struct redis *redis, char error[ERROR_SIZE])
{
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                              .ai_socktype = SOCK_STREAM };
    struct sockaddr_un *local = (void *)&redis->peer_address;
    const char *name = redis->address, *port;
    struct addrinfo *found;
    char host[64];

    if (strncmp(name, "unix:", 5) == 0 && name[5] &&
        strlen(name + 5) < sizeof(local->sun_path)) {
        local->sun_family = AF_UNIX;
        strcpy(local->sun_path, name + 5);
        redis->peer_address_length = sizeof(*local);
        return 0;
    }
    if (!strchr(name, ':') || !split_address(name, host, &port) ||
        getaddrinfo(host, port, &hints, &found) != 0) {
        fail_with(error,
                  "'%s' is not ADDR:PORT such as 127.0.0.1:6379, nor "
                  "unix:PATH; for a name, TLS or Sentinel see README.md",
                  name);
        return -2;
    }
    memcpy(&redis->peer_address, found->ai_addr, found->ai_addrlen);
    redis->peer_address_length = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static bool buffer_init(struct buffer *buffer, size_t room)
{
    *buffer = (struct buffer){ malloc(room), room, 0, 0 };
    return buffer->bytes;
}

int redis_init(struct http *http, char error[ERROR_SIZE])
{
    struct redis *redis = &http->redis;
    size_t event = (size_t)redis->max_event + TOPIC_NAME_MAX + EVENT_NAME_MAX +
                   REDIS_KEY_MAX + 1024;

    redis->writer.fd = redis->reader.fd = -1;
    redis->flight_first = redis->flight_next = redis->flight_answered = 1;
    redis->again = http->now;
    if (find_redis(redis, error) < 0)
        return -2;
    redis->entry_bytes = malloc(field_begin(redis, ENTRY_FIELDS));
    if (!redis->entry_bytes || !buffer_init(&redis->writer.in, REDIS_IN) ||
        !buffer_init(&redis->reader.in, REDIS_IN) ||
        !buffer_init(&redis->writer.out, REDIS_OUT + event) ||
        !buffer_init(&redis->reader.out, 4096))
        return fail_with(error, "no memory for the log: --max-event");
    return 0;
}

static void redis_release(struct http *http)
{
    struct redis *redis = &http->redis;

    if (!redis->address)
        return;
    peer_drop(http, &redis->writer);
    peer_drop(http, &redis->reader);
    free(redis->writer.in.bytes);
    free(redis->writer.out.bytes);
    free(redis->reader.in.bytes);
    free(redis->reader.out.bytes);
    free(redis->entry_bytes);
}

void http_release(struct http *http)
{
    redis_release(http);
    for (uint32_t fd = 0; fd < http->conn_limit; fd++) {
        struct conn *conn = conn_at(http, fd);

        if (conn->state != CONN_FREE && conn->state != CONN_LISTENER)
            conn_close(http, conn, "stopped");
    }
    reap(http);
    http_close_listeners(http, 0);
    while (http->spare) {
        struct exchange *exchange = http->spare;

        http->spare = exchange->next_spare;
        exchange_free(exchange);
    }
    free(http->conns);
    free(http->networks);
}
