/*
 * Topics from outside: subscribing to one and to several, positions, gaps
 * told exactly where something may be gone, ends and the 204 after them, and
 * every refusal.
 */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void remove_topic(const struct server *server, const char *target,
                         struct response *response)
{
    char request[512];

    snprintf(request, sizeof(request),
             "DELETE %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
    ask(server, request, response);
}

/* The first block of a stream that has no gap to tell. */
static void expect_position(struct stream *stream, const char *id)
{
    struct block block;

    cr_assert(stream_next(stream, &block));
    cr_assert_str_eq(block.id, id);
    cr_assert_str_eq(block.retry, "3000");
    cr_assert(block.lines == 0 && !block.event[0], "it dispatches something");
}

/* The first two blocks of a stream that has. */
static void expect_gap(struct stream *stream, const char *id, const char *data)
{
    struct block block;

    cr_assert(stream_next(stream, &block));
    cr_assert_str_eq(block.id, "", "nobody may be cut off before the gap");
    cr_assert_str_eq(block.retry, "3000");
    cr_assert(block.lines == 0);
    stream_expect_event(stream, id, "ssed.gap", data);
}

static void open_at(struct stream *stream, const struct server *server,
                    const char *target, const char *last_event_id)
{
    char field[128];

    snprintf(field, sizeof(field), "Last-Event-ID: %s\r\n", last_event_id);
    stream_open(stream, server, target, field);
}

static void expect_status(const struct server *server, const char *target,
                          const char *fields, int status)
{
    struct response response;
    char request[9000];

    snprintf(request, sizeof(request),
             "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", target, fields);
    ask(server, request, &response);
    cr_assert(response.status == status, "%s %s: %d", target, fields,
              response.status);
}

Test(topics, carry_just_what_was_published)
{
    struct server server;
    struct stream live, late;

    server_start(&server, "--first-id", "1");
    stream_open(&live, &server, "/events/chat/42", "");
    expect_position(&live, "0");
    cr_assert(publish_to(&server, "/events/chat/42", "hello") == 1);
    cr_assert(publish_to(&server, "/events/other", "not for them") == 2);
    cr_assert(publish(&server, "nor this") == 3);
    cr_assert(publish_to(&server, "/events/chat/42?event=tick",
                         "a\nb\r\nc\rd\n\n") == 4);
    cr_assert(publish_to(&server, "/events/chat%2D/42", "not they") == 5);
    cr_assert(publish_to(&server, "/events/chat/42?event=",
                         "\xF0\x9F\x98\x80 \"\\\t\x01") == 6);
    cr_assert(publish_to(&server, "/events/chat/42", "\n") == 7);
    for (int i = 0; i < 2; i++) {
        struct stream *stream = i ? &late : &live;

        if (i) {
            open_at(&late, &server, "/events/chat/42", "0");
            expect_position(&late, "0");
        }
        stream_expect_event(stream, "1", NULL, "hello");
        stream_expect_event(stream, "4", "tick", "a\nb\nc\nd\n");
        stream_expect_event(stream, "6", NULL, "\xF0\x9F\x98\x80 \"\\\t\x01");
        stream_expect_event(stream, "7", NULL, "");
    }
    stream_close(&live);
    stream_close(&late);
    server_stop(&server);
}

/* The bytes live and replayed are the same, chunked and not. */
Test(topics, replay_in_http_1_0_too)
{
    struct server server;
    struct stream stream;

    server_start(&server, "--first-id", "1");
    publish_to(&server, "/events/a?event=x", "one\ntwo");
    publish_to(&server, "/events/b", "between");
    publish_to(&server, "/events/a", "three");
    stream_open_1_0(&stream, &server, "/events/a?lastEventId=earliest");
    expect_position(&stream, "0");
    stream_expect_event(&stream, "1", "x", "one\ntwo");
    stream_expect_event(&stream, "3", NULL, "three");
    publish_to(&server, "/events/a?end=1", "four");
    stream_expect_event(&stream, "4", NULL, "four");
    stream_expect_event(&stream, "5", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"4\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

Test(topics, begin_where_they_are_asked)
{
    static const struct {
        const char *query, *field, *position;
        int first; /* of the events 1, 3, 5, 7, 9 */
    } cases[] = {
        { "", "", "10", 11 },
        { "", "Last-Event-ID:\r\n", "10", 11 },
        { "", "Last-Event-ID: 5\r\n", "5", 7 },
        { "", "Last-Event-ID: 6\r\n", "6", 7 },
        { "?lastEventId=6", "", "6", 7 },
        { "?last_event_id=6", "", "6", 7 },
        { "?lastEventId=2", "Last-Event-ID: 6\r\n", "6", 7 },
        { "?lastEventId=10", "", "10", 11 },
        { "?lastEventId=earliest", "", "0", 1 },
        { "", "Last-Event-ID: earliest\r\n", "0", 1 },
        { "?last=2", "", "6", 7 },
        { "?last=0", "", "10", 11 },
        { "?last=99", "", "0", 1 },
        { "?last=2&lastEventId=2", "", "2", 3 },
    };
    struct server server;

    server_start(&server, "--first-id", "1");
    for (int i = 0; i < 10; i++)
        publish_to(&server, i % 2 ? "/events/b" : "/events/a", "x");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct stream stream;
        char target[64], id[16];

        snprintf(target, sizeof(target), "/events/a%s", cases[i].query);
        stream_open(&stream, &server, target, cases[i].field);
        expect_position(&stream, cases[i].position);
        for (int event = cases[i].first; event < 10; event += 2) {
            snprintf(id, sizeof(id), "%d", event);
            stream_expect_event(&stream, id, NULL, "x");
        }
        stream_close(&stream);
    }
    server_stop(&server);
}

/* A gap is told when the topic itself may have lost something, and not when
 * a busy other one has turned the ring over. */
Test(topics, tell_a_gap_where_there_is_one)
{
    struct server server;
    struct stream stream;

    server_start(&server, "--first-id", "1", "--history", "4");
    stream_open(&stream, &server, "/events/quiet", "");
    expect_position(&stream, "0");
    publish_to(&server, "/events/quiet", "one"); /* 1 */
    stream_expect_event(&stream, "1", NULL, "one");
    for (int i = 0; i < 20; i++)
        publish_to(&server, "/events/busy", "x"); /* 2 to 21 */
    publish_to(&server, "/events/quiet", "two");  /* 22 */
    stream_expect_event(&stream, "22", NULL, "two");
    stream_close(&stream);
    open_at(&stream, &server, "/events/quiet", "1");
    expect_position(&stream, "1");
    stream_expect_event(&stream, "22", NULL, "two");
    stream_close(&stream);
    open_at(&stream, &server, "/events/quiet", "0");
    expect_gap(
        &stream, "21",
        "{\"requested\":\"0\",\"oldest\":\"22\",\"topics\":[\"quiet\"]}");
    stream_expect_event(&stream, "22", NULL, "two");
    stream_close(&stream);
    open_at(&stream, &server, "/events/busy", "17");
    expect_gap(
        &stream, "18",
        "{\"requested\":\"17\",\"oldest\":\"19\",\"topics\":[\"busy\"]}");
    stream_close(&stream);
    open_at(&stream, &server, "/events/busy", "18");
    expect_position(&stream, "18");
    stream_expect_event(&stream, "19", NULL, "x");
    stream_close(&stream);
    server_stop(&server);
}

/* No id of this history is a gap in all topics; and all that is held comes. */
Test(topics, tell_a_gap_for_what_is_no_position)
{
    static const char *const ids[] = { "99", "x",   "-1",
                                       "01", "1.5", "99999999999999999999" };
    struct server server;

    server_start(&server, "--first-id", "5");
    publish_to(&server, "/events/a", "x"); /* 5 */
    publish_to(&server, "/events/b", "y"); /* 6 */
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        struct stream stream;
        char gap[256];

        snprintf(gap, sizeof(gap),
                 "{\"requested\":\"%s\",\"oldest\":\"5\",\"topics\":[\"a\","
                 "\"b\",\"none\"]}",
                 ids[i]);
        open_at(&stream, &server, "/events?topic=a&topic=b&topic=none", ids[i]);
        expect_gap(&stream, "4", gap);
        stream_expect_event(&stream, "5", NULL, "x");
        stream_expect_event(&stream, "6", NULL, "y");
        stream_close(&stream);
        open_at(&stream, &server, "/events/none", ids[i]);
        snprintf(gap, sizeof(gap),
                 "{\"requested\":\"%s\",\"oldest\":null,\"topics\":[\"none\"]}",
                 ids[i]);
        expect_gap(&stream, "6", gap);
        stream_close(&stream);
    }
    server_stop(&server);
}

/* The topic has been forgotten, but not that something of it is gone. */
Test(topics, tell_a_gap_of_what_was_forgotten)
{
    struct server server;
    struct stream stream;

    server_start(&server, "--first-id", "1", "--history", "2");
    for (int i = 0; i < 5; i++)
        publish_to(&server, "/events/once", "x"); /* 1 to 5 */
    for (int i = 0; i < 5; i++)
        publish_to(&server, "/events/busy", "x"); /* 6 to 10 */
    open_at(&stream, &server, "/events/once", "4");
    expect_gap(&stream, "10",
               "{\"requested\":\"4\",\"oldest\":null,\"topics\":[\"once\"]}");
    stream_close(&stream);
    open_at(&stream, &server, "/events/once", "5");
    expect_position(&stream, "5");
    stream_close(&stream);
    server_stop(&server);
}

Test(topics, several_are_one_sequence)
{
    struct server server;
    struct stream stream, again;

    server_start(&server, "--first-id", "1", "--history", "8");
    stream_open(&stream, &server, "/events?topic=a&topic=b%2Fc&topic=a&topic=d",
                "");
    expect_position(&stream, "0");
    publish_to(&server, "/events/a", "1");
    publish_to(&server, "/events/b/c?event=x", "2");
    publish_to(&server, "/events/e", "not for it");
    publish_to(&server, "/events/d", "4");
    publish_to(&server, "/events/a", "5");
    stream_expect_event(&stream, "1", NULL, "1");
    stream_expect_event(&stream, "2", "x", "2");
    stream_expect_event(&stream, "4", NULL, "4");
    stream_expect_event(&stream, "5", NULL, "5");
    open_at(&again, &server, "/events?topic=d&topic=b/c&topic=a", "1");
    expect_position(&again, "1");
    stream_expect_event(&again, "2", "x", "2");
    stream_expect_event(&again, "4", NULL, "4");
    stream_expect_event(&again, "5", NULL, "5");
    stream_close(&again);
    stream_open(&again, &server, "/events?topic=d&topic=a&last=2", "");
    expect_position(&again, "3");
    stream_expect_event(&again, "4", NULL, "4");
    stream_expect_event(&again, "5", NULL, "5");
    stream_close(&again);
    /* only the topics that have lost something are named */
    for (int i = 6; i < 12; i++)
        publish_to(&server, "/events/e", "evicts 1, 2, 3");
    open_at(&again, &server, "/events?topic=a&topic=d&topic=b/c", "1");
    expect_gap(&again, "3",
               "{\"requested\":\"1\",\"oldest\":null,\"topics\":[\"b/c\"]}");
    stream_expect_event(&again, "4", NULL, "4");
    stream_expect_event(&again, "5", NULL, "5");
    stream_close(&again);
    stream_close(&stream);
    server_stop(&server);
}

Test(topics, end_and_then_204)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events/a", "");
    expect_position(&stream, "0");
    post(&server, "/events/a?end=1", NULL, "last words", &response);
    cr_assert(response.status == 201);
    cr_assert_str_eq(response.body, "{\"id\":\"1\",\"subscribers\":1}\n");
    stream_expect_event(&stream, "1", NULL, "last words");
    stream_expect_event(&stream, "2", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"1\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    expect_status(&server, "/events/a", "", 204);
    expect_status(&server, "/events/a", "Last-Event-ID: 2\r\n", 204);
    expect_status(&server, "/events?topic=a", "", 204);
    ask(&server, "HEAD /events/a HTTP/1.1\r\nHost: a\r\n\r\n", &response);
    cr_assert(response.status == 204);
    cr_assert(!response_field(&response, "Content-Length"));
    cr_assert_str_eq(response_field(&response, "Cache-Control"), "no-cache");
    cr_assert_str_eq(response_field(&response, "Access-Control-Allow-Origin"),
                     "*");
    /* who has not had it all gets it, and the end */
    open_at(&stream, &server, "/events/a", "1");
    expect_position(&stream, "1");
    stream_expect_event(&stream, "2", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"1\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    stream_open(&stream, &server, "/events/a?last=2", "");
    expect_position(&stream, "0");
    stream_expect_event(&stream, "1", NULL, "last words");
    stream_close(&stream);
    /* a later publish opens it again */
    publish_to(&server, "/events/a", "not yet");
    open_at(&stream, &server, "/events/a", "2");
    expect_position(&stream, "2");
    stream_expect_event(&stream, "3", NULL, "not yet");
    stream_close(&stream);
    server_stop(&server);
}

/* A stream of several ends with the last of them. */
Test(topics, end_when_all_have)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events?topic=a&topic=b", "");
    expect_position(&stream, "0");
    remove_topic(&server, "/events/a", &response);
    cr_assert(response.status == 200);
    cr_assert_str_eq(response.body, "{\"id\":\"1\",\"subscribers\":1}\n");
    stream_expect_event(&stream, "1", "ssed.end",
                        "{\"topic\":\"a\",\"last\":null,\"complete\":true}");
    publish_to(&server, "/events/b", "still here");
    stream_expect_event(&stream, "2", NULL, "still here");
    remove_topic(&server, "/events/b", &response);
    cr_assert_str_eq(response.body, "{\"id\":\"3\",\"subscribers\":1}\n");
    stream_expect_event(&stream, "3", "ssed.end",
                        "{\"topic\":\"b\",\"last\":\"2\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    expect_status(&server, "/events?topic=a&topic=b", "", 204);
    expect_status(&server, "/events?topic=a&topic=b", "Last-Event-ID: 3\r\n",
                  204);
    open_at(&stream, &server, "/events?topic=a&topic=b", "2");
    expect_position(&stream, "2");
    stream_expect_event(&stream, "3", "ssed.end",
                        "{\"topic\":\"b\",\"last\":\"2\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

/* An end that has been sent counts for the stream, though it is evicted. */
Test(topics, end_when_all_have_though_one_is_evicted)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--first-id", "1", "--history", "3");
    stream_open(&stream, &server, "/events?topic=a&topic=b", "");
    expect_position(&stream, "0");
    remove_topic(&server, "/events/a", &response);
    stream_expect_event(&stream, "1", "ssed.end",
                        "{\"topic\":\"a\",\"last\":null,\"complete\":true}");
    for (int i = 0; i < 4; i++)
        publish_to(&server, "/events/z", "x"); /* 2 to 5 */
    remove_topic(&server, "/events/b", &response);
    stream_expect_event(&stream, "6", "ssed.end",
                        "{\"topic\":\"b\",\"last\":null,\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

/* Though none of its events is held any more. */
Test(topics, an_end_names_the_last_event)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--first-id", "1", "--history", "2");
    stream_open(&stream, &server, "/events/job", "");
    stream_expect_event(&stream, "0", NULL, NULL);
    publish_to(&server, "/events/job", "one");
    stream_expect_event(&stream, "1", NULL, "one");
    publish_to(&server, "/events/other", "two");
    publish_to(&server, "/events/other", "three");
    ask(&server, "DELETE /events/job HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 200);
    stream_expect_event(&stream, "4", "ssed.end",
                        "{\"topic\":\"job\",\"last\":\"1\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

Test(topics, are_finished_once)
{
    struct server server;
    struct response response;
    struct stream stream;

    server_start(&server, "--first-id", "1", "--history", "3");
    remove_topic(&server, "/events/a", &response);
    cr_assert(response.status == 404 && strstr(response.body, "topic"));
    publish_to(&server, "/events/a", "x");
    for (int i = 0; i < 2; i++) {
        remove_topic(&server, "/events/a", &response);
        cr_assert(response.status == 200);
        cr_assert_str_eq(response.body, "{\"id\":\"2\",\"subscribers\":0}\n");
    }
    post(&server, "/events/a?end=1", EVENTS, ": nothing\n", &response);
    cr_assert(response.status == 201, "it just finishes the topic");
    expect_status(&server, "/events/a", "", 204);
    for (int i = 0; i < 3; i++)
        publish_to(&server, "/events/b", "evicts the end too");
    remove_topic(&server, "/events/a", &response);
    cr_assert(response.status == 404);
    /* somebody subscribes: it is known */
    stream_open(&stream, &server, "/events/a", "");
    expect_position(&stream, "5");
    remove_topic(&server, "/events/a", &response);
    cr_assert(response.status == 200);
    cr_assert_str_eq(response.body, "{\"id\":\"6\",\"subscribers\":1}\n");
    stream_expect_event(&stream, "6", "ssed.end",
                        "{\"topic\":\"a\",\"last\":null,\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    ask(&server, "DELETE /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 405);
    server_stop(&server);
}

/* A client that has listened to a quiet topic reconnects with a position
 * that is still good. */
Test(topics, heartbeats_bear_the_position)
{
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--first-id", "1", "--history", "2", "--heartbeat",
                 "1");
    stream_open(&stream, &server, "/events?topic=quiet&topic=b", "");
    expect_position(&stream, "0");
    for (int i = 0; i < 9; i++)
        publish_to(&server, "/events/busy", "x");
    cr_assert(stream_next(&stream, &block));
    cr_assert_str_eq(block.id, "9");
    cr_assert(block.lines == 0 && !block.event[0] && !block.retry[0]);
    stream_close(&stream);
    open_at(&stream, &server, "/events?topic=quiet&topic=b", block.id);
    expect_position(&stream, "9");
    stream_close(&stream);
    server_stop(&server);
}

Test(topics, say_at_a_drain_when_to_come_back)
{
    struct server server;
    struct stream one, several;
    struct block block;

    server_start(&server, "--first-id", "1", "--drain-spread", "0");
    stream_open(&one, &server, "/events/a", "");
    expect_position(&one, "0");
    stream_open(&several, &server, "/events?topic=b&topic=a", "");
    expect_position(&several, "0");
    publish_to(&server, "/events/a", "x");
    server_stop(&server);
    for (int i = 0; i < 2; i++) {
        struct stream *stream = i ? &several : &one;

        stream_expect_event(stream, "1", NULL, "x");
        cr_assert(stream_next(stream, &block));
        cr_assert_str_eq(block.retry, "1000");
        stream_expect_end(stream);
        stream_close(stream);
    }
}

Test(topics, have_names_that_are_checked)
{
    static const char *const bad[] = {
        "/events/",
        "/events//a",
        "/events/a/",
        "/events/a//b",
        "/events/a%2Fb",
        "/events/a%20b",
        "/events/a+b",
        "/events/a/./b",
        "/events/a/%2e%2e/b",
        "/events/%00",
        "/events/%C3%A9",
        "/events?topic=",
        "/events?topic=a&topic=b%20",
        "/events?topic=a//b",
        "/events?topic=%2F",
        "/events/a?last=x",
    };
    struct server server;
    struct response response;
    char target[8192];
    size_t at;

    server_start(&server, NULL);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        expect_status(&server, bad[i], "", 400);
        if (strncmp(bad[i], "/events/", 8) != 0 || strchr(bad[i], '?'))
            continue;
        post(&server, bad[i], NULL, "x", &response);
        cr_assert(response.status == 400, "%s: %d", bad[i], response.status);
    }
    expect_status(&server, "/eventsx", "", 404);
    at = (size_t)sprintf(target, "/events/");
    memset(target + at, 'a', 256);
    target[at + 256] = '\0';
    expect_status(&server, target, "", 400);
    target[at + 255] = '\0';
    post(&server, target, NULL, "x", &response);
    cr_assert(response.status == 201);
    at = (size_t)sprintf(target, "/events?");
    for (int i = 0; i < 17; i++)
        at += (size_t)sprintf(target + at, "topic=t%d&", i);
    expect_status(&server, target, "", 400);
    server_stop(&server);
}

/* Sixteen of the longest names fit into a gap. */
Test(topics, as_many_and_as_long_as_may_be)
{
    static char target[8192];
    struct server server;
    struct stream stream;
    struct block block;
    size_t at = (size_t)sprintf(target, "/events?last=1");

    server_start(&server, "--first-id", "1");
    for (int i = 0; i < 16; i++)
        at += (size_t)sprintf(target + at, "&topic=%0255d", i);
    open_at(&stream, &server, target, "9999");
    cr_assert(stream_next(&stream, &block));
    cr_assert(stream_next(&stream, &block));
    cr_assert_str_eq(block.event, "ssed.gap");
    cr_assert(strlen(block.data) > 4096);
    snprintf(target, sizeof(target), "/events/%0255d", 15);
    publish_to(&server, target, "x");
    stream_expect_event(&stream, "1", NULL, "x");
    stream_close(&stream);
    server_stop(&server);
}

Test(topics, are_counted_once_each)
{
    struct server server;
    struct response response;
    char request[512] = "HEAD /events?last=1";

    server_start(&server, NULL);
    for (int i = 0; i < 18; i++) {
        size_t length = strlen(request);

        /* the 17th is one that was there */
        snprintf(request + length, sizeof(request) - length, "&topic=%d",
                 i == 16 ? 3 : i);
        length = strlen(request);
        snprintf(request + length, sizeof(request) - length,
                 " HTTP/1.1\r\nHost: a\r\n\r\n");
        ask(&server, request, &response);
        cr_assert(response.status == (i < 17 ? 200 : 400), "%d: %d", i,
                  response.status);
        request[length] = '\0';
    }
    server_stop(&server);
}

/* Who leaves or is cut in the middle comes back and misses nothing, while a
 * topic is read by many. */
Test(topics, are_left_and_joined_while_published)
{
    enum {
        READERS = 8,
        COUNT = 300
    };
    struct server server;
    struct stream streams[READERS];
    struct client publisher;
    uint64_t had[READERS] = { 0 };

    server_start(&server, "--first-id", "1");
    client_connect(&publisher, &server);
    for (int i = 0; i < READERS; i++) {
        stream_open(&streams[i], &server,
                    i % 2 ? "/events/a" : "/events?topic=a&topic=b", "");
        expect_position(&streams[i], "0");
    }
    for (uint64_t id = 1; id <= COUNT; id++) {
        int which = (int)(id % READERS);
        char text[32];
        struct block block;

        publish_to(&server, "/events/a", "x");
        while (had[which] < id) {
            cr_assert(stream_next(&streams[which], &block));
            cr_assert(strtoull(block.id, NULL, 10) == ++had[which]);
        }
        if (id % 3)
            continue;
        stream_close(&streams[which]);
        snprintf(text, sizeof(text), "%llu", (unsigned long long)had[which]);
        open_at(&streams[which], &server,
                which % 2 ? "/events/a" : "/events?topic=b&topic=a", text);
        expect_position(&streams[which], text);
    }
    client_close(&publisher);
    for (int i = 0; i < READERS; i++)
        stream_close(&streams[i]);
    server_stop(&server);
}
