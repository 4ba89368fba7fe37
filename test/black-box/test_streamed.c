/*
 * Publishing to topics, and bodies that are event streams: each event goes
 * out as its blank line arrives, however the body is cut and framed; errors
 * in the middle, publishers that die or stall, ids from outside.
 */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD "POST /events/a HTTP/1.1\r\nHost: localhost\r\n"

static void open_topic(struct stream *stream, const struct server *server,
                       const char *target)
{
    struct block block;

    stream_open(stream, server, target, "");
    cr_assert(stream_next(stream, &block) && block.id[0]);
}

Test(streamed, goes_out_as_each_blank_line_arrives)
{
    struct server server;
    struct stream stream;
    struct client client;
    struct response response;

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events/a");
    body_begin(&client, &server, "/events/a");
    body_send(&client, "\xEF\xBB\xBF: hello\nid: 77\ndata: one\n\n");
    stream_expect_event(&stream, "1", NULL, "one");
    body_send(&client, "event: x\r\nretry: 5\r\ndata: t");
    publish_to(&server, "/events/a", "between");
    stream_expect_event(&stream, "2", NULL, "between");
    body_send(&client, "wo\r\ndata:three\r\n\r");
    {
        struct block block;

        cr_assert(stream_next(&stream, &block));
        cr_assert_str_eq(block.id, "3");
        cr_assert_str_eq(block.event, "x");
        cr_assert_str_eq(block.retry, "5");
        cr_assert_str_eq(block.data, "two\nthree");
    }
    body_send(&client, "\n\n\nevent: nothing\n\ndata: caf\xE9 \xE4\xBD.\n\n"
                       "data: dropped at the end\n");
    stream_expect_event(&stream, "4", NULL, "caf\xEF\xBF\xBD \xEF\xBF\xBD.");
    body_end(&client, &response);
    cr_assert(response.status == 201);
    cr_assert_str_eq(
        response.body,
        "{\"count\":3,\"skipped\":0,\"first\":\"1\",\"last\":\"4\"}\n");
    /* the connection goes on */
    client_send(&client, HEAD "Content-Length: 1\r\n\r\nx");
    client_response(&client, &response, false);
    cr_assert(response.status == 201);
    stream_expect_event(&stream, "5", NULL, "x");
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

/* The same whatever the pieces in which the request arrives. */
Test(streamed, means_the_same_however_it_is_cut)
{
    static const char request[] =
        HEAD "Content-Type: " EVENTS "\r\nTransfer-Encoding: chunked\r\n\r\n"
             "5\r\ndata:\r\n3\r\n a\n\r\n1\r\n\n\r\n15;x=y\r\nid\revent: "
             "z\rdata: b\n\n\r\n0\r\n\r\n";
    struct server server;
    struct stream stream;
    uint64_t id = 0;

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events/a");
    for (size_t at = 90; at < strlen(request); at += 3) {
        struct client client;
        struct response response;
        char digits[16];

        client_connect(&client, &server);
        client_send_bytes(&client, request, at);
        usleep(500);
        client_send(&client, request + at);
        client_response(&client, &response, false);
        cr_assert(response.status == 201, "%zu: %s", at, response.body);
        snprintf(digits, sizeof(digits), "%d", (int)++id);
        stream_expect_event(&stream, digits, NULL, "a");
        snprintf(digits, sizeof(digits), "%d", (int)++id);
        stream_expect_event(&stream, digits, "z", "b");
        client_close(&client);
    }
    stream_close(&stream);
    server_stop(&server);
}

Test(streamed, with_a_length_and_when_asked_to_continue)
{
    struct server server;
    struct client client;
    struct response response;
    struct stream stream;

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events/a");
    client_connect(&client, &server);
    client_send(&client, HEAD "Content-Type: " EVENTS
                              "\r\nContent-Length: 18\r\nExpect: "
                              "100-continue\r\n\r\n");
    client_await(&client, strlen("HTTP/1.1 100 Continue\r\n\r\n"));
    cr_assert(strcmp(client.bytes, "HTTP/1.1 100 Continue\r\n\r\n") == 0);
    client_use(&client, client.length);
    client_send(&client, "data: 1\n\n");
    stream_expect_event(&stream, "1", NULL, "1");
    client_send(&client, "data: 2\n\n");
    client_response(&client, &response, false);
    cr_assert_str_eq(
        response.body,
        "{\"count\":2,\"skipped\":0,\"first\":\"1\",\"last\":\"2\"}\n");
    stream_expect_event(&stream, "2", NULL, "2");
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

/* A body whose events come as fast as they can, through a ring that holds few
 * of them: the publisher is slowed down, and nobody with room in its socket is
 * overrun. Nobody reads meanwhile: all of it fits into the sockets. */
Test(streamed, slows_a_fast_publisher_and_loses_nothing)
{
    enum {
        COUNT = 200,
        READERS = 50
    };
    static char body[COUNT * 32];
    struct server server;
    struct stream streams[READERS];
    struct response response;
    char id[16], text[64];
    size_t length = 0;

    if (getenv("SSED_PRELOAD"))
        cr_skip_test("to the server a socket that takes a part is full");
    server_start(&server, "--first-id", "1", "--history", "8");
    for (int i = 0; i < READERS; i++)
        open_topic(&streams[i], &server,
                   i % 2 ? "/events/a" : "/events?topic=a");
    for (int i = 1; i <= COUNT; i++)
        length += (size_t)sprintf(body + length, "data: event %d\n\n", i);
    post(&server, "/events/a", EVENTS, body, &response);
    cr_assert(response.status == 201, "%s", response.body);
    cr_assert(strstr(response.body, "\"count\":200,"));
    for (int k = 0; k < READERS; k++) {
        for (int i = 1; i <= COUNT; i++) {
            snprintf(id, sizeof(id), "%d", i);
            snprintf(text, sizeof(text), "event %d", i);
            stream_expect_event(&streams[k], id, NULL, text);
        }
        stream_close(&streams[k]);
    }
    server_stop(&server);
}

/* An answer does not have to wait for the end of the body behind it, though
 * that has to wait for room in the ring. */
Test(streamed, holds_no_earlier_answer_back)
{
    enum {
        COUNT = 200,
        READERS = 100
    };
    static char requests[COUNT * 32];
    struct server server;
    struct stream streams[READERS];
    struct client client;
    struct response response;
    size_t length;

    server_start(&server, "--first-id", "1", "--history", "2");
    for (int i = 0; i < READERS; i++)
        open_topic(&streams[i], &server, "/events/a");
    length =
        (size_t)sprintf(requests, HEAD "Content-Length: 5\r\n\r\nfirst" HEAD
                                       "Content-Type: " EVENTS
                                       "\r\nContent-Length: 1000000\r\n\r\n");
    for (int i = 0; i < COUNT; i++)
        length += (size_t)sprintf(requests + length, "data: x\n\n");
    client_connect(&client, &server);
    client_send(&client, requests);
    client_response(&client, &response, false);
    cr_assert_str_eq(response.body, "{\"id\":\"1\",\"subscribers\":100}\n");
    client_close(&client);
    for (int i = 0; i < READERS; i++)
        stream_close(&streams[i]);
    server_stop(&server);
}

Test(streamed, finishes_the_topic_at_a_proper_end)
{
    struct server server;
    struct client client;
    struct response response;
    struct stream stream;

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events/a");
    body_begin(&client, &server, "/events/a");
    body_send(&client, "data: x\n\ndata: half");
    stream_expect_event(&stream, "1", NULL, "x");
    client_close(&client); /* has promised no end: the topic stays open */
    publish_to(&server, "/events/a", "y");
    stream_expect_event(&stream, "2", NULL, "y");
    body_begin(&client, &server, "/events/a?end=1");
    body_send(&client, "data: z\n\n");
    body_end(&client, &response);
    cr_assert(response.status == 201);
    cr_assert_str_eq(
        response.body,
        "{\"count\":1,\"skipped\":0,\"first\":\"3\",\"last\":\"3\"}\n");
    stream_expect_event(&stream, "3", NULL, "z");
    stream_expect_event(&stream, "4", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"3\",\"complete\":true}");
    stream_expect_end(&stream);
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

/* A stream without an event just finishes the topic, one without a byte too;
 * without end= it is none. */
Test(streamed, may_be_nothing_but_an_end)
{
    static const char *const bodies[] = { "", ": nothing\n\n" };
    struct server server;
    struct response response;

    server_start(&server, "--first-id", "1");
    for (int i = 0; i < 2; i++) {
        struct stream stream;
        char id[16], end[64];

        post(&server, "/events/a", EVENTS, bodies[i], &response);
        cr_assert(response.status == 400);
        publish_to(&server, "/events/a", "x");
        open_topic(&stream, &server, "/events/a");
        post(&server, "/events/a?end=1", EVENTS, bodies[i], &response);
        cr_assert(response.status == 201, "%s", response.body);
        cr_assert_str_eq(
            response.body,
            "{\"count\":0,\"skipped\":0,\"first\":null,\"last\":null}\n");
        snprintf(id, sizeof(id), "%d", 2 * i + 2);
        snprintf(end, sizeof(end),
                 "{\"topic\":\"a\",\"last\":\"%d\",\"complete\":true}",
                 2 * i + 1);
        stream_expect_event(&stream, id, "ssed.end", end);
        stream_expect_end(&stream);
        stream_close(&stream);
    }
    server_stop(&server);
}

/* What ends a streamed body before its end: what was before it is in the
 * history, and the answer says how far it came. */
Test(streamed, says_how_far_it_came)
{
    static const struct {
        const char *body;
        int status;
        const char *says;
    } cases[] = {
        { "data: x\n\nevent: ssed.end\ndata: y\n\ndata: z\n\n", 400,
          "\"error\":\"event names that begin with ssed. are the server's "
          "own\"" },
        { "data: x\n\nevent: a\tb\ndata: y\n\n", 400, "control" },
        { "data: x\n\ndata: 12345678901\n\n", 413, "10 bytes" },
        { "data: x\n\ndata: 1234567\ndata: 8901234\n", 413, "10 bytes" },
    };
    struct server server;
    struct stream stream;
    char id[16];

    server_start(&server, "--first-id", "1", "--max-event", "10");
    open_topic(&stream, &server, "/events/a");
    for (int i = 0; i < (int)(sizeof(cases) / sizeof(cases[0])); i++) {
        struct client client;
        struct response response;
        char expected[128];

        body_begin(&client, &server, "/events/a");
        body_send(&client, cases[i].body);
        client_response(&client, &response, false);
        snprintf(id, sizeof(id), "%d", i + 1);
        snprintf(expected, sizeof(expected),
                 "{\"count\":1,\"skipped\":0,\"first\":\"%s\",\"last\":\"%s\","
                 "\"error\":\"",
                 id, id);
        cr_assert(response.status == cases[i].status, "%d: %d", i,
                  response.status);
        cr_assert(strncmp(response.body, expected, strlen(expected)) == 0, "%s",
                  response.body);
        cr_assert(strstr(response.body, cases[i].says), "%s", response.body);
        stream_expect_event(&stream, id, NULL, "x");
        client_await_end(&client);
        client_close(&client);
    }
    stream_close(&stream);
    server_stop(&server);
}

Test(streamed, refuses_what_it_cannot_be)
{
    static const struct {
        const char *target, *type, *body;
        int status;
        const char *says;
    } cases[] = {
        { "/events/a", EVENTS, "", 400, "no body" },
        { "/events/a", EVENTS, ": nothing\n\n", 400, "no event" },
        { "/events/a", EVENTS, "data: not ended", 400, "no event" },
        { "/events/a?event=x", EVENTS, "data: x\n\n", 400, "event=" },
        { "/events/a?id=7", EVENTS, "data: x\n\n", 400, "id=" },
        { "/events/a?end=2", EVENTS, "data: x\n\n", 400, "end=" },
        { "/events/a?topic=b", EVENTS, "data: x\n\n", 400, "topic=" },
        { "/events?end=1", EVENTS, "data: x\n\n", 400, "end=" },
        { "/events?topic=b", NULL, "x", 400, "topic=" },
        { "/events/a?event=ssed.x", NULL, "x", 400, "ssed." },
        { "/events/a?event=a%0Ab", NULL, "x", 400, "control" },
        { "/events/a?event=a%00", NULL, "x", 400, "control" },
        { "/events/a?event=%7F", NULL, "x", 400, "control" },
        { "/events/a?event=%FF", NULL, "x", 400, "UTF-8" },
        { "/events/a?id=7", NULL, "x", 400, "--ids keep" },
        { "/events/a", NULL, "\xFF", 400, "UTF-8" },
        { "/events/a", NULL, "12345678901", 413, "10 bytes" },
        { "/events/a?end=1", NULL, "", 400, "no body" },
    };
    struct server server;
    struct response response;
    struct stream stream;
    char target[512], name[256];

    server_start(&server, "--first-id", "1", "--max-event", "10");
    publish_to(&server, "/events/a", "before");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        post(&server, cases[i].target, cases[i].type, cases[i].body, &response);
        cr_assert(response.status == cases[i].status, "%s %s: %d",
                  cases[i].target, cases[i].body, response.status);
        cr_assert(strstr(response.body, cases[i].says), "%s: %s",
                  cases[i].target, response.body);
    }
    snprintf(target, sizeof(target), "/events/a?event=%0256d", 0);
    post(&server, target, NULL, "x", &response);
    cr_assert(response.status == 400 && strstr(response.body, "255"));
    snprintf(target, sizeof(target), "/events/a?event=%0255d", 0);
    post(&server, target, NULL, "x", &response);
    cr_assert(response.status == 201, "%s", response.body);
    cr_assert_str_eq(response.body, "{\"id\":\"2\",\"subscribers\":0}\n");
    /* what was there is intact, and nothing else is */
    open_topic(&stream, &server, "/events/a?lastEventId=earliest");
    stream_expect_event(&stream, "1", NULL, "before");
    snprintf(name, sizeof(name), "%0255d", 0);
    stream_expect_event(&stream, "2", name, "x");
    stream_close(&stream);
    server_stop(&server);
}

/* Into the main stream each event is a message; names and retries are not
 * its. */
Test(streamed, makes_messages_of_the_main_stream)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events");
    post(&server, "/events", EVENTS,
         "event: ssed.x\nretry: 1\nid: 9\ndata: a\ndata: \xFF\"\n\ndata\n\n",
         &response);
    cr_assert(response.status == 201, "%s", response.body);
    stream_expect_message(&stream, "message", 1, "a\n\xEF\xBF\xBD\"");
    stream_expect_message(&stream, "message", 2, "");
    stream_close(&stream);
    server_stop(&server);
}

/* A publisher that stalls in the middle of an event holds nobody up, and is
 * not timed out; a plain body is. */
Test(streamed, may_be_silent)
{
    struct server server;
    struct stream stream;
    struct client client;
    struct response response;

    server_start(&server, "--first-id", "1", "--head-timeout", "1",
                 "--idle-timeout", "1");
    open_topic(&stream, &server, "/events/a");
    body_begin(&client, &server, "/events/a");
    body_send(&client, "data: stal");
    for (int i = 1; i <= 30; i++) {
        char id[16];

        publish_to(&server, "/events/a", "x");
        snprintf(id, sizeof(id), "%d", i);
        stream_expect_event(&stream, id, NULL, "x");
        usleep(100000);
    }
    body_send(&client, "led\n\n");
    stream_expect_event(&stream, "31", NULL, "stalled");
    body_end(&client, &response);
    cr_assert(response.status == 201);
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

Test(streamed, is_told_of_the_drain)
{
    struct server server;
    struct client client;
    struct response response;
    struct stream stream;

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events/a");
    body_begin(&client, &server, "/events/a");
    body_send(&client, "data: x\n\ndata: y");
    stream_expect_event(&stream, "1", NULL, "x");
    server_stop(&server);
    client_response(&client, &response, false);
    cr_assert(response.status == 503);
    cr_assert(response_field(&response, "Retry-After"));
    cr_assert_str_eq(response.body,
                     "{\"count\":1,\"skipped\":0,\"first\":\"1\",\"last\":"
                     "\"1\",\"error\":\"draining: about to end\"}\n");
    client_close(&client);
    stream_close(&stream);
}

/* The body has long been where the request's head was. */
Test(streamed, is_logged_with_its_path)
{
    struct server server;
    struct stream stream;
    struct client client;
    struct response response;

    server_start(&server, "--first-id", "1", "--access-log");
    open_topic(&stream, &server, "/events/a/b");
    body_begin(&client, &server, "/events/a/b?end=1");
    for (int i = 1; i <= 9; i++) {
        char id[16];

        body_send(&client, "data: x\n\n");
        snprintf(id, sizeof(id), "%d", i);
        stream_expect_event(&stream, id, NULL, "x");
    }
    body_end(&client, &response);
    server_await_log(&server, " method=POST path=/events/a/b status=201 ");
    client_send(&client, "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Length: 2\r\n\r\n");
    client_send(&client, "x");
    usleep(20000);
    client_send(&client, "y");
    client_response(&client, &response, false);
    server_await_log(&server, " method=POST path=/events status=201 ");
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

/* A chunk that is malformed, after an event. */
Test(streamed, must_be_framed)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, "--first-id", "1");
    body_begin(&client, &server, "/events/a");
    client_send(&client, "9\r\ndata: x\n\nX");
    client_response(&client, &response, false);
    cr_assert(response.status == 400);
    cr_assert(strstr(response.body, "\"count\":1,"), "%s", response.body);
    client_close(&client);
    server_stop(&server);
}

/* Plain and streamed, one behind the other on one connection. */
Test(streamed, pipelined_keeps_the_order)
{
    struct server server;
    struct client client;
    struct stream stream;
    char request[512];

    server_start(&server, "--first-id", "1");
    open_topic(&stream, &server, "/events/a");
    client_connect(&client, &server);
    for (int i = 0; i < 50; i++) {
        snprintf(request, sizeof(request),
                 HEAD
                 "Content-Length: 2\r\n\r\n%02d" HEAD "Content-Type: " EVENTS
                 "\r\nContent-Length: 20\r\n\r\ndata: s%02d\n\ndata: t\n\n",
                 i, i);
        client_send(&client, request);
    }
    for (int i = 0; i < 50; i++) {
        struct response response;
        char id[16], data[16];

        for (int k = 0; k < 2; k++) {
            client_response(&client, &response, false);
            cr_assert(response.status == 201, "%s", response.body);
        }
        for (int k = 0; k < 3; k++) {
            snprintf(id, sizeof(id), "%d", 3 * i + k + 1);
            snprintf(data, sizeof(data),
                     k == 0   ? "%02d"
                     : k == 1 ? "s%02d"
                              : "t",
                     i);
            stream_expect_event(&stream, id, NULL, data);
        }
    }
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

/* --------------------------------------------------- ids from outside */

static void expect_post(const struct server *server, const char *target,
                        const char *type, const char *body, int status,
                        const char *says)
{
    struct response response;

    post(server, target, type, body, &response);
    cr_assert(response.status == status, "%s %s: %d %s", target, body,
              response.status, response.body);
    cr_assert(strstr(response.body, says), "%s: %s", target, response.body);
}

Test(kept_ids, are_the_publishers)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--ids", "keep");
    stream_open(&stream, &server, "/events/a", "");
    stream_expect_event(&stream, "0", NULL, NULL);
    expect_post(&server, "/events/a?id=1", NULL, "one", 201, "{\"id\":\"1\"");
    expect_post(&server, "/events/a?id=20", NULL, "two", 201, "\"20\"");
    expect_post(&server, "/events/a?id=20", NULL, "x", 409, "20");
    expect_post(&server, "/events/a?id=3", NULL, "x", 409, "20");
    expect_post(&server, "/events/a", NULL, "x", 400, "?id=");
    expect_post(&server, "/events/a?id=0", NULL, "x", 400, "?id=");
    expect_post(&server, "/events/a?id=021", NULL, "x", 400, "?id=");
    expect_post(&server, "/events/a?id=9007199254740992", NULL, "x", 400,
                "?id=");
    expect_post(&server, "/events/a?id=9007199254740991", NULL, "x", 400,
                "leaves room");
    expect_post(&server, "/events/a", EVENTS,
                "id: 9007194959773697\ndata: x\n\n", 400, "leaves room");
    expect_post(&server, "/events/a?id=30&end=1", NULL, "x", 400, "end=");
    expect_post(&server, "/events?id=25", NULL, "main", 201, "25");
    /* a feeder that starts again from an earlier place */
    expect_post(&server, "/events/a", EVENTS,
                "id: 20\ndata: two\n\nid: 25\ndata: x\n\nid: 26\ndata: y\n\n",
                201,
                "{\"count\":1,\"skipped\":2,\"first\":\"26\",\"last\":\"26\"}");
    expect_post(&server, "/events/a", EVENTS, "id: 26\ndata: y\n\n", 201,
                "{\"count\":0,\"skipped\":1,\"first\":null,\"last\":null}");
    expect_post(&server, "/events/a", EVENTS,
                "id: 27\ndata: z\n\ndata: none\n\n", 400,
                "{\"count\":1,\"skipped\":0,\"first\":\"27\",\"last\":\"27\","
                "\"error\"");
    stream_expect_event(&stream, "1", NULL, "one");
    stream_expect_event(&stream, "20", NULL, "two");
    stream_expect_event(&stream, "26", NULL, "y");
    stream_expect_event(&stream, "27", NULL, "z");
    ask(&server, "DELETE /events/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 400);
    ask(&server, "DELETE /events/a?id=27 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 409);
    ask(&server, "DELETE /events/a?id=40 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert_str_eq(response.body, "{\"id\":\"40\",\"subscribers\":1}\n");
    stream_expect_event(&stream, "40", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"27\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

/* Another server of the group has the end that is given here, whatever is
 * known of its topic: it is stored. */
Test(kept_ids, an_end_is_always_stored)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--ids", "keep");
    expect_post(&server, "/events/b?id=100", NULL, "x", 201, "100");
    ask(&server, "DELETE /events/a?id=101 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 200, "%d", response.status);
    cr_assert_str_eq(response.body, "{\"id\":\"101\",\"subscribers\":0}\n");
    stream_open(&stream, &server, "/events/a", "Last-Event-ID: 100\r\n");
    stream_expect_event(&stream, "100", NULL, NULL);
    stream_expect_event(&stream, "101", "ssed.end",
                        "{\"topic\":\"a\",\"last\":null,\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    ask(&server, "DELETE /events/a?id=105 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert_str_eq(response.body, "{\"id\":\"105\",\"subscribers\":0}\n");
    ask(&server,
        "GET /events/a?lastEventId=105 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 204);
    server_stop(&server);
}

/* A topic that was finished here at an older id: another server of the group
 * has opened it again since, so its stream goes on. */
Test(kept_ids, a_position_ahead_is_behind_no_end)
{
    struct server server;
    struct stream stream, early;
    struct response response;

    server_start(&server, "--ids", "keep");
    post(&server, "/events/k?id=10", NULL, "x", &response);
    stream_open(&early, &server, "/events/k", "Last-Event-ID: 20\r\n");
    stream_expect_event(&early, "20", NULL, NULL);
    ask(&server, "DELETE /events/k?id=12 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 200);
    stream_open(&stream, &server, "/events/k", "Last-Event-ID: 20\r\n");
    stream_expect_event(&stream, "20", NULL, NULL);
    post(&server, "/events/k?id=21", NULL, "after", &response);
    cr_assert(response.status == 201);
    stream_expect_event(&early, "21", NULL, "after");
    stream_expect_event(&stream, "21", NULL, "after");
    ask(&server, "DELETE /events/k?id=22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    stream_expect_event(&early, "22", "ssed.end",
                        "{\"topic\":\"k\",\"last\":\"21\",\"complete\":true}");
    stream_expect_end(&early);
    stream_close(&early);
    stream_close(&stream);
    ask(&server,
        "GET /events/k HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 22\r\n\r\n",
        &response);
    cr_assert(response.status == 204);
    server_stop(&server);
}

/* Another server of the group was ahead: only greater ids are sent. */
Test(kept_ids, a_position_ahead_is_one_like_any_other)
{
    struct server server;
    struct stream streams[3];
    static const char *const targets[] = { "/events/a",
                                           "/events?topic=b&topic=a",
                                           "/events/a?lastEventId=15" };
    struct response response;
    struct block block;

    server_start(&server, "--ids", "keep", "--heartbeat", "1");
    expect_post(&server, "/events/a?id=10", NULL, "x", 201, "10");
    for (int i = 0; i < 3; i++) {
        stream_open(&streams[i], &server, targets[i],
                    i < 2 ? "Last-Event-ID: 15\r\n" : "");
        stream_expect_event(&streams[i], "15", NULL, NULL);
    }
    cr_assert(stream_next(&streams[0], &block));
    cr_assert_str_eq(block.id, "15", "a heartbeat is not behind it");
    post(&server, "/events/a", EVENTS,
         "id: 11\ndata: a\n\nid: 15\ndata: b\n\nid: 16\ndata: c\n\nid: 18\n"
         "data: d\n\n",
         &response);
    cr_assert(response.status == 201);
    for (int i = 0; i < 3; i++) {
        do
            cr_assert(stream_next(&streams[i], &block));
        while (block.lines == 0);
        cr_assert_str_eq(block.id, "16");
        cr_assert_str_eq(block.data, "c");
        stream_expect_event(&streams[i], "18", NULL, "d");
        stream_close(&streams[i]);
    }
    server_stop(&server);
}

/* The feeder begins in the middle: who had been further back is told. */
Test(kept_ids, a_history_begins_with_its_first_event)
{
    struct server server;
    struct stream behind, ahead;
    struct block block;

    server_start(&server, "--ids", "keep");
    stream_open(&behind, &server, "/events/a", "Last-Event-ID: 500\r\n");
    stream_expect_event(&behind, "500", NULL, NULL);
    stream_open(&ahead, &server, "/events/a", "Last-Event-ID: 999\r\n");
    stream_expect_event(&ahead, "999", NULL, NULL);
    expect_post(&server, "/events/a?id=1000", NULL, "x", 201, "1000");
    stream_expect_event(&ahead, "1000", NULL, "x");
    cr_assert(!stream_next(&behind, &block));
    stream_close(&behind);
    stream_open(&behind, &server, "/events/a", "Last-Event-ID: 500\r\n");
    cr_assert(stream_next(&behind, &block));
    stream_expect_event(
        &behind, "999", "ssed.gap",
        "{\"requested\":\"500\",\"oldest\":\"1000\",\"topics\":[\"a\"]}");
    stream_expect_event(&behind, "1000", NULL, "x");
    stream_close(&behind);
    stream_close(&ahead);
    server_stop(&server);
}

/* The same for the position that a server without events gives out itself,
 * and where the first that is known is a gap of the source. */
Test(kept_ids, no_position_is_passed_over_before_the_first_event)
{
    struct server server;
    struct stream zero, gap;
    struct block block;
    int ends[2];

    server_start(&server, "--ids", "keep");
    stream_open(&zero, &server, "/events/a", "Last-Event-ID: 0\r\n");
    stream_expect_event(&zero, "0", NULL, NULL);
    expect_post(&server, "/events/a?id=500", NULL, "x", 201, "500");
    cr_assert(!stream_next(&zero, &block), "1 to 499 may be gone");
    stream_close(&zero);
    server_stop(&server);
    cr_assert(pipe(ends) == 0);
    server_start_input(&server, ends[0], "--ids", "keep", "--topic", "t",
                       "--stdin", "events", "-");
    stream_open(&gap, &server, "/events/u", "Last-Event-ID: 30\r\n");
    stream_expect_event(&gap, "30", NULL, NULL);
    cr_assert(dprintf(ends[1], "id: 60\nevent: ssed.gap\ndata: {}\n\n") > 0);
    cr_assert(!stream_next(&gap, &block));
    stream_close(&gap);
    stream_open(&gap, &server, "/events/u", "Last-Event-ID: 30\r\n");
    cr_assert(stream_next(&gap, &block) && !block.id[0]);
    stream_expect_event(
        &gap, "60", "ssed.gap",
        "{\"requested\":\"30\",\"oldest\":null,\"topics\":[\"u\"]}");
    stream_close(&gap);
    close(ends[1]);
    close(ends[0]);
    server_stop(&server);
}
