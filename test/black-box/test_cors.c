/*
 * Whose pages may read: --cors none, and the names that it takes on loopback
 * addresses.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LOCAL "Host: localhost\r\n"
#define EVIL "Host: evil.example\r\n"

static void expect_no_cors(const struct server *server, const char *request,
                           int status)
{
    struct response response;

    ask(server, request, &response);
    cr_assert(response.status == status, "%s: %d %s", request, response.status,
              response.body);
    cr_assert(!strstr(response.head, "Access-Control"), "%s", response.head);
}

Test(cors, none_is_on_no_answer)
{
    struct server server;

    server_start(&server, "--cors", "none");
    expect_no_cors(&server, "GET /events HTTP/1.1\r\n" LOCAL "\r\n", 200);
    expect_no_cors(&server, "HEAD /events/a HTTP/1.1\r\n" LOCAL "\r\n", 200);
    expect_no_cors(&server, "OPTIONS /events HTTP/1.1\r\n" LOCAL "\r\n", 204);
    expect_no_cors(&server,
                   "POST /events/a?end=1 HTTP/1.1\r\n" LOCAL
                   "Content-Length: 1\r\n\r\nx",
                   201);
    expect_no_cors(&server, "GET /events/a HTTP/1.1\r\n" LOCAL "\r\n", 204);
    expect_no_cors(&server, "DELETE /events/a HTTP/1.1\r\n" LOCAL "\r\n", 200);
    expect_no_cors(&server, "GET / HTTP/1.1\r\n" LOCAL "\r\n", 200);
    expect_no_cors(&server, "GET / HTTP/1.1\r\n" EVIL "\r\n", 421);
    server_stop(&server);
}

Test(cors, none_still_says_which_methods_there_are)
{
    struct server server;
    struct response response;

    server_start(&server, "--cors", "none");
    ask(&server, "OPTIONS /events/a HTTP/1.1\r\n" LOCAL "\r\n", &response);
    cr_assert_str_eq(response_field(&response, "Allow"),
                     "DELETE, GET, HEAD, OPTIONS, POST");
    server_stop(&server);
}

/* The words of the option are no origins. */
Test(cors, no_word_is_an_origin)
{
    static const char *const words[] = { "none", "*", "NONE" };
    struct server server;
    struct response response;
    char request[256];

    for (size_t i = 0; i < COUNT(words); i++) {
        server_start(&server, "--cors", i == 2 ? "none" : words[i]);
        snprintf(request, sizeof(request),
                 "POST /events HTTP/1.1\r\n" LOCAL "Origin: %s\r\n"
                 "Content-Length: 1\r\n\r\nx",
                 words[i]);
        ask(&server, request, &response);
        cr_assert(response.status == 403, "%s: %d", words[i], response.status);
        server_stop(&server);
    }
}

/* The last one counts. */
Test(cors, can_be_given_again)
{
    struct server server;
    struct response response;

    server_start(&server, "--cors", "none", "--cors", "https://a.example");
    ask(&server, "HEAD /events HTTP/1.1\r\n" EVIL "\r\n", &response);
    cr_assert_str_eq(response_field(&response, "Access-Control-Allow-Origin"),
                     "https://a.example");
    server_stop(&server);
}

static int status_of_host(struct client *client, const char *field)
{
    struct response response;
    char request[512];

    snprintf(request, sizeof(request), "HEAD /events HTTP/1.1\r\n%s\r\n",
             field);
    client_send(client, request);
    client_response(client, &response, true);
    client_close(client);
    return response.status;
}

static int ask_host(const struct server *server, const char *field)
{
    struct client client;

    client_connect(&client, server);
    return status_of_host(&client, field);
}

Test(host, is_a_name_of_this_machine)
{
    static const struct {
        const char *field;
        int status;
    } cases[] = {
        { "Host: localhost\r\n", 200 },
        { "Host: LOCALHOST:80\r\n", 200 },
        { "Host: 127.0.0.1\r\n", 200 },
        { "Host: 192.0.2.1:3000\r\n", 200 },
        { "Host: [::1]:3000\r\n", 200 },
        { "Host: a.example\r\n", 200 },
        { "Host: A.Example:81\r\n", 200 },
        { "Host: b\r\n", 200 },
        { "Host: evil.example\r\n", 421 },
        { "Host: a.example.evil\r\n", 421 },
        { "Host: xa.example\r\n", 421 },
        { "Host: a.exampl\r\n", 421 },
        { "Host: localhost.evil\r\n", 421 },
        { "Host: a.example:x\r\n", 421 },
        { "Host:\r\n", 421 },
    };
    struct server server;

    server_start(&server, "--cors", "none", "--host", "a.example", "--host",
                 "B");
    for (size_t i = 0; i < COUNT(cases); i++) {
        int status = ask_host(&server, cases[i].field);

        cr_assert(status == cases[i].status, "%s: %d", cases[i].field, status);
    }
    server_stop(&server);
}

Test(host, is_looked_at_before_all_else)
{
    static const char *const requests[] = {
        "GET / HTTP/1.1\r\n" EVIL "\r\n",
        "GET /nothing HTTP/1.1\r\n" EVIL "\r\n",
        "GET /healthz HTTP/1.1\r\n" EVIL "\r\n",
        "GET /events HTTP/1.1\r\n" EVIL "\r\n",
        "GET /events/a%20b HTTP/1.1\r\n" EVIL "\r\n",
        "GET http://evil.example/events HTTP/1.1\r\n" LOCAL "\r\n",
        "OPTIONS * HTTP/1.1\r\n" EVIL "\r\n",
        "PUT /events HTTP/1.1\r\n" EVIL "\r\n",
        "POST /events HTTP/1.1\r\n" EVIL "Content-Length: 1\r\n\r\nx",
        "GET /events HTTP/1.0\r\n" EVIL "\r\n",
    };
    struct server server;
    struct response response;

    server_start(&server, "--cors", "none");
    for (size_t i = 0; i < COUNT(requests); i++) {
        ask(&server, requests[i], &response);
        cr_assert(response.status == 421, "%s: %d", requests[i],
                  response.status);
        cr_assert(strstr(response.head, "421 Misdirected Request"));
        cr_assert(strstr(response.body, "--host"), "%s", response.body);
        cr_assert(strchr(response.body, '\n') ==
                  response.body + response.length - 1);
    }
    ask(&server, "HEAD /events HTTP/1.0\r\n\r\n", &response);
    cr_assert(response.status == 200, "without a Host: %d", response.status);
    server_stop(&server);
}

/* A socket of the test's own, listening on a free port or connected. */
static int ip_socket(int family, const char *address, uint16_t *port,
                     bool listens)
{
    struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(*port) };
    struct sockaddr_in6 v6 = { .sin6_family = AF_INET6,
                               .sin6_port = htons(*port) };
    struct sockaddr *name =
        family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    socklen_t length = family == AF_INET ? sizeof(v4) : sizeof(v6);
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    cr_assert(inet_pton(family, address,
                        family == AF_INET ? (void *)&v4.sin_addr
                                          : (void *)&v6.sin6_addr) == 1);
    if (listens) {
        cr_assert(bind(fd, name, length) == 0 && listen(fd, 8) == 0);
        cr_assert(getsockname(fd, name, &length) == 0);
        *port = ntohs(family == AF_INET ? v4.sin_port : v6.sin6_port);
    } else {
        cr_assert(connect(fd, name, length) == 0, "connect to %s", address);
    }
    return fd;
}

static int ask_at(int family, const char *address, uint16_t port,
                  const char *field)
{
    struct client client = { .bytes = calloc(1, 1) };

    client.fd = ip_socket(family, address, &port, false);
    return status_of_host(&client, field);
}

Test(host, counts_on_loopback_addresses)
{
    static const struct {
        const char *listen, *address;
        int family, status;
    } cases[] = {
        { "127.0.0.1:0", "127.0.0.1", AF_INET, 421 },
        { "127.1.2.3:0", "127.1.2.3", AF_INET, 421 },
        { "[::1]:0", "::1", AF_INET6, 421 },
        { "0.0.0.0:0", "127.0.0.1", AF_INET, 200 },
        { "[::]:0", "::1", AF_INET6, 200 },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct server server;
        int status;

        server_start(&server, "--cors", "none", "--listen", cases[i].listen);
        status = ask_at(cases[i].family, cases[i].address,
                        (uint16_t)server.port, EVIL);
        cr_assert(status == cases[i].status, "%s: %d", cases[i].listen, status);
        status = ask_at(cases[i].family, cases[i].address,
                        (uint16_t)server.port, LOCAL);
        cr_assert(status == 200, "%s: %d", cases[i].listen, status);
        server_stop(&server);
    }
}

Test(host, counts_on_a_socket_that_is_handed_over)
{
    struct server server;
    uint16_t port = 0;
    int fd = ip_socket(AF_INET, "127.0.0.1", &port, true);

    server_start_handed(&server, fd,
                        (const char *[]){ "--cors", "none", NULL });
    cr_assert(ask_host(&server, EVIL) == 421);
    cr_assert(ask_host(&server, LOCAL) == 200);
    close(fd);
    server_stop(&server);
}

Test(host, does_not_count_on_a_unix_socket)
{
    struct server server;
    struct client client;
    char path[64], listen_option[80];

    snprintf(path, sizeof(path), "/tmp/ssed-test-%d.sock", getpid());
    snprintf(listen_option, sizeof(listen_option), "unix:%s", path);
    server_start(&server, "--cors", "none", "--listen", listen_option);
    client_connect_unix(&client, path);
    cr_assert(status_of_host(&client, EVIL) == 200);
    server_stop(&server);
}

Test(host, does_not_count_where_pages_may_read)
{
    struct server server;

    server_start(&server, "--cors", "*");
    cr_assert(ask_host(&server, EVIL) == 200);
    server_stop(&server);
    server_start(&server, "--cors", "https://a.example");
    cr_assert(ask_host(&server, EVIL) == 200);
    server_stop(&server);
}

Test(host, at_most_16)
{
    const char *options[40] = { "--cors", "none" };
    char out[4096], err[4096];

    for (int i = 0; i < 17; i++) {
        options[2 + 2 * i] = "--host";
        options[3 + 2 * i] = "a.example";
    }
    cr_assert(run_to_end(options, out, err) == 2);
    cr_assert(strstr(err, "--host: at most 16"), "%s", err);
}
