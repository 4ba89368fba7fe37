/*
 * POST /events from outside: what is taken, who may publish, and every
 * refusal with the server well afterwards.
 */
#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A request with these fields and this body, and what is expected of it. */
struct post {
    const char *name;
    const char *target;
    const char *fields;
    const char *body;
    int status;
    const char *says; /* in the content */
};

static void check_post(const struct server *server, const struct post *post)
{
    struct response response;
    char request[8192];

    snprintf(request, sizeof(request),
             "POST %s HTTP/1.1\r\n%sContent-Length: %zu\r\n\r\n%s",
             post->target, post->fields, strlen(post->body), post->body);
    ask(server, request, &response);
    cr_assert(response.status == post->status, "%s: %d %s", post->name,
              response.status, response.body);
    cr_assert(strstr(response.body, post->says), "%s: %s", post->name,
              response.body);
    cr_assert(strchr(response.body, '\n') ==
                  response.body + response.length - 1,
              "%s: not one line: %s", post->name, response.body);
}

static void check_posts(const struct server *server, const struct post *posts,
                        size_t count)
{
    for (size_t i = 0; i < count; i++)
        check_post(server, &posts[i]);
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LOCAL "Host: localhost\r\n"

Test(publish, says_which_id_and_how_many_subscribe)
{
    struct server server;
    struct stream first, second;
    struct response response;
    struct block block;
    char id[32];
    uint64_t subscribers;

    server_start(&server, "--first-id", "42");
    stream_open(&first, &server, "/events", "");
    stream_expect(&first, &block, "connected");
    stream_open(&second, &server, "/events", "");
    stream_expect(&second, &block, "connected");
    ask(&server, "POST /events HTTP/1.1\r\n" LOCAL "Content-Length: 1\r\n\r\nx",
        &response);
    cr_assert(response.status == 201);
    cr_assert_str_eq(response_field(&response, "Content-Type"),
                     "application/json");
    cr_assert(json_string(response.body, "id", id, sizeof(id)));
    cr_assert_str_eq(id, "42");
    cr_assert(json_number(response.body, "subscribers", &subscribers));
    cr_assert(subscribers == 2);
    stream_close(&first);
    stream_close(&second);
    server_stop(&server);
}

Test(publish, refuses_what_is_no_message)
{
    static const struct post posts[] = {
        { "no body", "/events", LOCAL, "", 400, "no body" },
        { "bad UTF-8", "/events", LOCAL, "a\xFFz", 400, "UTF-8" },
        { "overlong UTF-8", "/events", LOCAL, "\xC0\xAF", 400, "UTF-8" },
        { "surrogate", "/events", LOCAL, "\xED\xA0\x80", 400, "UTF-8" },
        { "cut UTF-8", "/events", LOCAL, "\xE4\xBD", 400, "UTF-8" },
        { "too long", "/events", LOCAL, "12345678901", 413, "10 bytes" },
        { "too long with line end", "/events", LOCAL, "12345678901\n", 413,
          "10 bytes" },
        { "event=", "/events?event=a", LOCAL, "x", 400, "event=" },
        { "end=", "/events?end=1", LOCAL, "x", 400, "end=" },
        { "id=", "/events?id=7", LOCAL, "x", 400, "id=" },
        { "topic=", "/events?topic=a", LOCAL, "x", 400, "topic=" },
    };
    static const struct post taken[] = {
        { "as long as may be", "/events", LOCAL, "1234567890", 201, "id" },
        { "and a line end", "/events", LOCAL, "1234567890\r\n", 201, "id" },
        { "an empty line", "/events", LOCAL, "\n", 201, "id" },
    };
    struct server server;

    server_start(&server, "--max-event", "10");
    check_posts(&server, posts, COUNT(posts));
    check_posts(&server, taken, COUNT(taken));
    server_stop(&server);
}

Test(publish, is_for_this_machine_by_default)
{
    static const struct post posts[] = {
        { "localhost", "/events", LOCAL, "x", 201, "id" },
        { "an address", "/events", "Host: 127.0.0.1:3000\r\n", "x", 201, "id" },
        { "an IPv6 address", "/events", "Host: [::1]:3000\r\n", "x", 201,
          "id" },
        { "a rebound name", "/events", "Host: evil.example\r\n", "x", 403,
          "Host" },
        { "like localhost", "/events", "Host: localhost.evil\r\n", "x", 403,
          "Host" },
        { "Via", "/events", LOCAL "Via: 1.1 a\r\n", "x", 403, "proxy" },
        { "Forwarded", "/events", LOCAL "Forwarded: for=1.2.3.4\r\n", "x", 403,
          "proxy" },
        { "X-Forwarded-For", "/events", LOCAL "x-forwarded-for: 1.2.3.4\r\n",
          "x", 403, "proxy" },
        { "X-Forwarded-Server", "/events",
          LOCAL "X-Forwarded-Server: a.example\r\n", "x", 403, "proxy" },
        { "CF-Connecting-IP", "/events", LOCAL "CF-Connecting-IP: 1.2.3.4\r\n",
          "x", 403, "proxy" },
        { "True-Client-IP", "/events", LOCAL "True-Client-IP: 1.2.3.4\r\n", "x",
          403, "proxy" },
        { "another site", "/events", LOCAL "Sec-Fetch-Site: cross-site\r\n",
          "x", 403, "--cors" },
        { "another port", "/events", LOCAL "Sec-Fetch-Site: same-site\r\n", "x",
          403, "--cors" },
        { "own page", "/events", LOCAL "Sec-Fetch-Site: same-origin\r\n", "x",
          201, "id" },
        { "no page", "/events", LOCAL "Sec-Fetch-Site: none\r\n", "x", 201,
          "id" },
        { "own origin", "/events",
          "Host: localhost:3000\r\nOrigin: http://localhost:3000\r\n", "x", 201,
          "id" },
        { "other origin", "/events", LOCAL "Origin: http://evil.example\r\n",
          "x", 403, "Origin" },
        { "other port", "/events",
          "Host: localhost:3000\r\nOrigin: http://localhost:4000\r\n", "x", 403,
          "Origin" },
        { "null origin", "/events", LOCAL "Origin: null\r\n", "x", 403,
          "Origin" },
    };
    struct server server;
    struct response response;

    server_start(&server, NULL);
    check_posts(&server, posts, COUNT(posts));
    ask(&server, "POST /events HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
        &response);
    cr_assert(response.status == 403 && strstr(response.body, "HTTP/1.1"));
    server_stop(&server);
}

Test(publish, a_named_origin_may)
{
    static const struct post posts[] = {
        { "the one", "/events", LOCAL "Origin: https://example.com\r\n", "x",
          201, "id" },
        { "another", "/events", LOCAL "Origin: https://example.org\r\n", "x",
          403, "Origin" },
        { "the one, from elsewhere", "/events",
          LOCAL "Origin: https://example.com\r\n"
                "Sec-Fetch-Site: cross-site\r\n",
          "x", 201, "id" },
        { "the one, through a proxy", "/events",
          LOCAL "Origin: https://example.com\r\n"
                "Sec-Fetch-Site: cross-site\r\nVia: 1.1 a\r\n",
          "x", 403, "proxy" },
        { "none, from elsewhere", "/events",
          LOCAL "Sec-Fetch-Site: cross-site\r\n", "x", 403, "--cors" },
    };
    struct server server;

    server_start(&server, "--cors", "https://example.com");
    check_posts(&server, posts, COUNT(posts));
    server_stop(&server);
}

Test(publish, can_be_turned_off)
{
    static const struct post none = { "none", "/events", LOCAL,
                                      "x",    403,       "--publish none" };
    static const struct post no_unix = { "unix", "/events", LOCAL,
                                         "x",    403,       "Unix socket" };
    struct server server;

    server_start(&server, "--publish", "none");
    check_post(&server, &none);
    server_stop(&server);
    server_start(&server, "--publish", "unix");
    check_post(&server, &no_unix);
    server_stop(&server);
}

Test(publish, through_a_unix_socket)
{
    struct server server;
    struct client client;
    char path[64], listen[80];

    snprintf(path, sizeof(path), "/tmp/ssed-test-%d.sock", getpid());
    snprintf(listen, sizeof(listen), "unix:%s", path);
    server_start(&server, "--listen", listen, "--publish", "unix");
    cr_assert_str_eq(server.address, listen);
    client_connect_unix(&client, path);
    publish_on(&client, "x", 1);
    client_close(&client);
    server_stop(&server);
    cr_assert(access(path, F_OK) != 0, "the socket is left behind");
}

static void write_token(const char *path, const char *token)
{
    FILE *file = fopen(path, "we");

    cr_assert(file && fputs(token, file) >= 0 && fclose(file) == 0);
}

Test(publish, with_a_token)
{
    static const struct post posts[] = {
        { "none", "/events", LOCAL, "x", 401, "Bearer" },
        { "wrong", "/events", LOCAL "Authorization: Bearer sesame?\r\n", "x",
          401, "token" },
        { "shorter", "/events", LOCAL "Authorization: Bearer open\r\n", "x",
          401, "token" },
        { "twice", "/events",
          LOCAL "Authorization: Bearer open-sesameopen-sesame\r\n", "x", 401,
          "token" },
        { "basic", "/events", LOCAL "Authorization: Basic open-sesame\r\n", "x",
          401, "Bearer" },
        { "right", "/events",
          "Host: a.example\r\nVia: 1.1 a\r\n"
          "Authorization: bearer open-sesame\r\n",
          "x", 201, "id" },
        { "right, foreign page", "/events",
          "Host: a.example\r\nOrigin: https://b.example\r\n"
          "Authorization: Bearer open-sesame\r\n",
          "x", 403, "Origin" },
    };
    static const struct post old = { "old",
                                     "/events",
                                     LOCAL "Authorization: Bearer "
                                           "open-sesame\r\n",
                                     "x",
                                     401,
                                     "token" };
    static const struct post new = {
        "new", "/events", LOCAL "Authorization: Bearer new\r\n", "x", 201, "id"
    };
    struct server server;
    struct response response;
    char path[64];

    snprintf(path, sizeof(path), "/tmp/ssed-test-%d.token", getpid());
    write_token(path, "open-sesame\n");
    server_start(&server, "--token-file", path);
    server.errors_expected = true;
    check_posts(&server, posts, COUNT(posts));
    ask(&server, "POST /events HTTP/1.1\r\n" LOCAL "Content-Length: 0\r\n\r\n",
        &response);
    cr_assert_str_eq(response_field(&response, "WWW-Authenticate"), "Bearer");
    write_token(path, "new");
    kill(server.pid, SIGHUP);
    server_await_log(&server, "event=token_reloaded");
    check_post(&server, &old);
    check_post(&server, &new);
    write_token(path, "\n");
    kill(server.pid, SIGHUP);
    server_await_log(&server, "event=token_not_reloaded");
    check_post(&server, &new);
    unlink(path);
    server_stop(&server);
}

static char token_path[64];

static void name_token(void)
{
    snprintf(token_path, sizeof(token_path), "/tmp/ssed-test-%d.token",
             getpid());
}

static void remove_token(void)
{
    unlink(token_path);
}

TestSuite(token, .init = name_token, .fini = remove_token);

/* What is no token, and why. */
static const struct {
    const char *content;
    const char *says;
} no_tokens[] = {
    { "", "it is empty" },
    { "\n", "it is empty" },
    { "\r\n", "it is empty" },
    { "a b\n", "blank" },
    { " a\n", "blank" },
    { "a\tb\n", "blank" },
    { "a\x7F\n", "control character" },
    { "a\nb\n", "more than one line" },
    { "a\n\n", "more than one line" },
    { "a\rb", "more than one line" },
};

Test(token, a_start_without_one_says_why)
{
    char out[4096], err[4096];
    const char *options[] = { "--token-file", token_path, NULL };

    for (size_t i = 0; i < COUNT(no_tokens); i++) {
        write_token(token_path, no_tokens[i].content);
        cr_assert(run_to_end(options, out, err) == 1);
        cr_assert(strstr(err, token_path) && strstr(err, no_tokens[i].says),
                  "%zu: %s", i, err);
        cr_assert(strchr(err, '\n') == err + strlen(err) - 1, "%s", err);
    }
    unlink(token_path);
    cr_assert(mkfifo(token_path, 0600) == 0);
    cr_assert(run_to_end(options, out, err) == 1);
    cr_assert(strstr(err, "not a regular file"), "%s", err);
}

static void publish_with(const struct server *server, const char *token,
                         int status)
{
    struct response response;
    char request[2048];

    snprintf(request, sizeof(request),
             "POST /events HTTP/1.1\r\n" LOCAL "Authorization: Bearer %s\r\n"
             "Content-Length: 1\r\n\r\nx",
             token);
    ask(server, request, &response);
    cr_assert(response.status == status, "%s: %d", token, response.status);
}

/* Sends SIGHUP and waits until the log has a line about it with this text;
 * what it has before is not looked at. */
static void reload(const struct server *server, const char *text)
{
    char *log = server_log(server);
    size_t before = strlen(log);
    int64_t deadline = 0;
    bool found;

    free(log);
    kill(server->pid, SIGHUP);
    do {
        await_tick(&deadline, text);
        log = server_log(server);
        found = strstr(log + before, text) != NULL;
        free(log);
    } while (!found);
}

Test(token, the_one_before_stays_where_there_is_none)
{
    struct server server;

    write_token(token_path, "sesame\r\n");
    server_start(&server, "--token-file", token_path);
    server.errors_expected = true;
    for (size_t i = 0; i < COUNT(no_tokens); i++) {
        write_token(token_path, no_tokens[i].content);
        reload(&server, no_tokens[i].says);
        publish_with(&server, "sesame", 201);
    }
    unlink(token_path);
    reload(&server, "No such file");
    /* nobody writes into it: to wait for that would be for ever */
    cr_assert(mkfifo(token_path, 0600) == 0);
    reload(&server, "not a regular file");
    publish_with(&server, "sesame", 201);
    server_stop(&server);
}

Test(token, has_512_bytes_at_most)
{
    struct server server;
    char token[516];

    memset(token, 'a', sizeof(token));
    strcpy(token + 512, "\r\n");
    write_token(token_path, token);
    server_start(&server, "--token-file", token_path);
    server.errors_expected = true;
    token[512] = '\0';
    publish_with(&server, token, 201);
    strcpy(token + 512, "a");
    write_token(token_path, token);
    reload(&server, "it has more than 512 bytes");
    publish_with(&server, token, 401);
    strcpy(token + 512, "aaa");
    write_token(token_path, token);
    reload(&server, "it has more than 512 bytes");
    server_stop(&server);
}

static void await_file(const char *path)
{
    int64_t deadline = 0;

    while (access(path, F_OK) != 0)
        await_tick(&deadline, path);
}

/* It has been read in part, or as a whole, when somebody writes it. */
Test(token, is_not_taken_while_it_is_written)
{
    struct server server;
    char hold[96], reached[112], next[96];

    snprintf(hold, sizeof(hold), "%s.hold", token_path);
    snprintf(reached, sizeof(reached), "%s.reached", hold);
    snprintf(next, sizeof(next), "%s.next", token_path);
    hold_up("HOLD_READ", hold);
    write_token(token_path, "sesame");
    server_start(&server, "--token-file", token_path);
    server.errors_expected = true;
    for (int i = 0; i < 2; i++) {
        write_token(token_path, "first1");
        write_token(hold, "");
        kill(server.pid, SIGHUP);
        await_file(reached);
        write_token(i == 0 ? token_path : next, "second");
        if (i == 1)
            cr_assert(rename(next, token_path) == 0);
        cr_assert(unlink(reached) == 0);
        server_await_log(&server, "it changed while it was read");
        publish_with(&server, "sesame", 201);
        publish_with(&server, "first1", 401);
    }
    reload(&server, "event=token_reloaded");
    publish_with(&server, "second", 201);
    server_stop(&server);
}

static void expect_warning(mode_t mode, bool warns)
{
    struct server server;
    char *log;

    write_token(token_path, "sesame");
    cr_assert(chmod(token_path, mode) == 0);
    server_start(&server, "--token-file", token_path);
    log = server_log(&server);
    cr_assert(!!strstr(log, "level=warn event=token_file_readable file=") ==
                  warns,
              "%o: %s", mode, log);
    free(log);
    server_stop(&server);
}

Test(token, a_file_that_others_may_read_is_warned_of)
{
    expect_warning(0600, false);
    expect_warning(0660, false);
    expect_warning(0604, true);
    expect_warning(0602, true);
}

/* The same rules hold for topics, plain and streamed, and for their end. */
Test(publish, to_topics_is_for_the_same)
{
    static const struct post refused[] = {
        { "plain", "/events/a", "Host: evil.example\r\n", "x", 403, "Host" },
        { "streamed", "/events/a",
          "Host: evil.example\r\nContent-Type: text/event-stream\r\n",
          "data: x\n\n", 403, "Host" },
        { "a foreign page", "/events/a",
          LOCAL "Origin: http://evil.example\r\n", "x", 403, "Origin" },
        { "through a proxy", "/events/a", LOCAL "Via: 1.1 a\r\n", "x", 403,
          "proxy" },
    };
    static const struct post unnamed[] = {
        { "plain", "/events/a", LOCAL, "x", 401, "Bearer" },
        { "streamed", "/events/a", LOCAL "Content-Type: text/event-stream\r\n",
          "data: x\n\n", 401, "Bearer" },
        { "right", "/events/a", LOCAL "Authorization: Bearer sesame\r\n", "x",
          201, "id" },
    };
    struct server server;
    struct response response;
    char path[64];

    server_start(&server, NULL);
    check_posts(&server, refused, COUNT(refused));
    ask(&server,
        "DELETE /events/a HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n",
        &response);
    cr_assert(response.status == 403);
    ask(&server, "POST /events/a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
        &response);
    cr_assert(response.status == 403);
    ask(&server, "DELETE /events/a HTTP/1.1\r\n" LOCAL "\r\n", &response);
    cr_assert(response.status == 404, "nothing has been published");
    server_stop(&server);
    snprintf(path, sizeof(path), "/tmp/ssed-test-%d.token", getpid());
    write_token(path, "sesame");
    server_start(&server, "--token-file", path);
    unlink(path);
    check_posts(&server, unnamed, COUNT(unnamed));
    ask(&server, "DELETE /events/a HTTP/1.1\r\n" LOCAL "\r\n", &response);
    cr_assert(response.status == 401);
    ask(&server,
        "DELETE /events/a HTTP/1.1\r\n" LOCAL
        "Authorization: Bearer sesame\r\n\r\n",
        &response);
    cr_assert(response.status == 200);
    server_stop(&server);
}

Test(publish, in_chunks_and_when_asked_to_continue)
{
    struct server server;
    struct client client;
    struct stream stream;
    struct response response;
    struct block block;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    client_connect(&client, &server);
    client_send(&client, "POST /events HTTP/1.1\r\n" LOCAL
                         "Transfer-Encoding: chunked\r\n"
                         "Expect: 100-continue\r\n\r\n");
    client_response(&client, &response, true);
    cr_assert(response.status == 100);
    client_send(&client, "3;x=y\r\nabc\r\n");
    client_send(&client, "00");
    client_send(&client, "A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n");
    client_response(&client, &response, false);
    cr_assert(response.status == 201);
    stream_expect_message(&stream, "message", 1, "abc0123456789");
    cr_assert(publish_on(&client, "next", 4) == 2);
    client_close(&client);
    stream_close(&stream);
    server_stop(&server);
}

Test(publish, pipelined_keeps_the_order)
{
    enum {
        COUNT = 500
    };
    struct server server;
    struct client client;
    struct stream stream;
    struct response response;
    struct block block;
    char *requests = calloc(COUNT, 100);
    size_t length = 0;

    server_start(&server, "--first-id", "1");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    client_connect(&client, &server);
    for (int i = 1; i <= COUNT; i++)
        length += (size_t)sprintf(requests + length,
                                  "POST /events HTTP/1.1\r\n" LOCAL
                                  "Content-Length: 3\r\n\r\n%03d",
                                  i);
    client_send(&client, requests);
    for (unsigned i = 1; i <= COUNT; i++) {
        char text[8];

        client_response(&client, &response, false);
        cr_assert(response.status == 201);
        snprintf(text, sizeof(text), "%03u", i);
        stream_expect_message(&stream, "message", i, text);
    }
    client_close(&client);
    stream_close(&stream);
    free(requests);
    server_stop(&server);
}

Test(publish, refuses_a_long_body_before_it_comes)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, NULL);
    client_connect(&client, &server);
    client_send(&client, "POST /events HTTP/1.1\r\n" LOCAL
                         "Content-Length: 999999999\r\n\r\n");
    client_response(&client, &response, false);
    cr_assert(response.status == 413 && strstr(response.body, "65536"));
    client_await_end(&client);
    client_close(&client);
    client_connect(&client, &server);
    client_send(&client, "POST /events HTTP/1.1\r\n" LOCAL
                         "Transfer-Encoding: chunked\r\n\r\nfffffff\r\n");
    for (int i = 0; i < 70 && !client.ended; i++) {
        char bytes[1000];

        memset(bytes, 'x', sizeof(bytes));
        client_send_bytes(&client, bytes, sizeof(bytes));
    }
    client_response(&client, &response, false);
    cr_assert(response.status == 413);
    client_close(&client);
    server_stop(&server);
}

Test(publish, a_body_must_get_on)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, "--head-timeout", "1");
    client_connect(&client, &server);
    client_send(&client, "POST /events HTTP/1.1\r\n" LOCAL
                         "Content-Length: 10\r\n\r\nabc");
    client_response(&client, &response, false);
    cr_assert(response.status == 408, "%d", response.status);
    client_await_end(&client);
    client_close(&client);
    server_stop(&server);
}

Test(publish, ids_end_where_javascript_does)
{
    static const struct post last = { "last", "/events", LOCAL,
                                      "x",    201,       "9007199254740991" };
    static const struct post over = {
        "over", "/events", LOCAL, "x", 503, "ids"
    };
    struct server server;

    server_start(&server, "--first-id", "9007199254740991");
    check_post(&server, &last);
    check_post(&server, &over);
    server_stop(&server);
}
