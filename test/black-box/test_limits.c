/*
 * What is bounded, from outside: connections of one address, topics without an
 * event, and memory: that of a server that is attacked in every way at once
 * stays below what it has promised at its start.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST "Host: localhost\r\n"
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* How often the log has the text. */
static unsigned count_in_log(const struct server *server, const char *text)
{
    char *log = server_log(server);
    unsigned count = 0;

    for (const char *at = log; (at = strstr(at, text)); at += strlen(text))
        count++;
    free(log);
    return count;
}

/* Connects from an address of this machine, with a small buffer for what is not
 * read. */
static void connect_from(struct client *client, const struct server *server,
                         uint32_t address)
{
    struct sockaddr_in from = { .sin_family = AF_INET,
                                .sin_addr.s_addr = htonl(address) };
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)server->port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *client = (struct client){ .fd = fd, .bytes = calloc(1, 1) };
    cr_assert(fd >= 0 && client->bytes);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){ 4096 }, sizeof(int));
    cr_assert(bind(fd, (struct sockaddr *)&from, sizeof(from)) == 0);
    cr_assert(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0, "%s",
              strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
}

/* A subscriber for whom there is no room is told to come back. */
static void expect_no_room(const struct server *server, const char *target)
{
    static struct block block;
    struct stream stream;
    long retry;

    stream_open(&stream, server, target, "");
    cr_assert(stream_next(&stream, &block));
    retry = atol(block.retry);
    cr_assert(retry >= 2000 && retry <= 10000, "%s: retry '%s'", target,
              block.retry);
    cr_assert_str_empty(block.id);
    stream_expect_end(&stream);
    client_await_end(&stream.client);
    stream_close(&stream);
}

/* ------------------------------------------------ connections of an address */

static void expect_refused(const struct server *server, const char *request,
                           int status, const char *text)
{
    struct response response;
    struct client client;

    client_connect(&client, server);
    client_send(&client, request);
    client_response(&client, &response, strncmp(request, "HEAD", 4) == 0);
    cr_assert(response.status == status, "%s: %d", request, response.status);
    cr_assert(!text || strstr(response.body, text), "%s", response.body);
    cr_assert(status != 429 || response_field(&response, "Retry-After"));
    client_await_end(&client);
    client_close(&client);
}

Test(limits, connections_of_an_address_have_their_answers)
{
    enum {
        ROOM = 3
    };
    static struct block block;
    struct stream streams[ROOM], other;
    struct server server;

    server_start(&server, "--max-per-address", "3");
    for (int i = 0; i < ROOM; i++) {
        stream_open(&streams[i], &server, "/events/t", "");
        cr_assert(stream_next(&streams[i], &block));
    }
    expect_no_room(&server, "/events/t");
    expect_no_room(&server, "/events");
    expect_refused(&server, "GET / HTTP/1.1\r\n" HOST "\r\n", 429,
                   "--max-per-address");
    expect_refused(&server,
                   "POST /events/t HTTP/1.1\r\n" HOST
                   "Content-Length: 1\r\n\r\nx",
                   429, "--max-per-address");
    /* what is answered ends the connection too */
    expect_refused(&server, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, "ok");
    expect_refused(&server, "HEAD /events/t HTTP/1.1\r\n" HOST "\r\n", 200,
                   NULL);
    expect_refused(&server, "OPTIONS /events/t HTTP/1.1\r\n" HOST "\r\n", 204,
                   NULL);
    connect_from(&other.client, &server, INADDR_LOOPBACK + 1);
    client_send(&other.client, "GET /events/t HTTP/1.1\r\n" HOST "\r\n");
    stream_begin(&other);
    cr_assert(stream_next(&other, &block) && block.id[0], "another address");
    stream_close(&streams[0]);
    server_await_log(&server, "event=unsubscribed");
    stream_open(&streams[0], &server, "/events/t", "");
    cr_assert(stream_next(&streams[0], &block) && block.id[0]);
    cr_assert(count_in_log(&server, "event=address_full") == 1);
    cr_assert(count_in_log(&server, "event=address_full peer=127.0.0.1:") == 1);
    for (int i = 0; i < ROOM; i++)
        stream_close(&streams[i]);
    stream_close(&other);
    server_stop(&server);
}

/* Those that say nothing hold few places, and the rest none. */
Test(limits, a_flood_from_an_address_is_reset_at_once)
{
    enum {
        ROOM = 5,
        SURPLUS = 8,
        FLOOD = 300
    };
    struct client clients[ROOM + SURPLUS], more, other;
    struct response response;
    struct server server;

    server_start(&server, "--max-per-address", "5", "--head-timeout", "60");
    for (int i = 0; i < ROOM + SURPLUS; i++)
        client_connect(&clients[i], &server);
    for (int i = 0; i < FLOOD; i++) {
        client_connect(&more, &server);
        client_await_end(&more);
        cr_assert(more.reset && more.length == 0);
        client_close(&more);
    }
    connect_from(&other, &server, INADDR_LOOPBACK + 1);
    client_send(&other, "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&other, &response, false);
    cr_assert(response.status == 200, "others are served");
    cr_assert(count_in_log(&server, "event=address_full") == 1);
    client_send(&clients[ROOM], "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&clients[ROOM], &response, false);
    cr_assert(response.status == 429);
    client_send(&clients[0], "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&clients[0], &response, false);
    cr_assert(response.status == 200, "it came in time");
    for (int i = 0; i < ROOM + SURPLUS; i++)
        client_close(&clients[i]);
    client_close(&other);
    server_stop(&server);
}

Test(limits, a_unix_socket_has_no_address)
{
    struct client clients[4];
    struct response response;
    struct server server;
    char path[64], option[80];

    snprintf(path, sizeof(path), "/tmp/ssed-limits-%d", getpid());
    snprintf(option, sizeof(option), "unix:%s", path);
    server_start(&server, "--max-per-address", "1", "--listen", option);
    for (int i = 0; i < 4; i++) {
        client_connect_unix(&clients[i], path);
        client_send(&clients[i], "GET / HTTP/1.1\r\n" HOST "\r\n");
        client_response(&clients[i], &response, false);
        cr_assert(response.status == 200);
    }
    for (int i = 0; i < 4; i++)
        client_close(&clients[i]);
    server_stop(&server);
}

/* --------------------------------------------------------------- topics */

Test(limits, topics_without_an_event_have_their_answers)
{
    static struct block block;
    struct stream a, b, c, main;
    struct response response;
    struct server server;

    server_start(&server, "--max-topics", "2");
    publish_to(&server, "/events/old", "1");
    for (int i = 0; i < 20; i++) { /* they leave nothing */
        char request[128];

        snprintf(request, sizeof(request),
                 "HEAD /events/head/%d HTTP/1.1\r\n" HOST "\r\n", i);
        ask(&server, request, &response);
        cr_assert(response.status == 200 &&
                  response_field(&response, "Last-Event-ID"));
    }
    stream_open(&a, &server, "/events/a", "");
    cr_assert(stream_next(&a, &block) && block.id[0]);
    expect_no_room(&server, "/events?topic=b&topic=c");
    stream_open(&b, &server, "/events?topic=b&topic=a", "");
    cr_assert(stream_next(&b, &block) && block.id[0]);
    expect_no_room(&server, "/events/c");
    expect_no_room(&server, "/events?topic=a&topic=c");
    cr_assert(count_in_log(&server, "event=topics_full without_event=2") == 1);
    cr_assert(count_in_log(&server, "event=topics_full") == 1);
    stream_open(&c, &server, "/events?topic=a&topic=old", "");
    cr_assert(stream_next(&c, &block) && block.id[0], "both are there");
    stream_close(&c);
    stream_open(&main, &server, "/events", "");
    stream_expect(&main, &block, "connected");
    publish_to(&server, "/events/c", "2");
    stream_open(&c, &server, "/events/c?last=1", "");
    cr_assert(stream_next(&c, &block) && stream_next(&c, &block));
    cr_assert_str_eq(block.data, "2");
    stream_close(&b);
    for (int64_t deadline = 0; count_in_log(&server, "event=unsubscribed") < 2;)
        await_tick(&deadline, "b and the first c to leave");
    stream_open(&b, &server, "/events/d", "");
    cr_assert(stream_next(&b, &block) && block.id[0], "b is gone");
    stream_close(&a);
    stream_close(&b);
    stream_close(&c);
    stream_close(&main);
    server_stop(&server);
}

/* Subscribers stay with topics whose events are evicted, so that there are more
 * of these than may be made; publishers have their topics still. */
Test(limits, publishers_are_not_kept_out_by_subscribers)
{
    enum {
        TOPICS = 40
    };
    static struct block block;
    struct stream streams[TOPICS];
    struct server server;
    char target[64];
    int refused = 0;

    server_start(&server, "--max-topics", "4", "--history", "8");
    for (int i = 0; i < TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/t/%d", i);
        publish_to(&server, target, "x");
        stream_open(&streams[i], &server, target, "");
        cr_assert(stream_next(&streams[i], &block));
        refused += block.id[0] == '\0';
    }
    cr_assert(refused > 0 && refused < TOPICS, "%d", refused);
    for (int i = TOPICS; i < 2 * TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/t/%d", i);
        publish_to(&server, target, "x");
    }
    for (int i = 0; i < TOPICS; i++)
        stream_close(&streams[i]);
    server_stop(&server);
}

/* Publishers that publish nothing are bounded as well. */
Test(limits, publishers_with_topics_without_an_event_are_refused)
{
    enum {
        TOPICS = 1 + 1 + 1024 /* --max-topics, --history, TOPICS_SPARE */
    };
    static struct client clients[TOPICS];
    struct response response;
    struct server server;
    struct rlimit limit;
    char target[64];

    cr_assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    cr_assert(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < TOPICS + 200)
        cr_skip_test("ulimit -Hn is too low");
    server_start(&server, "--max-topics", "1", "--history", "1");
    for (int i = 0; i < TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/t/%d", i);
        body_begin(&clients[i], &server, target);
    }
    for (int64_t deadline = 0;; await_tick(&deadline, "them to begin")) {
        post(&server, "/events/new", NULL, "x", &response);
        if (response.status == 503)
            break;
        cr_assert(response.status == 201);
    }
    cr_assert(strstr(response.body, "--max-topics"), "%s", response.body);
    cr_assert(response_field(&response, "Retry-After"));
    publish_to(&server, "/events/t/0", "x");
    publish(&server, "x");
    for (int i = 0; i < TOPICS; i++)
        client_close(&clients[i]);
    for (int64_t deadline = 0;; await_tick(&deadline, "them to end")) {
        post(&server, "/events/new", NULL, "x", &response);
        if (response.status == 201)
            break;
    }
    server_stop(&server);
}
