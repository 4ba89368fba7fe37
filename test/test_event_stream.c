/*
 * The event stream parser: the examples and rules of WHATWG HTML, section
 * 9.2.6, every split of a set of streams in three, and a second, naive
 * implementation, to the letter of the standard, on random input.
 */
#include "sse.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROOM = 40, /* for data */
    EVENTS_MAX = 64,
    TEXT_MAX = 512,
};

/* What a stream holds, as a text that can be compared: a line for each event,
 * its parts in brackets. */
struct result {
    char text[8192];
    size_t length;
};

static void put_part(struct result *result, const char *name, const char *bytes,
                     size_t length)
{
    cr_assert(result->length + length + 64 < sizeof(result->text));
    result->length +=
        (size_t)sprintf(result->text + result->length, "%s%zu[", name, length);
    memcpy(result->text + result->length, bytes, length);
    result->length += length;
    result->text[result->length++] = ']';
}

static void put_event(struct result *result, const struct event_parser *parser)
{
    if (parser->too_long)
        put_part(result, "long", "", 0);
    else
        put_part(result, "data", parser->data, parser->length);
    put_part(result, "event", parser->name, parser->name_length);
    if (parser->has_id)
        put_part(result, "id", parser->id, parser->id_length);
    put_part(result, "retry", parser->retry, parser->retry_length);
    result->text[result->length++] = '\n';
}

static void feed(struct event_parser *parser, struct slice data,
                 struct result *result)
{
    while (data.length) {
        size_t taken = event_parser_read(parser, data);

        cr_assert(taken > 0 && taken <= data.length);
        cr_assert(parser->complete || taken == data.length);
        data.data += taken;
        data.length -= taken;
        if (parser->complete)
            put_event(result, parser);
    }
}

/* Parses a stream that comes in three pieces, each in memory of its own, so
 * that nothing can look over an end. */
static void parse_pieces(struct slice stream, size_t first, size_t second,
                         struct result *result)
{
    size_t ends[] = { 0, first, second, stream.length };
    struct event_parser parser;
    char room[ROOM];

    result->length = 0;
    event_parser_init(&parser, room, sizeof(room));
    for (int i = 0; i < 3; i++) {
        size_t length = ends[i + 1] - ends[i];
        char *piece = malloc(length + 1);

        cr_assert(piece);
        memcpy(piece, stream.data + ends[i], length);
        feed(&parser, (struct slice){ piece, length }, result);
        free(piece);
    }
    result->text[result->length] = '\0';
}

#define TEXT(literal)                  \
    {                                  \
        (literal), sizeof(literal) - 1 \
    }

static const struct {
    struct slice stream;
    struct slice events;
} cases[] = {
    /* the standard's examples */
    { TEXT("data: YHOO\ndata: +2\ndata: 10\n\n"),
      TEXT("data10[YHOO\n+2\n10]event0[]retry0[]\n") },
    { TEXT(": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid"
           "\n\ndata:  third event\n\n"),
      TEXT("data11[first event]event0[]id1[1]retry0[]\n"
           "data12[second event]event0[]id0[]retry0[]\n"
           "data12[ third event]event0[]retry0[]\n") },
    { TEXT("data\n\ndata\ndata\n\ndata:"),
      TEXT("data0[]event0[]retry0[]\ndata1[\n]event0[]retry0[]\n") },
    { TEXT("data:test\n\ndata: test\n\n"),
      TEXT("data4[test]event0[]retry0[]\ndata4[test]event0[]retry0[]\n") },
    /* line ends */
    { TEXT("data: a\r\ndata: b\rdata: c\n\r\n"),
      TEXT("data5[a\nb\nc]event0[]retry0[]\n") },
    { TEXT("data: a\r\rdata: b\r\n\r\ndata: c\n\n"),
      TEXT("data1[a]event0[]retry0[]\ndata1[b]event0[]retry0[]\n"
           "data1[c]event0[]retry0[]\n") },
    { TEXT("\r\n\n\r\r\n\ndata: a\n\r"), TEXT("data1[a]event0[]retry0[]\n") },
    /* the byte order mark: one, at the start */
    { TEXT("\xEF\xBB\xBF"
           "data: a\n\n"),
      TEXT("data1[a]event0[]retry0[]\n") },
    { TEXT("\xEF\xBB\xBF\xEF\xBB\xBF"
           "data: a\n\ndata: b\n\n"),
      TEXT("data1[b]event0[]retry0[]\n") },
    { TEXT("\xEF\xBB"
           "data: a\n\ndata: b\n\n"),
      TEXT("data1[b]event0[]retry0[]\n") },
    { TEXT("\xEF\n"
           "data: a\n\n"),
      TEXT("data1[a]event0[]retry0[]\n") },
    { TEXT("data: a\n\xEF\xBB\xBF"
           "data: b\n\n"),
      TEXT("data1[a]event0[]retry0[]\n") },
    /* fields */
    { TEXT("event: x\n\ndata: a\n\n"), TEXT("data1[a]event0[]retry0[]\n") },
    { TEXT("event: x\nevent: y\ndata: a\n\n"),
      TEXT("data1[a]event1[y]retry0[]\n") },
    { TEXT("event: x\nevent\ndata: a\n\n"),
      TEXT("data1[a]event0[]retry0[]\n") },
    { TEXT("Data: a\ndata : a\n data: a\ndat: a\ndatab: a\n\n"), TEXT("") },
    { TEXT("data: a:b: c\n\n"), TEXT("data6[a:b: c]event0[]retry0[]\n") },
    { TEXT("data::\ndata:  \n\n"), TEXT("data3[:\n ]event0[]retry0[]\n") },
    { TEXT("comment: x\n:\n:data: a\ndata: a\n\n"),
      TEXT("data1[a]event0[]retry0[]\n") },
    { TEXT("data: a\0b\n\n"), TEXT("data3[a\0b]event0[]retry0[]\n") },
    /* ids */
    { TEXT("id: 7\ndata: a\n\ndata: b\n\n"),
      TEXT("data1[a]event0[]id1[7]retry0[]\ndata1[b]event0[]retry0[]\n") },
    { TEXT("id: 7\nid: 8\0\ndata: a\n\n"),
      TEXT("data1[a]event0[]id1[7]retry0[]\n") },
    { TEXT("id: 7\nid:\ndata: a\n\n"),
      TEXT("data1[a]event0[]id0[]retry0[]\n") },
    { TEXT("id: 1234567890123456\ndata: a\n\n"),
      TEXT("data1[a]event0[]id16[1234567890123456]retry0[]\n") },
    { TEXT("id: 123456789012345678\ndata: a\n\n"),
      TEXT("data1[a]event0[]id17[12345678901234567]retry0[]\n") },
    /* retry */
    { TEXT("retry: 10\nretry: x\nretry: 1 \nretry:\nretry: -1\ndata: a\n\n"),
      TEXT("data1[a]event0[]retry2[10]\n") },
    { TEXT("retry: 10\n\ndata: a\n\n"), TEXT("data1[a]event0[]retry0[]\n") },
    { TEXT("retry: 12345678901234567\ndata: a\n\n"),
      TEXT("data1[a]event0[]retry0[]\n") },
    /* too long; and the next one is well */
    { TEXT("data: 0123456789012345678901234567890123456789\n\n"),
      TEXT("data40[0123456789012345678901234567890123456789]event0[]retry0[]"
           "\n") },
    { TEXT("data: 01234567890123456789012345678901234567890\n\ndata: b\n\n"),
      TEXT("long0[]event0[]retry0[]\ndata1[b]event0[]retry0[]\n") },
    { TEXT("data: 0123456789012345678901234567890123456789\ndata\n\n"),
      TEXT("long0[]event0[]retry0[]\n") },
    /* what is not complete */
    { TEXT("data: a\n"), TEXT("") },
    { TEXT("data: a"), TEXT("") },
    { TEXT(""), TEXT("") },
};

Test(event_stream, means_the_same_however_it_is_split)
{
    struct result result;

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct slice stream = cases[i].stream;

        for (size_t first = 0; first <= stream.length; first++)
            for (size_t second = first; second <= stream.length; second++) {
                struct slice events = cases[i].events;

                parse_pieces(stream, first, second, &result);
                cr_assert(result.length == events.length &&
                              memcmp(result.text, events.data, events.length) ==
                                  0,
                          "%zu %zu %zu: %s", i, first, second, result.text);
            }
    }
}

Test(event_stream, a_name_of_any_length_is_told_from_one_too_long)
{
    struct event_parser parser;
    char room[ROOM], stream[1024];

    for (size_t length = 0; length < 300; length++) {
        int size = sprintf(stream, "event: %0*d\ndata: a\n\n", (int)length, 0);

        if (length == 0)
            size = sprintf(stream, "event:\ndata: a\n\n");
        event_parser_init(&parser, room, sizeof(room));
        cr_assert(event_parser_read(&parser,
                                    (struct slice){ stream, (size_t)size }) ==
                  (size_t)size);
        cr_assert(parser.complete);
        cr_assert(parser.name_length ==
                  (length > EVENT_NAME_MAX ? EVENT_NAME_MAX + 1 : length));
    }
}

/* However long a comment or an unknown field is, nothing of it is kept. */
Test(event_stream, skips_lines_of_any_length)
{
    static char line[100000];
    struct event_parser parser;
    char room[ROOM];

    memset(line, 'x', sizeof(line));
    for (int colon = 0; colon < 2; colon++) {
        line[0] = colon ? ':' : 'x';
        event_parser_init(&parser, room, sizeof(room));
        for (int i = 0; i < 50; i++)
            cr_assert(event_parser_read(&parser,
                                        (struct slice){ line, sizeof(line) }) ==
                      sizeof(line));
        event_parser_read(&parser, SLICE("\ndata: a\n\n"));
        cr_assert(parser.complete && parser.length == 1 && !parser.too_long);
    }
}

/* ------------------------------------------------------ the naive one
 *
 * Cuts the whole stream into lines first, and then does what the standard
 * says for each. What this project bounds is told apart afterwards.
 */
struct naive {
    char data[TEXT_MAX], name[TEXT_MAX], id[TEXT_MAX], retry[TEXT_MAX];
    size_t data_length, name_length, id_length, retry_length;
    bool has_id;
};

static void naive_dispatch(struct naive *naive, struct result *result)
{
    if (naive->data_length > 0) {
        naive->data_length--; /* the last LF */
        if (naive->data_length > ROOM)
            put_part(result, "long", "", 0);
        else
            put_part(result, "data", naive->data, naive->data_length);
        put_part(result, "event", naive->name, naive->name_length);
        if (naive->has_id)
            put_part(result, "id", naive->id,
                     naive->id_length > EVENT_NUMBER_MAX ? EVENT_NUMBER_MAX + 1
                                                         : naive->id_length);
        put_part(result, "retry", naive->retry, naive->retry_length);
        result->text[result->length++] = '\n';
    }
    *naive = (struct naive){ 0 };
}

static void naive_field(struct naive *naive, struct slice name,
                        struct slice value)
{
    if (slice_is(name, "data")) {
        memcpy(naive->data + naive->data_length, value.data, value.length);
        naive->data_length += value.length;
        naive->data[naive->data_length++] = '\n';
    } else if (slice_is(name, "event")) {
        memcpy(naive->name, value.data, value.length);
        naive->name_length = value.length;
    } else if (slice_is(name, "id") && !memchr(value.data, 0, value.length)) {
        memcpy(naive->id, value.data, value.length);
        naive->id_length = value.length;
        naive->has_id = true;
    } else if (slice_is(name, "retry") && value.length > 0 &&
               value.length <= EVENT_NUMBER_MAX) {
        for (size_t i = 0; i < value.length; i++)
            if (value.data[i] < '0' || value.data[i] > '9')
                return;
        memcpy(naive->retry, value.data, value.length);
        naive->retry_length = value.length;
    }
}

static void naive_line(struct naive *naive, struct slice line,
                       struct result *result)
{
    const char *colon = memchr(line.data, ':', line.length);
    struct slice name = line, value = { line.data + line.length, 0 };

    if (line.length == 0) {
        naive_dispatch(naive, result);
        return;
    }
    if (colon == line.data)
        return;
    if (colon) {
        name.length = (size_t)(colon - line.data);
        value.data = colon + 1;
        value.length = line.length - name.length - 1;
        if (value.length && *value.data == ' ') {
            value.data++;
            value.length--;
        }
    }
    naive_field(naive, name, value);
}

static void naive_parse(struct slice stream, struct result *result)
{
    struct naive naive = { 0 };
    size_t at = 0;

    result->length = 0;
    if (stream.length >= 3 && memcmp(stream.data, "\xEF\xBB\xBF", 3) == 0)
        at = 3;
    while (at < stream.length) {
        size_t end = at;

        while (end < stream.length && stream.data[end] != '\n' &&
               stream.data[end] != '\r')
            end++;
        if (end == stream.length)
            break;
        naive_line(&naive, (struct slice){ stream.data + at, end - at },
                   result);
        at = end + 1;
        if (stream.data[end] == '\r' && at < stream.length &&
            stream.data[at] == '\n')
            at++;
    }
    result->text[result->length] = '\0';
}

static size_t random_stream(char *stream)
{
    static const char *const parts[] = {
        "data",  "data",    "data:",        "data: ",
        "event", "id",      "retry",        ":",
        ":",     " ",       "\n",           "\n",
        "\r",    "\r\n",    "\n\n",         "x",
        "7",     "12345",   "ssed.",        "\xEF",
        "\xBB",  "\xBF",    "\xE4\xBD\xA0", "012345678901234567890",
        "\n\n",  "event: ", "id: ",         "retry: ",
    };
    size_t length = 0, count = (size_t)random() % 30;

    for (size_t i = 0; i < count; i++) {
        const char *part = parts[(size_t)random() % COUNT(parts)];

        if (random() % 40 == 0)
            stream[length++] = '\0';
        memcpy(stream + length, part, strlen(part));
        length += strlen(part);
    }
    return length;
}

#define SEED 20261123

Test(event_stream, agrees_with_a_naive_one)
{
    char stream[2048];
    struct result expected, got;

    srandom(SEED);
    for (int i = 0; i < 200000; i++) {
        struct slice all = { stream, random_stream(stream) };
        size_t second = (size_t)random() % (all.length + 1);
        size_t first = (size_t)random() % (second + 1);

        naive_parse(all, &expected);
        parse_pieces(all, first, second, &got);
        cr_assert(got.length == expected.length &&
                      memcmp(got.text, expected.text, got.length) == 0,
                  "seed %d, round %d, split at %zu and %zu:\n%s\nexpected\n%s",
                  SEED, i, first, second, got.text, expected.text);
    }
}

/* ------------------------------------------------------------ event text */

/* RFC 3629, section 4, spelled out byte by byte. */
static size_t naive_utf8(const unsigned char *s, size_t length)
{
    uint32_t code;
    size_t size = s[0] < 0x80             ? 1
                  : (s[0] & 0xE0) == 0xC0 ? 2
                  : (s[0] & 0xF0) == 0xE0 ? 3
                  : (s[0] & 0xF8) == 0xF0 ? 4
                                          : 0;
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

    if (size == 0 || size > length)
        return 0;
    code = size == 1 ? s[0] : s[0] & (0x7FU >> size);
    for (size_t i = 1; i < size; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
        code = code << 6 | (s[i] & 0x3F);
    }
    return code < least[size] || code > 0x10FFFF ||
                   (code >= 0xD800 && code < 0xE000)
               ? 0
               : size;
}

Test(text, utf8_as_the_rfc_has_it)
{
    static const unsigned char tails[] = { 0x00, 0x7F, 0x80, 0x8F, 0x90,
                                           0x9F, 0xA0, 0xBF, 0xC0, 0xFF };

    for (unsigned first = 0; first < 256; first++)
        for (unsigned second = 0; second < 256; second++)
            for (size_t tail = 0; tail < COUNT(tails) * COUNT(tails); tail++)
                for (size_t length = 1; length <= 4; length++) {
                    unsigned char s[4] = { (unsigned char)first,
                                           (unsigned char)second,
                                           tails[tail / COUNT(tails)],
                                           tails[tail % COUNT(tails)] };
                    struct slice text = { (char *)s, length };

                    if (utf8_sequence(text) != naive_utf8(s, length))
                        cr_assert_fail("%02x %02x %02x %02x: %zu", s[0], s[1],
                                       s[2], s[3], length);
                }
}

/* The table of Unicode 15.0, section 3.9, "U+FFFD substitution of maximal
 * subparts", and ends that are cut. */
Test(utf8, one_replacement_stands_for_a_maximal_subpart)
{
    static const struct {
        const char *text;
        size_t length;
    } texts[] = {
        { "\xF1\x80\x80\x41", 3 },
        { "\xE1\x80\x41", 2 },
        { "\xC2\x41", 1 },
        { "\xC0\xAF", 1 },
        { "\xE0\x80\xBF", 1 },
        { "\xF0\x81\x82", 1 },
        { "\xED\xA0\x80", 1 },
        { "\xF4\x91\x92", 1 },
        { "\xFF", 1 },
        { "\x80\x80", 1 },
        { "\xE4\xBD", 2 },
        { "\xE4", 1 },
        { "\xF0\x90\x80", 3 },
        { "\xF5\x80\x80\x80", 1 },
        { "\xF0\x9F\x98\xF0", 3 },
        { "\xC2", 1 },
    };

    for (size_t i = 0; i < COUNT(texts); i++)
        cr_assert(utf8_malformed(slice_of(texts[i].text)) == texts[i].length,
                  "%zu", i);
}

static struct slice parsed_name(const struct event_parser *parser)
{
    return (struct slice){ parser->name, parser->name_length };
}

/* What is written as a block is read as the same event. */
Test(texts, an_event_is_read_as_it_was_written)
{
    static const struct {
        const char *name, *retry, *data, *read;
    } rows[] = {
        { "", "", "", "" },
        { "token", "", "one", "one" },
        { "a b", "250", "one\ntwo", "one\ntwo" },
        { "", "", "one\r\ntwo\rthree\n", "one\ntwo\nthree\n" },
        { "", "", "\n\n", "\n\n" },
        { "", "", " blank", " blank" },
        { "\xFF", "", "a\x80z", "a\xEF\xBF\xBDz" },
        { "你好", "", "data: x: y", "data: x: y" },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        char bytes[512], data[256];
        struct text text = { bytes, sizeof(bytes), 0 };
        struct event event = { .name = slice_of(rows[i].name),
                               .retry = slice_of(rows[i].retry),
                               .data = slice_of(rows[i].data) };
        struct event_parser parser;
        struct slice block;

        text_put_event(&text, 77, &event);
        block = (struct slice){ bytes + FRAME_HEAD,
                                text.length - FRAME_HEAD - FRAME_TAIL };
        event_parser_init(&parser, data, sizeof(data));
        cr_assert(event_parser_read(&parser, block) == block.length);
        cr_assert(parser.complete);
        cr_assert(
            slice_is((struct slice){ data, parser.length }, rows[i].read));
        cr_assert(
            slice_is((struct slice){ parser.id, parser.id_length }, "77"));
        cr_assert(slice_is((struct slice){ parser.retry, parser.retry_length },
                           rows[i].retry));
        cr_assert(i == 6 || slice_is(parsed_name(&parser), rows[i].name));
    }
}

/* The chunk size is that of the bytes between the envelope's two parts. */
Test(texts, a_chunk_says_its_size)
{
    char bytes[256];
    struct text text = { bytes, sizeof(bytes), 0 };
    size_t begin_at =
        text_begin_block(&text, FORM_CHUNKED, &(struct block){ 0 });

    text_put(&text, "data: x\n");
    text_end_block(&text, FORM_CHUNKED, begin_at);
    cr_assert(slice_is(text_slice(&text), "00000009\r\ndata: x\n\n\r\n"));
}
