/*
 * Many at once, from outside: order under concurrent publishing with
 * subscribers that come and go, slow readers, too many connections.
 */
#include "harness.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define HOST "Host: localhost\r\n"
#define HEALTH "GET /healthz HTTP/1.1\r\n" HOST "\r\n"

/* A reader that checks, whatever the path of an event to it, that it has
 * each id after its first exactly once. */
struct reader {
    struct stream stream;
    uint64_t last; /* 0: has no position yet */
    bool open;
};

static void reader_open(struct reader *reader, const struct server *server)
{
    char target[64] = "/events";

    if (reader->last)
        snprintf(target, sizeof(target), "/events?lastEventId=%llu",
                 (unsigned long long)reader->last);
    stream_open(&reader->stream, server, target, "");
    reader->open = true;
}

static void reader_close(struct reader *reader)
{
    stream_close(&reader->stream);
    reader->open = false;
}

static void reader_take(struct reader *reader)
{
    static struct block block;
    uint64_t id;

    cr_assert(stream_next(&reader->stream, &block), "the stream ended");
    cr_assert(!strstr(block.data, "\"type\":\"gap\""), "%s", block.data);
    if (block.id[0] == '\0')
        return;
    id = strtoull(block.id, NULL, 10);
    if (strstr(block.data, "\"type\":\"connected\""))
        cr_assert(reader->last == 0 || id == reader->last);
    else
        cr_assert(id == reader->last + 1, "%llu after %llu",
                  (unsigned long long)id, (unsigned long long)reader->last);
    reader->last = id;
}

/* Takes what is there, without waiting. */
static void reader_poll(struct reader *reader)
{
    struct pollfd data = { .fd = reader->stream.client.fd, .events = POLLIN };

    while (strstr(reader->stream.text, "\n\n") || poll(&data, 1, 0) == 1)
        reader_take(reader);
}

/* Puts in publishes on a connection without waiting for the answers; they
 * are read when they have come. */
struct publisher {
    struct client client;
    unsigned sent, answered;
};

static void publisher_send(struct publisher *publisher, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        client_send(&publisher->client, "POST /events HTTP/1.1\r\n" HOST
                                        "Content-Length: 5\r\n\r\nevent");
    publisher->sent += count;
}

static void publisher_answers(struct publisher *publisher)
{
    struct response response;

    for (; publisher->answered < publisher->sent; publisher->answered++) {
        client_response(&publisher->client, &response, false);
        cr_assert(response.status == 201, "%s", response.body);
    }
}

Test(crowd, each_sees_every_event_once_and_in_order)
{
    enum {
        READERS = 40,
        PUBLISHERS = 8,
        ROUNDS = 150
    };
    static struct reader readers[READERS];
    struct publisher publishers[PUBLISHERS] = { 0 };
    struct server server;
    uint64_t newest;

    srandom(1);
    server_start(&server, "--first-id", "1", "--history", "100000");
    for (int i = 0; i < PUBLISHERS; i++)
        client_connect(&publishers[i].client, &server);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PUBLISHERS; i++)
            publisher_send(&publishers[i], (unsigned)random() % 10);
        for (int i = 0; i < READERS; i++) {
            if (!readers[i].open)
                reader_open(&readers[i], &server);
            else if (random() % 4 == 0)
                reader_close(&readers[i]);
            else
                reader_poll(&readers[i]);
        }
        for (int i = 0; i < PUBLISHERS; i++)
            publisher_answers(&publishers[i]);
    }
    newest = publish(&server, "the last");
    for (int i = 0; i < READERS; i++) {
        if (!readers[i].open)
            reader_open(&readers[i], &server);
        while (readers[i].last < newest)
            reader_take(&readers[i]);
        reader_close(&readers[i]);
    }
    for (int i = 0; i < PUBLISHERS; i++)
        client_close(&publishers[i].client);
    server_stop(&server);
}

/* The ring holds little; whoever reads as it comes gets everything. */
Test(crowd, who_never_reads_is_cut_and_nobody_else_notices)
{
    enum {
        READERS = 5,
        COUNT = 3000,
        SIZE = 10000
    };
    static struct reader readers[READERS];
    struct server server;
    struct client stalled, publisher;
    char *text = malloc(SIZE);

    server_start(&server, "--first-id", "1", "--history", "50");
    client_connect(&stalled, &server);
    client_send(&stalled, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    server_await_log(&server, "event=subscribed");
    for (int i = 0; i < READERS; i++)
        reader_open(&readers[i], &server);
    client_connect(&publisher, &server);
    memset(text, 'x', SIZE);
    for (int i = 0; i < COUNT; i++) {
        uint64_t id = publish_on(&publisher, text, SIZE);

        for (int k = 0; k < READERS; k++)
            while (readers[k].last < id)
                reader_take(&readers[k]);
    }
    server_await_log(&server, "reason=overrun");
    client_await_end(&stalled);
    for (int i = 0; i < READERS; i++)
        reader_close(&readers[i]);
    client_close(&stalled);
    client_close(&publisher);
    free(text);
    server_stop(&server);
}

/* A burst far over what the ring holds, into sockets that have room: the
 * publisher is slowed down, and nobody is cut. */
Test(crowd, a_burst_waits_for_subscribers_with_room)
{
    enum {
        READERS = 300,
        BURST = 200,
        SIZE = 100
    };
    static struct reader readers[READERS];
    struct publisher publisher = { 0 };
    struct server server;
    char *log;

    if (getenv("SSED_PRELOAD"))
        cr_skip_test("to the server a socket that takes a part is full");
    server_start(&server, "--first-id", "1", "--history", "4");
    for (int i = 0; i < READERS; i++) {
        reader_open(&readers[i], &server);
        reader_take(&readers[i]);
    }
    client_connect(&publisher.client, &server);
    publisher_send(&publisher, BURST);
    publisher_answers(&publisher);
    for (int i = 0; i < READERS; i++) {
        while (readers[i].last < BURST)
            reader_take(&readers[i]);
        reader_close(&readers[i]);
    }
    client_close(&publisher.client);
    log = server_log(&server);
    cr_assert(!strstr(log, "overrun"));
    free(log);
    server_stop(&server);
}

/* Most leave while a pass over all of them is under way. */
Test(crowd, leaving_in_the_middle_of_a_pass_is_nobodys_loss)
{
    enum {
        READERS = 300,
        STAY = 10,
        ROUNDS = 10,
        BURST = 20
    };
    static struct reader readers[READERS];
    struct publisher publisher = { 0 };
    struct server server;
    uint64_t newest = 0;

    server_start(&server, "--first-id", "1");
    client_connect(&publisher.client, &server);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < READERS; i++)
            if (!readers[i].open)
                reader_open(&readers[i], &server);
        publisher_send(&publisher, BURST);
        newest += BURST;
        for (int i = STAY; i < READERS; i++)
            reader_close(&readers[i]);
        publisher_answers(&publisher);
    }
    for (int i = 0; i < STAY; i++) {
        while (readers[i].last < newest)
            reader_take(&readers[i]);
        reader_close(&readers[i]);
    }
    client_close(&publisher.client);
    server_stop(&server);
}

Test(crowd, where_there_is_no_room_a_subscriber_comes_back_later)
{
    enum {
        ROOM = 5
    };
    struct reader readers[ROOM] = { 0 };
    struct server server;
    struct stream stream;
    struct response response;
    static struct block block;
    long retry;

    server_start(&server, "--max-connections", "5");
    for (int i = 0; i < ROOM; i++) {
        reader_open(&readers[i], &server);
        reader_take(&readers[i]);
    }
    stream_open(&stream, &server, "/events", "");
    cr_assert(stream_next(&stream, &block));
    retry = atol(block.retry);
    cr_assert(retry >= 2000 && retry <= 10000, "%s", block.retry);
    cr_assert_str_empty(block.data);
    cr_assert(!stream_next(&stream, &block) && stream.complete);
    stream_close(&stream);
    ask(&server, "GET / HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 503);
    cr_assert(response_field(&response, "Retry-After"));
    ask(&server, "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx",
        &response);
    cr_assert(response.status == 503);
    ask(&server, HEALTH, &response);
    cr_assert(response.status == 200);
    reader_close(&readers[0]);
    server_await_log(&server, "event=unsubscribed");
    ask(&server, "GET / HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 200);
    for (int i = 1; i < ROOM; i++)
        reader_close(&readers[i]);
    server_stop(&server);
}

/* Far more than it takes: they wait in the kernel, and are served when others
 * have gone. */
Test(crowd, a_flood_of_connections_is_waited_out)
{
    enum {
        FLOOD = 200
    };
    struct client clients[FLOOD];
    struct server server;
    struct response response;

    server_start(&server, "--max-connections", "10");
    for (int i = 0; i < FLOOD; i++)
        client_connect(&clients[i], &server);
    server_await_log(&server, "event=accept_paused");
    for (int i = 0; i < FLOOD - 1; i++)
        client_close(&clients[i]);
    client_send(&clients[FLOOD - 1], HEALTH);
    client_response(&clients[FLOOD - 1], &response, false);
    cr_assert(response.status == 200);
    client_close(&clients[FLOOD - 1]);
    server_stop(&server);
}

Test(crowd, goes_on_when_descriptors_run_out)
{
    enum {
        MANY = 40
    };
    struct reader reader = { 0 };
    struct client clients[MANY];
    struct server server;
    struct response response;
    struct rlimit limit, few = { 20, 20 };

    server_start(&server, "--first-id", "1");
    reader_open(&reader, &server);
    reader_take(&reader);
    cr_assert(prlimit(server.pid, RLIMIT_NOFILE, NULL, &limit) == 0);
    few.rlim_max = limit.rlim_max;
    cr_assert(prlimit(server.pid, RLIMIT_NOFILE, &few, NULL) == 0);
    for (int i = 0; i < MANY; i++)
        client_connect(&clients[i], &server);
    server_await_log(&server, "event=accept_paused reason=EMFILE");
    client_send(&clients[0],
                "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx");
    client_response(&clients[0], &response, false);
    cr_assert(response.status == 201);
    reader_take(&reader);
    cr_assert(reader.last == 1);
    for (int i = 0; i < MANY - 1; i++)
        client_close(&clients[i]);
    client_send(&clients[MANY - 1], HEALTH);
    client_response(&clients[MANY - 1], &response, false);
    cr_assert(response.status == 200);
    client_close(&clients[MANY - 1]);
    reader_close(&reader);
    server_stop(&server);
}

Test(crowd, a_closed_tab_leaves_nothing_behind)
{
    struct server server;
    struct stream stream;
    static struct block block;
    struct response response;
    uint64_t subscribers;

    server_start(&server, NULL);
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    shutdown(stream.client.fd, SHUT_WR);
    client_await_end(&stream.client);
    stream_close(&stream);
    ask(&server, "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx",
        &response);
    cr_assert(json_number(response.body, "subscribers", &subscribers));
    cr_assert(subscribers == 0);
    server_stop(&server);
}
