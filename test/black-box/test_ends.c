/*
 * How a topic ends: by a publisher that keeps its promise of an end, by one
 * that breaks it, by somebody who stops it; and that the end is the same after
 * a restart, a kill and a crash.
 */
#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char folder[] = "/tmp/test_ends.XXXXXX";
static char path[64];

static void setup(void)
{
    strcpy(folder, "/tmp/test_ends.XXXXXX");
    cr_assert(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/log", folder);
}

static void teardown(void)
{
    unlink(path);
    rmdir(folder);
}

TestSuite(ends, .init = setup, .fini = teardown, .timeout = 600);

static void open_topic(struct stream *stream, const struct server *server,
                       const char *target)
{
    struct block block;

    stream_open(stream, server, target, "");
    cr_assert(stream_next(stream, &block) && block.id[0]);
}

/* A topic of its own for each round: the one before is finished. */
static const char *target(int round, const char *query)
{
    static char text[4][64];
    static unsigned at;

    at = (at + 1) % 4;
    snprintf(text[at], sizeof(text[at]), "/events/%c%s", 'a' + round, query);
    return text[at];
}

static const char *topic(int round)
{
    return target(round, "") + strlen("/events/");
}

/* The next block is the topic's end, which has this as `last` (NULL: null) and
 * `complete`; then the stream ends. */
static void expect_end(struct stream *stream, const char *topic,
                       const char *last, bool complete)
{
    struct block block;
    char data[128];

    cr_assert(stream_next(stream, &block), "no end");
    snprintf(data, sizeof(data),
             "{\"topic\":\"%s\",\"last\":%s%s%s,\"complete\":%s}", topic,
             last ? "\"" : "", last ? last : "null", last ? "\"" : "",
             complete ? "true" : "false");
    cr_assert_str_eq(block.event, "ssed.end");
    cr_assert_str_eq(block.data, data);
    cr_assert(*block.id);
    stream_expect_end(stream);
    stream_close(stream);
}

static void delete_topic(const struct server *server, const char *target,
                         int status)
{
    struct response response;
    char request[256];

    snprintf(request, sizeof(request),
             "DELETE %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
    ask(server, request, &response);
    cr_assert(response.status == status, "%d: %s", response.status,
              response.body);
}

/* It is refused, the connection ends, and so much has been published. */
static void expect_stopped(struct client *client, int count)
{
    struct response response;
    char begin[32];

    client_response(client, &response, false);
    snprintf(begin, sizeof(begin), "{\"count\":%d,", count);
    cr_assert(response.status == 409, "%d: %s", response.status, response.body);
    cr_assert(strncmp(response.body, begin, strlen(begin)) == 0, "%s",
              response.body);
    cr_assert(
        strstr(response.body, "\"error\":\"the topic has been finished\"}"));
    cr_assert_str_eq(response_field(&response, "Connection"), "close");
    client_await_end(client);
    client_close(client);
}

/* ------------------------------------------------------------ that break off
 */

Test(ends, tell_of_a_body_that_breaks_off)
{
    static const char *const bodies[] = { "data: x\n\ndata: ha", "" };
    struct server server;

    server_start(&server, "--first-id", "1");
    for (int i = 0; i < 2; i++) {
        struct client client;
        struct stream stream, late;
        struct response response;

        open_topic(&stream, &server, target(i, ""));
        body_begin(&client, &server, target(i, "?end=1"));
        if (*bodies[i]) {
            body_send(&client, bodies[i]);
            stream_expect_event(&stream, "1", NULL, "x");
        } else { /* it has begun when it is known to DELETE: the answer */
            client_send(&client, "1\r\n");
        }
        client_close(&client);
        expect_end(&stream, topic(i), i ? NULL : "1", false);
        stream_open(&late, &server, target(i, ""),
                    "Last-Event-ID: earliest\r\n");
        stream_expect_event(&late, i ? "2" : "0", NULL, NULL);
        if (!i)
            stream_expect_event(&late, "1", NULL, "x");
        expect_end(&late, topic(i), i ? NULL : "1", false);
        ask(&server,
            i ? "GET /events/b HTTP/1.1\r\nHost: a\r\n\r\n"
              : "GET /events/a HTTP/1.1\r\nHost: a\r\n\r\n",
            &response);
        cr_assert(response.status == 204);
    }
    publish_to(&server, "/events/a", "it is opened again");
    server_stop(&server);
}

/* By its own fault: what is no chunk, what is too long, a reserved name. */
Test(ends, tell_of_a_body_that_is_refused)
{
    static const struct {
        const char *text;
        int status;
    } rows[] = {
        { "x\r\n", 400 },
        { "20\r\nevent: ssed.mine\ndata: forbidden\n\n\r\n", 400 },
        { "40\r\ndata: 0123456789012345678901234567890123456789"
          "0123456789012345\n\n\r\n",
          413 },
    };
    struct server server;

    server_start(&server, "--first-id", "1", "--max-event", "20");
    for (int i = 0; i < (int)(sizeof(rows) / sizeof(rows[0])); i++) {
        struct client client;
        struct stream stream;
        struct response response;
        struct block block;

        open_topic(&stream, &server, target(i, ""));
        body_begin(&client, &server, target(i, "?end=1"));
        body_send(&client, "data: x\n\n");
        cr_assert(stream_next(&stream, &block));
        cr_assert_str_eq(block.data, "x");
        client_send(&client, rows[i].text);
        client_response(&client, &response, false);
        cr_assert(response.status == rows[i].status, "%s", response.body);
        expect_end(&stream, topic(i), block.id, false);
        client_close(&client);
    }
    server_stop(&server);
}

/* When the server itself ends the publish, the topic stays open. */
Test(ends, are_not_made_by_a_drain)
{
    struct server server;
    struct client client;
    struct stream stream;
    struct block block;
    struct response response;

    for (int round = 0; round < 2; round++) {
        server_start(&server, "--history-file", path);
        open_topic(&stream, &server, "/events/a");
        body_begin(&client, &server, "/events/a?end=1");
        body_send(&client, "data: x\n\n");
        cr_assert(stream_next(&stream, &block) && !strcmp(block.data, "x"));
        kill(server.pid, SIGTERM);
        client_response(&client, &response, false);
        cr_assert(response.status == 503);
        cr_assert(stream_next(&stream, &block));
        cr_assert(!*block.event && *block.retry, "the farewell");
        stream_expect_end(&stream);
        client_close(&client);
        stream_close(&stream);
        cr_assert(server_wait(&server) == 0);
        close(server.log);
    }
    server_start(&server, "--history-file", path);
    open_topic(&stream, &server, "/events/a");
    publish_to(&server, "/events/a", "y");
    cr_assert(stream_next(&stream, &block) && !strcmp(block.data, "y"));
    stream_close(&stream);
    server_stop(&server);
}

/* -------------------------------------------------------- the stop button */

Test(ends, stop_what_is_streamed)
{
    struct server server;
    struct client clients[3];
    struct stream stream;

    server_start(&server, "--first-id", "1");
    for (int round = 0; round < 2; round++) {
        struct block block;

        open_topic(&stream, &server, target(round, ""));
        for (int i = 0; i < 3; i++) {
            body_begin(&clients[i], &server, target(round, i ? "?end=1" : ""));
            if (i == 1)
                continue; /* it has not published yet */
            body_send(&clients[i], "data: x\n\ndata: the next one\n");
            cr_assert(stream_next(&stream, &block) && !strcmp(block.data, "x"));
        }
        client_send(&clients[1], "9\r\ndata: y\n\n\r\n");
        cr_assert(stream_next(&stream, &block) && !strcmp(block.data, "y"));
        delete_topic(&server, target(round, ""), 200);
        for (int i = 0; i < 3; i++) {
            /* nothing after that point is published */
            body_send(&clients[i], "\ndata: z\n\n");
            expect_stopped(&clients[i], 1);
        }
        expect_end(&stream, topic(round), block.id, true);
    }
    server_stop(&server);
}

/* A publisher that is silent is stopped too, and a topic that nothing but it
 * makes known is one. */
Test(ends, stop_a_silent_publisher_of_an_unknown_topic)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, "--first-id", "1");
    client_connect(&client, &server);
    client_send(&client, "POST /events/a?end=1 HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Type: " EVENTS "\r\nExpect: 100-continue\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n");
    client_await(&client, strlen("HTTP/1.1 100 Continue\r\n\r\n"));
    client_use(&client, client.length);
    delete_topic(&server, "/events/a", 200);
    expect_stopped(&client, 0);
    /* the same again: the topic is finished, the publish has just begun */
    client_connect(&client, &server);
    client_send(&client, "POST /events/a HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Type: " EVENTS "\r\nExpect: 100-continue\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n");
    client_await(&client, strlen("HTTP/1.1 100 Continue\r\n\r\n"));
    client_use(&client, client.length);
    delete_topic(&server, "/events/a", 200);
    expect_stopped(&client, 0);
    /* a new publish opens it again */
    post(&server, "/events/a?end=1", EVENTS, "data: x\n\n", &response);
    cr_assert(response.status == 201);
    delete_topic(&server, "/events/nobody", 404);
    server_stop(&server);
}

/* Of two that promise an end, the first to come to it stops the other, and so
 * does one that breaks off. */
Test(ends, stop_the_other_publisher)
{
    struct server server;

    server_start(&server, "--first-id", "1");
    for (int breaks = 0; breaks < 2; breaks++) {
        struct client first, second;
        struct stream stream;
        struct response response;
        struct block block;

        open_topic(&stream, &server, target(breaks, ""));
        body_begin(&first, &server, target(breaks, "?end=1"));
        body_send(&first, "data: first\n\n");
        cr_assert(stream_next(&stream, &block));
        body_begin(&second, &server, target(breaks, "?end=1"));
        body_send(&second, "data: second\n\n");
        cr_assert(stream_next(&stream, &block));
        cr_assert_str_eq(block.data, "second");
        if (breaks) {
            client_close(&first);
        } else {
            body_end(&first, &response);
            cr_assert(response.status == 201, "%s", response.body);
            client_close(&first);
        }
        expect_stopped(&second, 1);
        expect_end(&stream, topic(breaks), block.id, !breaks);
    }
    server_stop(&server);
}

Test(ends, do_not_stop_standard_input)
{
    struct server server;
    struct stream stream;
    struct client client;
    int pipes[2];

    cr_assert(pipe(pipes) == 0);
    server_start_input(&server, pipes[0], "--first-id", "1", "--topic", "a",
                       "--stdin", "events", "-");
    open_topic(&stream, &server, "/events/a");
    cr_assert(write(pipes[1], "data: 1\n\n", 9) == 9);
    stream_expect_event(&stream, "1", NULL, "1");
    delete_topic(&server, "/events/a", 200);
    expect_end(&stream, "a", "1", true);
    cr_assert(write(pipes[1], "data: 2\n\n", 9) == 9);
    /* with one more topic, so that it waits where this one is finished still */
    stream_open(&stream, &server, "/events?topic=a&topic=b&lastEventId=2", "");
    stream_expect_event(&stream, "2", NULL, NULL);
    stream_expect_event(&stream, "3", NULL, "2");
    /* an end that it passes on keeps what it says, and stops others */
    body_begin(&client, &server, "/events/a");
    body_send(&client, "data: 3\n\n");
    stream_expect_event(&stream, "4", NULL, "3");
    dprintf(pipes[1], "event: ssed.end\ndata: {\"topic\":\"b\",\"last\":\"7\","
                      "\"complete\":false}\n\n");
    expect_stopped(&client, 1);
    stream_expect_event(&stream, "5", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"4\",\"complete\":false}");
    stream_close(&stream);
    close(pipes[0]);
    close(pipes[1]);
    server_stop(&server);
}

/* ------------------------------------------------- after a restart, a crash */

/* A promise that was open when the server was killed: with an event and
 * without, also if the file is then written anew. What was finished, refused
 * or given no promise is not touched. */
Test(ends, are_made_after_a_kill)
{
    struct server server;
    struct client with, without, finished, unpromised;
    struct response response;
    struct stream stream;
    struct block block;
    char last[32];

    server_start(&server, "--history-file", path);
    open_topic(&stream, &server, "/events?topic=a&topic=c&topic=d");
    body_begin(&with, &server, "/events/a?end=1");
    body_send(&with, "data: x\n\ndata: ha");
    cr_assert(stream_next(&stream, &block) && !strcmp(block.data, "x"));
    strcpy(last, block.id);
    body_begin(&finished, &server, "/events/c?end=1");
    body_send(&finished, "data: x\n\n");
    body_end(&finished, &response);
    cr_assert(response.status == 201);
    client_connect(&without, &server);
    client_send(&without, "POST /events/b?end=1 HTTP/1.1\r\nHost: localhost\r\n"
                          "Content-Type: " EVENTS "\r\nExpect: 100-continue\r\n"
                          "Transfer-Encoding: chunked\r\n\r\n");
    client_await(&without, strlen("HTTP/1.1 100 Continue\r\n\r\n"));
    body_begin(&unpromised, &server, "/events/d");
    body_send(&unpromised, "data: open\n\n");
    do
        cr_assert(stream_next(&stream, &block));
    while (strcmp(block.data, "open") != 0);
    kill(server.pid, SIGKILL);
    cr_assert(server_wait(&server) == -SIGKILL);
    close(server.log);
    stream_close(&stream);
    for (int start = 0; start < 3; start++) {
        server_start(&server, "--history-file", path, "--history",
                     start == 0 ? "5000" : "100000");
        stream_open(&stream, &server, "/events/a?lastEventId=earliest", "");
        cr_assert(stream_next(&stream, &block));
        stream_expect_event(&stream, last, NULL, "x");
        expect_end(&stream, "a", last, false);
        stream_open(&stream, &server, "/events/b?lastEventId=earliest", "");
        cr_assert(stream_next(&stream, &block));
        expect_end(&stream, "b", NULL, false);
        stream_open(&stream, &server, "/events/c?lastEventId=earliest", "");
        cr_assert(stream_next(&stream, &block) && stream_next(&stream, &block));
        strcpy(last, block.id);
        expect_end(&stream, "c", last, true);
        stream_open(&stream, &server, "/events/d?last=9", "");
        cr_assert(stream_next(&stream, &block) && stream_next(&stream, &block));
        cr_assert_str_eq(block.data, "open");
        cr_assert(!stream_take(&stream, &block), "%s", block.event);
        stream_close(&stream);
        stream_open(&stream, &server, "/events/a?last=2", "");
        cr_assert(stream_next(&stream, &block) && stream_next(&stream, &block));
        strcpy(last, block.id);
        stream_close(&stream);
        server_stop(&server);
    }
    client_close(&with);
    client_close(&without);
    client_close(&finished);
    client_close(&unpromised);
}

/* A file has room for as many promises as for events. */
Test(ends, are_promised_only_where_a_file_remembers_them)
{
    struct server server;
    struct client clients[3];
    struct response response;
    struct stream stream;

    server_start(&server, "--history-file", path, "--history", "2");
    for (int i = 0; i < 2; i++) {
        struct block block;

        open_topic(&stream, &server, target(i, ""));
        body_begin(&clients[i], &server, target(i, "?end=1"));
        body_send(&clients[i], "data: x\n\n");
        cr_assert(stream_next(&stream, &block));
        stream_close(&stream);
    }
    post(&server, "/events/c?end=1", EVENTS, "data: x\n\n", &response);
    cr_assert(response.status == 503, "%s", response.body);
    cr_assert(strstr(response.body, "the history file remembers no more"));
    post(&server, "/events/c", EVENTS, "data: x\n\n", &response);
    cr_assert(response.status == 201);
    body_end(&clients[0], &response);
    cr_assert(response.status == 201);
    post(&server, "/events/c?end=1", EVENTS, "data: x\n\n", &response);
    cr_assert(response.status == 201, "%s", response.body);
    client_close(&clients[0]);
    client_close(&clients[1]);
    server_stop(&server);
}

/* ------------------------------------------------------ the position header */

static void expect_position(const struct server *server, const char *request,
                            int status, const char *position)
{
    struct response response;
    struct client client;
    const char *value;

    client_connect(&client, server);
    client_send(&client, request);
    client_send(&client, " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_response(&client, &response, true);
    cr_assert(response.status == status, "%s: %d", request, response.status);
    value = response_field(&response, "Last-Event-ID");
    if (position)
        cr_assert(value && !strcmp(value, position), "%s: %s", request, value);
    else
        cr_assert(!value, "%s: %s", request, value);
    value = response_field(&response, "Access-Control-Expose-Headers");
    if (position)
        cr_assert_str_eq(value, "Last-Event-ID");
    client_close(&client);
}

Test(position, is_in_the_head)
{
    struct server server;
    struct response response;

    server_start(&server, "--first-id", "1", "--history", "5");
    expect_position(&server, "HEAD /events", 200, "0");
    for (int i = 1; i <= 8; i++)
        publish_to(&server, i % 2 ? "/events/a" : "/events/b", "x");
    post(&server, "/events/b?end=1", NULL, "last", &response); /* 9, 10 */
    expect_position(&server, "HEAD /events", 200, "10");
    expect_position(&server, "HEAD /events/a", 200, "10");
    expect_position(&server, "GET /events/a", 200, "10");
    expect_position(&server, "GET /events/a?lastEventId=7", 200, "7");
    expect_position(&server, "HEAD /events/a?lastEventId=7", 200, "7");
    expect_position(&server, "HEAD /events/a?last=1", 200, "6");
    expect_position(&server, "GET /events/a?lastEventId=1", 200, "6");
    expect_position(&server, "HEAD /events/a?lastEventId=99", 200, "6");
    expect_position(&server, "GET /events/new", 200, "10");
    expect_position(&server, "GET /events?topic=a&topic=b", 200, "10");
    expect_position(&server, "GET /events/b", 204, "10");
    expect_position(&server, "GET /events/b?lastEventId=10", 204, "10");
    expect_position(&server, "GET /events/a?last=x", 400, NULL);
    expect_position(&server, "GET /healthz", 200, NULL);
    server_stop(&server);
}

Test(position, is_not_there_when_there_is_no_room)
{
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--max-connections", "1", "--cors", "none");
    stream_open(&stream, &server, "/events/a", "");
    cr_assert(stream_next(&stream, &block));
    expect_position(&server, "GET /events/a", 200, NULL);
    stream_close(&stream);
    server_stop(&server);
}
