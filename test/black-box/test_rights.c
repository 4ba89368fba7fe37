/*
 * Signed tokens: who may read and publish what, and how a stream ends when the
 * token that it needed expires.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LOCAL "Host: localhost\r\n"
#define SECRET "0123456789abcdef0123456789abcdef"
#define OTHER_SECRET "fedcba9876543210fedcba9876543210"

enum {
    LEEWAY = 60, /* seconds that a token is accepted after its exp */
    TOKEN_SIZE = 1024,
    TEXT_SIZE = 2 * TOKEN_SIZE,
};

/* The exp, in seconds from now, of a token that is accepted for two seconds
 * more, or longer where all is slow. */
static int64_t soon(void)
{
    return patience() / 5000 - LEEWAY;
}

static char secret_path[64];

static void write_secret(const char *secret)
{
    FILE *file = fopen(secret_path, "we");

    cr_assert(file && fputs(secret, file) >= 0 && fclose(file) == 0);
    cr_assert(chmod(secret_path, 0600) == 0);
}

static void begin(void)
{
    snprintf(secret_path, sizeof(secret_path), "/tmp/ssed-test-%d.secret",
             getpid());
    write_secret(SECRET "\n");
}

static void end(void)
{
    unlink(secret_path);
}

TestSuite(rights, .init = begin, .fini = end);

/* A token with these claims and an exp so many seconds from now. */
static const char *token_of(const char *claims, int64_t lifetime,
                            char token[TOKEN_SIZE])
{
    char json[512];

    snprintf(json, sizeof(json), "{%s,\"exp\":%" PRId64 "}", claims,
             (int64_t)time(NULL) + lifetime);
    sign_claims(SECRET, json, token, TOKEN_SIZE);
    return token;
}

static int64_t exp_of(int64_t lifetime)
{
    return (int64_t)time(NULL) + lifetime;
}

#define start(server, ...) \
    server_start(server, "--secret-file", secret_path, __VA_ARGS__)

/* The status of a request, and in *response the answer. */
static int ask_for(const struct server *server, const char *method,
                   const char *target, const char *fields,
                   struct response *response)
{
    bool has_body = strcmp(method, "POST") == 0;
    char request[12288];

    snprintf(request, sizeof(request), "%s %s HTTP/1.1\r\n" LOCAL "%s%s\r\n%s",
             method, target, fields, has_body ? "Content-Length: 1\r\n" : "",
             has_body ? "x" : "");
    ask(server, request, response);
    return response->status;
}

static const char *bearer(const char *token, char field[TOKEN_SIZE + 64])
{
    snprintf(field, TOKEN_SIZE + 64, "Authorization: Bearer %s\r\n", token);
    return field;
}

/* ------------------------------------------------------------ who may */

static const struct {
    const char *claims; /* NULL: no token; "": one that is none */
    const char *method, *target;
    int status;
} allowed[] = {
    /* without a token */
    { NULL, "GET", "/events", 401 },
    { NULL, "HEAD", "/events", 401 },
    { NULL, "GET", "/events/a", 401 },
    { NULL, "HEAD", "/events/a", 401 },
    { NULL, "GET", "/events?topic=a&topic=b", 401 },
    { NULL, "POST", "/events", 401 },
    { NULL, "POST", "/events/a", 401 },
    { NULL, "DELETE", "/events/a", 401 },
    { NULL, "OPTIONS", "/events/a", 204 },
    { NULL, "OPTIONS", "/events", 204 },
    { NULL, "GET", "/healthz", 200 },
    { NULL, "GET", "/", 200 },
    { NULL, "GET", "/events/a%20b", 400 },
    { NULL, "PUT", "/events/a", 405 },
    /* what is public may be read by all */
    { NULL, "HEAD", "/events/news", 200 },
    { NULL, "GET", "/events/news", 200 },
    { NULL, "HEAD", "/events/open/x/y", 200 },
    { NULL, "HEAD", "/events?topic=news&topic=open/x", 200 },
    { NULL, "HEAD", "/events?topic=news&topic=a", 401 },
    { NULL, "HEAD", "/events/open", 401 },
    { NULL, "HEAD", "/events/news/x", 401 },
    { NULL, "POST", "/events/news", 401 },
    { NULL, "DELETE", "/events/news", 401 },
    /* and a token is not looked at */
    { "", "HEAD", "/events/news", 200 },
    { "", "HEAD", "/events?topic=news&topic=open/x", 200 },
    { "", "HEAD", "/events?topic=news&topic=a", 401 },
    { "", "POST", "/events/news", 401 },
    { "", "HEAD", "/events/a", 401 },
    /* to read */
    { "\"read\":[\"a\"]", "GET", "/events/a", 200 },
    { "\"read\":[\"a\"]", "HEAD", "/events/a", 200 },
    { "\"read\":[\"a\"]", "HEAD", "/events/a?last=1", 200 },
    { "\"read\":[\"a\"]", "HEAD", "/events?topic=a", 200 },
    { "\"read\":[\"a\"]", "HEAD", "/events/ab", 403 },
    { "\"read\":[\"a\"]", "HEAD", "/events/a/b", 403 },
    { "\"read\":[\"a\"]", "HEAD", "/events", 403 },
    { "\"read\":[\"a\"]", "HEAD", "/events?topic=a&topic=b", 403 },
    { "\"read\":[\"a\"]", "HEAD", "/events?topic=a&topic=news", 200 },
    { "\"read\":[\"a\"]", "HEAD", "/events?topic=a&topic=news&topic=b", 403 },
    { "\"read\":[\"a\",\"b\"]", "HEAD", "/events?topic=b&topic=a", 200 },
    { "\"read\":[\"a/*\"]", "HEAD", "/events/a/b/c", 200 },
    { "\"read\":[\"a/*\"]", "HEAD", "/events/a", 403 },
    { "\"read\":[\"a/*\"]", "HEAD", "/events/ab", 403 },
    { "\"read\":[\"*\"]", "HEAD", "/events/a", 200 },
    { "\"read\":[\"*\"]", "HEAD", "/events", 200 },
    { "\"read\":[\"\"]", "HEAD", "/events", 200 },
    { "\"read\":[\"\"]", "GET", "/events", 200 },
    { "\"read\":[\"\"]", "HEAD", "/events/a", 403 },
    { "\"read\":[]", "HEAD", "/events/a", 403 },
    { "\"sub\":\"a\"", "HEAD", "/events/a", 403 },
    { "\"read\":\"a\"", "HEAD", "/events/a", 401 },
    { "\"read\":[\"a\"]", "POST", "/events/a", 403 },
    { "\"read\":[\"a\"]", "DELETE", "/events/a", 403 },
    /* to publish */
    { "\"write\":[\"a\"]", "HEAD", "/events/a", 403 },
    { "\"write\":[\"a\"]", "POST", "/events/a", 201 },
    { "\"write\":[\"a\"]", "POST", "/events/a?event=name", 201 },
    { "\"write\":[\"a\"]", "DELETE", "/events/a", 200 },
    { "\"write\":[\"a\"]", "POST", "/events/b", 403 },
    { "\"write\":[\"a\"]", "DELETE", "/events/b", 403 },
    { "\"write\":[\"a\"]", "POST", "/events/news", 403 },
    { "\"write\":[\"a\"]", "POST", "/events", 403 },
    { "\"write\":[\"\"]", "POST", "/events", 201 },
    { "\"write\":[\"c/*\"]", "POST", "/events/c/d", 201 },
    { "\"write\":[\"*\"]", "POST", "/events/c/d", 201 },
    { "\"write\":[\"*\"]", "POST", "/events", 201 },
};

/* A refusal has one line, which says what would be right. */
static void check_refusal(const struct response *response)
{
    const char *field = response_field(response, "WWW-Authenticate");

    cr_assert(strchr(response->body, '\n') ==
                  response->body + response->length - 1,
              "%s", response->body);
    cr_assert(!!field == (response->status == 401), "%s", response->head);
    cr_assert(!field || strcmp(field, "Bearer") == 0);
}

Test(rights, are_those_of_the_token)
{
    struct server server;
    struct response response;
    char token[TOKEN_SIZE], field[TOKEN_SIZE + 64];

    start(&server, "--public", "news", "--public", "open/*");
    for (size_t i = 0; i < COUNT(allowed); i++) {
        const char *claims = allowed[i].claims;
        const char *fields = !claims ? ""
                             : !*claims
                                 ? "Authorization: Bearer a.b.c\r\n"
                                 : bearer(token_of(claims, 60, token), field);
        int status = ask_for(&server, allowed[i].method, allowed[i].target,
                             fields, &response);

        cr_assert(status == allowed[i].status, "%s %s %s: %d %s",
                  claims ? claims : "no token", allowed[i].method,
                  allowed[i].target, status, response.body);
        if ((status == 401 || status == 403) &&
            strcmp(allowed[i].method, "HEAD") != 0)
            check_refusal(&response);
    }
    server_stop(&server);
}

Test(rights, the_main_stream_can_be_public)
{
    struct server server;
    struct response response;

    start(&server, "--public", "");
    cr_assert(ask_for(&server, "HEAD", "/events", "", &response) == 200);
    cr_assert(ask_for(&server, "HEAD", "/events/a", "", &response) == 401);
    cr_assert(ask_for(&server, "POST", "/events", "", &response) == 401);
    server_stop(&server);
    start(&server, "--public", "*");
    cr_assert(ask_for(&server, "HEAD", "/events", "", &response) == 200);
    cr_assert(ask_for(&server, "HEAD", "/events/a/b", "", &response) == 200);
    cr_assert(ask_for(&server, "POST", "/events/a/b", "", &response) == 401);
    server_stop(&server);
}

/* Tokens that are not accepted, each with the status of a HEAD. */
Test(rights, only_a_right_token_counts)
{
    static const struct {
        const char *secret, *claims;
        int status;
    } tokens[] = {
        { SECRET, "{\"read\":[\"*\"],\"exp\":4000000000}", 200 },
        { SECRET, "{\"read\":[\"*\"],\"exp\":99999999999999}", 200 },
        { OTHER_SECRET, "{\"read\":[\"*\"],\"exp\":4000000000}", 401 },
        { SECRET, "{\"read\":[\"*\"],\"exp\":1000000000}", 401 },
        { SECRET, "{\"read\":[\"*\"]}", 401 },
        { SECRET, "{\"read\":[\"*\"],\"exp\":\"4000000000\"}", 401 },
        { SECRET, "{\"read\":[\"*\"],\"exp\":4000000000,\"nbf\":3900000000}",
          401 },
        { SECRET, "[]", 401 },
        { SECRET, "", 401 },
    };
    static const char none[] =
        "Authorization: Bearer eyJhbGciOiJub25lIn0."
        "eyJyZWFkIjpbIioiXSwiZXhwIjo0MDAwMDAwMDAwfQ.\r\n";
    struct server server;
    struct response response;
    char token[TOKEN_SIZE], field[TOKEN_SIZE + 64];

    start(&server, NULL);
    for (size_t i = 0; i < COUNT(tokens); i++) {
        int status;

        sign_claims(tokens[i].secret, tokens[i].claims, token, sizeof(token));
        status = ask_for(&server, "HEAD", "/events/a", bearer(token, field),
                         &response);
        cr_assert(status == tokens[i].status, "%s: %d", tokens[i].claims,
                  status);
    }
    cr_assert(ask_for(&server, "HEAD", "/events/a", none, &response) == 401);
    server_stop(&server);
}

/* The first way that is there counts, also where it is wrong. */
Test(rights, a_token_comes_in_three_ways)
{
    static const struct {
        const char *authorization, *cookie, *query; /* R: right, W: wrong */
        int status;
    } ways[] = {
        { "Bearer R", NULL, NULL, 200 },
        { "bearer R", NULL, NULL, 200 },
        { NULL, "ssed_token=R", NULL, 200 },
        { NULL, "a=b; ssed_token=R; c=d", NULL, 200 },
        { NULL, NULL, "R", 200 },
        { "Bearer R", "ssed_token=W", "W", 200 },
        { "Bearer W", "ssed_token=R", "R", 401 },
        { NULL, "ssed_token=R", "W", 200 },
        { NULL, "ssed_token=W", "R", 401 },
        { NULL, "ssed_token=", "R", 401 },
        { NULL, "xssed_token=R", NULL, 401 },
        { NULL, "ssed_token_x=W", "R", 200 },
        { NULL, NULL, "W", 401 },
    };
    struct server server;
    struct response response;
    char right[TOKEN_SIZE], text[3][2 * TOKEN_SIZE], fields[6 * TOKEN_SIZE];
    char target[3 * TOKEN_SIZE];

    token_of("\"read\":[\"a\"]", 60, right);
    start(&server, NULL);
    for (size_t i = 0; i < COUNT(ways); i++) {
        const char *all[] = { ways[i].authorization, ways[i].cookie,
                              ways[i].query };
        int status;

        for (int j = 0; j < 3; j++) {
            const char *at = all[j] ? strpbrk(all[j], "RW") : NULL;

            snprintf(text[j], sizeof(text[j]), "%s", all[j] ? all[j] : "");
            if (at)
                snprintf(text[j], sizeof(text[j]), "%.*s%s%s",
                         (int)(at - all[j]), all[j],
                         *at == 'R' ? right : "a.b.c", at + 1);
        }
        snprintf(fields, sizeof(fields), "%s%s%s%s%s%s",
                 all[0] ? "Authorization: " : "", text[0], all[0] ? "\r\n" : "",
                 all[1] ? "Cookie: " : "", text[1], all[1] ? "\r\n" : "");
        snprintf(target, sizeof(target), "/events/a%s%s",
                 all[2] ? "?token=" : "", text[2]);
        status = ask_for(&server, "HEAD", target, fields, &response);
        cr_assert(status == ways[i].status, "%zu: %d", i, status);
    }
    server_stop(&server);
}

/* Where there is no room, one that may read is told to come back, and no other
 * learns that. */
Test(rights, are_looked_at_before_there_is_room)
{
    struct server server;
    struct stream first;
    struct response response;
    char token[TOKEN_SIZE], field[TOKEN_SIZE + 64];

    bearer(token_of("\"read\":[\"a\"],\"write\":[\"a\"]", 60, token), field);
    start(&server, "--max-connections", "1");
    stream_open(&first, &server, "/events/a", field);
    cr_assert(ask_for(&server, "GET", "/events/a", "", &response) == 401);
    cr_assert(ask_for(&server, "GET", "/events/b", field, &response) == 403);
    cr_assert(ask_for(&server, "POST", "/events/a", "", &response) == 401);
    cr_assert(ask_for(&server, "POST", "/events/a", field, &response) == 503);
    cr_assert(ask_for(&server, "GET", "/events/a", field, &response) == 200);
    stream_close(&first);
    server_stop(&server);
}

/* --------------------------------------------------------- other origins */

/* A browser sends a cookie by itself, with what any page has it send. */
static const struct {
    const char *method, *fields;
    int status;
} pages[] = {
    { "POST", "", 201 },
    { "POST", "Origin: http://localhost\r\n", 201 },
    { "POST", "Sec-Fetch-Site: same-origin\r\n", 201 },
    { "POST", "Sec-Fetch-Site: none\r\n", 201 },
    { "POST", "Origin: https://app.example\r\n", 201 },
    { "POST", "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n",
      201 },
    { "POST", "Origin: https://evil.example\r\n", 403 },
    { "POST", "Origin: https://evil.example\r\nContent-Type: text/plain\r\n",
      403 },
    { "POST",
      "Origin: https://evil.example\r\n"
      "Content-Type: application/x-www-form-urlencoded\r\n",
      403 },
    { "POST", "Origin: null\r\n", 403 },
    { "POST", "Sec-Fetch-Site: cross-site\r\n", 403 },
    { "POST", "Sec-Fetch-Site: same-site\r\n", 403 },
    { "POST", "Sec-Fetch-Site: cross-site\r\nContent-Type: text/plain\r\n",
      403 },
    { "POST", "Origin: http://localhost:81\r\n", 403 },
    { "DELETE", "Origin: https://evil.example\r\n", 403 },
    { "DELETE", "Origin: null\r\n", 403 },
    { "DELETE", "Sec-Fetch-Site: cross-site\r\n", 403 },
    { "DELETE", "Origin: https://app.example\r\n", 200 },
};

Test(rights, no_foreign_page_publishes_with_a_cookie)
{
    struct server server;
    struct response response;
    char token[TOKEN_SIZE], fields[2 * TOKEN_SIZE];

    token_of("\"write\":[\"a\"]", 60, token);
    start(&server, "--cors", "https://app.example");
    for (size_t i = 0; i < COUNT(pages); i++) {
        int status;

        snprintf(fields, sizeof(fields), "Cookie: ssed_token=%s\r\n%s", token,
                 pages[i].fields);
        status =
            ask_for(&server, pages[i].method, "/events/a", fields, &response);
        cr_assert(status == pages[i].status, "%s %s: %d %s", pages[i].method,
                  pages[i].fields, status, response.body);
    }
    /* the other ways, from the origin that is named */
    snprintf(fields, sizeof(fields),
             "Authorization: Bearer %s\r\nOrigin: https://app.example\r\n"
             "Sec-Fetch-Site: cross-site\r\n",
             token);
    cr_assert(ask_for(&server, "POST", "/events/a", fields, &response) == 201);
    cr_assert_str_eq(response_field(&response, "Access-Control-Allow-Origin"),
                     "https://app.example");
    snprintf(fields, sizeof(fields), "/events/a?token=%s", token);
    cr_assert(ask_for(&server, "POST", fields,
                      "Origin: https://app.example\r\n", &response) == 201);
    server_stop(&server);
}

static void check_cors(const struct response *response, const char *origin)
{
    const char *field = response_field(response, "Access-Control-Allow-Origin");
    bool named = strcmp(origin, "*") != 0;

    cr_assert(field && strcmp(field, origin) == 0, "%s", response->head);
    field = response_field(response, "Access-Control-Allow-Credentials");
    cr_assert(!!field == named, "%s", response->head);
    cr_assert(!field || strcmp(field, "true") == 0);
    cr_assert(!!response_field(response, "Vary") == named);
}

/* A page of the origin that is named reads with its cookie, and is told why it
 * may not; no other page sends one. */
Test(rights, cookies_are_for_the_origin_that_is_named)
{
    static const char *const origins[] = { "https://app.example", "*" };
    struct server server;
    struct response response;
    char token[TOKEN_SIZE], field[TOKEN_SIZE + 64];

    bearer(token_of("\"read\":[\"a\"],\"write\":[\"a\"]", 60, token), field);
    for (size_t i = 0; i < COUNT(origins); i++) {
        start(&server, "--cors", origins[i]);
        cr_assert(ask_for(&server, "HEAD", "/events/a", field, &response) ==
                  200);
        check_cors(&response, origins[i]);
        cr_assert(ask_for(&server, "OPTIONS", "/events/a", "", &response) ==
                  204);
        check_cors(&response, origins[i]);
        cr_assert(ask_for(&server, "GET", "/events/a", "", &response) == 401);
        check_cors(&response, origins[i]);
        cr_assert(ask_for(&server, "GET", "/events/b", field, &response) ==
                  403);
        check_cors(&response, origins[i]);
        cr_assert(ask_for(&server, "POST", "/events/b", field, &response) ==
                  403);
        if (i == 0)
            check_cors(&response, origins[i]);
        server_stop(&server);
    }
}

/* ------------------------------------------------------------ throttle */

/* An address of this machine that is no loopback address; false if it has
 * none. */
static bool outer_address(char text[INET_ADDRSTRLEN])
{
    struct ifaddrs *all, *at;
    bool found = false;

    cr_assert(getifaddrs(&all) == 0);
    for (at = all; at && !found; at = at->ifa_next) {
        const struct sockaddr_in *in = (const void *)at->ifa_addr;

        if (!in || in->sin_family != AF_INET ||
            (ntohl(in->sin_addr.s_addr) >> 24) == 127)
            continue;
        inet_ntop(AF_INET, &in->sin_addr, text, INET_ADDRSTRLEN);
        found = true;
    }
    freeifaddrs(all);
    return found;
}

/* One request from that address to the same. */
static void ask_from(const char *address, int port, const char *request,
                     struct response *response)
{
    struct sockaddr_in name = { .sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port) };
    struct client client = { .bytes = calloc(1, 1) };

    cr_assert(inet_pton(AF_INET, address, &name.sin_addr) == 1);
    client.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(connect(client.fd, (struct sockaddr *)&name, sizeof(name)) == 0);
    client_send(&client, request);
    client_response(&client, response, false);
    client_close(&client);
}

#define WRONG \
    "GET /events/a HTTP/1.1\r\n" LOCAL "Authorization: Bearer a.b.c\r\n\r\n"

Test(rights, who_guesses_waits)
{
    struct server server;
    struct response response;
    char address[INET_ADDRSTRLEN], token[TOKEN_SIZE], field[TOKEN_SIZE + 64];
    char request[2 * TOKEN_SIZE];

    if (!outer_address(address))
        cr_skip_test("this machine has no address but loopback");
    token_of("\"read\":[\"a\"]", 60, token);
    bearer(token, field);
    start(&server, "--listen", "0.0.0.0:0", "--max-failures", "3", "--public",
          "news");
    for (int i = 0; i < 3; i++) {
        ask_from(address, server.port, WRONG, &response);
        cr_assert(response.status == 401, "%d: %d", i, response.status);
        /* one without a token guesses nothing */
        ask_from(address, server.port,
                 "GET /events/a HTTP/1.1\r\n" LOCAL "\r\n", &response);
        cr_assert(response.status == 401);
    }
    ask_from(address, server.port, WRONG, &response);
    cr_assert(response.status == 429, "%d", response.status);
    cr_assert(strstr(response.head, "429 Too Many Requests"));
    cr_assert(strstr(response.body, "--max-failures"));
    cr_assert(atoi(response_field(&response, "Retry-After")) > 0 &&
              atoi(response_field(&response, "Retry-After")) <= 60);
    /* a right one is not looked at either; what needs none is served */
    ask_from(address, server.port, "GET /events/a HTTP/1.1\r\n" LOCAL "\r\n",
             &response);
    cr_assert(response.status == 401);
    snprintf(request, sizeof(request),
             "GET /events/a HTTP/1.1\r\n" LOCAL "%s\r\n", field);
    ask_from(address, server.port, request, &response);
    cr_assert(response.status == 429, "%d", response.status);
    ask_from(address, server.port, "GET /healthz HTTP/1.1\r\n" LOCAL "\r\n",
             &response);
    cr_assert(response.status == 200);
    server_stop(&server);
}

Test(rights, who_is_on_this_machine_does_not_wait)
{
    struct server server;
    struct response response;

    start(&server, "--max-failures", "3");
    for (int i = 0; i < 10; i++) {
        ask(&server, WRONG, &response);
        cr_assert(response.status == 401, "%d", response.status);
    }
    server_stop(&server);
}

/* ------------------------------------------------------------ expiry */

static void publish_signed(const struct server *server, const char *target,
                           const char *text, char id[32])
{
    struct response response;
    char token[TOKEN_SIZE];
    char *request = malloc(strlen(text) + TEXT_SIZE);

    cr_assert(request);
    sprintf(request,
            "POST %s HTTP/1.1\r\n" LOCAL "Authorization: Bearer %s\r\n"
            "Content-Length: %zu\r\n\r\n%s",
            target, token_of("\"write\":[\"*\"]", 60, token), strlen(text),
            text);
    ask(server, request, &response);
    cr_assert(response.status == 201, "%d %s", response.status, response.body);
    cr_assert(json_string(response.body, "id", id, 32));
    free(request);
}

/* The last block, and the end of the stream; its token's exp is from the one
 * to the other. */
static void expect_expired(struct stream *stream, const char *id,
                           const char *event, int64_t first, int64_t last)
{
    struct block block;
    uint64_t number;

    do /* heartbeats */
        cr_assert(stream_next(stream, &block), "it ended before");
    while (!block.lines || strstr(block.data, "\"heartbeat\""));
    cr_assert_str_eq(block.id, id, "id %s, not %s", block.id, id);
    cr_assert_str_eq(block.event, event);
    cr_assert(json_number(block.data, "exp", &number) &&
                  (int64_t)number >= first && (int64_t)number <= last,
              "%s", block.data);
    stream_expect_end(stream);
    cr_assert((int64_t)time(NULL) > (int64_t)number + LEEWAY, "too early");
}

static void open_signed(struct stream *stream, const struct server *server,
                        const char *target, const char *claims, bool is_1_0,
                        const char *fields)
{
    char token[TOKEN_SIZE], field[TOKEN_SIZE + 256], request[2 * TOKEN_SIZE];

    token_of(claims, soon(), token);
    if (is_1_0) {
        snprintf(request, sizeof(request), "%s%ctoken=%s", target,
                 strchr(target, '?') ? '&' : '?', token);
        stream_open_1_0(stream, server, request);
    } else {
        snprintf(field, sizeof(field), "Authorization: Bearer %s\r\n%s", token,
                 fields);
        stream_open(stream, server, target, field);
    }
}

static void check_expiry(const char *heartbeat, bool is_1_0)
{
    struct server server;
    struct stream topic, topics, main;
    int64_t first, last;
    struct block block;
    char id[32], id_main[32];

    start(&server, "--heartbeat", heartbeat);
    first = exp_of(soon());
    open_signed(&topic, &server, "/events/a", "\"read\":[\"a\"]", is_1_0, "");
    open_signed(&topics, &server, "/events?topic=a&topic=b", "\"read\":[\"*\"]",
                is_1_0, "");
    open_signed(&main, &server, "/events", "\"read\":[\"\"]", is_1_0, "");
    last = exp_of(soon());
    cr_assert(stream_next(&topic, &block) && stream_next(&topics, &block));
    stream_expect(&main, &block, "connected");
    publish_signed(&server, "/events", "hello", id_main);
    publish_signed(&server, "/events/a", "1", id);
    stream_expect_event(&topic, id, "", "1");
    stream_expect_event(&topics, id, "", "1");
    stream_expect_message(&main, "message", strtoull(id_main, NULL, 10),
                          "hello");
    expect_expired(&topic, id, "ssed.expired", first, last);
    expect_expired(&topics, id, "ssed.expired", first, last);
    expect_expired(&main, id, "", first, last);
    server_await_log(&server, "reason=expired");
    stream_close(&topic);
    stream_close(&topics);
    stream_close(&main);
    server_stop(&server);
}

Test(rights, a_stream_ends_when_its_token_expires)
{
    check_expiry("15", false);
}

Test(rights, a_stream_expires_without_heartbeats)
{
    check_expiry("0", false);
}

Test(rights, a_stream_expires_between_heartbeats)
{
    check_expiry("1", false);
}

Test(rights, a_stream_of_http_1_0_expires)
{
    check_expiry("15", true);
}

static void await_second(int64_t second)
{
    int64_t deadline = 0;
    struct timespec now;

    do {
        await_tick(&deadline, "the clock");
        clock_gettime(CLOCK_REALTIME, &now);
    } while (now.tv_sec < second);
}

/* Public topics need no token, so theirs do not count; and a stream that was
 * needing one ends as a whole. */
Test(rights, a_public_stream_never_expires)
{
    struct server server;
    struct stream open, mixed;
    struct block block;
    int64_t expires;
    char id[32];

    start(&server, "--public", "open");
    expires = exp_of(soon()) + 1; /* at the latest */
    open_signed(&open, &server, "/events/open", "\"read\":[\"*\"]", false, "");
    open_signed(&mixed, &server, "/events?topic=open&topic=a",
                "\"read\":[\"a\"]", false, "");
    cr_assert(stream_next(&open, &block) && stream_next(&mixed, &block));
    cr_assert(stream_next(&mixed, &block));
    cr_assert_str_eq(block.event, "ssed.expired");
    stream_expect_end(&mixed);
    await_second(expires + LEEWAY + 1);
    publish_signed(&server, "/events/open", "x", id);
    stream_expect_event(&open, id, "", "x");
    stream_close(&open);
    stream_close(&mixed);
    server_stop(&server);
}

enum {
    LARGE = 60000,
    LARGE_COUNT = 200,
};

/* A subscriber whose socket is full before its token expires; the events are
 * as many as their numbers. */
static int64_t fill_a_stream(struct server *server, struct stream *stream,
                             uint64_t *last)
{
    static char text[LARGE + 1];
    int64_t expires;
    char id[32];

    memset(text, 'x', LARGE);
    for (int i = 0; i < LARGE_COUNT; i++)
        publish_signed(server, "/events/a", text, id);
    *last = strtoull(id, NULL, 10);
    expires = exp_of(soon()) + 1;
    open_signed(stream, server, "/events/a?lastEventId=earliest",
                "\"read\":[\"a\"]", false, "");
    return expires;
}

Test(rights, a_subscriber_that_never_reads_is_cut)
{
    struct server server;
    struct stream stream;
    uint64_t last;

    start(&server, NULL);
    fill_a_stream(&server, &stream, &last);
    server_await_log(&server, "event=unsubscribed");
    server_await_log(&server, "reason=expired");
    client_await_end(&stream.client);
    cr_assert(stream.client.reset);
    stream_close(&stream);
    server_stop(&server);
}

/* It gets the rest of the event that it is in the middle of, and its own
 * position. */
Test(rights, a_slow_subscriber_is_told_in_order)
{
    struct server server;
    struct stream stream;
    struct block block;
    uint64_t last, id = 0;
    int64_t expires;
    int count = 0;

    start(&server, NULL);
    expires = fill_a_stream(&server, &stream, &last);
    await_second(expires + LEEWAY + 1);
    cr_assert(stream_next(&stream, &block) && !block.lines);
    while (stream_next(&stream, &block) && !*block.event) {
        cr_assert(strlen(block.data) == LARGE);
        id = strtoull(block.id, NULL, 10);
        count++;
    }
    cr_assert_str_eq(block.event, "ssed.expired");
    cr_assert(count > 0 && count < LARGE_COUNT, "%d events", count);
    cr_assert(strtoull(block.id, NULL, 10) == id && id < last);
    stream_expect_end(&stream);
    stream_close(&stream);
    server_stop(&server);
}

/* Publishes 0, 1, 2 and so on until it is killed. */
static pid_t start_counting(const struct server *server)
{
    pid_t pid = fork();
    char text[16], id[32];

    cr_assert(pid >= 0);
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0;; i++) {
        int64_t deadline = 0;

        snprintf(text, sizeof(text), "%d", i);
        publish_signed(server, "/events/a", text, id);
        await_tick(&deadline, "");
    }
}

/* With a fresh token each stream goes on where the one before has ended. */
Test(rights, a_fresh_token_goes_on_without_loss)
{
    struct server server;
    struct stream stream;
    struct block block;
    char fields[128] = "Last-Event-ID: earliest\r\n";
    int next = 0;
    pid_t publisher;

    start(&server, NULL);
    publisher = start_counting(&server);
    for (int round = 0; round < 3; round++) {
        int before = next;

        open_signed(&stream, &server, "/events/a", "\"read\":[\"a\"]", false,
                    fields);
        while (stream_next(&stream, &block)) {
            if (block.lines && !*block.event)
                cr_assert(atoi(block.data) == next++, "%s, not %d", block.data,
                          next - 1);
            cr_assert(!*block.event || strcmp(block.event, "ssed.expired") == 0,
                      "%s", block.event);
        }
        cr_assert(next > before, "nothing came");
        cr_assert_str_eq(block.event, "ssed.expired");
        snprintf(fields, sizeof(fields), "Last-Event-ID: %s\r\n", block.id);
        stream_close(&stream);
    }
    kill(publisher, SIGKILL);
    waitpid(publisher, NULL, 0);
    server_stop(&server);
}

/* ------------------------------------------------------- the secret's file */

/* Sends SIGHUP and waits for a new line about it with this text. */
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

Test(rights, the_secret_is_read_again)
{
    struct server server;
    struct response response;
    struct stream stream;
    struct block block;
    char old[TOKEN_SIZE + 64], new[TOKEN_SIZE + 64], token[TOKEN_SIZE];
    char id[32];

    bearer(token_of("\"read\":[\"a\"]", 60, token), old);
    sign_claims(OTHER_SECRET, "{\"read\":[\"a\"],\"exp\":4000000000}", token,
                sizeof(token));
    bearer(token, new);
    start(&server, NULL);
    server.errors_expected = true;
    stream_open(&stream, &server, "/events/a", old);
    cr_assert(stream_next(&stream, &block));
    write_secret("too short");
    reload(&server, "event=secret_not_reloaded");
    cr_assert(ask_for(&server, "HEAD", "/events/a", old, &response) == 200);
    publish_signed(&server, "/events/a", "still there", id);
    stream_expect_event(&stream, id, "", "still there");
    write_secret(OTHER_SECRET);
    reload(&server, "event=secret_reloaded");
    cr_assert(ask_for(&server, "HEAD", "/events/a", old, &response) == 401);
    cr_assert(ask_for(&server, "HEAD", "/events/a", new, &response) == 200);
    unlink(secret_path);
    reload(&server, "No such file");
    cr_assert(ask_for(&server, "HEAD", "/events/a", new, &response) == 200);
    cr_assert(!stream_take(&stream, &block) && !stream.client.ended);
    stream_close(&stream);
    server_stop(&server);
}

/* No part of one that is longer than its alphabet's accidents. */
static void expect_unlogged(const char *log, const char *token)
{
    enum {
        PART = 12
    };
    char part[PART + 1] = "";

    for (size_t i = 0; i + PART <= strlen(token); i++) {
        memcpy(part, token + i, PART);
        cr_assert(!strstr(log, part), "'%s' of a token in the log", part);
    }
}

/* The format with the token in the place of its %s. */
static void fill(char text[TEXT_SIZE], const char *format, const char *token)
{
    const char *at = strstr(format, "%s");
    int length = snprintf(text, TEXT_SIZE, "%.*s%s%s", (int)(at - format),
                          format, token, at + 2);

    cr_assert(length < TEXT_SIZE);
}

Test(rights, no_token_is_logged)
{
    static const char *const targets[] = {
        "/events/a?token=%s",
        "/events/b?x=1&token=%s",
        "/events?topic=a&token=%s",
        "/nothing?token=%s",
        "/events/a%20b?token=%s",
        "/events/a?lastEventId=9&token=%s&last=x",
        "/?token=%s",
    };
    static const char *const methods[] = { "GET", "POST", "DELETE", "OPTIONS",
                                           "PUT" };
    static const char *const fields[] = {
        "Authorization: Bearer %s\r\n",
        "Cookie: ssed_token=%s\r\n",
        "Authorization: Basic %s\r\n",
        "Cookie: ssed_token=\"%s\r\n",
    };
    struct server server;
    struct response response;
    char token[2][TOKEN_SIZE], target[TEXT_SIZE], field[TEXT_SIZE];
    char *log;

    token_of("\"read\":[\"a\"],\"write\":[\"a\"]", 60, token[0]);
    strcpy(token[1], token[0]);
    token[1][strlen(token[1]) - 2] ^= 1;
    start(&server, "--log-level", "debug", "--access-log");
    for (size_t i = 0; i < COUNT(methods) * (COUNT(targets) + COUNT(fields));
         i++) {
        const char *method = methods[i % COUNT(methods)];
        size_t way = i / COUNT(methods);
        bool in_target = way < COUNT(targets);
        const char *format =
            in_target ? targets[way] : fields[way - COUNT(targets)];

        for (int j = 0; j < 2; j++) {
            fill(in_target ? target : field, format, token[j]);
            ask_for(&server, method, in_target ? target : "/events/a",
                    in_target ? "" : field, &response);
            cr_assert(!strstr(response.body, token[j]), "%s", response.body);
        }
    }
    server_await_log(&server, "event=request");
    kill(server.pid, SIGTERM);
    cr_assert(server_wait(&server) == 0);
    log = server_log(&server);
    for (int j = 0; j < 2; j++)
        expect_unlogged(log, token[j]);
    free(log);
}

/* ------------------------------------------------------------ options */

Test(rights, the_start_says_who_may_publish)
{
    struct server server;
    struct response response;
    char token[TOKEN_SIZE], field[TOKEN_SIZE + 64];

    bearer(token_of("\"write\":[\"a\"]", 60, token), field);
    start(&server, NULL);
    server_await_log(&server, "publish=\"signed tokens\"");
    server_stop(&server);
    start(&server, "--publish", "none");
    server_await_log(&server, "publish=\"none\"");
    cr_assert(ask_for(&server, "POST", "/events/a", field, &response) == 403);
    cr_assert(strstr(response.body, "--publish none"));
    server_stop(&server);
    start(&server, "--publish", "unix");
    cr_assert(ask_for(&server, "POST", "/events/a", field, &response) == 201);
    server_stop(&server);
}

Test(rights, wrong_options_are_named)
{
    static const struct {
        const char *options[6];
        const char *says[2];
    } cases[] = {
        { { "--public", "a" }, { "--public", "--secret-file" } },
        { { "--sign", "read=a exp=1h" }, { "--sign", "--secret-file" } },
        { { "--max-failures", "3" }, { "--max-failures", "--secret-file" } },
        { { "--secret-file", "S", "--token-file", "S" },
          { "--token-file", "--secret-file" } },
        { { "--secret-file", "S", "--public", "a*" }, { "'a*'", "PREFIX/*" } },
        { { "--secret-file", "S", "--public", "a//b" }, { "'a//b'", "empty" } },
        { { "--secret-file", "S", "--public", "/*" }, { "'/*'", "PREFIX/*" } },
        { { "--secret-file", "S", "--max-failures", "0" },
          { "--max-failures", "from 1" } },
        { { "--secret-file", "S", "--sign", "" }, { "--sign", "CLAIMS" } },
        { { "--secret-file", "S", "--sign", "read=a" }, { "exp=", "1h" } },
        { { "--secret-file", "S", "--sign", "exp=1h" }, { "read=", "write=" } },
        { { "--secret-file", "S", "--sign", "read=a exp=1" },
          { "'exp=1'", "s, m, h or d" } },
        { { "--secret-file", "S", "--sign", "read=a exp=0s" },
          { "'exp=0s'", "from 1s" } },
        { { "--secret-file", "S", "--sign", "read=a exp=-1s" },
          { "'exp=-1s'", "from 1s" } },
        { { "--secret-file", "S", "--sign", "read=a exp=1h exp=1h" },
          { "exp=", "twice" } },
        { { "--secret-file", "S", "--sign", "read=a* exp=1h" },
          { "'read=a*'", "PREFIX/*" } },
        { { "--secret-file", "S", "--sign", "reed=a exp=1h" },
          { "'reed=a'", "read=PATTERN" } },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *options[7] = { NULL };
        char out[4096], err[4096];

        for (int j = 0; j < 6 && cases[i].options[j]; j++)
            options[j] = strcmp(cases[i].options[j], "S") == 0
                             ? secret_path
                             : cases[i].options[j];
        cr_assert(run_to_end(options, out, err) == 2, "%zu: %s", i, err);
        cr_assert(!*out, "%s", out);
        cr_assert(strchr(err, '\n') == err + strlen(err) - 1, "%s", err);
        for (int j = 0; j < 2; j++)
            cr_assert(strstr(err, cases[i].says[j]), "%zu: %s", i, err);
    }
}

Test(rights, at_most_64_public_patterns)
{
    const char *options[140] = { "--secret-file", secret_path };
    char out[4096], err[4096];

    for (int i = 0; i < 65; i++) {
        options[2 + 2 * i] = "--public";
        options[3 + 2 * i] = "a";
    }
    cr_assert(run_to_end(options, out, err) == 2);
    cr_assert(strstr(err, "--public: at most 64"), "%s", err);
}

/* --sign prints what the server takes. */
Test(rights, sign_makes_a_token)
{
    const char *options[] = { "--secret-file", secret_path, "--sign",
                              "  read=a read=b/*\twrite=* exp=1m ", NULL };
    struct server server;
    struct response response;
    char token[4096], err[4096], field[TOKEN_SIZE + 64];

    cr_assert(run_to_end(options, token, err) == 0, "%s", err);
    cr_assert(!*err, "%s", err);
    cr_assert(strlen(token) < TOKEN_SIZE &&
              strchr(token, '\n') == token + strlen(token) - 1);
    token[strlen(token) - 1] = '\0';
    bearer(token, field);
    start(&server, NULL);
    cr_assert(ask_for(&server, "HEAD", "/events/a", field, &response) == 200);
    cr_assert(ask_for(&server, "HEAD", "/events/b/c", field, &response) == 200);
    cr_assert(ask_for(&server, "HEAD", "/events/c", field, &response) == 403);
    cr_assert(ask_for(&server, "HEAD", "/events", field, &response) == 403);
    cr_assert(ask_for(&server, "POST", "/events/c", field, &response) == 201);
    cr_assert(ask_for(&server, "POST", "/events", field, &response) == 201);
    server_stop(&server);
}
