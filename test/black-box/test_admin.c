/*
 * --admin from outside: which listener serves what and to whom, that the
 * figures are those of what was done, and the pages of topics.
 */
#include "harness.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define HOST "Host: localhost\r\n"

static struct server server, admin; /* the same one, by either listener */
static char text[4 << 20];          /* what was fetched last */

/* Starts a server with --admin. */
#define start(...)                                                            \
    start_list((const char *[]){ "--admin", "127.0.0.1:0", "--first-id", "1", \
                                 __VA_ARGS__, NULL })
static void start_list(const char *const options[])
{
    static const char key[] = "event=admin address=127.0.0.1:";
    const char *found;
    char *log;

    server_start_list(&server, options);
    log = server_log(&server);
    found = strstr(log, key);
    cr_assert(found, "%s", log);
    admin = server;
    admin.port = atoi(found + strlen(key));
    free(log);
}

/* Receives chunks to the end; adds what is in them to `text`. */
static void receive_chunks(struct client *client)
{
    size_t length = 0, size;

    do {
        char *end;

        while (!strstr(client->bytes, "\r\n"))
            client_await(client, client->length + 1);
        size = strtoul(client->bytes, &end, 16);
        cr_assert(strncmp(end, "\r\n", 2) == 0, "%s", client->bytes);
        client_use(client, (size_t)(end + 2 - client->bytes));
        client_await(client, size + 2);
        cr_assert(memcmp(client->bytes + size, "\r\n", 2) == 0);
        cr_assert(length + size < sizeof(text));
        memcpy(text + length, client->bytes, size);
        length += size;
        client_use(client, size + 2);
    } while (size > 0);
    text[length] = '\0';
}

/* Gets it by the admin listener. */
static const char *fetch_on(struct client *client, const char *target)
{
    struct response response;
    char request[1024];

    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST "\r\n",
             target);
    client_send(client, request);
    client_response(client, &response, false);
    cr_assert(response.status == 200, "%s: %d %s", target, response.status,
              response.body);
    receive_chunks(client);
    return text;
}

static const char *fetch(const char *target)
{
    struct client client;

    client_connect(&client, &admin);
    fetch_on(&client, target);
    client_close(&client);
    return text;
}

/* Of what was fetched. */
static double value_of(const char *name)
{
    char line[256];
    const char *found;

    snprintf(line, sizeof(line), "\n%s ", name);
    found = strstr(text, line);
    cr_assert(found, "there is no %s in:\n%s", name, text);
    return strtod(found + strlen(line), NULL);
}

/* Waits until each figure has its value: {name, value}... */
struct expected {
    const char *name;
    double value;
};
#define await_figures(...)                               \
    await_list((const struct expected[]){ __VA_ARGS__ }, \
               COUNT(((const struct expected[]){ __VA_ARGS__ })))
static void await_list(const struct expected *expected, size_t count)
{
    int64_t deadline = 0;
    char what[128];

    for (size_t i = 0; i < count; i++) {
        fetch("/metrics");
        if (value_of(expected[i].name) == expected[i].value)
            continue;
        snprintf(what, sizeof(what), "%s %g, which is %g", expected[i].name,
                 expected[i].value, value_of(expected[i].name));
        await_tick(&deadline, what);
        i = (size_t)-1; /* from the first one on */
    }
}

static void expect_status(const struct server *to, const char *request,
                          int status, const char *says)
{
    struct response response;

    ask(to, request, &response);
    cr_assert(response.status == status, "%s: %d", request, response.status);
    cr_assert(!says || strstr(response.body, says), "%s: %s", request,
              response.body);
}

static void subscribe(struct stream *stream, const char *target,
                      const char *fields)
{
    static struct block block;

    stream_open(stream, &server, target, fields);
    cr_assert(stream_next(stream, &block));
}

/* ------------------------------------------------------------- what is where
 */

Test(admin, serves_nothing_but_its_own_and_others_do_not_have_that)
{
    static const char *const own[] = { "/metrics", "/topics" };
    static const char *const others[] = {
        "/events",       "/events/t", "/index.html",
        "/monitor.html", "/style",    "/metrics/",
    };
    char request[256];

    start(NULL);
    for (size_t i = 0; i < COUNT(own); i++) {
        fetch(own[i]);
        snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST "\r\n",
                 own[i]);
        expect_status(&server, request, 404, "no such page");
    }
    for (size_t i = 0; i < COUNT(others); i++) {
        snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST "\r\n",
                 others[i]);
        expect_status(&admin, request, 404, "/metrics");
    }
    expect_status(&admin,
                  "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx",
                  404, "/metrics");
    expect_status(&admin, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, "ok");
    expect_status(&server, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, "ok");
    server_stop(&server);
}

Test(admin, methods)
{
    static const char *const targets[] = { "/metrics", "/topics" };
    struct response response;
    struct client client;
    char request[256];

    start(NULL);
    for (size_t i = 0; i < COUNT(targets); i++) {
        client_connect(&client, &admin);
        snprintf(request, sizeof(request), "HEAD %s HTTP/1.1\r\n" HOST "\r\n",
                 targets[i]);
        client_send(&client, request);
        client_response(&client, &response, true);
        cr_assert(response.status == 200);
        cr_assert_str_eq(response_field(&response, "Content-Type"),
                         i == 0 ? "text/plain; version=0.0.4; charset=utf-8"
                                : "application/json");
        cr_assert(!response_field(&response, "Access-Control-Allow-Origin"));
        cr_assert_str_eq(response_field(&response, "Cache-Control"),
                         "no-cache");
        fetch_on(&client, targets[i]); /* the HEAD had no content */
        snprintf(request, sizeof(request),
                 "OPTIONS %s HTTP/1.1\r\n" HOST "\r\n"
                 "PUT %s HTTP/1.1\r\n" HOST "\r\n",
                 targets[i], targets[i]);
        client_send(&client, request);
        client_response(&client, &response, false);
        cr_assert(response.status == 204);
        client_response(&client, &response, false);
        cr_assert(response.status == 405);
        cr_assert_str_eq(response_field(&response, "Allow"),
                         "GET, HEAD, OPTIONS");
        client_close(&client);
    }
    server_stop(&server);
}

/* Requests on one connection are answered one after the other; HTTP/1.0 has no
 * chunks. */
Test(admin, connections_are_like_others)
{
    struct response response;
    struct client client;

    start(NULL);
    client_connect(&client, &admin);
    client_send(&client, "GET /metrics HTTP/1.1\r\n" HOST "\r\n"
                         "GET /topics HTTP/1.1\r\n" HOST "\r\n"
                         "GET /metrics HTTP/1.1\r\n" HOST "\r\n");
    for (int i = 0; i < 3; i++) {
        client_response(&client, &response, false);
        cr_assert(response.status == 200);
        receive_chunks(&client);
        cr_assert(strstr(text, i == 1 ? "\"next\":null}\n"
                                      : "\nssed_subscribers 0\n"));
    }
    client_close(&client);
    client_connect(&client, &admin);
    client_send(&client, "GET /topics HTTP/1.0\r\n\r\n");
    client_response(&client, &response, true);
    cr_assert(!response_field(&response, "Transfer-Encoding"));
    client_await_end(&client);
    cr_assert_str_eq(client.bytes, "{\"topics\":[],\"next\":null}\n");
    client_close(&client);
    server_stop(&server);
}

/* A page whose name is made to resolve to this machine reads no figures, but a
 * Unix socket is not for pages. */
Test(admin, a_host_that_is_not_known_is_refused)
{
    static const char *const known[] = { "localhost", "localhost:9999",
                                         "127.0.0.1:1", "[::1]:80" };
    static const char *const targets[] = { "/metrics", "/topics", "/healthz",
                                           "/" };
    char request[256];

    start(NULL);
    for (size_t i = 0; i < COUNT(known); i++) {
        snprintf(request, sizeof(request),
                 "HEAD /metrics HTTP/1.1\r\nHost: %s\r\n\r\n", known[i]);
        expect_status(&admin, request, 200, NULL);
    }
    for (size_t i = 0; i < COUNT(targets); i++) {
        snprintf(request, sizeof(request),
                 "GET %s HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
                 targets[i]);
        expect_status(&admin, request, 421, "Host");
    }
    expect_status(&server,
                  "GET /healthz HTTP/1.1\r\nHost: rebound.example\r\n\r\n", 200,
                  NULL);
    server_stop(&server);
}

Test(admin, may_be_a_unix_socket)
{
    char path[] = "/tmp/ssed-admin-XXXXXX", option[64];
    struct response response;
    struct client client;

    cr_assert(close(mkstemp(path)) == 0 && unlink(path) == 0);
    snprintf(option, sizeof(option), "unix:%s,mode=600", path);
    server_start(&server, "--admin", option);
    client_connect_unix(&client, path);
    client_send(&client, "GET /metrics HTTP/1.1\r\nHost: any.example\r\n\r\n");
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    receive_chunks(&client);
    client_close(&client);
    server_stop(&server);
    cr_assert(access(path, F_OK) < 0, "it is removed at the end");
}

Test(admin, options)
{
    const char *const wrong[] = { "--port", "0", "--admin", "9100x", NULL };
    char out[4096], err[4096], twice[64];
    const char *const used[] = { "--port", "0", "--admin", twice, NULL };

    cr_assert(run_to_end(wrong, out, err) == 2);
    cr_assert(strstr(err, "--admin: '9100x' is not ADDR:PORT"), "%s", err);
    start(NULL);
    snprintf(twice, sizeof(twice), "127.0.0.1:%d", admin.port);
    cr_assert(run_to_end(used, out, err) == 1);
    cr_assert(strstr(err, "--admin: cannot listen on"), "%s", err);
    server_stop(&server);
}

/* --------------------------------------------------------------- the end */

Test(admin, tells_of_the_end_until_the_end)
{
    struct client stalled;

    start("--drain-delay", "86400", "--drain", "86400");
    client_connect(&stalled, &server);
    setsockopt(stalled.fd, SOL_SOCKET, SO_RCVBUF, &(int){ 4096 }, sizeof(int));
    client_send(&stalled, "GET /events/t HTTP/1.1\r\n" HOST "\r\n");
    server_await_log(&server, "event=subscribed");
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=announcing");
    expect_status(&admin, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 503,
                  "draining");
    await_figures({ "ssed_phase", 1 });
    kill(server.pid, SIGTERM);
    server_wait(&server);
    client_close(&stalled);
}

/* The others do not accept any more, and a subscriber that does not read keeps
 * the drain from its end. */
Test(admin, accepts_while_the_server_drains)
{
    enum {
        SIZE = 60000,
        MANY = 100
    };
    static char body[SIZE + 1];
    struct client stalled;
    struct response response;

    start("--drain", "86400");
    client_connect(&stalled, &server);
    setsockopt(stalled.fd, SOL_SOCKET, SO_RCVBUF, &(int){ 4096 }, sizeof(int));
    client_send(&stalled, "GET /events/t HTTP/1.1\r\n" HOST "\r\n");
    server_await_log(&server, "event=subscribed");
    memset(body, 'x', SIZE);
    for (int i = 0; i < MANY; i++) {
        post(&server, "/events/t", NULL, body, &response);
        cr_assert(response.status == 201);
    }
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=draining");
    expect_status(&admin, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 503,
                  "draining");
    await_figures({ "ssed_phase", 2 }, { "ssed_subscribers", 1 });
    client_close(&stalled);
    cr_assert(server_wait(&server) == 0);
}

/* ------------------------------------------------------------- the figures */

Test(figures, count_what_is_published)
{
    static const struct {
        const char *request;
        int status;
    } refused[] = {
        { "POST /events/t HTTP/1.1\r\n" HOST
          "Content-Length: 2\r\n\r\n\xFF\xFF",
          400 },
        { "POST /events/t?event=ssed.x HTTP/1.1\r\n" HOST
          "Content-Length: 1\r\n\r\nx",
          400 },
        { "POST /events/../t HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx",
          400 },
        { "POST /events/t HTTP/1.1\r\n" HOST
          "Origin: https://a.example\r\nContent-Length: 1\r\n\r\nx",
          403 },
        { "DELETE /events/unknown HTTP/1.1\r\n" HOST "\r\n", 404 },
        { "POST /events/t HTTP/1.1\r\n" HOST "Content-Length: 200\r\n\r\n",
          413 },
    };
    struct response response;
    struct client client;

    start("--max-event", "100");
    for (int i = 0; i < 7; i++)
        publish_to(&server, "/events/t", "12345");
    publish(&server, "main");
    expect_status(&server, "DELETE /events/t HTTP/1.1\r\n" HOST "\r\n", 200,
                  NULL);
    body_begin(&client, &server, "/events/u");
    body_send(&client, "data: a\n\ndata: b\n\n");
    body_end(&client, &response);
    cr_assert(response.status == 201);
    client_close(&client);
    for (size_t i = 0; i < COUNT(refused); i++)
        expect_status(&server, refused[i].request, refused[i].status, NULL);
    await_figures({ "ssed_events_published_total", 7 + 1 + 1 + 2 },
                  { "ssed_newest_id", 11 }, { "ssed_history_events", 11 },
                  { "ssed_publishes_total{status=\"201\"}", 7 + 1 + 1 },
                  { "ssed_publishes_total{status=\"200\"}", 1 },
                  { "ssed_publishes_total{status=\"400\"}", 3 },
                  { "ssed_publishes_total{status=\"403\"}", 1 },
                  { "ssed_publishes_total{status=\"404\"}", 1 },
                  { "ssed_publishes_total{status=\"413\"}", 1 },
                  { "ssed_publishes_total{status=\"other\"}", 0 },
                  { "ssed_limits_hit_total{limit=\"max_event\"}", 1 },
                  { "ssed_topics", 2 }, { "ssed_topics_without_event", 0 },
                  { "ssed_events_sent_total", 0 });
    server_stop(&server);
}

/* Seven events of 26 bytes, "id: N", "data: 12345" and an empty line, to two of
 * three subscribers. */
Test(figures, count_what_is_sent)
{
    struct stream streams[3];
    char id[8];
    static struct block block;

    start(NULL);
    subscribe(&streams[0], "/events/t", "");
    subscribe(&streams[1], "/events?topic=t&topic=u", "");
    subscribe(&streams[2], "/events/u", "");
    fetch("/metrics");
    cr_assert(value_of("ssed_events_sent_total") == 0);
    cr_assert(value_of("ssed_sent_bytes_total") > 0, "heads and first blocks");
    for (int i = 1; i <= 7; i++) {
        snprintf(id, sizeof(id), "%d", i);
        publish_to(&server, "/events/t", "12345");
        stream_expect_event(&streams[0], id, "", "12345");
        stream_expect_event(&streams[1], id, "", "12345");
    }
    await_figures({ "ssed_events_sent_total", 14 }, { "ssed_subscribers", 3 },
                  { "ssed_connections{listener=\"public\"}", 3 },
                  { "ssed_connections{listener=\"admin\"}", 1 },
                  { "ssed_connections_by_state{state=\"stream\"}", 3 },
                  { "ssed_subscriptions_total", 3 },
                  { "ssed_published_bytes_total", 7 * 19 },
                  { "ssed_lag_events_max", 0 }, { "ssed_lag_seconds_max", 0 });
    cr_assert(!stream_take(&streams[2], &block));
    for (size_t i = 0; i < COUNT(streams); i++)
        stream_close(&streams[i]);
    await_figures({ "ssed_unsubscribed_total{reason=\"closed\"}", 3 },
                  { "ssed_subscribers", 0 });
    server_stop(&server);
}

/* Ids 1 to 10, of which 6 to 10 are held. */
Test(figures, count_replays_gaps_and_ends)
{
    struct stream stream;
    static struct block block;

    start("--history", "5");
    for (int i = 1; i <= 10; i++)
        publish_to(&server, "/events/t", "x");
    subscribe(&stream, "/events/t", "Last-Event-ID: 8\r\n");
    stream_close(&stream);
    await_figures({ "ssed_replays_total", 1 },
                  { "ssed_events_replayed_total", 2 },
                  { "ssed_gaps_total{cause=\"evicted\"}", 0 });
    subscribe(&stream, "/events/t", "Last-Event-ID: 2\r\n");
    stream_close(&stream);
    subscribe(&stream, "/events/t", "Last-Event-ID: 11\r\n");
    stream_close(&stream);
    subscribe(&stream, "/events/t", "Last-Event-ID: not an id\r\n");
    stream_close(&stream);
    subscribe(&stream, "/events/t", "");
    await_figures({ "ssed_replays_total", 4 },
                  { "ssed_events_replayed_total", 17 },
                  { "ssed_gaps_total{cause=\"evicted\"}", 1 },
                  { "ssed_gaps_total{cause=\"ahead\"}", 1 },
                  { "ssed_gaps_total{cause=\"invalid\"}", 1 },
                  { "ssed_subscriptions_total", 5 });
    expect_status(&server, "DELETE /events/t HTTP/1.1\r\n" HOST "\r\n", 200,
                  NULL);
    while (stream_next(&stream, &block))
        ;
    stream_close(&stream);
    await_figures({ "ssed_unsubscribed_total{reason=\"finished\"}", 1 },
                  { "ssed_unsubscribed_total{reason=\"closed\"}", 4 });
    server_stop(&server);
}

/* One that does not read is behind, and then cut; another is neither. */
Test(figures, tell_who_is_behind)
{
    enum {
        SIZE = 50000
    };
    static char body[SIZE + 1];
    struct client stalled;
    struct response response;
    int64_t deadline = 0;
    int published = 0;

    start("--history", "200");
    client_connect(&stalled, &server);
    setsockopt(stalled.fd, SOL_SOCKET, SO_RCVBUF, &(int){ 4096 }, sizeof(int));
    client_send(&stalled, "GET /events/t HTTP/1.1\r\n" HOST "\r\n");
    server_await_log(&server, "event=subscribed");
    memset(body, 'x', SIZE);
    do { /* until its socket is full */
        post(&server, "/events/t", NULL, body, &response);
        cr_assert(response.status == 201 && ++published < 200);
        fetch("/metrics");
    } while (value_of("ssed_lag_events_max") < 5);
    cr_assert(value_of("ssed_subscribers_behind_events{over=\"1\"}") == 1);
    cr_assert(value_of("ssed_subscribers_behind_events{over=\"10\"}") == 0);
    while (value_of("ssed_lag_seconds_max") < 0.2) {
        await_tick(&deadline, "time to pass");
        fetch("/metrics");
    }
    cr_assert(value_of("ssed_subscribers_behind_seconds{over=\"0.1\"}") == 1);
    cr_assert(value_of("ssed_history_age_seconds") >=
              value_of("ssed_lag_seconds_max"));
    for (int i = 0; i < 201; i++)
        publish_to(&server, "/events/t", "x");
    await_figures({ "ssed_unsubscribed_total{reason=\"overrun\"}", 1 },
                  { "ssed_lag_events_max", 0 },
                  { "ssed_subscribers_behind_events{over=\"1\"}", 0 });
    client_close(&stalled);
    server_stop(&server);
}

Test(figures, count_limits)
{
    struct stream streams[2];
    struct response response;

    start("--max-connections", "2", "--max-per-address", "2", "--max-topics",
          "2");
    subscribe(&streams[0], "/events/a", "");
    subscribe(&streams[1], "/events/b", "");
    /* surplus, for both reasons */
    ask(&server, "GET / HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert(response.status == 429);
    await_figures({ "ssed_limits_hit_total{limit=\"max_connections\"}", 1 },
                  { "ssed_limits_hit_total{limit=\"max_per_address\"}", 1 },
                  { "ssed_limits_hit_total{limit=\"max_topics\"}", 0 },
                  { "ssed_connections_limit", 2 });
    stream_close(&streams[1]);
    await_figures({ "ssed_connections{listener=\"public\"}", 1 });
    ask(&server, "GET /events?topic=b&topic=c HTTP/1.0\r\n" HOST "\r\n",
        &response);
    await_figures({ "ssed_limits_hit_total{limit=\"max_topics\"}", 1 });
    stream_close(&streams[0]);
    server_stop(&server);
}

/* Where nobody else gets in, who watches does; and there is a bound for them
 * too. */
Test(figures, are_told_when_all_places_are_taken)
{
    enum {
        PLACES = 2,
        SURPLUS = 64,
        ADMIN = 64
    };
    static struct client clients[PLACES + SURPLUS], watchers[ADMIN + 1];
    struct response response;

    start("--max-connections", "2");
    for (size_t i = 0; i < COUNT(clients); i++)
        client_connect(&clients[i], &server);
    await_figures(
        { "ssed_connections{listener=\"public\"}", PLACES + SURPLUS },
        { "ssed_limits_hit_total{limit=\"max_connections\"}", SURPLUS },
        { "ssed_connections{listener=\"admin\"}", 1 });
    for (int i = 0; i < ADMIN; i++) {
        client_connect(&watchers[i], &admin);
        client_send(&watchers[i], "GET /healthz HTTP/1.1\r\n" HOST "\r\n");
        client_response(&watchers[i], &response, false);
        cr_assert(response.status == 200);
    }
    client_connect(&watchers[ADMIN], &admin);
    client_await_end(&watchers[ADMIN]);
    fetch_on(&watchers[0], "/metrics");
    cr_assert(value_of("ssed_limits_hit_total{limit=\"admin_connections\"}") ==
              1);
    cr_assert(value_of("ssed_connections{listener=\"admin\"}") == ADMIN);
    for (size_t i = 0; i < COUNT(watchers); i++)
        client_close(&watchers[i]);
    for (size_t i = 0; i < COUNT(clients); i++)
        client_close(&clients[i]);
    server_stop(&server);
}

/* Heads that do not end hold it. */
Test(figures, are_told_when_requests_have_used_up_their_memory)
{
    enum {
        HEADS = 400
    };
    static struct client heads[HEADS];
    int64_t deadline = 0;

    start("--request-memory", "1M", "--head-timeout", "600");
    for (int i = 0; i < HEADS; i++) {
        client_connect(&heads[i], &server);
        client_send(&heads[i], "GET / HTTP/1.1\r\n");
    }
    while (fetch("/metrics"),
           value_of("ssed_limits_hit_total{limit=\"request_memory\"}") == 0)
        await_tick(&deadline, "the memory to be used up");
    cr_assert(value_of("ssed_request_memory_bytes") >= 900000);
    cr_assert(value_of("ssed_request_memory_limit_bytes") == 1 << 20);
    for (int i = 0; i < HEADS; i++)
        client_close(&heads[i]);
    await_figures({ "ssed_connections{listener=\"public\"}", 0 });
    cr_assert(value_of("ssed_request_memory_bytes") < 100000);
    server_stop(&server);
}

/* What is there only with some options; and that the process knows of itself
 * with the sandbox on. */
Test(figures, of_the_process_the_file_and_the_log)
{
    char path[] = "/tmp/ssed-figures-XXXXXX";
    struct response response;

    start(NULL);
    fetch("/metrics");
    cr_assert(!strstr(text, "ssed_sync_seconds") &&
              !strstr(text, "ssed_log_up"));
    cr_assert(!strstr(text, "\nssed_history_age_seconds"), "it is empty");
    cr_assert(value_of("ssed_resident_memory_bytes") > 500000);
    cr_assert(value_of("ssed_start_time_seconds") > 1.7e9);
    cr_assert(value_of("ssed_turn_seconds_count") ==
              value_of("ssed_turn_seconds_bucket{le=\"+Inf\"}"));
    cr_assert(value_of("ssed_turn_seconds_count") >=
              value_of("ssed_turn_seconds_bucket{le=\"0.0001\"}"));
    server_stop(&server);
    cr_assert(close(mkstemp(path)) == 0 && unlink(path) == 0);
    start("--history-file", path, "--sync", "always");
    post(&server, "/events/t", NULL, "x", &response);
    cr_assert(response.status == 201);
    fetch("/metrics");
    cr_assert(value_of("ssed_sync_seconds_count") >= 1);
    cr_assert(value_of("ssed_sync_seconds_sum") > 0);
    server_stop(&server);
    unlink(path);
    server_start(&server, "--redis", "127.0.0.1:1", "--admin", "127.0.0.1:0");
    admin = server;
    {
        char *log = server_log(&server);

        admin.port = atoi(strstr(log, "event=admin address=127.0.0.1:") + 30);
        free(log);
    }
    post(&server, "/events/t", NULL, "x", &response);
    await_figures({ "ssed_log_up", 0 }, { "ssed_log_flights", 0 },
                  { "ssed_publishes_total{status=\"503\"}", 1 });
    server_stop(&server);
}

/* -------------------------------------------------------- pages of topics */

/* The names that a page has, each with a line end, appended; the next page's
 * target, or NULL. */
static const char *take_page(const char *page, const char *query, char *names,
                             unsigned *count)
{
    static char next[512], name[300];
    const char *end = strstr(page, "],\"next\":");

    cr_assert(strncmp(page, "{\"topics\":[", 11) == 0 && end, "%s", page);
    for (const char *at = page; (at = strstr(at, "{\"name\":\"")); at++) {
        sscanf(at, "{\"name\":\"%299[^\"]", name);
        strcat(names += strlen(names), name);
        strcat(names, "\n");
        (*count)++;
    }
    if (strcmp(end, "],\"next\":null}\n") == 0)
        return NULL;
    cr_assert(sscanf(end, "],\"next\":\"%299[^\"]\"}", name) == 1, "%s", end);
    snprintf(next, sizeof(next), "/topics?%s&after=%s", query, name);
    return next;
}

Test(listing, are_listed)
{
    struct stream stream;

    start(NULL);
    publish_to(&server, "/events/b", "x");
    publish_to(&server, "/events/b", "y");
    publish_to(&server, "/events/a/b", "x");
    subscribe(&stream, "/events?topic=aa&topic=b", "");
    expect_status(&server, "DELETE /events/a/b HTTP/1.1\r\n" HOST "\r\n", 200,
                  NULL);
    cr_assert_str_eq(fetch("/topics"),
                     "{\"topics\":["
                     "{\"name\":\"a/b\",\"subscribers\":0,\"held\":2,"
                     "\"newest\":\"4\",\"finished\":true},"
                     "{\"name\":\"aa\",\"subscribers\":1,\"held\":0,"
                     "\"newest\":null,\"finished\":false},"
                     "{\"name\":\"b\",\"subscribers\":1,\"held\":2,"
                     "\"newest\":\"2\",\"finished\":false}],\"next\":null}\n");
    fetch("/topics?limit=1");
    cr_assert(strstr(text, "a/b") && strstr(text, "],\"next\":\"a/b\"}"));
    fetch("/topics?limit=1&after=a%2Fb");
    cr_assert(strstr(text, "\"aa\"") && strstr(text, "],\"next\":\"aa\"}"));
    fetch("/topics?limit=2&after=a/b");
    cr_assert(strstr(text, "\"b\"") && strstr(text, "],\"next\":null}"));
    fetch("/topics?prefix=a");
    cr_assert(strstr(text, "a/b") && strstr(text, "aa") &&
              !strstr(text, "\"b\"") && strstr(text, "\"next\":null"));
    cr_assert_str_eq(fetch("/topics?prefix=a/c"),
                     "{\"topics\":[],\"next\":null}\n");
    cr_assert_str_eq(fetch("/topics?after=b"),
                     "{\"topics\":[],\"next\":null}\n");
    expect_status(&admin, "GET /topics?limit=0 HTTP/1.1\r\n" HOST "\r\n", 400,
                  "limit=");
    expect_status(&admin, "GET /topics?limit=1001 HTTP/1.1\r\n" HOST "\r\n",
                  400, "limit=");
    expect_status(&admin, "GET /topics?limit=x HTTP/1.1\r\n" HOST "\r\n", 400,
                  "limit=");
    stream_close(&stream);
    server_stop(&server);
}

/* Publishes to many topics, as fast as it goes. */
static void publish_many(const char *name, unsigned first, unsigned last)
{
    struct response response;
    struct client client;
    char request[512];

    client_connect(&client, &server);
    for (unsigned at = first; at < last; at += 50) {
        for (unsigned i = at; i < at + 50; i++) {
            snprintf(request, sizeof(request),
                     "POST /events/%s/%06u HTTP/1.1\r\n" HOST
                     "Content-Length: 1\r\n\r\nx",
                     name, i);
            client_send(&client, request);
        }
        for (unsigned i = at; i < at + 50; i++) {
            client_response(&client, &response, false);
            cr_assert(response.status == 201, "%d", response.status);
        }
    }
    client_close(&client);
}

/* Topics come and go between the pages; each that stays is listed once, in
 * order. */
Test(listing, that_last_are_each_listed_once, .timeout = 600)
{
    enum {
        LASTING = 100000,
        PAGE = 700
    };
    static char names[8 << 20];
    const char *next = "/topics?limit=700", *at;
    unsigned count = 0, pages = 0, expected = 0;

    start("--history", "110000");
    publish_many("lasts", 0, LASTING);
    for (; next; pages++) {
        if (pages % 10 == 0)
            publish_many(pages % 20 ? "a" : "z", pages * 50, pages * 50 + 50);
        next =
            take_page(fetch(next), "limit=700", names + strlen(names), &count);
    }
    cr_assert(pages >= LASTING / PAGE);
    for (at = names; *at; at = strchr(at, '\n') + 1) {
        if (strncmp(at, "lasts/", 6) != 0)
            continue;
        cr_assert((unsigned)atoi(at + 6) == expected, "%u: %.20s", expected,
                  at);
        expected++;
    }
    cr_assert(expected == LASTING, "%u", expected);
    fetch("/metrics");
    cr_assert(value_of("ssed_turn_seconds_bucket{le=\"1\"}") ==
              value_of("ssed_turn_seconds_count"));
    server_stop(&server);
}

/* A page that is not read waits for room in the socket, and goes on. */
Test(listing, a_page_goes_on_when_it_is_read)
{
    enum {
        TOPICS = 1000
    };
    static char names[1 << 20];
    struct response response;
    struct client client;
    char name[240], request[400];
    unsigned count = 0;

    start(NULL);
    memset(name, 'n', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    publish_many(name, 0, TOPICS);
    client_connect(&client, &admin);
    setsockopt(client.fd, SOL_SOCKET, SO_RCVBUF, &(int){ 65536 }, sizeof(int));
    snprintf(request, sizeof(request),
             "GET /topics?limit=1000 HTTP/1.1\r\n" HOST "\r\n");
    for (int i = 0; i < 4; i++)
        client_send(&client, request);
    await_figures({ "ssed_connections_by_state{state=\"respond\"}", 2 });
    for (int i = 0; i < 4; i++) {
        client_response(&client, &response, false);
        receive_chunks(&client);
        count = 0;
        names[0] = '\0';
        cr_assert(!take_page(text, "", names, &count));
        cr_assert(count == TOPICS, "%u", count);
    }
    client_close(&client);
    server_stop(&server);
}

/* Downloads that stand still hold two descriptors each. There are enough left
 * for those who watch, and for what the server itself has to open. */
Test(admin, files_do_not_use_up_all_descriptors)
{
    enum {
        CLIENTS = 300
    };
    static struct client clients[CLIENTS];
    char folder[] = "/tmp/ssed-admin-XXXXXX", token[64], page[64];
    FILE *file;

    if (getenv("SSED_UNDER"))
        cr_skip_test("emulators know no openat2(2)");
    cr_assert(mkdtemp(folder));
    snprintf(token, sizeof(token), "%s/token", folder);
    snprintf(page, sizeof(page), "%s/page", folder);
    file = fopen(token, "we");
    cr_assert(file && fputs("secret", file) >= 0 && fclose(file) == 0);
    file = fopen(page, "we");
    cr_assert(file && fclose(file) == 0 && truncate(page, 32 << 20) == 0);
    start("--root", folder, "--token-file", token, "--max-connections", "400");
    for (int i = 0; i < CLIENTS; i++) {
        client_connect(&clients[i], &server);
        client_send(&clients[i], "GET /page HTTP/1.1\r\n" HOST "\r\n");
    }
    server_await_log(&server, "event=accept_paused");
    expect_status(&admin, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, "ok");
    fetch("/metrics");
    cr_assert(value_of("ssed_files") > 100);
    cr_assert(value_of("ssed_files") +
                  value_of("ssed_connections{listener=\"public\"}") <
              value_of("ssed_descriptors_limit") - 100);
    kill(server.pid, SIGHUP);
    server_await_log(&server, "event=token_reloaded");
    for (int i = 0; i < CLIENTS; i++)
        client_close(&clients[i]);
    server_stop(&server);
    unlink(token);
    unlink(page);
    rmdir(folder);
}
