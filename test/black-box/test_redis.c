/*
 * --redis where there is no Redis: the options, and what a node says that has
 * not read the log yet. What it does with a log is tested in test/nodes.
 */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Nothing listens on port 1. */
#define NOWHERE "127.0.0.1:1"

Test(redis, options)
{
    static const struct {
        const char *options[6];
        int status;
        const char *says;
    } rows[] = {
        { { "--redis", NOWHERE, "--history-file", "f" },
          2,
          "--redis and --history-file exclude each other" },
        { { "--redis", NOWHERE, "--ids", "keep" },
          2,
          "--redis and --ids keep exclude each other" },
        { { "--redis", NOWHERE, "--first-id", "7" },
          2,
          "--redis and --first-id exclude each other" },
        { { "--redis-key", "k" },
          2,
          "--redis-key is for --redis, which is not given" },
        { { "--redis-auth-file", "f" },
          2,
          "--redis-auth-file is for --redis, which is not given" },
        { { "--redis-length", "7" },
          2,
          "--redis-length is for --redis, which is not given" },
        { { "--redis", "redis.example:6379", "--port", "0" },
          2,
          "--redis: 'redis.example:6379' is not ADDR:PORT" },
        { { "--redis", "6379", "--port", "0" },
          2,
          "--redis: '6379' is not ADDR:PORT" },
        { { "--redis", "unix:", "--port", "0" },
          2,
          "--redis: 'unix:' is not ADDR:PORT" },
        { { "--print", "all" },
          2,
          "--print: 'all' is none of: redis-script, man, completion, units" },
    };
    char out[4096], err[4096];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        cr_assert(run_to_end(rows[i].options, out, err) == rows[i].status,
                  "%zu", i);
        cr_assert(strstr(err, rows[i].says), "%zu: %s", i, err);
    }
}

Test(redis, prints_the_script)
{
    char out[4096], err[4096];

    cr_assert(run_to_end((const char *[]){ "--print", "redis-script", NULL },
                         out, err) == 0);
    cr_assert(strstr(out, "-- KEYS[1]  the stream\n"));
    cr_assert(strstr(out, "'XADD', KEYS[1], 'MAXLEN', '~', ARGV[1]"));
}

/* It is not healthy, takes nothing in, and has subscribers come back. */
Test(redis, has_not_been_read_yet)
{
    struct server server;
    struct response response;
    struct stream stream;
    struct block block;
    char text[64];
    int retry;

    server_start(&server, "--redis", NOWHERE);
    ask(&server, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", &response);
    cr_assert(response.status == 503);
    snprintf(text, sizeof(text), "the log has not been read yet: Redis: ");
    cr_assert(strncmp(response.body, text, strlen(text)) == 0, "%s",
              response.body);
    post(&server, "/events/a", NULL, "x", &response);
    cr_assert(response.status == 503);
    cr_assert(response_field(&response, "Retry-After"));
    cr_assert(strstr(response.body, "the log cannot be reached now"));
    post(&server, "/events/a?end=1", EVENTS, "data: x\n\n", &response);
    cr_assert(response.status == 503);
    cr_assert(strstr(response.body, "\"count\":0"), "%s", response.body);
    stream_open(&stream, &server, "/events/a", "Last-Event-ID: 7\r\n");
    cr_assert(stream_next(&stream, &block) && !block.id[0]);
    retry = atoi(block.retry);
    cr_assert(retry >= 2000 && retry <= 10000);
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

/* The password file is read at each try; what is wrong with it is said. */
Test(redis, password_file)
{
    struct server server;

    server_start(&server, "--redis", NOWHERE, "--redis-auth-file",
                 "/nonexistent/file");
    server_await_log(&server, "state=away reason=\"--redis-auth-file: No such "
                              "file or directory\"");
    server_stop(&server);
}
