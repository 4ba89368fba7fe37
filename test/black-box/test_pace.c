/*
 * --pace: a topic's events are sent that far apart, together; what is not to
 * wait does not: a replay, a heartbeat, the end.
 */
#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int64_t milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void open_stream(struct stream *stream, const struct server *server,
                        const char *target)
{
    struct block block;

    stream_open(stream, server, target, "");
    cr_assert(stream_next(stream, &block) && block.id[0]);
}

/* The first goes out at once, the next ones not before the pace allows it. */
Test(pace, joins_what_comes_too_fast)
{
    enum {
        PACE = 400
    };
    struct server server;
    struct stream stream;
    int64_t begin;

    server_start(&server, "--first-id", "1", "--pace", "400");
    open_stream(&stream, &server, "/events/a");
    begin = milliseconds();
    publish_to(&server, "/events/a", "first");
    stream_expect_event(&stream, "1", NULL, "first");
    publish_to(&server, "/events/a", "second");
    publish_to(&server, "/events/a", "third");
    stream_expect_event(&stream, "2", NULL, "second");
    cr_assert(milliseconds() - begin >= PACE);
    stream_expect_event(&stream, "3", NULL, "third");
    stream_close(&stream);
    server_stop(&server);
}

/* A minute's pace, so that whatever comes earlier has not waited for it. */
Test(pace, holds_no_replay_and_no_heartbeat_back)
{
    struct server server;
    struct stream stream, late, both;
    struct block block;

    server_start(&server, "--first-id", "1", "--pace", "60000", "--heartbeat",
                 "1");
    open_stream(&stream, &server, "/events/a");
    open_stream(&both, &server, "/events?topic=a&topic=b");
    publish_to(&server, "/events/a", "first");
    stream_expect_event(&stream, "1", NULL, "first");
    stream_expect_event(&both, "1", NULL, "first");
    publish_to(&server, "/events/a", "waits");
    cr_assert(!stream_take(&stream, &block));
    stream_open(&late, &server, "/events/a?lastEventId=1", "");
    stream_expect_event(&late, "1", NULL, NULL);
    stream_expect_event(&late, "2", NULL, "waits");
    /* what is due takes the others along */
    publish_to(&server, "/events/b", "is due");
    stream_expect_event(&both, "2", NULL, "waits");
    stream_expect_event(&both, "3", NULL, "is due");
    /* instead of the heartbeat, which has nothing to say then */
    stream_expect_event(&stream, "2", NULL, "waits");
    stream_expect_event(&stream, "3", NULL, NULL);
    stream_close(&stream);
    stream_close(&both);
    stream_close(&late);
    server_stop(&server);
}

Test(pace, holds_no_end_back)
{
    struct server server;
    struct stream stream;
    struct block block;

    server_start(&server, "--first-id", "1", "--pace", "60000");
    open_stream(&stream, &server, "/events/a");
    publish_to(&server, "/events/a", "first");
    stream_expect_event(&stream, "1", NULL, "first");
    publish_to(&server, "/events/a", "waits");
    kill(server.pid, SIGTERM);
    stream_expect_event(&stream, "2", NULL, "waits");
    cr_assert(stream_next(&stream, &block) && *block.retry);
    cr_assert_str_eq(block.id, "2");
    stream_expect_end(&stream);
    stream_close(&stream);
    cr_assert(server_wait(&server) == 0);
    close(server.log);
}

/* Publishers wait for the pace where the ring has no room, and nothing is
 * lost. */
Test(pace, slows_publishers_rather_than_lose_an_event)
{
    struct server server;
    struct stream stream;
    struct response response;
    char body[40 * 16] = "", id[16], text[16];

    if (getenv("SSED_PRELOAD"))
        cr_skip_test("to the server a socket that takes a part is full");
    server_start(&server, "--first-id", "1", "--pace", "20", "--history", "4");
    open_stream(&stream, &server, "/events/a");
    for (int i = 1; i <= 40; i++)
        sprintf(body + strlen(body), "data: %d\n\n", i);
    post(&server, "/events/a", EVENTS, body, &response);
    cr_assert(response.status == 201, "%s", response.body);
    for (int i = 1; i <= 40; i++) {
        sprintf(id, "%d", i);
        sprintf(text, "%d", i);
        stream_expect_event(&stream, id, NULL, text);
    }
    stream_close(&stream);
    server_stop(&server);
}
