/*
 * HTTP from outside: requests in pieces and in a row, limits, refusals of
 * what cannot be delimited, time-outs.
 */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define HOST "Host: localhost\r\n"

/* A request, and the status that it is answered with. */
struct exchange {
    const char *name;
    const char *request;
    int status;
    bool closes;
};

static void check(const struct server *server, const struct exchange *exchange)
{
    struct response response;
    struct client client;

    client_connect(&client, server);
    client_send(&client, exchange->request);
    client_response(&client, &response, false);
    cr_assert(response.status == exchange->status, "%s: %d %s", exchange->name,
              response.status, response.body);
    if (exchange->closes) {
        client_await_end(&client);
        cr_assert(!client.reset && client.length == 0, "%s: %s", exchange->name,
                  client.bytes);
    } else {
        client_send(&client, "GET /healthz HTTP/1.1\r\n" HOST "\r\n");
        client_response(&client, &response, false);
        cr_assert_str_eq(response.body, "ok\n", "%s", exchange->name);
    }
    client_close(&client);
}

Test(http, answers_what_is_well_formed)
{
    static const struct exchange exchanges[] = {
        { "plain", "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, false },
        { "close", "GET /healthz HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n",
          200, true },
        { "1.0", "GET /healthz HTTP/1.0\r\n\r\n", 200, true },
        { "empty lines before", "\r\n\r\nGET /healthz HTTP/1.1\r\n" HOST "\r\n",
          200, false },
        { "absolute-form",
          "GET http://example.com/healthz HTTP/1.1\r\n" HOST "\r\n", 200,
          false },
        { "encoded", "GET /%68ealthz HTTP/1.1\r\n" HOST "\r\n", 200, false },
        { "query", "GET /healthz?a=b HTTP/1.1\r\n" HOST "\r\n", 200, false },
        { "options", "OPTIONS * HTTP/1.1\r\n" HOST "\r\n", 204, false },
        { "options of a page", "OPTIONS / HTTP/1.1\r\n" HOST "\r\n", 204,
          false },
        { "no such page", "GET /nothing HTTP/1.1\r\n" HOST "\r\n", 404, false },
        { "nor a method of it", "DELETE /nothing HTTP/1.1\r\n" HOST "\r\n", 404,
          false },
        { "no such method here", "DELETE / HTTP/1.1\r\n" HOST "\r\n", 405,
          false },
        { "known elsewhere", "PATCH /events HTTP/1.1\r\n" HOST "\r\n", 405,
          false },
        { "a body nobody reads",
          "GET /healthz HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc", 200,
          true },
    };
    struct server server;

    server_start(&server, NULL);
    for (size_t i = 0; i < COUNT(exchanges); i++)
        check(&server, &exchanges[i]);
    server_stop(&server);
}

/* Each could be read in two ways, or in none. */
Test(http, refuses_and_closes_what_is_malformed)
{
    static const struct exchange exchanges[] = {
        { "bare LF", "GET / HTTP/1.1\n" HOST "\n", 400, true },
        { "LF at the end", "GET / HTTP/1.1\r\n" HOST "\n", 400, true },
        { "bare CR", "GET / HTTP/1.1\r\nA: b\rc\r\n" HOST "\r\n", 400, true },
        { "no Host", "GET / HTTP/1.1\r\n\r\n", 400, true },
        { "two Hosts", "GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400, true },
        { "bad Host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, true },
        { "folded", "GET / HTTP/1.1\r\n" HOST "A: b\r\n c\r\n\r\n", 400, true },
        { "blank before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400,
          true },
        { "no colon", "GET / HTTP/1.1\r\n" HOST "nothing\r\n\r\n", 400, true },
        { "control byte", "GET / HTTP/1.1\r\n" HOST "A: \x01\r\n\r\n", 400,
          true },
        { "two blanks", "GET  / HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "no version", "GET /\r\n\r\n", 400, true },
        { "version 2", "GET / HTTP/2.0\r\n" HOST "\r\n", 505, true },
        { "unknown method", "BREW / HTTP/1.1\r\n" HOST "\r\n", 501, true },
        { "method in small letters", "get / HTTP/1.1\r\n" HOST "\r\n", 501,
          true },
        { "encoded slash", "GET /a%2Fb HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "encoded NUL", "GET /a%00b HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "broken escape", "GET /a%4 HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "dots", "GET /../etc/passwd HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "encoded dots", "GET /%2e%2e/x HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "no path", "GET a HTTP/1.1\r\n" HOST "\r\n", 400, true },
        { "length and chunks",
          "POST /events HTTP/1.1\r\n" HOST "Content-Length: 5\r\n"
          "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
          400, true },
        { "two lengths",
          "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1\r\n"
          "Content-Length: 2\r\n\r\nab",
          400, true },
        { "a list of lengths",
          "POST /events HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\na", 400,
          true },
        { "a signed length",
          "POST /events HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\na", 400,
          true },
        { "unknown coding",
          "POST /events HTTP/1.1\r\n" HOST
          "Transfer-Encoding: gzip, chunked\r\n\r\n",
          501, true },
        { "chunks in 1.0",
          "POST /events HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n",
          400, true },
        { "unknown expectation",
          "POST /events HTTP/1.1\r\n" HOST "Expect: magic\r\n"
          "Content-Length: 1\r\n\r\na",
          417, true },
        { "chunk size no number",
          "POST /events HTTP/1.1\r\n" HOST
          "Transfer-Encoding: chunked\r\n\r\nx\r\n",
          400, true },
        { "chunk size negative",
          "POST /events HTTP/1.1\r\n" HOST
          "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
          400, true },
        { "chunk ends in LF",
          "POST /events HTTP/1.1\r\n" HOST
          "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
          400, true },
        { "chunk longer than its size",
          "POST /events HTTP/1.1\r\n" HOST
          "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
          400, true },
        { "chunk size overflows",
          "POST /events HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
          "10000000000000001\r\na\r\n0\r\n\r\n",
          400, true },
    };
    struct server server;

    server_start(&server, NULL);
    for (size_t i = 0; i < COUNT(exchanges); i++)
        check(&server, &exchanges[i]);
    server_stop(&server);
}

static const char requests[] =
    "GET /healthz HTTP/1.1\r\n" HOST "\r\n"
    "POST /events HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nab"
    "HEAD / HTTP/1.1\r\n" HOST "\r\n"
    "POST /events HTTP/1.1\r\n" HOST
    "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    "GET /nothing HTTP/1.1\r\n" HOST "\r\n";

static void expect_answers(struct client *client)
{
    static const int statuses[] = { 200, 201, 200, 201, 404 };
    struct response response;

    for (size_t i = 0; i < COUNT(statuses); i++) {
        client_response(client, &response, i == 2);
        cr_assert(response.status == statuses[i], "%zu: %d", i,
                  response.status);
    }
}

Test(http, takes_requests_byte_by_byte_and_at_once)
{
    struct server server;
    struct client client;

    server_start(&server, NULL);
    client_connect(&client, &server);
    client_send(&client, requests);
    client_send(&client, requests);
    expect_answers(&client);
    expect_answers(&client);
    for (size_t i = 0; i < sizeof(requests) - 1; i++)
        client_send_bytes(&client, requests + i, 1);
    expect_answers(&client);
    for (size_t split = 1; split < sizeof(requests) - 1; split++) {
        client_send_bytes(&client, requests, split);
        client_send(&client, requests + split);
        expect_answers(&client);
    }
    client_close(&client);
    server_stop(&server);
}

Test(http, a_thousand_requests_in_a_row)
{
    enum {
        ROUNDS = 1000
    };
    struct server server;
    struct client client;
    struct response response;
    const char *request = "GET /healthz HTTP/1.1\r\n" HOST "\r\n";
    char *all = calloc(ROUNDS, strlen(request) + 1);

    server_start(&server, NULL);
    for (int i = 0; i < ROUNDS; i++)
        strcpy(all + (size_t)i * strlen(request), request);
    client_connect(&client, &server);
    client_send(&client, all);
    for (int i = 0; i < ROUNDS; i++) {
        client_response(&client, &response, false);
        cr_assert_str_eq(response.body, "ok\n");
    }
    client_close(&client);
    free(all);
    server_stop(&server);
}

/* A request with a line or fields of a chosen length. */
static int status_of(const struct server *server, size_t path, size_t fields,
                     size_t field_length)
{
    char *request = calloc(1, path + fields * (field_length + 8) + 128);
    struct response response;
    size_t at = 0;

    at += (size_t)sprintf(request, "GET /");
    memset(request + at, 'a', path);
    at += path;
    at += (size_t)sprintf(request + at, " HTTP/1.1\r\n" HOST);
    for (size_t i = 0; i < fields; i++) {
        at += (size_t)sprintf(request + at, "A: ");
        memset(request + at, 'b', field_length);
        at += field_length;
        at += (size_t)sprintf(request + at, "\r\n");
    }
    sprintf(request + at, "\r\n");
    ask(server, request, &response);
    free(request);
    return response.status;
}

Test(http, limits_the_head)
{
    struct server server;

    server_start(&server, NULL);
    cr_assert(status_of(&server, 8000, 0, 0) == 404);
    cr_assert(status_of(&server, 9000, 0, 0) == 414);
    cr_assert(status_of(&server, 70000, 0, 0) == 414);
    cr_assert(status_of(&server, 1, 99, 10) == 404);
    cr_assert(status_of(&server, 1, 100, 10) == 431);
    cr_assert(status_of(&server, 1, 50, 300) == 404);
    cr_assert(status_of(&server, 1, 60, 300) == 431);
    server_stop(&server);
}

Test(http, an_incomplete_head_times_out)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, "--head-timeout", "1");
    client_connect(&client, &server);
    client_send(&client, "GET / HTTP/1.1\r\n");
    client_response(&client, &response, false);
    cr_assert(response.status == 408);
    client_await_end(&client);
    client_close(&client);
    client_connect(&client, &server); /* and says nothing */
    client_await_end(&client);
    cr_assert(client.length == 0);
    client_close(&client);
    server_stop(&server);
}

Test(http, an_idle_connection_is_closed)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, "--idle-timeout", "1");
    client_connect(&client, &server);
    client_send(&client, "GET /healthz HTTP/1.1\r\n" HOST "\r\n");
    client_response(&client, &response, false);
    client_await_end(&client);
    cr_assert(client.length == 0 && !client.reset);
    client_close(&client);
    server_stop(&server);
}

Test(http, answers_who_has_stopped_sending)
{
    struct server server;
    struct client client;
    struct response response;

    server_start(&server, NULL);
    client_connect(&client, &server);
    client_send(&client, "GET /index.html HTTP/1.1\r\n" HOST "\r\n");
    shutdown(client.fd, SHUT_WR);
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    client_await_end(&client);
    client_close(&client);
    server_stop(&server);
}

Test(http, an_answer_has_its_date_and_length)
{
    struct server server;
    struct response response;
    const char *date;

    server_start(&server, NULL);
    ask(&server, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", &response);
    date = response_field(&response, "Date");
    cr_assert(date && strlen(date) == 29 && strcmp(date + 25, " GMT") == 0,
              "%s", date);
    cr_assert_str_eq(response_field(&response, "Content-Length"), "3");
    ask(&server, "PUT / HTTP/1.1\r\n" HOST "\r\n", &response);
    cr_assert_str_eq(response_field(&response, "Allow"), "GET, HEAD, OPTIONS");
    server_stop(&server);
}
