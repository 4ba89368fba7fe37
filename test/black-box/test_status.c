/*
 * The stream of figures from outside, on the listener of --admin: an event a
 * second, for few, who cannot hold up anything by not reading.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define HOST "Host: localhost\r\n"

/* Starts a server with --admin on a free port; *admin is the same server, as
 * it is asked there. */
#define start(server, admin, ...) \
    start_list(                   \
        server, admin,            \
        (const char *[]){ "--admin", "127.0.0.1:0", __VA_ARGS__, NULL })

static void start_list(struct server *server, struct server *admin,
                       const char *const options[])
{
    static const char key[] = "event=admin address=127.0.0.1:";
    char *log;

    server_start_list(server, options);
    log = server_log(server);
    *admin = *server;
    cr_assert(strstr(log, key), "%s", log);
    admin->port = atoi(strstr(log, key) + strlen(key));
    free(log);
}

/* Passes over a JSON string, or a number; NULL if there is none. */
static const char *json_string_end(const char *at)
{
    if (*at != '"')
        return NULL;
    while (*++at != '"' && (unsigned char)*at >= ' ')
        at += *at == '\\' && at[1];
    return *at == '"' ? at + 1 : NULL;
}

static const char *json_scalar_end(const char *at)
{
    char *end;

    if (*at == '"')
        return json_string_end(at);
    strtod(at, &end);
    return end > at && (isdigit(*at) || *at == '-') ? end : NULL;
}

static const char *json_key_end(const char *at)
{
    at = json_string_end(at);
    return at && *at == ':' ? at + 1 : NULL;
}

/* Passes over a JSON value (RFC 8259); NULL if there is none. */
static const char *json_end(const char *at)
{
    char open[8];
    unsigned depth = 0;

    do {
        if (depth && open[depth - 1] == '{')
            at = json_key_end(at);
        if (at && (*at == '{' || *at == '[') && depth < sizeof(open)) {
            open[depth++] = *at++;
            if (*at != '}' && *at != ']')
                continue;
        } else if (at) {
            at = json_scalar_end(at);
        }
        while (at && depth && *at == (open[depth - 1] == '{' ? '}' : ']')) {
            depth--;
            at++;
        }
        if (depth && at && *at++ != ',')
            return NULL;
    } while (at && depth);
    return at;
}

/* The next event, whose data must be one JSON object in one line. */
static bool next_status(struct stream *stream, struct block *block)
{
    const char *end;

    do
        if (!stream_next(stream, block))
            return false;
    while (block->data[0] == '\0'); /* retry: alone */
    cr_assert(block->lines == 1 && block->data[0] == '{');
    cr_assert_str_empty(block->event);
    end = json_end(block->data);
    cr_assert(end && *end == '\0', "%s", block->data);
    return true;
}

/* A number of the event, by how its member is spelled. */
static double number_of(const struct block *block, const char *member)
{
    char key[128];
    const char *found;

    snprintf(key, sizeof(key), "\"%s\":", member);
    found = strstr(block->data, key);
    cr_assert(found, "%s is not in %s", member, block->data);
    return strtod(found + strlen(key), NULL);
}

#define STREAMS "ssed_connections_by_state{state=\\\"status\\\"}"

Test(status, an_event_a_second)
{
    static struct block block;
    struct server server, admin;
    struct stream stream, subscriber;
    double before = 0;

    start(&server, &admin, "--first-id", "1");
    stream_open(&stream, &admin, "/status", "");
    for (int i = 0; i < 4; i++) {
        double now;

        cr_assert(next_status(&stream, &block));
        now = number_of(&block, "time");
        cr_assert(number_of(&block, "ssed_subscribers") == 0);
        cr_assert(number_of(&block, STREAMS) == 1);
        /* the wall clock is in ms, and an event may come late, not early */
        cr_assert(i == 0 || now - before > 500, "%.0f ms", now - before);
        cr_assert(i == 0 || now - before < 1000 + patience());
        before = now;
    }
    stream_open(&subscriber, &server, "/events", "");
    publish(&server, "one");
    publish(&server, "two");
    do
        cr_assert(next_status(&stream, &block));
    while (number_of(&block, "ssed_subscribers") < 1);
    cr_assert(number_of(&block, "ssed_events_published_total") == 2);
    stream_close(&subscriber);
    stream_close(&stream);
    server_stop(&server);
}

Test(status, head_methods_and_http_1_0)
{
    static struct block block;
    static struct response response;
    struct server server, admin;
    struct client client;
    struct stream stream;

    start(&server, &admin, NULL);
    client_connect(&client, &admin);
    client_send(&client, "HEAD /status HTTP/1.1\r\n" HOST "\r\n");
    client_response(&client, &response, true);
    cr_assert(response.status == 200);
    cr_assert_str_eq(response_field(&response, "Content-Type"),
                     "text/event-stream");
    cr_assert(!response_field(&response, "Access-Control-Allow-Origin"));
    client_close(&client);
    ask(&admin, "POST /status HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n",
        &response);
    cr_assert(response.status == 405);
    cr_assert_str_eq(response_field(&response, "Allow"), "GET, HEAD, OPTIONS");
    stream_open_1_0(&stream, &admin, "/status");
    cr_assert(!stream.chunked);
    cr_assert(next_status(&stream, &block));
    cr_assert(next_status(&stream, &block));
    stream_close(&stream);
    server_stop(&server);
}

/* The topics with most subscribers, in their order, and no more than ten. */
Test(status, ranks_topics)
{
    enum {
        TOPICS = 13,
        READERS = TOPICS * (TOPICS - 1) / 2
    };
    static struct block block;
    static struct stream readers[TOPICS][TOPICS];
    struct server server, admin;
    struct stream stream;
    char target[64], wanted[1024] = "\"most_subscribers\":[";

    start(&server, &admin, NULL);
    for (int i = 1; i < TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/topic/%d", i);
        for (int k = 0; k < i; k++)
            stream_open(&readers[i][k], &server, target, "");
    }
    for (int i = TOPICS - 1; i > TOPICS - 11; i--)
        snprintf(wanted + strlen(wanted), sizeof(wanted) - strlen(wanted),
                 "%s{\"topic\":\"topic/%d\",\"subscribers\":%d,\"lag\":0}",
                 i < TOPICS - 1 ? "," : "", i, i);
    strcat(wanted, "],\"most_lag\":[]}");
    stream_open(&stream, &admin, "/status", "");
    do
        cr_assert(next_status(&stream, &block));
    while (number_of(&block, "ssed_subscribers") < READERS);
    cr_assert(strstr(block.data, wanted), "%s\n%s", wanted, block.data);
    for (int i = 1; i < TOPICS; i++)
        for (int k = 0; k < i; k++)
            stream_close(&readers[i][k]);
    stream_close(&stream);
    server_stop(&server);
}

static void connect_small(struct client *client, const struct server *server)
{
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)server->port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

    *client = (struct client){ .fd = socket(AF_INET, SOCK_STREAM, 0),
                               .bytes = calloc(1, 1) };
    cr_assert(client->fd >= 0 && client->bytes);
    setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &(int){ 4096 }, sizeof(int));
    cr_assert(connect(client->fd, (struct sockaddr *)&to, sizeof(to)) == 0);
}

/* A subscriber that does not read is behind, in its topic. */
Test(status, ranks_lag)
{
    enum {
        SIZE = 10000
    };
    static struct block block;
    struct server server, admin;
    struct client slow, publisher;
    struct stream stream;
    char *text = malloc(SIZE);

    start(&server, &admin, "--history", "10000");
    connect_small(&slow, &server);
    client_send(&slow, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    server_await_log(&server, "event=subscribed");
    memset(text, 'x', SIZE);
    client_connect(&publisher, &server);
    for (int i = 0; i < 100; i++)
        publish_on(&publisher, text, SIZE);
    stream_open(&stream, &admin, "/status", "");
    cr_assert(next_status(&stream, &block));
    cr_assert(strstr(block.data, "\"most_lag\":[{\"topic\":\"\","
                                 "\"subscribers\":1,\"lag\":"),
              "%s", block.data);
    cr_assert(number_of(&block, "ssed_lag_events_max") ==
              strtod(strstr(block.data, "\"most_lag\":[") +
                         strlen("\"most_lag\":[{\"topic\":\"\","
                                "\"subscribers\":1,\"lag\":"),
                     NULL));
    client_close(&slow);
    do
        cr_assert(next_status(&stream, &block));
    while (!strstr(block.data, "\"most_lag\":[]"));
    client_close(&publisher);
    stream_close(&stream);
    free(text);
    server_stop(&server);
}

/* One that does not read has events left out for it, and is cut when it goes on
 * with that; one that reads again goes on. What is kept for them stays as small
 * as an event is. */
Test(status, who_does_not_read_holds_up_nothing)
{
    static struct block block;
    struct server server, admin;
    struct client slow[2];
    struct stream stream, late = { 0 };
    double before = 0, longest = 0, most = 0;
    int full = 0;

    if (getenv("SSED_PRELOAD"))
        cr_skip_test("to the server a socket that takes a part is full");
    start(&server, &admin, NULL);
    for (int i = 0; i < 2; i++) {
        connect_small(&slow[i], &admin);
        client_send(&slow[i], "GET /status HTTP/1.1\r\n" HOST "\r\n");
    }
    stream_open(&stream, &admin, "/status", "");
    while (full < 4) {
        cr_assert(next_status(&stream, &block));
        full += number_of(&block, "ssed_request_memory_bytes") > 0;
        cr_assert(number_of(&block, STREAMS) == 3);
    }
    late.client = slow[1];
    stream_begin(&late);
    while (longest < 2500) {
        double now;

        cr_assert(next_status(&late, &block));
        now = number_of(&block, "time");
        if (before > 0 && now - before > longest)
            longest = now - before;
        before = now;
    }
    do {
        cr_assert(next_status(&stream, &block));
        if (number_of(&block, "ssed_request_memory_bytes") > most)
            most = number_of(&block, "ssed_request_memory_bytes");
        while (stream_take(&late, &block))
            ;
    } while (number_of(&block, STREAMS) == 3);
    cr_assert(most > 0 && most < 70000, "%.0f bytes", most);
    client_await_end(&slow[0]);
    cr_assert(slow[0].reset);
    stream_close(&late);
    client_close(&slow[0]);
    stream_close(&stream);
    server_stop(&server);
}

Test(status, sixteen_at_most)
{
    static struct block block;
    static struct response response;
    struct server server, admin;
    struct stream streams[16];

    start(&server, &admin, NULL);
    for (int i = 0; i < 16; i++) {
        stream_open(&streams[i], &admin, "/status", "");
        cr_assert(next_status(&streams[i], &block));
    }
    ask(&admin, "GET /status HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 503, "%d", response.status);
    cr_assert(response_field(&response, "Retry-After"));
    ask(&admin, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 200);
    stream_close(&streams[3]);
    do
        cr_assert(next_status(&streams[0], &block));
    while (number_of(&block, STREAMS) == 16);
    stream_open(&streams[3], &admin, "/status", "");
    for (int i = 0; i < 16; i++) {
        cr_assert(next_status(&streams[i], &block));
        stream_close(&streams[i]);
    }
    server_stop(&server);
}

Test(status, is_not_public)
{
    static const char *const paths[] = { "/status", "/status.html",
                                         "/status.js" };
    static struct response response;
    struct server server, admin;
    char request[128];

    start(&server, &admin, NULL);
    for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++) {
        snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST "\r\n",
                 paths[i]);
        ask(&server, request, &response);
        cr_assert(response.status == 404, "%s: %d", paths[i], response.status);
    }
    ask(&admin, "GET / HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 200 && strstr(response.body, "status.js"));
    ask(&admin, "GET /index.html HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 404);
    ask(&admin, "GET /style.css HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 200);
    server_stop(&server);
}

/* A drain is seen, and does not wait for those who watch it. */
Test(status, ends_with_the_server)
{
    static struct block block;
    struct server server, admin;
    struct stream stream, subscriber;

    start(&server, &admin, "--drain-delay", "2");
    stream_open(&subscriber, &server, "/events", "");
    stream_open(&stream, &admin, "/status", "");
    cr_assert(next_status(&stream, &block));
    cr_assert(number_of(&block, "ssed_phase") == 0);
    kill(server.pid, SIGTERM);
    do
        cr_assert(next_status(&stream, &block));
    while (number_of(&block, "ssed_phase") == 0);
    cr_assert(number_of(&block, "ssed_phase") == 1);
    while (next_status(&stream, &block))
        ;
    cr_assert(server_wait(&server) == 0);
    stream_close(&subscriber);
    stream_close(&stream);
}
