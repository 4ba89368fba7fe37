/*
 * The pages from outside: the bundled ones and those of a folder, validators,
 * ranges, and no way out of the folder.
 */
#include "harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOST "Host: localhost\r\n"

static void get(const struct server *server, const char *path,
                const char *fields, struct response *response)
{
    char request[2048];

    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST "%s\r\n",
             path, fields);
    ask(server, request, response);
}

static void expect_type(const struct server *server, const char *path,
                        const char *type)
{
    struct response response;

    get(server, path, "", &response);
    cr_assert(response.status == 200, "%s: %d", path, response.status);
    cr_assert_str_eq(response_field(&response, "Content-Type"), type, "%s",
                     path);
    cr_assert(response.length > 0);
}

Test(pages, are_in_the_binary)
{
    struct server server;
    struct response response, head;
    char etag[128], fields[256];

    server_start(&server, NULL);
    expect_type(&server, "/", "text/html; charset=utf-8");
    expect_type(&server, "/index.html", "text/html; charset=utf-8");
    expect_type(&server, "/clock.html", "text/html; charset=utf-8");
    expect_type(&server, "/index.js", "text/javascript; charset=utf-8");
    expect_type(&server, "/style.css", "text/css; charset=utf-8");
    get(&server, "/", "", &response);
    cr_assert(strstr(response.body, "connection-status"));
    snprintf(etag, sizeof(etag), "%s", response_field(&response, "ETag"));
    cr_assert(etag[0] == '"');
    cr_assert(response_field(&response, "Last-Modified"));
    ask(&server, "HEAD / HTTP/1.1\r\n" HOST "\r\n", &head);
    cr_assert(head.status == 200);
    cr_assert(strtoul(response_field(&head, "Content-Length"), NULL, 10) ==
              response.length);
    snprintf(fields, sizeof(fields), "If-None-Match: \"x\", W/%s\r\n", etag);
    get(&server, "/", fields, &response);
    cr_assert(response.status == 304 && response.length == 0);
    cr_assert_str_eq(response_field(&response, "ETag"), etag);
    get(&server, "/", "If-None-Match: \"other\"\r\n", &response);
    cr_assert(response.status == 200);
    server_stop(&server);
}

Test(pages, not_modified_since)
{
    struct server server;
    struct response response;
    char fields[256];

    server_start(&server, NULL);
    get(&server, "/", "", &response);
    snprintf(fields, sizeof(fields), "If-Modified-Since: %s\r\n",
             response_field(&response, "Last-Modified"));
    get(&server, "/", fields, &response);
    cr_assert(response.status == 304);
    get(&server, "/", "If-Modified-Since: Mon, 01 Jan 2001 00:00:00 GMT\r\n",
        &response);
    cr_assert(response.status == 200);
    server_stop(&server);
}

/* A folder to serve, beside which lies what must not be reached. */
struct folder {
    char path[64];
    char root[80];
};

static void put_file(const struct folder *folder, const char *name,
                     const char *text)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder->path, name);
    file = fopen(path, "we");
    cr_assert(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void put_folder(const struct folder *folder, const char *name)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", folder->path, name);
    cr_assert(mkdir(path, 0700) == 0);
}

static void put_link(const struct folder *folder, const char *name,
                     const char *target)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", folder->path, name);
    cr_assert(symlink(target, path) == 0);
}

static void folder_make(struct folder *folder)
{
    strcpy(folder->path, "/tmp/ssed-test-XXXXXX");
    cr_assert(mkdtemp(folder->path));
    snprintf(folder->root, sizeof(folder->root), "%s/root", folder->path);
    put_folder(folder, "root");
    put_folder(folder, "root/sub");
    put_file(folder, "secret.txt", "secret");
    put_file(folder, "root/index.html", "<p>home");
    put_file(folder, "root/a b.txt", "0123456789");
    put_file(folder, "root/sub/index.html", "<p>sub");
    put_file(folder, "root/empty", "");
    put_folder(folder, "root/bare");
    put_folder(folder, "root/odd");
    put_folder(folder, "root/odd/index.html");
    put_link(folder, "root/out", "../secret.txt");
    put_link(folder, "root/absolute", "/etc/passwd");
    put_link(folder, "root/up", "..");
    put_link(folder, "root/in", "sub/index.html");
}

static void folder_remove(const struct folder *folder)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -r '%s'", folder->path);
    cr_assert(system(command) == 0);
}

Test(folder, has_its_pages_served)
{
    struct server server;
    struct folder folder;
    struct response response;

    folder_make(&folder);
    server_start(&server, "--root", folder.root);
    get(&server, "/", "", &response);
    cr_assert_str_eq(response.body, "<p>home");
    get(&server, "/a%20b.txt", "", &response);
    cr_assert_str_eq(response.body, "0123456789");
    cr_assert_str_eq(response_field(&response, "Content-Type"),
                     "text/plain; charset=utf-8");
    get(&server, "/sub/", "", &response);
    cr_assert_str_eq(response.body, "<p>sub");
    get(&server, "/sub", "", &response);
    cr_assert(response.status == 301);
    cr_assert_str_eq(response_field(&response, "Location"), "sub/");
    get(&server, "/in", "", &response);
    cr_assert_str_eq(response.body, "<p>sub");
    get(&server, "/empty", "", &response);
    cr_assert(response.status == 200 && response.length == 0);
    get(&server, "/clock.html", "", &response);
    cr_assert(response.status == 404);
    folder_remove(&folder);
    server_stop(&server);
}

/* The redirect is short, however long the path is, and whatever answers wait
 * before it. */
Test(folder, a_redirect_of_the_longest_path)
{
    enum {
        BEFORE = 22,
        SLASHES = 4000
    };
    static char request[SLASHES + 256];
    struct server server;
    struct folder folder;
    struct client client;
    struct response response;

    folder_make(&folder);
    put_folder(&folder, "root/sub/deep");
    server_start(&server, "--root", folder.root);
    client_connect(&client, &server);
    strcpy(request, "GET /sub");
    memset(request + strlen(request), '/', SLASHES);
    strcat(request, "deep HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for (int i = 0; i < BEFORE; i++)
        client_send(&client, "GET /no HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_send(&client, request);
    for (int i = 0; i < BEFORE; i++) {
        client_response(&client, &response, false);
        cr_assert(response.status == 404);
    }
    client_response(&client, &response, false);
    cr_assert(response.status == 301);
    cr_assert_str_eq(response_field(&response, "Location"), "deep/");
    client_close(&client);
    server_stop(&server);
    folder_remove(&folder);
}

Test(folder, there_is_no_way_out)
{
    static const struct {
        const char *path;
        int status;
    } cases[] = {
        { "/out", 404 },
        { "/absolute", 404 },
        { "/up/secret.txt", 404 },
        { "/../secret.txt", 400 },
        { "/sub/../../secret.txt", 400 },
        { "/%2e%2e/secret.txt", 400 },
        { "/..%2fsecret.txt", 400 },
        { "/sub%00.html", 400 },
        { "//etc/passwd", 404 },
        { "/sub//index.html/", 404 },
        { "/index.html/", 404 },
        { "/a\\..\\secret.txt", 404 },
        { "/bare", 301 },
        { "/bare/", 404 },
        { "/odd/", 404 },
    };
    struct server server;
    struct folder folder;
    struct response response;

    folder_make(&folder);
    server_start(&server, "--root", folder.root);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        get(&server, cases[i].path, "", &response);
        cr_assert(response.status == cases[i].status, "%s: %d", cases[i].path,
                  response.status);
        cr_assert(!strstr(response.body, "secret\n"));
    }
    folder_remove(&folder);
    server_stop(&server);
}

Test(folder, ranges)
{
    static const struct {
        const char *range;
        int status;
        const char *body;
        const char *content_range; /* NULL: none */
    } cases[] = {
        { "bytes=0-3", 206, "0123", "bytes 0-3/10" },
        { "bytes=4-", 206, "456789", "bytes 4-9/10" },
        { "bytes=-2", 206, "89", "bytes 8-9/10" },
        { "bytes=-99", 206, "0123456789", "bytes 0-9/10" },
        { "bytes=8-99", 206, "89", "bytes 8-9/10" },
        { "bytes=10-", 416, "", "bytes */10" },
        { "bytes=-0", 416, "", "bytes */10" },
        { "bytes=3-2", 200, "0123456789", NULL },
        { "bytes=0-1,4-5", 200, "0123456789", NULL },
        { "bytes=a-b", 200, "0123456789", NULL },
        { "lines=0-1", 200, "0123456789", NULL },
    };
    struct server server;
    struct folder folder;
    struct response response;
    char fields[64];

    folder_make(&folder);
    server_start(&server, "--root", folder.root);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *got;

        snprintf(fields, sizeof(fields), "Range: %s\r\n", cases[i].range);
        get(&server, "/a%20b.txt", fields, &response);
        cr_assert(response.status == cases[i].status, "%s: %d", cases[i].range,
                  response.status);
        cr_assert_str_eq(response.body, cases[i].body, "%s", cases[i].range);
        got = response_field(&response, "Content-Range");
        cr_assert(cases[i].content_range
                      ? got && strcmp(got, cases[i].content_range) == 0
                      : !got,
                  "%s: %s", cases[i].range, got);
    }
    get(&server, "/a%20b.txt", "Range: bytes=0-3\r\nIf-Range: \"old\"\r\n",
        &response);
    cr_assert(response.status == 200);
    folder_remove(&folder);
    server_stop(&server);
}

/* Larger than all buffers between, on a client that reads late; with another
 * request behind it. */
Test(folder, a_large_file_arrives_whole)
{
    enum {
        SIZE = 8 << 20
    };
    struct server server;
    struct folder folder;
    struct client client;
    struct response response;
    char *bytes = malloc(SIZE + 1), path[128];
    FILE *file;

    folder_make(&folder);
    for (size_t i = 0; i < SIZE; i++)
        bytes[i] = (char)('a' + i % 23);
    snprintf(path, sizeof(path), "%s/large", folder.root);
    file = fopen(path, "we");
    cr_assert(file && fwrite(bytes, 1, SIZE, file) == SIZE);
    cr_assert(fclose(file) == 0);
    server_start(&server, "--root", folder.root);
    client_connect(&client, &server);
    client_send(&client, "GET /large HTTP/1.1\r\n" HOST "\r\n"
                         "GET /healthz HTTP/1.1\r\n" HOST "\r\n");
    get(&server, "/sub/", "", &response); /* others are served meanwhile */
    client_await(&client, SIZE);
    client_use(&client,
               (size_t)(strstr(client.bytes, "\r\n\r\n") + 4 - client.bytes));
    client_await(&client, SIZE);
    cr_assert(memcmp(client.bytes, bytes, SIZE) == 0);
    client_use(&client, SIZE);
    client_response(&client, &response, false);
    cr_assert_str_eq(response.body, "ok\n");
    client_close(&client);
    free(bytes);
    folder_remove(&folder);
    server_stop(&server);
}
