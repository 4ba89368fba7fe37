/*
 * http.c owns HTTP/1.1 (RFC 9110, RFC 9112): parsing a request head and a
 * body from bytes, the spelling of response heads, and the files. sse.h says
 * how line ends and ambiguous framing are dealt with. Parsing is pure: no
 * I/O, no allocation, no clock. The opening of a file is the only system
 * call.
 *
 * Refusals travel as minus the status to answer with; request->error says
 * why in one line for the client to read.
 */
#include "sse.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* -------------------------------------------------------------- slices */

bool slice_equals(struct slice slice, const char *text)
{
    return strlen(text) == slice.length &&
           strncasecmp(slice.data, text, slice.length) == 0;
}

static bool slice_begins(struct slice slice, const char *text)
{
    size_t length = strlen(text);

    return slice.length >= length && strncasecmp(slice.data, text, length) == 0;
}

static struct slice slice_trimmed(struct slice slice)
{
    while (slice.length && (*slice.data == ' ' || *slice.data == '\t'))
        slice = slice_from(slice, 1);
    while (slice.length && (slice.data[slice.length - 1] == ' ' ||
                            slice.data[slice.length - 1] == '\t'))
        slice.length--;
    return slice;
}

/* Cuts `rest` at the first `separator`; returns what was before it, and
 * leaves in `rest` what is after it. */
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

/* ------------------------------------------------------- request heads */

static ssize_t refuse(struct request *request, int status, const char *why)
{
    request->error = why;
    return -status;
}

/* What a byte may be a part of. */
enum {
    TOKEN = 1, /* RFC 9110, section 5.6.2: letters, digits, !#$%&'*+-.^_`|~ */
    HOST = 2,  /* RFC 3986, section 3.2: letters, digits, -._~:[]%!$&'()*+,;= */
};

static const unsigned char byte_kinds[256] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 3, 3, 3, 3, 2, 2, 3, 3,
    2, 3, 3, 0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 0, 2, 0, 0, 0, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    3, 3, 3, 2, 0, 2, 1, 3, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 1, 0, 3, 0,
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
        return (int)refuse(request, 400, "the method is not a token");
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (slice_is(name, methods[i].name)) {
            request->method = methods[i].method;
            return 0;
        }
    }
    return (int)refuse(request, 501, "the method is not known here");
}

static int parse_version(struct request *request, struct slice version)
{
    if (version.length != 8 || memcmp(version.data, "HTTP/", 5) != 0 ||
        !isdigit((unsigned char)version.data[5]) || version.data[6] != '.' ||
        !isdigit((unsigned char)version.data[7]))
        return (int)refuse(request, 400,
                           "the request line does not end in HTTP/1.1");
    if (version.data[5] != '1')
        return (int)refuse(request, 505, "only HTTP/1.1 and HTTP/1.0 here");
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
    int high, low;

    if (text.length < 3 || text.data[0] != '%')
        return -1;
    high = hex_value(text.data[1]);
    low = hex_value(text.data[2]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* "." and ".." could lead elsewhere, and no path needs them: a client
 * resolves them before it asks (RFC 3986, section 5.2.4). */
static bool has_dot_segment(struct slice path)
{
    while (path.length) {
        struct slice segment = slice_split(&path, '/');

        if (slice_equals(segment, ".") || slice_equals(segment, ".."))
            return true;
    }
    return false;
}

static int decode_path(struct request *request, char *path, size_t length)
{
    size_t out = 0;

    for (size_t in = 0; in < length; in++) {
        int byte = (unsigned char)path[in];

        if (byte == '%') {
            byte = percent_decoded((struct slice){ path + in, length - in });
            if (byte < 0)
                return (int)refuse(request, 400,
                                   "a % in the path without two hex digits");
            if (byte == '/' || byte == 0)
                return (int)refuse(request, 400,
                                   "an encoded slash or NUL in the path");
            in += 2;
        }
        path[out++] = (char)byte;
    }
    request->path = (struct slice){ path, out };
    if (has_dot_segment(request->path))
        return (int)refuse(request, 400, "a . or .. segment in the path");
    return 0;
}

/* RFC 9112, section 3.2.2: the authority of an absolute-form target counts,
 * and the Host field does not. */
static int parse_absolute(struct request *request, struct slice *target)
{
    size_t scheme = slice_begins(*target, "http://") ? 7 : 8;
    struct slice rest = slice_from(*target, scheme);
    size_t end = 0;

    while (end < rest.length && rest.data[end] != '/' && rest.data[end] != '?')
        end++;
    request->host = (struct slice){ rest.data, end };
    if (end == 0 || !consists_of(HOST, request->host))
        return (int)refuse(request, 400, "the target's host is malformed");
    *target = slice_from(rest, end);
    return 0;
}

static int parse_target(struct request *request, struct slice target)
{
    struct slice path;

    for (size_t i = 0; i < target.length; i++)
        if (target.data[i] <= ' ' || target.data[i] >= 0x7F ||
            target.data[i] == '#')
            return (int)refuse(request, 400,
                               "the target has a byte that must be encoded");
    if (request->method == METHOD_OPTIONS && slice_equals(target, "*")) {
        request->path = target;
        return 0;
    }
    if (slice_begins(target, "http://") || slice_begins(target, "https://")) {
        if (parse_absolute(request, &target) < 0)
            return -400;
    } else if (target.length == 0 || target.data[0] != '/') {
        return (int)refuse(request, 400, "the target is not a path");
    }
    path = slice_split(&target, '?');
    request->query = target;
    request->path = SLICE("/");
    return path.length
               ? decode_path(request, (char *)(uintptr_t)path.data, path.length)
               : 0;
}

static int parse_request_line(struct request *request, struct slice line)
{
    struct slice method = slice_split(&line, ' ');
    struct slice target = slice_split(&line, ' ');
    int status = parse_method(request, method);

    if (status == 0)
        status = parse_version(request, line);
    if (status == 0)
        status = parse_target(request, target);
    return status;
}

static int field_connection(struct request *request, struct slice value)
{
    while (value.length) {
        struct slice option = slice_trimmed(slice_split(&value, ','));

        if (slice_equals(option, "close"))
            request->close = true;
    }
    return 0;
}

static int field_content_length(struct request *request, struct slice value)
{
    uint64_t length = 0;

    if (request->content_length >= 0)
        return (int)refuse(request, 400, "more than one Content-Length");
    while (value.length > 1 && value.data[0] == '0')
        value = slice_from(value, 1);
    if (!slice_number(value, INT64_MAX, &length))
        return (int)refuse(request, 400, "Content-Length is not a number");
    request->content_length = (int64_t)length;
    return 0;
}

static int field_transfer_encoding(struct request *request, struct slice value)
{
    if (request->minor == 0)
        return (int)refuse(request, 400, "Transfer-Encoding in HTTP/1.0");
    if (request->chunked)
        return (int)refuse(request, 400, "more than one Transfer-Encoding");
    if (!slice_equals(value, "chunked"))
        return (int)refuse(request, 501,
                           "the only Transfer-Encoding known is chunked");
    request->chunked = true;
    return 0;
}

static int field_expect(struct request *request, struct slice value)
{
    if (!slice_equals(value, "100-continue"))
        return (int)refuse(request, 417,
                           "the only Expect known is 100-continue");
    request->expect_continue = request->minor > 0;
    return 0;
}

static int field_forwarded(struct request *request, struct slice value)
{
    (void)value;
    request->forwarded = true;
    return 0;
}

/* Browsers alone send it, and no page can change it: Fetch Metadata, section
 * 2.4. "none" is the person's own doing. */
static int field_fetch_site(struct request *request, struct slice value)
{
    if (slice_equals(value, "cross-site") || slice_equals(value, "same-site"))
        request->cross_site = true;
    return 0;
}

/* A Host in an absolute-form target has been put down before, and counts. */
static int field_host(struct request *request, struct slice value)
{
    if (++request->hosts > 1)
        return (int)refuse(request, 400, "more than one Host");
    if (!consists_of(HOST, value))
        return (int)refuse(request, 400, "Host is malformed");
    if (!request->host.data)
        request->host = value;
    return 0;
}

struct field {
    struct slice name;
    int (*parse)(struct request *request, struct slice value);
    size_t place; /* of a slice in struct request, where parse is NULL */
};

#define NAME(literal)                  \
    {                                  \
        (literal), sizeof(literal) - 1 \
    }

/* By their initials, of either case: most of what a browser sends is of no
 * account, and that is to be seen at once. */
#define INITIAL(letter) ((letter)&31)

enum {
    FIELDS_OF_AN_INITIAL = 4
};

static const struct field fields[32][FIELDS_OF_AN_INITIAL] = {
    [INITIAL('A')] = { { NAME("Authorization"), NULL,
                         offsetof(struct request, authorization) } },
    [INITIAL('C')] = { { NAME("Connection"), field_connection, 0 },
                       { NAME("Content-Length"), field_content_length, 0 },
                       { NAME("Content-Type"), NULL,
                         offsetof(struct request, content_type) },
                       { NAME("CF-Connecting-IP"), field_forwarded, 0 } },
    [INITIAL('E')] = { { NAME("Expect"), field_expect, 0 } },
    [INITIAL('F')] = { { NAME("Forwarded"), field_forwarded, 0 } },
    [INITIAL('H')] = { { NAME("Host"), field_host, 0 } },
    [INITIAL('I')] = { { NAME("If-Modified-Since"), NULL,
                         offsetof(struct request, if_modified_since) },
                       { NAME("If-None-Match"), NULL,
                         offsetof(struct request, if_none_match) },
                       { NAME("If-Range"), NULL,
                         offsetof(struct request, if_range) } },
    [INITIAL('L')] = { { NAME("Last-Event-ID"), NULL,
                         offsetof(struct request, last_event_id) } },
    [INITIAL('O')] = { { NAME("Origin"), NULL,
                         offsetof(struct request, origin) } },
    [INITIAL('R')] = { { NAME("Range"), NULL,
                         offsetof(struct request, range) } },
    [INITIAL('S')] = { { NAME("Sec-Fetch-Site"), field_fetch_site, 0 } },
    [INITIAL('T')] = { { NAME("Transfer-Encoding"), field_transfer_encoding,
                         0 },
                       { NAME("True-Client-IP"), field_forwarded, 0 } },
    [INITIAL('V')] = { { NAME("Via"), field_forwarded, 0 } },
    /* the first stands for every name that begins with it */
    [INITIAL('X')] = { { NAME("X-Forwarded-"), field_forwarded, 0 },
                       { NAME("X-Real-IP"), field_forwarded, 0 } },
};

static int take_field(struct request *request, const struct field *field,
                      struct slice value)
{
    struct slice *place;

    if (field->parse)
        return field->parse(request, value);
    place = (struct slice *)(void *)((char *)request + field->place);
    if (!place->data)
        *place = value; /* of several, the first counts */
    return 0;
}

/* The field of that name, NULL if it is none that matters here. */
static const struct field *find_field(struct slice name)
{
    const struct field *field = fields[INITIAL(name.data[0])];
    const struct field *end = field + FIELDS_OF_AN_INITIAL;

    if (field == fields[INITIAL('X')] && slice_begins(name, field->name.data))
        return field;
    for (; field < end && field->name.data; field++)
        if (name.length == field->name.length &&
            strncasecmp(name.data, field->name.data, name.length) == 0)
            return field;
    return NULL;
}

/* The control characters among eight bytes: the lowest of the bits set in the
 * result is the top bit of the first one's byte; 0: none. */
static uint64_t controls(const char *eight)
{
    const uint64_t each = UINT64_C(0x0101010101010101);
    uint64_t bytes, delete;

    memcpy(&bytes, eight, sizeof(bytes));
    bytes = le64toh(bytes);
    delete = bytes ^ each * 0x7F;
    return (((bytes - each * ' ') & ~bytes) | ((delete - each) & ~delete)) &
           each * 0x80;
}

static bool is_control(char byte)
{
    return ((unsigned char)byte < ' ' && byte != '\t') || byte == 0x7F;
}

/* Where the first control character but HT is; `end` if there is none. */
static const char *find_control(const char *at, const char *end)
{
    while (end - at >= 8) {
        uint64_t found = controls(at);

        at += found ? __builtin_ctzll(found) / 8 : 8;
        if (found && *at != '\t')
            return at;
        at += found != 0;
    }
    while (at < end && !is_control(*at))
        at++;
    return at;
}

/* RFC 9112, section 5: no blank before the colon, no folded lines. *at is
 * then the next line, of which there is one. */
static int parse_field(struct request *request, const char **at,
                       const char *end)
{
    struct slice name = { *at, 0 }, value;
    const struct field *field;
    const char *stop;

    while (is_kind(name.data[name.length], TOKEN))
        name.length++;
    if (name.length == 0 || name.data[name.length] != ':')
        return (int)refuse(request, 400,
                           "a header line is not a name and a colon");
    value.data = name.data + name.length + 1;
    stop = find_control(value.data, end);
    if (stop[0] != '\r')
        return (int)refuse(request, 400, "a control character in a field");
    if (stop[1] != '\n')
        return (int)refuse(request, 400, "lines must end in CR LF");
    *at = stop + 2;
    value.length = (size_t)(stop - value.data);
    field = find_field(name);
    return field ? take_field(request, field, slice_trimmed(value)) : 0;
}

static int check_head(struct request *request)
{
    if (request->minor > 0 && request->hosts == 0)
        return (int)refuse(request, 400, "HTTP/1.1 needs a Host");
    if (request->chunked && request->content_length >= 0)
        return (int)refuse(request, 400,
                           "Content-Length and Transfer-Encoding together");
    return 0;
}

/* `head` is whole lines, each with CR LF at its end, the last one empty. */
static int parse_head(struct request *request, struct slice head)
{
    struct slice line = head;
    struct slice first = slice_split(&line, '\n');
    const char *at = line.data, *end = head.data + head.length;
    int status;

    first.length--;
    request->content_length = -1;
    status = parse_request_line(request, first);
    while (status == 0 && end - at > 2)
        status = parse_field(request, &at, end);
    return status == 0 ? check_head(request) : status;
}

/* Which limit bytes up to `end` go beyond, whatever they are; 0: none. It is
 * looked at first, so that the refusal does not depend on how they arrive. */
static int check_limits(struct request *request, size_t end)
{
    if (request->lines == 0 && end - request->start > REQUEST_LINE_MAX)
        return (int)refuse(request, 414, "the request line is too long");
    if (end > HEAD_MAX)
        return (int)refuse(request, 431, "the header fields are too long");
    return 0;
}

/* Takes in one more line that ends before `end`. */
static int scan_line(struct request *request, const char *data, size_t end)
{
    size_t length = end - request->scanned;
    int status = check_limits(request, end);

    if (status < 0)
        return status;
    if (length < 2 || data[end - 2] != '\r')
        return (int)refuse(request, 400, "lines must end in CR LF");
    if (length == 2 && request->lines == 0)
        request->start = end; /* RFC 9112, section 2.2: skipped */
    else if (length > 2 && ++request->lines > FIELD_COUNT_MAX + 1)
        return (int)refuse(request, 431, "too many header fields");
    request->scanned = end;
    return 0;
}

ssize_t http_parse(char *data, size_t length, struct request *request)
{
    bool complete = false;
    int status = 0;

    while (!complete && status == 0) {
        size_t begin = request->scanned;
        const char *lf =
            length > begin ? memchr(data + begin, '\n', length - begin) : NULL;

        if (!lf) /* at the least one byte more will come */
            return check_limits(request, length + 1);
        status = scan_line(request, data, (size_t)(lf - data) + 1);
        complete = request->lines > 0 && request->scanned - begin == 2;
    }
    if (status == 0)
        status = parse_head(
            request, (struct slice){ data + request->start,
                                     request->scanned - request->start });
    return status < 0 ? status : (ssize_t)request->scanned;
}

bool http_has_body(const struct request *request)
{
    return request->chunked || request->content_length > 0;
}

static size_t query_decode(struct slice text, char *value, size_t size)
{
    size_t length = 0;

    while (text.length && length < size) {
        int byte = percent_decoded(text);
        size_t taken = byte < 0 ? 1 : 3;

        if (byte < 0)
            byte = *text.data == '+' ? ' ' : (unsigned char)*text.data;
        value[length++] = (char)byte;
        text = slice_from(text, taken);
    }
    return length;
}

bool http_query_next(struct slice *query, const char *name, char *value,
                     size_t size, struct slice *result)
{
    while (query->length) {
        struct slice pair = slice_split(query, '&');
        struct slice key = slice_split(&pair, '=');

        if (!slice_is(key, name))
            continue;
        *result = (struct slice){ value, query_decode(pair, value, size) };
        return true;
    }
    return false;
}

bool http_query(struct slice query, const char *name, char *value, size_t size,
                struct slice *result)
{
    return http_query_next(&query, name, value, size, result);
}

static struct slice without_port(struct slice host)
{
    for (size_t i = host.length; i > 0; i--) {
        if (host.data[i - 1] == ':')
            return (struct slice){ host.data, i - 1 };
        if (!isdigit((unsigned char)host.data[i - 1]))
            break;
    }
    return host;
}

bool http_host_is(struct slice host, const char *name)
{
    return slice_equals(without_port(host), name);
}

bool http_host_is_local(struct slice host)
{
    char text[64];
    struct in6_addr address;

    host = without_port(host);
    if (slice_equals(host, "localhost"))
        return true;
    if (host.length == 0 || host.length >= sizeof(text))
        return false;
    memcpy(text, host.data, host.length);
    text[host.length] = '\0';
    if (text[0] != '[')
        return inet_pton(AF_INET, text, &address) == 1;
    if (text[host.length - 1] != ']')
        return false;
    text[host.length - 1] = '\0';
    return inet_pton(AF_INET6, text + 1, &address) == 1;
}

/* Takes a port that is the scheme's own off: a browser leaves it out. */
static struct slice without_default_port(struct slice host, const char *port)
{
    struct slice name = without_port(host);

    if (name.length < host.length &&
        slice_equals(slice_from(host, name.length), port))
        return name;
    return host;
}

bool http_origin_is_host(struct slice origin, struct slice host)
{
    const char *port = slice_begins(origin, "https://") ? ":443" : ":80";

    if (slice_begins(origin, "https://"))
        origin = slice_from(origin, 8);
    else if (slice_begins(origin, "http://"))
        origin = slice_from(origin, 7);
    else
        return false;
    origin = without_default_port(origin, port);
    host = without_default_port(host, port);
    return origin.length > 0 && origin.length == host.length &&
           strncasecmp(origin.data, host.data, host.length) == 0;
}

struct slice http_bearer(struct slice authorization)
{
    if (!slice_begins(authorization, "Bearer "))
        return (struct slice){ "", 0 };
    return slice_trimmed(slice_from(authorization, 7));
}

bool http_media_type_is(struct slice content_type, const char *media_type)
{
    return slice_equals(slice_trimmed(slice_split(&content_type, ';')),
                        media_type);
}

/* -------------------------------------------------------------- bodies */

void http_body_init(struct body *body, const struct request *request)
{
    *body = (struct body){ .chunked = request->chunked };
    if (body->chunked) {
        body->state = BODY_SIZE;
        return;
    }
    if (request->content_length > 0)
        body->left = (uint64_t)request->content_length;
    body->state = body->left ? BODY_DATA : BODY_DONE;
}

static bool expect_byte(struct body *body, char byte, char expected, int next)
{
    if (byte != expected)
        return false;
    body->state = (unsigned)next;
    return true;
}

/* A byte of the line before a chunk: its size in hex, then perhaps
 * extensions, which are passed over. */
static bool size_byte(struct body *body, char byte)
{
    int digit = hex_value(byte);

    if (++body->overhead > CHUNK_LINE_MAX)
        return false;
    if (body->state != BODY_EXTENSION && digit >= 0) {
        if (body->left > (UINT64_MAX >> 8))
            return false;
        body->left = body->left * 16 + (unsigned)digit;
        body->state = BODY_SIZE_MORE;
        return true;
    }
    if (body->state == BODY_SIZE || byte == '\n')
        return false;
    if (byte == '\r')
        body->state = BODY_SIZE_LF;
    else if (body->state == BODY_EXTENSION || byte == ';')
        body->state = BODY_EXTENSION;
    else
        return false;
    return byte != '\0';
}

static bool size_end(struct body *body, char byte)
{
    body->overhead = 0;
    return expect_byte(body, byte, '\n', body->left ? BODY_DATA : BODY_TRAILER);
}

/* A byte of the trailer section, which is passed over. */
static bool trailer_byte(struct body *body, char byte)
{
    if (++body->overhead > TRAILER_MAX || byte == '\n' || byte == '\0')
        return false;
    if (byte != '\r')
        body->state = BODY_TRAILER_LINE;
    else
        body->state =
            body->state == BODY_TRAILER ? BODY_END_LF : BODY_TRAILER_LF;
    return true;
}

static bool framing_byte(struct body *body, char byte)
{
    switch (body->state) {
    case BODY_DATA_END_CR:
        return expect_byte(body, byte, '\r', BODY_DATA_END_LF);
    case BODY_DATA_END_LF:
        return expect_byte(body, byte, '\n', BODY_SIZE);
    case BODY_SIZE:
    case BODY_SIZE_MORE:
    case BODY_EXTENSION:
        return size_byte(body, byte);
    case BODY_SIZE_LF:
        return size_end(body, byte);
    case BODY_TRAILER:
    case BODY_TRAILER_LINE:
        return trailer_byte(body, byte);
    case BODY_TRAILER_LF:
        return expect_byte(body, byte, '\n', BODY_TRAILER);
    case BODY_END_LF:
        return expect_byte(body, byte, '\n', BODY_DONE);
    case BODY_DATA:
    case BODY_DONE:
        break;
    }
    return false;
}

ssize_t http_body_read(struct body *body, struct slice data,
                       struct slice *piece)
{
    size_t taken = 0;

    *piece = (struct slice){ data.data, 0 };
    while (taken < data.length && body->state != BODY_DONE) {
        if (body->state != BODY_DATA) {
            if (!framing_byte(body, data.data[taken++]))
                return -400;
            continue;
        }
        *piece = slice_from(data, taken);
        if (piece->length > body->left)
            piece->length = (size_t)body->left;
        body->left -= piece->length;
        if (body->left == 0)
            body->state = body->chunked ? BODY_DATA_END_CR : BODY_DONE;
        return (ssize_t)(taken + piece->length);
    }
    return (ssize_t)taken;
}

/* ------------------------------------------------------ response heads */

const char *http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {
        { 200, "OK" },
        { 201, "Created" },
        { 204, "No Content" },
        { 206, "Partial Content" },
        { 301, "Moved Permanently" },
        { 304, "Not Modified" },
        { 400, "Bad Request" },
        { 401, "Unauthorized" },
        { 403, "Forbidden" },
        { 404, "Not Found" },
        { 405, "Method Not Allowed" },
        { 408, "Request Timeout" },
        { 409, "Conflict" },
        { 413, "Content Too Large" },
        { 414, "URI Too Long" },
        { 415, "Unsupported Media Type" },
        { 416, "Range Not Satisfiable" },
        { 417, "Expectation Failed" },
        { 421, "Misdirected Request" },
        { 431, "Request Header Fields Too Large" },
        { 500, "Internal Server Error" },
        { 501, "Not Implemented" },
        { 503, "Service Unavailable" },
        { 505, "HTTP Version Not Supported" },
    };

    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
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
    size_t size;
    size_t length;
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

/* The last segment alone, relative to the path that was asked for: then it is
 * as short as a file's name, and cannot lead to another host. */
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

static void put_cors(struct head *head, const struct response *response)
{
    if (!response->cors)
        return;
    put_field(head, "Access-Control-Allow-Origin", response->cors);
    if (strcmp(response->cors, "*") != 0)
        put_field(head, "Vary", "Origin");
    if (!response->preflight)
        return;
    put_field(head, "Access-Control-Allow-Methods", response->allow);
    put_field(head, "Access-Control-Allow-Headers",
              "Last-Event-ID, Cache-Control, Authorization, Content-Type");
    put_field(head, "Access-Control-Max-Age", "86400");
}

static void put_stream(struct head *head, const struct response *response)
{
    put_field(head, "Content-Type", "text/event-stream");
    put_field(head, "Cache-Control", "no-cache, no-transform");
    put_field(head, "X-Accel-Buffering", "no");
    put_field(head, "Connection", response->chunked ? "keep-alive" : "close");
    if (response->chunked)
        put_field(head, "Transfer-Encoding", "chunked");
}

static void put_modified(struct head *head, time_t modified)
{
    char date[HTTP_DATE_SIZE];

    if (modified == 0)
        return;
    http_date(date, modified);
    put_field(head, "Last-Modified", date);
}

static void put_content(struct head *head, const struct response *response)
{
    put_field(head, "Content-Type", response->type);
    if (!response->no_length)
        put_line(head, "Content-Length: %llu\r\n",
                 (unsigned long long)response->length);
    put_field(head, "ETag", response->etag);
    put_modified(head, response->modified);
    if (response->ranges)
        put_field(head, "Accept-Ranges", "bytes");
    if (response->status == 206)
        put_line(head, "Content-Range: bytes %llu-%llu/%llu\r\n",
                 (unsigned long long)response->range_first,
                 (unsigned long long)response->range_last,
                 (unsigned long long)response->range_total);
    if (response->status == 416)
        put_line(head, "Content-Range: bytes */%llu\r\n",
                 (unsigned long long)response->range_total);
    if (response->no_cache)
        put_field(head, "Cache-Control", "no-cache");
    if (response->close)
        put_field(head, "Connection", "close");
}

size_t http_head(char *buffer, size_t size, const struct response *response)
{
    struct head head = { .buffer = buffer, .size = size };

    put_line(&head, "HTTP/1.1 %d %s\r\n", response->status,
             http_reason(response->status));
    put_field(&head, "Date", response->date);
    if (response->stream)
        put_stream(&head, response);
    else
        put_content(&head, response);
    put_field(&head, "Allow", response->preflight ? NULL : response->allow);
    if (response->authenticate)
        put_field(&head, "WWW-Authenticate", "Bearer");
    if (response->retry_after)
        put_line(&head, "Retry-After: %u\r\n", response->retry_after);
    if (response->location.length)
        put_location(&head, response->location);
    put_cors(&head, response);
    put_line(&head, "X-Content-Type-Options: nosniff\r\n\r\n");
    return head.length < size ? head.length : 0;
}

/* --------------------------------------------------------------- files */

/* The pages lie in the binary as they are, so that it is one file that can
 * be copied anywhere. */
#define BUNDLE(symbol, file)            \
    __asm__(".pushsection .rodata\n"    \
            "bundle_" #symbol ":\n"     \
            ".incbin \"" file "\"\n"    \
            "bundle_" #symbol "_end:\n" \
            ".byte 0\n"                 \
            ".popsection\n");           \
    extern const char bundle_##symbol[], bundle_##symbol##_end[]

BUNDLE(index_html, "static/index.html");

BUNDLE(index_js, "static/index.js");

BUNDLE(style_css, "static/style.css");

BUNDLE(clock_html, "static/clock.html");

static struct bundled {
    const char *path;
    const char *data;
    const char *end;
    char etag[64];
} bundle[] = {
    { "/index.html", bundle_index_html, bundle_index_html_end, "" },
    { "/index.js", bundle_index_js, bundle_index_js_end, "" },
    { "/style.css", bundle_style_css, bundle_style_css_end, "" },
    { "/clock.html", bundle_clock_html, bundle_clock_html_end, "" },
};

static time_t bundle_modified;

void http_bundle_init(time_t modified)
{
    bundle_modified = modified;
    for (size_t i = 0; i < sizeof(bundle) / sizeof(bundle[0]); i++) {
        uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */

        for (const char *p = bundle[i].data; p < bundle[i].end; p++)
            hash = (hash ^ (unsigned char)*p) * UINT64_C(1099511628211);
        snprintf(bundle[i].etag, sizeof(bundle[i].etag), "\"%016llx\"",
                 (unsigned long long)hash);
    }
}

static const char *media_type(struct slice path)
{
    static const struct {
        const char *ending;
        const char *type;
    } types[] = {
        { ".css", "text/css; charset=utf-8" },
        { ".csv", "text/csv; charset=utf-8" },
        { ".gif", "image/gif" },
        { ".htm", "text/html; charset=utf-8" },
        { ".html", "text/html; charset=utf-8" },
        { ".ico", "image/vnd.microsoft.icon" },
        { ".jpeg", "image/jpeg" },
        { ".jpg", "image/jpeg" },
        { ".js", "text/javascript; charset=utf-8" },
        { ".json", "application/json" },
        { ".map", "application/json" },
        { ".md", "text/markdown; charset=utf-8" },
        { ".mjs", "text/javascript; charset=utf-8" },
        { ".mp3", "audio/mpeg" },
        { ".mp4", "video/mp4" },
        { ".pdf", "application/pdf" },
        { ".png", "image/png" },
        { ".svg", "image/svg+xml; charset=utf-8" },
        { ".txt", "text/plain; charset=utf-8" },
        { ".wasm", "application/wasm" },
        { ".webm", "video/webm" },
        { ".webp", "image/webp" },
        { ".woff", "font/woff" },
        { ".woff2", "font/woff2" },
        { ".xml", "application/xml" },
    };

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        size_t length = strlen(types[i].ending);

        if (path.length > length &&
            slice_equals(slice_from(path, path.length - length),
                         types[i].ending))
            return types[i].type;
    }
    return "application/octet-stream";
}

static int open_bundled(struct file *file, const char *path)
{
    for (size_t i = 0; i < sizeof(bundle) / sizeof(bundle[0]); i++) {
        const struct bundled *b = &bundle[i];

        if (strcmp(b->path, path) != 0)
            continue;
        *file = (struct file){
            .data = b->data,
            .fd = -1,
            .length = (uint64_t)(b->end - b->data),
            .modified = bundle_modified,
        };
        memcpy(file->etag, b->etag, sizeof(file->etag));
        return 0;
    }
    return -404;
}

/* openat2(2), of which some libcs have no header. */
enum {
    NO_MAGIC_LINKS = 2, /* RESOLVE_NO_MAGICLINKS */
    BENEATH = 8,        /* RESOLVE_BENEATH */
};

static int open_beneath(int root, const char *path)
{
    /* O_NONBLOCK: opening a FIFO must not wait for its other end. */
    struct {
        uint64_t flags, mode, resolve;
    } how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
        .resolve = BENEATH | NO_MAGIC_LINKS,
    };
    int fd = -1;

    /* openat2(2): EAGAIN when something was renamed meanwhile. */
    for (int tries = 0; fd < 0 && tries < 16; tries++) {
        fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
        if (fd < 0 && errno != EAGAIN && errno != EINTR)
            break;
    }
    return fd;
}

static int open_in_root(struct file *file, int root, const char *path)
{
    struct stat status;
    int fd = open_beneath(root, path + 1);
    bool known;

    if (fd < 0 && errno == ENOSYS)
        return -501;
    if (fd < 0)
        return errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
                       errno == EAGAIN
                   ? -503
                   : -404;
    known = fstat(fd, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
        close(fd);
        return known && S_ISDIR(status.st_mode) ? -301 : -404;
    }
    *file = (struct file){
        .fd = fd,
        .length = (uint64_t)status.st_size,
        .modified = status.st_mtime,
    };
    snprintf(file->etag, sizeof(file->etag), "\"%llx-%llx-%lx\"",
             (unsigned long long)status.st_ino,
             (unsigned long long)status.st_mtim.tv_sec * 1000000000ull +
                 (unsigned long long)status.st_mtim.tv_nsec,
             (unsigned long)status.st_size);
    return 0;
}

int http_file_open(struct file *file, int root, struct slice path)
{
    char name[REQUEST_LINE_MAX + sizeof("index.html")];
    bool folder = path.length && path.data[path.length - 1] == '/';
    int status;

    if (path.length == 0 || path.length > REQUEST_LINE_MAX ||
        (path.length > 1 && path.data[1] == '/'))
        return -404;
    memcpy(name, path.data, path.length);
    snprintf(name + path.length, sizeof(name) - path.length, "%s",
             folder ? "index.html" : "");
    status =
        root < 0 ? open_bundled(file, name) : open_in_root(file, root, name);
    if (folder && status == -301)
        status = -404; /* its index.html is a folder */
    if (status == 0)
        file->type = media_type((struct slice){ name, strlen(name) });
    return status;
}

/* RFC 9110, section 13.1.2: weak comparison with each of a list. */
static bool etag_matches(struct slice list, const char *etag)
{
    if (slice_equals(list, "*"))
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

static bool parse_date(struct slice text, time_t *when)
{
    char copy[HTTP_DATE_SIZE];
    struct tm tm = { 0 };
    const char *end;

    if (text.length != sizeof(copy) - 1)
        return false;
    memcpy(copy, text.data, text.length);
    copy[text.length] = '\0';
    end = strptime(copy, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    if (!end || *end)
        return false;
    *when = timegm(&tm);
    return true;
}

static bool not_modified(const struct file *file, const struct request *request)
{
    time_t since;

    if (request->if_none_match.data)
        return etag_matches(request->if_none_match, file->etag);
    return request->if_modified_since.data &&
           parse_date(request->if_modified_since, &since) &&
           file->modified <= since;
}

/* RFC 9110, section 13.1.5: a range only of what the client has a part of. */
static bool range_applies(const struct file *file,
                          const struct request *request)
{
    struct slice condition = request->if_range;
    time_t when;

    if (!condition.data)
        return true;
    if (condition.length && condition.data[0] == '"')
        return slice_is(condition, file->etag);
    return parse_date(condition, &when) && when == file->modified;
}

enum range {
    RANGE_NONE,
    RANGE_ONE,
    RANGE_UNSATISFIABLE
};

static bool parse_digits(struct slice text, uint64_t *number)
{
    while (text.length > 1 && text.data[0] == '0')
        text = slice_from(text, 1);
    return slice_number(text, INT64_MAX, number);
}

/* RFC 9110, section 14.1.2. What is malformed or has several ranges is
 * passed over, as section 14.2 allows. */
static enum range parse_range(struct slice range, uint64_t length,
                              uint64_t *first, uint64_t *last)
{
    struct slice from, to;

    if (!slice_begins(range, "bytes="))
        return RANGE_NONE;
    to = slice_from(range, 6);
    if (to.length == 0 || !memchr(to.data, '-', to.length))
        return RANGE_NONE;
    from = slice_split(&to, '-');
    if (from.length == 0) { /* the last so many bytes */
        uint64_t count;

        if (!parse_digits(to, &count))
            return RANGE_NONE;
        *first = count < length ? length - count : 0;
        *last = length - 1;
        return count && length ? RANGE_ONE : RANGE_UNSATISFIABLE;
    }
    *last = UINT64_MAX;
    if (!parse_digits(from, first) || (to.length && !parse_digits(to, last)) ||
        *last < *first)
        return RANGE_NONE;
    if (*first >= length)
        return RANGE_UNSATISFIABLE;
    if (*last >= length)
        *last = length - 1;
    return RANGE_ONE;
}

void http_file_response(const struct file *file, const struct request *request,
                        struct response *response, uint64_t *first)
{
    uint64_t last = 0;
    enum range range = RANGE_NONE;

    *first = 0;
    response->status = 200;
    response->type = file->type;
    response->etag = file->etag;
    response->modified = file->modified;
    response->length = file->length;
    response->ranges = true;
    if (not_modified(file, request)) {
        response->status = 304;
        response->no_length = true;
        return;
    }
    if (request->method == METHOD_GET && request->range.data &&
        range_applies(file, request))
        range = parse_range(request->range, file->length, first, &last);
    if (range == RANGE_NONE) {
        *first = 0;
        return;
    }
    response->status = range == RANGE_ONE ? 206 : 416;
    response->length = range == RANGE_ONE ? last - *first + 1 : 0;
    response->range_first = *first;
    response->range_last = last;
    response->range_total = file->length;
}
