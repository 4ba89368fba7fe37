/*
 * The reader of Redis's replies: the forms of RESP2, every split of a set of
 * replies in three, and what no Redis sends.
 */
#include "sse.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What has been read, as a text that can be compared. */
struct result {
    char text[8192];
    size_t length;
    bool in_string; /* the pieces of one are put together */
};

static void put(struct result *result, const char *bytes, size_t length)
{
    cr_assert(result->length + length + 64 < sizeof(result->text));
    memcpy(result->text + result->length, bytes, length);
    result->length += length;
    result->text[result->length] = '\0';
}

static void put_token(struct result *result, const struct resp *resp)
{
    char text[64];
    bool begins = !result->in_string;

    result->in_string = resp->token == RESP_TEXT && !resp->last;
    if (begins && resp->token != RESP_MALFORMED)
        put(result, text,
            (size_t)snprintf(text, sizeof(text), "%u", resp->level));
    if (resp->token == RESP_ARRAY || resp->token == RESP_INTEGER)
        put(result, text,
            (size_t)snprintf(text, sizeof(text), "%c%lld",
                             resp->token == RESP_ARRAY ? '*' : ':',
                             (long long)resp->number));
    else if (resp->token == RESP_NIL)
        put(result, "nil", 3);
    else if (resp->token == RESP_ERROR)
        put(result, "-", 1);
    else if (resp->token == RESP_TEXT && begins)
        put(result, "\"", 1);
    else if (resp->token == RESP_MALFORMED)
        put(result, "?", 1);
    if (resp->token == RESP_TEXT || resp->token == RESP_ERROR ||
        resp->token == RESP_MALFORMED)
        put(result, resp->piece.data, resp->piece.length);
    if (resp->token == RESP_TEXT && resp->last)
        put(result, "\"", 1);
    if (!result->in_string)
        put(result, resp->done ? ".\n" : " ", resp->done ? 2 : 1);
}

static void feed(struct resp *resp, struct slice data, struct result *result)
{
    while (data.length) {
        size_t taken = resp_read(resp, data);

        cr_assert(taken <= data.length);
        if (resp->token == RESP_NOTHING) {
            cr_assert(taken == data.length);
            return;
        }
        data = slice_from(data, taken);
        put_token(result, resp);
        if (resp->token == RESP_MALFORMED)
            return;
    }
}

/* Reads replies that come in three pieces, each in memory of its own, so that
 * nothing can look over an end. */
static void read_pieces(struct slice replies, size_t first, size_t second,
                        struct result *result)
{
    size_t ends[] = { 0, first, second, replies.length };
    struct resp resp = { 0 };

    *result = (struct result){ .length = 0 };
    for (int i = 0; i < 3 && resp.token != RESP_MALFORMED; i++) {
        size_t length = ends[i + 1] - ends[i];
        char *piece = malloc(length + 1);

        cr_assert(piece);
        memcpy(piece, replies.data + ends[i], length);
        feed(&resp, (struct slice){ piece, length }, result);
        free(piece);
    }
}

static void check_replies(const char *replies, const char *expected)
{
    struct slice whole = slice_of(replies);
    struct result result;

    for (size_t first = 0; first <= whole.length; first++)
        for (size_t second = first; second <= whole.length; second++) {
            read_pieces(whole, first, second, &result);
            cr_assert(strcmp(result.text, expected) == 0,
                      "%zu, %zu: '%s' is not '%s'", first, second, result.text,
                      expected);
        }
}

Test(redis, replies)
{
    static const char *const rows[][2] = {
        { "+OK\r\n", "0\"OK\".\n" },
        { "+\r\n", "0\"\".\n" },
        { "-ERR no such key\r\n", "0-ERR no such key.\n" },
        { ":0\r\n:-7\r\n:9223372036854775807\r\n",
          "0:0.\n0:-7.\n0:9223372036854775807.\n" },
        { "$5\r\nhello\r\n$0\r\n\r\n$-1\r\n", "0\"hello\".\n0\"\".\n0nil.\n" },
        { "$4\r\na\r\nb\r\n", "0\"a\r\nb\".\n" },
        { "*-1\r\n*0\r\n", "0nil.\n0*0.\n" },
        { "*2\r\n$1\r\na\r\n:1\r\n+b\r\n", "0*2 1\"a\" 1:1.\n0\"b\".\n" },
        { "*2\r\n*0\r\n*1\r\n*1\r\n$1\r\nx\r\n", "0*2 1*0 1*1 2*1 3\"x\".\n" },
        { "*1\r\n*2\r\n$3\r\n0-1\r\n*2\r\n$1\r\nt\r\n$0\r\n\r\n",
          "0*1 1*2 2\"0-1\" 2*2 3\"t\" 3\"\".\n" },
        { "*2\r\n-ERR\r\n*-1\r\n", "0*2 1-ERR 1nil.\n" },
    };

    for (size_t i = 0; i < COUNT(rows); i++)
        check_replies(rows[i][0], rows[i][1]);
}

Test(redis, what_no_redis_sends)
{
    static const char *const rows[][2] = {
        { "HTTP/1.1 400 Bad Request\r\n", "?a type that RESP2 does not have " },
        { "%1\r\n", "?a type that RESP2 does not have " },
        { "\r\n", "?a type that RESP2 does not have " },
        { "+OK\rx", "?a CR without LF " },
        { "$1\r\naXX", "?a string that is too long " },
        { "$1\r\na\rX", "?a CR without LF " },
        { "$-2\r\n", "?a length that cannot be " },
        { "$67108865\r\n", "?a length that cannot be " },
        { "$01\r\n", "?a length that cannot be " },
        { "$\r\n", "?a length that cannot be " },
        { "*99999999999999999999\r\n", "?a length that cannot be " },
        { ":1x\r\n", "?an integer that is none " },
        { ":--1\r\n", "?an integer that is none " },
        { ":9223372036854775808\r\n", "?an integer that is none " },
        { "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
          "0*1 1*1 2*1 3*1 4*1 5*1 6*1 7*1 ?too many arrays in arrays " },
    };
    struct result result;

    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t length = strlen(rows[i][0]);

        for (size_t cut = 0; cut <= length; cut++) {
            size_t tail = strlen("a string that is too long ");

            read_pieces(slice_of(rows[i][0]), cut, length, &result);
            /* of a string its first bytes have been handed on by then */
            cr_assert(result.length < tail + 64);
            cr_assert(strstr(result.text, strchr(rows[i][1], '?')),
                      "%zu: '%s' is not '%s'", i, result.text, rows[i][1]);
        }
    }
}

/* Once it is malformed nothing more is taken. */
Test(redis, malformed_for_good)
{
    struct resp resp = { 0 };

    resp_read(&resp, SLICE("?"));
    cr_assert(resp.token == RESP_MALFORMED);
    cr_assert(resp_read(&resp, SLICE("+OK\r\n")) == 0);
    cr_assert(resp.token == RESP_MALFORMED);
}

/* A line is bounded; of an error the first bytes are kept. */
Test(redis, long_lines)
{
    static char line[RESP_LINE_MAX + 64];
    struct resp resp = { 0 };
    size_t length = sizeof(line) - 2;

    memset(line, 'x', length);
    memcpy(line + length, "\r\n", 2);
    line[0] = '-';
    cr_assert(resp_read(&resp, (struct slice){ line, sizeof(line) }) ==
              sizeof(line));
    cr_assert(resp.token == RESP_ERROR && resp.done);
    cr_assert(resp.piece.length == RESP_LINE_MAX);
    resp = (struct resp){ 0 };
    line[0] = '+';
    resp_read(&resp, (struct slice){ line, sizeof(line) });
    cr_assert(resp.token == RESP_MALFORMED);
}
