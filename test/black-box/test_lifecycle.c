/*
 * The process from outside: options and their errors, listeners, the log,
 * draining and its end.
 */
#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define HOST "Host: localhost\r\n"
#define HEALTH "GET /healthz HTTP/1.1\r\n" HOST "\r\n"

Test(options, errors_name_the_thing_and_what_would_be_right)
{
    static const struct {
        const char *options[5];
        int status;
        const char *says[2];
    } cases[] = {
        { { "--bogus" }, 2, { "--bogus", "--help" } },
        { { "-z" }, 2, { "-z", "--help" } },
        { { "extra" }, 2, { "extra", "--help" } },
        { { "--port" }, 2, { "--port", "no value" } },
        { { "--port", "x" }, 2, { "--port", "0 to 65535" } },
        { { "--port", "65536" }, 2, { "--port", "0 to 65535" } },
        { { "--port", "-1" }, 2, { "--port", "'-1'" } },
        { { "--port", "12x" }, 2, { "--port", "'12x'" } },
        { { "--listen", "nowhere" }, 2, { "--listen", "127.0.0.1:3000" } },
        { { "--listen", "::1:80" }, 2, { "--listen", "[::1]" } },
        { { "--listen", "unix:" }, 2, { "--listen", "path" } },
        { { "--listen", "unix:,mode=660" }, 2, { "--listen", "path" } },
        { { "--listen", "unix:s,mode=" }, 2, { "unix:s,mode=", "0777" } },
        { { "--listen", "unix:s,mode=66" }, 2, { "octal", "mode=660" } },
        { { "--listen", "unix:s,mode=668" }, 2, { "octal", "mode=660" } },
        { { "--listen", "unix:s,mode=1777" }, 2, { "octal", "mode=660" } },
        { { "--listen", "unix:s,mode=00660" }, 2, { "octal", "mode=660" } },
        { { "--history", "0" }, 2, { "--history", "from 1" } },
        { { "--history-bytes", "9Q" }, 2, { "--history-bytes", "K, M" } },
        { { "--history-bytes", "1K" }, 2, { "--history-bytes", "max-event" } },
        { { "--max-event", "1G" }, 2, { "--max-event", "16777216" } },
        { { "--request-memory", "1M", "--max-event", "2M" },
          2,
          { "--request-memory", "--max-event" } },
        { { "--first-id", "9007199254740992" }, 2, { "--first-id", "to" } },
        { { "--cors", "example.com" }, 2, { "--cors", "https://" } },
        { { "--cors", "https://a/b" }, 2, { "--cors", "origin" } },
        { { "--host", "a.example" }, 2, { "--host", "--cors none" } },
        { { "--cors", "*", "--host", "a" }, 2, { "--host", "--cors none" } },
        { { "--cors", "none", "--host", "a:1" }, 2, { "'a:1'", "port" } },
        { { "--cors", "none", "--host", "" }, 2, { "--host", "name" } },
        { { "--publish", "all" }, 2, { "--publish", "local, unix" } },
        { { "--log-level", "loud" }, 2, { "--log-level", "debug" } },
        { { "--publish", "local", "--token-file", "x" },
          2,
          { "--publish", "--token-file" } },
        { { "--sync", "1" }, 2, { "--sync", "--history-file" } },
        { { "--history-file", "x", "--sync", "0" }, 2, { "'0'", "always" } },
        { { "--history-file", "x", "--sync", "often" },
          2,
          { "'often'", "1 to 86400" } },
        { { "--history-file", "" }, 2, { "--history-file", "'' is no FILE" } },
        { { "--history-file", "/nonexistent/x" }, 1, { "folder of", "x" } },
        { { "--check", "/nonexistent" }, 1, { "--check", "No such" } },
        { { "--token-file", "/nonexistent" },
          1,
          { "--token-file", "No such" } },
        { { "--root", "/nonexistent" }, 1, { "--root", "/nonexistent" } },
        { { "--root", "/etc/passwd" }, 1, { "--root", "Not a directory" } },
        { { "--max-connections", "200000000" }, 1, { "--max", "ulimit" } },
        { { "--max-per-address", "-1" }, 2, { "--max-per", "from 0" } },
        { { "--max-topics", "0" }, 2, { "--max-topics", "from 1" } },
        { { "--listen", "unix:/nonexistent/s" }, 1, { "--listen", "No such" } },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *options[6] = { NULL };
        char out[4096], err[4096];
        int status;

        memcpy(options, cases[i].options, sizeof(cases[i].options));
        status = run_to_end(options, out, err);
        cr_assert(status == cases[i].status, "%s: %d: %s", options[0], status,
                  err);
        cr_assert_str_empty(out);
        cr_assert(strncmp(err, "ssed: ", 6) == 0, "%s", err);
        cr_assert(strchr(err, '\n') == err + strlen(err) - 1, "%s", err);
        for (int k = 0; k < 2; k++)
            cr_assert(strstr(err, cases[i].says[k]), "%s: %s", cases[i].says[k],
                      err);
    }
}

Test(options, prints_what_is_installed_beside_it)
{
    static const struct {
        const char *what, *says[2];
    } cases[] = {
        { "man",
          { "\n.TH SSED 1 ", "\\fB\\-\\-history\\-bytes\\fR \\fISIZE" } },
        { "completion", { "-r | --root) set -- -d ;;", "local unix none" } },
        { "units", { "# ssed.socket\n[Unit]", "# ssed.service\n[Unit]" } },
    };
    char out[4096], err[4096];

    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *options[] = { "--print", cases[i].what, NULL };

        cr_assert(run_to_end(options, out, err) == 0, "%s", cases[i].what);
        cr_assert(strlen(err) == 0, "%s", err);
        for (size_t j = 0; j < 2; j++)
            cr_assert(strstr(out, cases[i].says[j]), "%s: %s", cases[i].what,
                      cases[i].says[j]);
    }
}

Test(options, help_and_version_go_to_stdout)
{
    char out[4096], err[4096];

    cr_assert(run_to_end((const char *[]){ "--help", NULL }, out, err) == 0);
    cr_assert_str_empty(err);
    cr_assert(strstr(out, "--history-bytes SIZE"));
    cr_assert(run_to_end((const char *[]){ "-V", NULL }, out, err) == 0);
    cr_assert_str_empty(err);
    cr_assert(strncmp(out, "ssed ", 5) == 0);
}

Test(listen, a_port_in_use_is_named)
{
    struct server server;
    char out[4096], err[4096];

    server_start(&server, NULL);
    cr_assert(run_to_end((const char *[]){ "--listen", server.address, NULL },
                         out, err) == 1);
    cr_assert(strstr(err, server.address) && strstr(err, "in use"), "%s", err);
    server_stop(&server);
}

/* With --reuse-port several servers share a port; both have to ask for it. */
Test(listen, a_port_may_be_shared)
{
    struct server servers[2];
    char out[4096], err[4096];
    bool answered = false;
    int64_t deadline = 0;

    server_start(&servers[0], "--reuse-port", "--ids", "keep");
    server_start(&servers[1], "--reuse-port", "--ids", "keep", "--listen",
                 servers[0].address, "--access-log");
    cr_assert(
        run_to_end((const char *[]){ "--listen", servers[0].address, NULL },
                   out, err) == 1);
    cr_assert(strstr(err, "in use"), "%s", err);
    while (!answered) { /* by the second one, at some time */
        struct response response;
        char *log;

        ask(&servers[0], "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &response);
        cr_assert(response.status == 200);
        log = server_log(&servers[1]);
        answered = strstr(log, "event=request") != NULL;
        free(log);
        await_tick(&deadline, "no request came to the second server");
    }
    server_stop(&servers[1]);
    server_stop(&servers[0]);
}

Test(listen, on_several_addresses)
{
    struct server server;
    struct client client;
    struct response response;
    char path[64], listen[80], *log;

    snprintf(path, sizeof(path), "/tmp/ssed-test-%d.sock", getpid());
    snprintf(listen, sizeof(listen), "unix:%s", path);
    server_start(&server, "--listen", "127.0.0.1:0", "--listen", listen,
                 "--listen", "[::1]:0", "--listen", "localhost:0");
    ask(&server, HEALTH, &response);
    cr_assert(response.status == 200);
    client_connect_unix(&client, path);
    client_send(&client, HEALTH);
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    client_close(&client);
    log = server_log(&server);
    cr_assert(strstr(log, "address=[::1]:"), "%s", log);
    free(log);
    server_stop(&server);
}

Test(listen, a_socket_left_behind_is_no_obstacle)
{
    struct server server;
    char path[64], listen[80], out[4096], err[4096];

    snprintf(path, sizeof(path), "/tmp/ssed-test-%d.sock", getpid());
    snprintf(listen, sizeof(listen), "unix:%s", path);
    server_start(&server, "--listen", listen);
    cr_assert(run_to_end((const char *[]){ "--listen", listen, NULL }, out,
                         err) == 1);
    cr_assert(strstr(err, "in use"), "%s", err);
    kill(server.pid, SIGKILL);
    cr_assert(server_wait(&server) == -SIGKILL);
    cr_assert(access(path, F_OK) == 0);
    server_start(&server, "--listen", listen);
    server_stop(&server);
}

Test(log, no_client_can_break_a_line)
{
    struct server server;
    struct stream stream;
    struct response response;
    struct block block;
    char *log;

    server_start(&server, "--access-log");
    stream_open(&stream, &server, "/events?lastEventId=1%0Alevel%3Derror", "");
    stream_expect(&stream, &block, "connected");
    stream_close(&stream);
    ask(&server, "GET /%0Alevel=error%22%1b[31m HTTP/1.1\r\n" HOST "\r\n",
        &response);
    cr_assert(response.status == 404);
    server_await_log(&server, "path=");
    server_await_log(&server, "event=unsubscribed");
    log = server_log(&server);
    cr_assert(strstr(log, "last_event_id=\"1\\x0alevel=error\""), "%s", log);
    cr_assert(strstr(log, "path=\"/\\x0alevel=error\\\"\\x1b[31m\""), "%s",
              log);
    cr_assert(!strstr(log, "\nlevel=error"));
    free(log);
    server.errors_expected = true; /* within the quotes */
    server_stop(&server);
}

Test(log, tells_of_arrivals_and_departures)
{
    struct server server;
    struct stream stream;
    struct block block;
    char *log, *line;

    server_start(&server, "--first-id", "1");
    publish(&server, "a");
    publish(&server, "b");
    stream_open(&stream, &server, "/events", "Last-Event-ID: 1\r\n");
    do
        stream_next(&stream, &block);
    while (!strstr(block.data, "catch_up_end"));
    stream_close(&stream);
    server_await_log(&server, "event=unsubscribed");
    log = server_log(&server);
    line = strstr(log, "event=subscribed peer=127.0.0.1:");
    cr_assert(line && strstr(line, "last_event_id=1 replay=1 gap=no\n"), "%s",
              log);
    line = strstr(log, "event=unsubscribed peer=127.0.0.1:");
    cr_assert(line && strstr(line, "reason=closed events=1 bytes="), "%s", log);
    free(log);
    server_stop(&server);
}

static int count_of(const struct server *server, const char *text)
{
    char *log = server_log(server);
    int count = 0;

    for (const char *at = log; (at = strstr(at, text)); at++)
        count++;
    free(log);
    return count;
}

Test(log, a_flood_is_cut_down_and_that_is_said)
{
    enum {
        FLOOD = 2000
    };
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, "--access-log");
    client_connect(&client, &server);
    for (int i = 0; i < FLOOD; i++)
        client_send(&client, HEALTH);
    for (int i = 0; i < FLOOD; i++)
        client_response(&client, &response, false);
    cr_assert(count_of(&server, "event=request") < FLOOD / 2);
    server_await_log(&server, "event=log_suppressed lines=");
    client_close(&client);
    server_stop(&server);
}

Test(log, can_be_turned_down)
{
    char out[4096], err[4096];
    struct server server;
    struct client client;

    /* nothing is logged at this level, so nothing can be waited for */
    server_start(&server, NULL);
    cr_assert(run_to_end((const char *[]){ "--log-level", "error", "--listen",
                                           server.address, NULL },
                         out, err) == 1);
    cr_assert(!strstr(err, "event="), "%s", err);
    client_connect(&client, &server);
    client_close(&client);
    server_stop(&server);
}

Test(drain, sends_subscribers_off)
{
    struct server server;
    struct stream stream;
    struct block block;
    long retry;
    uint64_t id;

    server_start(&server, "--drain-spread", "500");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    id = publish(&server, "the last");
    server_stop(&server);
    stream_expect_message(&stream, "message", id, "the last");
    cr_assert(stream_next(&stream, &block));
    cr_assert(strtoull(block.id, NULL, 10) == id, "%s", block.id);
    cr_assert_str_empty(block.data);
    retry = atol(block.retry);
    cr_assert(retry >= 1000 && retry <= 1500, "%ld", retry);
    cr_assert(!stream_next(&stream, &block));
    cr_assert(stream.complete, "no last chunk");
    client_await_end(&stream.client);
    cr_assert(!stream.client.reset);
    stream_close(&stream);
}

/* Opens a stream, never reads it, and publishes until its socket is full. */
static void stall(struct client *client, struct client *publisher,
                  const struct server *server)
{
    enum {
        SIZE = 60000,
        COUNT = 300
    };
    char *text = malloc(SIZE);

    client_connect(client, server);
    client_send(client, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    server_await_log(server, "event=subscribed");
    client_connect(publisher, server);
    memset(text, 'x', SIZE);
    for (int i = 0; i < COUNT; i++)
        publish_on(publisher, text, SIZE);
    free(text);
}

Test(drain, says_503_and_cuts_who_takes_too_long)
{
    struct server server;
    struct client stalled, open;
    struct response response;
    char *log;

    server_start(&server, "--drain", "1");
    stall(&stalled, &open, &server);
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=draining");
    client_send(&open, HEALTH);
    client_response(&open, &response, false);
    cr_assert(response.status == 503);
    cr_assert(response_field(&response, "Retry-After"));
    client_send(&open,
                "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx");
    client_response(&open, &response, false);
    cr_assert(response.status == 503 && strstr(response.body, "draining"));
    cr_assert(server_wait(&server) == 0);
    log = server_log(&server);
    cr_assert(strstr(log, "event=stopped"));
    free(log);
    client_close(&stalled);
    client_close(&open);
}

Test(drain, a_second_signal_ends_it_at_once)
{
    struct server server;
    struct client stalled, publisher;

    server_start(&server, "--drain", "86400");
    stall(&stalled, &publisher, &server);
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=draining");
    kill(server.pid, SIGINT);
    cr_assert(server_wait(&server) == 0);
    client_close(&stalled);
    client_close(&publisher);
}

Test(drain, can_be_announced_before)
{
    struct server server;
    struct response response;
    struct stream stream;
    struct block block;

    server_start(&server, "--drain-delay", "86400", "--first-id", "1");
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=announcing");
    ask(&server, HEALTH, &response);
    cr_assert(response.status == 503);
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    publish(&server, "still");
    stream_expect_message(&stream, "message", 1, "still");
    stream_close(&stream);
    kill(server.pid, SIGTERM);
    cr_assert(server_wait(&server) == 0);
}

/* After the delay it waits for those that are there: nobody. */
Test(drain, ends_with_the_delay_when_nobody_is_there)
{
    struct server server;

    server_start(&server, "--drain-delay", "1", "--drain", "86400");
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=announcing");
    server_await_log(&server, "event=draining");
    cr_assert(server_wait(&server) == 0);
}

Test(drain, a_late_subscriber_is_sent_off_too)
{
    struct server server;
    struct client stalled, open;
    struct stream stream;
    struct block block;

    server_start(&server, "--drain", "2");
    stall(&stalled, &open, &server);
    kill(server.pid, SIGTERM);
    server_await_log(&server, "event=draining");
    client_send(&open, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    stream.client = open;
    stream_begin(&stream);
    stream_expect(&stream, &block, "connected");
    cr_assert(stream_next(&stream, &block) && block.retry[0]);
    cr_assert(!stream_next(&stream, &block) && stream.complete);
    stream_close(&stream);
    client_close(&stalled);
    cr_assert(server_wait(&server) == 0);
}
