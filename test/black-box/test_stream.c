/*
 * The main stream from outside: connected, live messages, catching up from
 * every kind of position, gaps, heartbeats, HTTP/1.0, escaping.
 */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t block_id(const struct block *block)
{
    return strtoull(block->id, NULL, 10);
}

static void publish_many(const struct server *server, int count)
{
    char text[32];

    for (int i = 0; i < count; i++) {
        snprintf(text, sizeof(text), "message %d", i);
        publish(server, text);
    }
}

Test(stream, begins_with_its_head_and_connected)
{
    static const char *const fields[][2] = {
        { "Content-Type", "text/event-stream" },
        { "Cache-Control", "no-cache, no-transform" },
        { "Connection", "keep-alive" },
        { "X-Accel-Buffering", "no" },
        { "X-Content-Type-Options", "nosniff" },
        { "Access-Control-Allow-Origin", "*" },
        { "Transfer-Encoding", "chunked" },
    };
    struct server server;
    struct response response;
    struct stream stream;
    struct block block;
    char value[64];

    server_start(&server, "--first-id", "1000", "--retry", "4321");
    ask(&server, "HEAD /events HTTP/1.1\r\nHost: a\r\n\r\n", &response);
    cr_assert(response.status == 200);
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const char *got = response_field(&response, fields[i][0]);

        cr_assert(got && strcmp(got, fields[i][1]) == 0, "%s: %s", fields[i][0],
                  got ? got : "missing");
    }
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    cr_assert_str_eq(block.retry, "4321");
    cr_assert_str_eq(block.id, "999");
    cr_assert(json_string(block.data, "message", value, sizeof(value)));
    cr_assert_str_eq(value, "连接建立成功");
    cr_assert(json_string(block.data, "timestamp", value, sizeof(value)));
    cr_assert(strlen(value) == 24 && value[23] == 'Z' && value[19] == '.', "%s",
              value);
    stream_close(&stream);
    server_stop(&server);
}

Test(stream, ids_begin_at_the_clock)
{
    struct server server;
    uint64_t before = (uint64_t)time(NULL) * 1000000, id;

    server_start(&server, NULL);
    id = publish(&server, "x");
    cr_assert(id >= before && id <= (uint64_t)(time(NULL) + 1) * 1000000);
    server_stop(&server);
}

Test(stream, sends_what_is_published_live)
{
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    cr_assert_str_eq(block.id, "0");
    cr_assert(publish(&server, "one") == 1);
    stream_expect_message(&stream, "message", 1, "one");
    cr_assert(publish(&server, "two\n") == 2);
    stream_expect_message(&stream, "message", 2, "two");
    cr_assert(publish(&server, "three\r\n") == 3);
    stream_expect_message(&stream, "message", 3, "three");
    stream_close(&stream);
    server_stop(&server);
}

Test(stream, escapes_what_json_and_the_stream_need)
{
    static const char text[] =
        "\"quotes\" \\ \b\f\t\x01\x1f line\nline\r\nline\rend 你好 \xF0\x9F\x98"
        "\x80 \xE2\x80\xA8 \x7F </script>";
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    publish(&server, text);
    stream_expect_message(&stream, "message", 1, text);
    stream_close(&stream);
    stream_open_1_0(&stream, &server, "/events?last=1");
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "catch_up_start");
    stream_expect_message(&stream, "catch_up_message", 1, text);
    stream_close(&stream);
    server_stop(&server);
}

/* Subscribes and expects a replay of [first, last] (none if first > last),
 * then one live message, whose id is last + 1. */
struct resume {
    const char *name;
    const char *target;
    const char *fields;
    const char *position;  /* id of the first block that has one */
    const char *requested; /* of the gap, NULL: none */
    uint64_t first;
};

static void expect_gap(struct stream *stream, const struct resume *resume,
                       const char *oldest)
{
    struct block block;
    char value[512];

    stream_expect(stream, &block, "gap");
    cr_assert_str_eq(block.id, resume->position, "%s: id %s", resume->name,
                     block.id);
    cr_assert(json_string(block.data, "message", value, sizeof(value)));
    cr_assert_str_eq(value, "部分历史消息已无法补发");
    cr_assert(json_string(block.data, "requested", value, sizeof(value)));
    cr_assert_str_eq(value, resume->requested, "%s: %s", resume->name, value);
    if (!oldest) {
        cr_assert(strstr(block.data, "\"oldest\":null"));
        return;
    }
    cr_assert(json_string(block.data, "oldest", value, sizeof(value)));
    cr_assert_str_eq(value, oldest);
}

static void expect_replay(struct stream *stream, const struct resume *resume,
                          uint64_t last)
{
    uint64_t count = last + 1 - resume->first, number;
    struct block block;
    char value[128], expected[128];

    if (count == 0)
        return;
    stream_expect(stream, &block, "catch_up_start");
    cr_assert_str_empty(block.id);
    cr_assert(json_number(block.data, "count", &number) && number == count,
              "%s: %s", resume->name, block.data);
    snprintf(expected, sizeof(expected), "开始同步 %llu 条错过的消息",
             (unsigned long long)count);
    cr_assert(json_string(block.data, "message", value, sizeof(value)));
    cr_assert_str_eq(value, expected);
    for (uint64_t id = resume->first; id <= last; id++) {
        stream_expect(stream, &block, "catch_up_message");
        cr_assert(block_id(&block) == id, "%s: %s", resume->name, block.id);
        cr_assert(
            json_string(block.data, "originalType", value, sizeof(value)));
        cr_assert_str_eq(value, "message");
    }
    stream_expect(stream, &block, "catch_up_end");
    cr_assert_str_empty(block.id);
    cr_assert(json_number(block.data, "syncCount", &number) && number == count);
    cr_assert(json_string(block.data, "message", value, sizeof(value)));
    cr_assert_str_eq(value, "消息同步完成");
}

static void check_resume(const struct server *server,
                         const struct resume *resume, uint64_t *newest,
                         const char *oldest)
{
    struct stream stream;
    struct block block;

    stream_open(&stream, server, resume->target, resume->fields);
    stream_expect(&stream, &block, "connected");
    cr_assert_str_eq(block.id, resume->requested ? "" : resume->position,
                     "%s: id %s", resume->name, block.id);
    if (resume->requested)
        expect_gap(&stream, resume, oldest);
    expect_replay(&stream, resume, *newest);
    *newest = publish(server, "live");
    stream_expect_message(&stream, "message", *newest, "live");
    stream_close(&stream);
}

/* Ids 101 to 120; 101 to 110 are evicted, but each case publishes one more. */
Test(stream, begins_where_it_is_asked_to)
{
    static const struct resume cases[] = {
        { "header", "/events", "Last-Event-ID: 115\r\n", "115", NULL, 116 },
        { "query", "/events?lastEventId=118", "", "118", NULL, 119 },
        { "other spelling", "/events?x=1&last_event_id=118", "", "118", NULL,
          119 },
        { "header before query", "/events?lastEventId=114",
          "Last-Event-ID: 119\r\n", "119", NULL, 120 },
        { "empty header", "/events?lastEventId=120", "Last-Event-ID:\r\n",
          "120", NULL, 121 },
        { "id before last=", "/events?last=1&lastEventId=119", "", "119", NULL,
          120 },
        { "newest: nothing missed", "/events?lastEventId=126", "", "126", NULL,
          127 },
        { "last=3", "/events?last=3", "", "124", NULL, 125 },
        { "last=0", "/events?last=0", "", "128", NULL, 129 },
        { "none", "/events", "", "129", NULL, 130 },
        { "escaped", "/events?lastEventId=%31%330", "", "130", NULL, 131 },
    };
    struct server server;
    uint64_t newest = 120;

    server_start(&server, "--first-id", "101", "--history", "30");
    publish_many(&server, 20);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        check_resume(&server, &cases[i], &newest, NULL);
    server_stop(&server);
}

Test(stream, replays_all_that_is_held_for_earliest)
{
    struct resume all = { "earliest", "/events", "Last-Event-ID: earliest\r\n",
                          "110",      NULL,      111 };
    struct resume last = { "last", "/events?last=99999", "", "111", NULL, 112 };
    struct server server;
    uint64_t newest = 120;

    server_start(&server, "--first-id", "101", "--history", "10");
    publish_many(&server, 20);
    check_resume(&server, &all, &newest, NULL);
    check_resume(&server, &last, &newest, NULL);
    server_stop(&server);
}

/* 111 to 120 are held, and one more with each case. */
Test(stream, tells_of_a_gap_at_every_unusable_id)
{
    static const struct resume cases[] = {
        { "evicted", "/events?lastEventId=109", "", "110", "109", 111 },
        { "older than the history", "/events?lastEventId=7", "", "111", "7",
          112 },
        { "newer than the newest", "/events?lastEventId=999", "", "112", "999",
          113 },
        { "not a number", "/events", "Last-Event-ID: a\"b\\\r\n", "113",
          "a\"b\\", 114 },
        { "a sign", "/events?lastEventId=%2B115", "", "114", "+115", 115 },
        { "a leading zero", "/events?lastEventId=0118", "", "115", "0118",
          116 },
        { "too great", "/events?lastEventId=99999999999999999999999", "", "116",
          "99999999999999999999999", 117 },
        { "a blank in it", "/events?lastEventId=118+", "", "117", "118 ", 118 },
        { "an unknown word", "/events?lastEventId=latest", "", "118", "latest",
          119 },
    };
    struct server server;
    uint64_t newest = 120;

    server_start(&server, "--first-id", "101", "--history", "10");
    publish_many(&server, 20);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char oldest[32];

        snprintf(oldest, sizeof(oldest), "%llu",
                 (unsigned long long)cases[i].first);
        check_resume(&server, &cases[i], &newest, oldest);
    }
    server_stop(&server);
}

Test(stream, tells_of_no_gap_at_the_edges_of_the_history)
{
    struct resume mark = {
        "newest evicted", "/events?lastEventId=110", "", "110", NULL, 111
    };
    struct server server;
    uint64_t newest = 120;

    server_start(&server, "--first-id", "101", "--history", "10");
    publish_many(&server, 20);
    check_resume(&server, &mark, &newest, NULL);
    server_stop(&server);
}

Test(stream, knows_positions_of_an_empty_history)
{
    struct resume begin = { "begin", "/events?lastEventId=999", "", "999", NULL,
                            1000 };
    struct resume before = { "before", "/events?lastEventId=998",
                             "",       "1000",
                             "998",    1001 };
    struct server server;
    uint64_t newest = 999;

    server_start(&server, "--first-id", "1000", "--history", "1");
    check_resume(&server, &begin, &newest, NULL);
    server_stop(&server);
    server_start(&server, "--first-id", "1001");
    newest = 1000;
    check_resume(&server, &before, &newest, NULL);
    server_stop(&server);
}

/* A client that only ever saw the gap goes on from it without another one. */
Test(stream, a_gap_bears_a_position_to_go_on_from)
{
    struct server server;
    struct stream stream;
    struct block block;
    char target[128];

    server_start(&server, "--first-id", "101", "--history", "10");
    publish_many(&server, 20);
    stream_open(&stream, &server, "/events?lastEventId=50", "");
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "gap");
    snprintf(target, sizeof(target), "/events?lastEventId=%s", block.id);
    stream_close(&stream);
    stream_open(&stream, &server, target, "");
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "catch_up_start");
    stream_expect(&stream, &block, "catch_up_message");
    cr_assert(block_id(&block) == 111);
    stream_close(&stream);
    server_stop(&server);
}

Test(stream, refuses_a_last_that_is_no_number)
{
    struct server server;
    struct response response;

    server_start(&server, NULL);
    ask(&server, "GET /events?last=some HTTP/1.1\r\nHost: a\r\n\r\n",
        &response);
    cr_assert(response.status == 400);
    cr_assert(strstr(response.body, "last="), "%s", response.body);
    server_stop(&server);
}

Test(stream, beats_when_it_is_silent)
{
    struct server server;
    struct stream stream;
    struct block block;
    uint64_t id;

    server_start(&server, "--heartbeat", "1");
    id = publish(&server, "x");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "heartbeat");
    cr_assert(block_id(&block) == id);
    stream_expect(&stream, &block, "heartbeat");
    id = publish(&server, "y");
    stream_expect_message(&stream, "message", id, "y");
    stream_expect(&stream, &block, "heartbeat");
    cr_assert(block_id(&block) == id);
    stream_close(&stream);
    server_stop(&server);
}

Test(stream, a_clock_writes_into_it)
{
    struct server server;
    struct stream stream;
    struct block block;
    uint64_t first;
    char value[128];

    server_start(&server, "--interval", "50", "--first-id", "5");
    stream_open(&stream, &server, "/events?lastEventId=4", "");
    do
        stream_next(&stream, &block);
    while (!strstr(block.data, "_message") && !strstr(block.data, "\"id\""));
    first = block_id(&block);
    cr_assert(first == 5);
    cr_assert(json_string(block.data, "message", value, sizeof(value)));
    cr_assert(strncmp(value, "当前时间: 20", strlen("当前时间: 20")) == 0);
    stream_close(&stream);
    server_stop(&server);
}

Test(stream, speaks_http_1_0_without_chunks)
{
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--first-id", "1", "--drain-spread", "0");
    publish_many(&server, 3);
    stream_open_1_0(&stream, &server, "/events?lastEventId=1");
    cr_assert(!stream.chunked);
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "catch_up_start");
    stream_expect_message(&stream, "catch_up_message", 2, "message 1");
    stream_expect_message(&stream, "catch_up_message", 3, "message 2");
    stream_expect(&stream, &block, "catch_up_end");
    publish(&server, "live");
    stream_expect_message(&stream, "message", 4, "live");
    server_stop(&server);
    cr_assert(stream_next(&stream, &block));
    cr_assert_str_eq(block.retry, "1000");
    cr_assert(!stream_next(&stream, &block) && !stream.client.reset);
    stream_close(&stream);
}

Test(stream, throws_away_what_a_subscriber_sends)
{
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    client_send(&stream.client, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    publish(&server, "after");
    stream_expect_message(&stream, "message", 1, "after");
    stream_close(&stream);
    server_await_log(&server, "event=unsubscribed");
    server_stop(&server);
}

Test(stream, may_follow_other_requests_on_a_connection)
{
    struct server server;
    struct stream stream;
    struct response response;
    struct block block;

    server_start(&server, "--first-id", "1");
    client_connect(&stream.client, &server);
    client_send(&stream.client,
                "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
                "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Length: 2\r\n\r\nhi"
                "GET /events?last=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    client_response(&stream.client, &response, false);
    cr_assert_str_eq(response.body, "ok\n");
    client_response(&stream.client, &response, false);
    cr_assert(response.status == 201);
    stream_begin(&stream);
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "catch_up_start");
    stream_expect_message(&stream, "catch_up_message", 1, "hi");
    stream_close(&stream);
    server_stop(&server);
}

static void expect_whole_replay(size_t size)
{
    enum {
        COUNT = 3000
    };
    struct server server;
    struct client publisher;
    struct stream stream;
    struct block block;
    char *text = malloc(size);
    uint64_t id = 0;

    server_start(&server, "--first-id", "1", "--history", "5000");
    client_connect(&publisher, &server);
    memset(text, 'x', size);
    for (int i = 0; i < COUNT; i++)
        id = publish_on(&publisher, text, size);
    stream_open(&stream, &server, "/events?lastEventId=0", "");
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "catch_up_start");
    publish_on(&publisher, "live", 4);
    for (uint64_t i = 1; i <= id; i++) {
        stream_expect(&stream, &block, "catch_up_message");
        cr_assert(block_id(&block) == i);
    }
    stream_expect(&stream, &block, "catch_up_end");
    stream_expect_message(&stream, "message", id + 1, "live");
    stream_close(&stream);
    client_close(&publisher);
    free(text);
    server_stop(&server);
}

/* More bytes than are sent at a time, and more pieces. */
Test(stream, a_long_replay_arrives_whole_and_live_follows)
{
    expect_whole_replay(2000);
    expect_whole_replay(1);
}

Test(stream, its_origin_can_be_narrowed)
{
    struct server server;
    struct response response;

    server_start(&server, "--cors", "https://example.com");
    ask(&server, "HEAD /events HTTP/1.1\r\nHost: a\r\n\r\n", &response);
    cr_assert_str_eq(response_field(&response, "Access-Control-Allow-Origin"),
                     "https://example.com");
    cr_assert_str_eq(response_field(&response, "Vary"), "Origin");
    ask(&server, "OPTIONS /events HTTP/1.1\r\nHost: a\r\n\r\n", &response);
    cr_assert(response.status == 204);
    cr_assert_str_eq(
        response_field(&response, "Access-Control-Allow-Headers"),
        "Last-Event-ID, Cache-Control, Authorization, Content-Type");
    cr_assert(strstr(response_field(&response, "Access-Control-Allow-Methods"),
                     "POST"));
    cr_assert(response_field(&response, "Access-Control-Max-Age"));
    server_stop(&server);
}
