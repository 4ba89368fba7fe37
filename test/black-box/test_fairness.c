/*
 * Those that ask much do not hold up those that ask little: which of them is
 * served first is seen by the ids of what they publish. And what requests may
 * hold of memory is bounded.
 */
#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST "Host: localhost\r\n"
#define ONE "POST /events/a HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx"
#define HEALTH "GET /healthz HTTP/1.1\r\n" HOST "\r\n"

enum {
    CROWD = 300 /* more than one epoll_wait(2) tells of */
};

static void ask_health(struct client *client)
{
    struct response response;

    client_send(client, HEALTH);
    client_response(client, &response, false);
    cr_assert(response.status == 200);
}

/* The id that one publish gets when it comes last, after `length` bytes of
 * each of the crowd have come. The server stands still meanwhile. */
static uint64_t id_among(const struct server *server, const char *bytes,
                         size_t length)
{
    static struct client crowd[CROWD];
    struct client one;
    struct response response;
    char id[32];

    client_connect(&one, server);
    ask_health(&one);
    for (int i = 0; i < CROWD; i++) {
        client_connect(&crowd[i], server);
        ask_health(&crowd[i]);
    }
    cr_assert(kill(server->pid, SIGSTOP) == 0);
    for (int i = 0; i < CROWD; i++)
        client_send_bytes(&crowd[i], bytes, length);
    client_send(&one, ONE);
    cr_assert(kill(server->pid, SIGCONT) == 0);
    client_response(&one, &response, false);
    cr_assert(response.status == 201, "%s", response.body);
    cr_assert(json_string(response.body, "id", id, sizeof(id)));
    for (int i = 0; i < CROWD; i++)
        client_close(&crowd[i]);
    client_close(&one);
    return strtoull(id, NULL, 10);
}

Test(fairness, one_request_does_not_wait_for_all_that_are_pipelined)
{
    enum {
        EACH = 220 /* requests that one read(2) takes in */
    };
    static char bytes[EACH * sizeof(ONE)];
    struct server server;
    uint64_t id;

    for (int i = 0; i < EACH; i++)
        strcat(bytes, ONE);
    server_start(&server, "--first-id", "1");
    id = id_among(&server, bytes, strlen(bytes));
    cr_assert(id < CROWD * EACH / 2, "after %llu others",
              (unsigned long long)id);
    server_stop(&server);
}

Test(fairness, one_request_does_not_wait_for_all_that_is_streamed)
{
    enum {
        EACH = 1700
    };
    static char bytes[EACH * 9 + 256];
    struct server server;
    uint64_t id;
    int at = sprintf(bytes,
                     "POST /events/a HTTP/1.1\r\n" HOST
                     "Content-Type: text/event-stream\r\n"
                     "Content-Length: %d\r\n\r\n",
                     1 << 20);

    for (int i = 0; i < EACH; i++)
        at += sprintf(bytes + at, "data: x\n\n");
    server_start(&server, "--first-id", "1");
    id = id_among(&server, bytes, (size_t)at);
    cr_assert(id < CROWD * EACH / 2, "after %llu others",
              (unsigned long long)id);
    server_stop(&server);
}

/* Connections that have come later, and are too many, do not count against
 * those that were there. They get one answer. */
Test(fairness, the_established_are_served_whoever_comes_later)
{
    enum {
        LATER = 20
    };
    struct server server;
    struct client first, later[LATER];
    struct response response;

    server_start(&server, "--max-connections", "3");
    client_connect(&first, &server);
    ask_health(&first);
    for (int i = 0; i < LATER; i++)
        client_connect(&later[i], &server);
    for (int i = 2; i < LATER - 1; i++) {
        ask_health(&later[i]);
        client_await_end(&later[i]);
    }
    client_send(&first, ONE);
    client_response(&first, &response, false);
    cr_assert(response.status == 201, "%s", response.body);
    client_send(&first, "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&first, &response, false);
    cr_assert(response.status == 200);
    client_send(&later[LATER - 1], ONE);
    client_response(&later[LATER - 1], &response, false);
    cr_assert(response.status == 503);
    client_await_end(&later[LATER - 1]);
    for (int i = 0; i < LATER; i++)
        client_close(&later[i]);
    client_close(&first);
    server_stop(&server);
}

/* Clients whose heads never end, with all the memory that there is. The heads
 * are so short that none of them needs more than it gets at first: one that did
 * would be refused, and others would have its memory. */
static struct client heads[600];

static void use_up_memory(const struct server *server)
{
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
        client_connect(&heads[i], server);
        client_send(&heads[i], "GET / HTTP/1.1\r\n");
    }
}

/* The heads end, and a request that has waited is answered. */
static void expect_memory_back(struct client *waiting)
{
    struct response response;

    cr_assert(!client_receive(waiting, 0), "it was read over the bound");
    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++)
        client_close(&heads[i]);
    client_response(waiting, &response, false);
    cr_assert(response.status == 200);
    client_close(waiting);
}

/* A subscriber notices nothing; a request waits until some of the heads have
 * ended. */
Test(fairness, at_the_bound_of_memory_requests_wait_and_subscribers_do_not)
{
    struct server server;
    struct stream stream;
    struct client one;
    static struct block block;

    server_start(&server, "--request-memory", "1M", "--interval", "20");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    use_up_memory(&server);
    client_connect(&one, &server);
    client_send(&one, HEALTH);
    for (int i = 0; i < 20; i++)
        stream_expect(&stream, &block, "message");
    expect_memory_back(&one);
    stream_close(&stream);
    server_stop(&server);
}

/* Nothing but the end of others tells the server to go on: no clock, and no
 * subscriber. */
Test(fairness, a_request_that_waits_for_memory_is_read_when_there_is_some)
{
    struct server server;
    struct client one;

    server_start(&server, "--request-memory", "1M", "--head-timeout", "600");
    use_up_memory(&server);
    client_connect(&one, &server);
    client_send(&one, HEALTH);
    expect_memory_back(&one);
    server_stop(&server);
}

/* Of two bodies that together would go over the bound one is answered, and
 * what was published of it is said. */
Test(fairness, a_body_over_the_bound_of_memory_is_answered)
{
    enum {
        BODY = 600 << 10
    };
    static char text[BODY + 1];
    struct server server;
    struct client clients[2], *refused = NULL;
    struct response response;
    char head[256];

    memset(text, 'x', BODY);
    snprintf(head, sizeof(head),
             "POST /events/a HTTP/1.1\r\n" HOST
             "Content-Type: text/event-stream\r\n"
             "Content-Length: %d\r\n\r\ndata: one\n\ndata: ",
             10 << 20);
    server_start(&server, "--request-memory", "1M", "--max-event", "700K");
    for (int i = 0; i < 2; i++) {
        client_connect(&clients[i], &server);
        client_send(&clients[i], head);
        client_send_bytes(&clients[i], text, BODY);
    }
    for (int wait = patience(); !refused && wait > 0; wait -= 20)
        for (int i = 0; i < 2 && !refused; i++)
            if (client_receive(&clients[i], 10))
                refused = &clients[i];
    cr_assert(refused, "both are over the bound");
    client_response(refused, &response, false);
    cr_assert(response.status == 503, "%d", response.status);
    cr_assert(strstr(response.body, "\"count\":1,"), "%s", response.body);
    cr_assert(strstr(response.body, "--request-memory"), "%s", response.body);
    client_await_end(refused);
    for (int i = 0; i < 2; i++)
        client_close(&clients[i]);
    server_stop(&server);
}
