/* The black-box tests' server, clients and streams: see harness.h. */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PATIENCE = 10000,
    OPTIONS_MAX = 160
};

int patience(void)
{
    const char *slowness = getenv("TEST_SLOWNESS");

    return PATIENCE * (slowness ? atoi(slowness) : 1);
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pause_briefly(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
}

void await_tick(int64_t *deadline, const char *what)
{
    if (*deadline == 0)
        *deadline = now_ms() + patience();
    cr_assert(now_ms() <= *deadline, "waited for %s", what);
    pause_briefly();
}

/* ------------------------------------------------------------- processes */

void stand_in(const char *library, const char *variable, const char *file)
{
    const char *path = getenv(library);

    if (!path) {
        cr_assert_fail("%s: make test sets it", library);
        return;
    }
    setenv("SSED_PRELOAD", path, 1);
    setenv("SSED_OPTIONS", "--sandbox off", 1);
    setenv(variable, file, 1);
}

void hold_up(const char *variable, const char *file)
{
    stand_in("HOLD", variable, file);
}

/* Appends the words of an environment variable, which are split in place. */
static int add_words(const char **arguments, int count, const char *variable)
{
    const char *value = getenv(variable);
    char *rest = NULL, *words = strdup(value ? value : "");

    for (char *word = strtok_r(words, " \t\n", &rest); word;
         word = strtok_r(NULL, " \t\n", &rest))
        arguments[count++] = word;
    return count;
}

/* What the child has in place of the test's own. */
struct standard {
    int in, out, err;
    int listener; /* handed over as descriptor 3; 0: none */
};

static _Noreturn void run_child(const char *const options[],
                                struct standard standard, pid_t parent)
{
    const char *arguments[OPTIONS_MAX];
    const char *path = getenv("SSED");
    const char *preload = getenv("SSED_PRELOAD");
    int count = add_words(arguments, 0, "SSED_UNDER");

    /* whatever happens to the test, its server ends with it */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(126);
    arguments[count++] = path ? path : "./ssed";
    count = add_words(arguments, count, "SSED_OPTIONS");
    for (int i = 0; options[i]; i++)
        arguments[count++] = options[i];
    arguments[count] = NULL;
    if (preload)
        setenv("LD_PRELOAD", preload, 1);
    if (standard.listener) {
        char pid[16];

        snprintf(pid, sizeof(pid), "%d", getpid());
        setenv("LISTEN_PID", pid, 1);
        dup2(standard.listener, 3);
    }
    dup2(standard.in, STDIN_FILENO);
    dup2(standard.out, STDOUT_FILENO);
    dup2(standard.err, STDERR_FILENO);
    execvp(arguments[0], (char *const *)(uintptr_t)arguments);
    _exit(127);
}

static pid_t start_child(const char *const options[], struct standard standard)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    cr_assert(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0)
        run_child(options, standard, parent);
    return pid;
}

static int await_exit(pid_t pid)
{
    int64_t deadline = now_ms() + patience();
    int status;

    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() > deadline) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            cr_assert_fail("the server did not end");
        }
        pause_briefly();
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static char *read_all(int fd)
{
    struct stat status;
    char *text;
    ssize_t length;

    fstat(fd, &status);
    text = calloc(1, (size_t)status.st_size + 1);
    cr_assert(text);
    length = pread(fd, text, (size_t)status.st_size, 0);
    cr_assert(length >= 0);
    return text;
}

int run_to_end(const char *const options[], char *out, char *err)
{
    return run_to_end_handed(options, 0, out, err);
}

int run_to_end_handed(const char *const options[], int handed, char *out,
                      char *err)
{
    int out_fd = memfd_create("out", MFD_CLOEXEC);
    int err_fd = memfd_create("err", MFD_CLOEXEC);
    struct standard standard = { STDIN_FILENO, out_fd, err_fd, handed };
    int status = await_exit(start_child(options, standard));
    char *text = read_all(out_fd);

    snprintf(out, 4096, "%s", text);
    free(text);
    text = read_all(err_fd);
    snprintf(err, 4096, "%s", text);
    free(text);
    close(out_fd);
    close(err_fd);
    return status;
}

char *server_log(const struct server *server)
{
    return read_all(server->log);
}

void server_await_log(const struct server *server, const char *text)
{
    int64_t deadline = now_ms() + patience();

    for (;;) {
        char *log = server_log(server);
        bool found = strstr(log, text) != NULL;
        int status;

        if (!found && (now_ms() > deadline ||
                       waitpid(server->pid, &status, WNOHANG) != 0))
            cr_assert_fail("no '%s' in the log:\n%s", text, log);
        free(log);
        if (found)
            return;
        pause_briefly();
    }
}

bool server_await_either(const struct server *server, const char *first,
                         const char *second)
{
    int64_t deadline = 0;

    for (;;) {
        char *log = server_log(server);
        bool is_first = strstr(log, first) != NULL;
        bool found = is_first || strstr(log, second) != NULL;

        free(log);
        if (found)
            return is_first;
        await_tick(&deadline, second);
    }
}

static void find_address(struct server *server)
{
    static const char key[] = "event=listening address=";
    char *log = server_log(server);
    const char *begin = strstr(log, key);
    const char *colon;

    cr_assert(begin, "no listener in the log: %s", log);
    snprintf(server->address, sizeof(server->address), "%.*s",
             (int)strcspn(begin + strlen(key), "\n"), begin + strlen(key));
    colon = strrchr(server->address, ':');
    server->port = colon ? atoi(colon + 1) : 0;
    free(log);
}

void server_start_list(struct server *server, const char *const options[])
{
    server_start_list_input(server, STDIN_FILENO, options);
}

/* `output` and `listener` are 0 for none: the output is the log then. */
static void launch(struct server *server, int input, int output, int listener,
                   const char *const options[])
{
    const char *all[OPTIONS_MAX] = { "--interval", "0" };
    bool listens = listener;
    int count = 2;

    for (int i = 0; options[i]; i++) {
        listens = listens || strcmp(options[i], "--listen") == 0 ||
                  strcmp(options[i], "--port") == 0;
        all[count++] = options[i];
    }
    if (!listens) {
        all[count++] = "--port";
        all[count++] = "0";
    }
    all[count] = NULL;
    *server = (struct server){ .log = memfd_create("log", MFD_CLOEXEC) };
    server->pid = start_child(
        all, (struct standard){ input, output ? output : server->log,
                                server->log, listener });
}

void server_launch(struct server *server, const char *const options[])
{
    launch(server, STDIN_FILENO, 0, 0, options);
}

static void start_list(struct server *server, int input, int output,
                       int listener, const char *const options[])
{
    launch(server, input, output, listener, options);
    server_await_either(server, "event=ready", "event=log state=away");
    find_address(server);
}

void server_start_list_input(struct server *server, int input,
                             const char *const options[])
{
    start_list(server, input, 0, 0, options);
}

void server_start_list_output(struct server *server, int output,
                              const char *const options[])
{
    start_list(server, STDIN_FILENO, output, 0, options);
}

void server_start_handed(struct server *server, int listener,
                         const char *const options[])
{
    setenv("LISTEN_FDS", "1", 1);
    start_list(server, STDIN_FILENO, 0, listener, options);
    unsetenv("LISTEN_FDS");
}

int server_wait(struct server *server)
{
    int status = await_exit(server->pid);

    server->pid = 0;
    return status;
}

static void check_log(const struct server *server)
{
    static const char *const bad[] = { "Sanitizer", "runtime error",
                                       "Assertion", "==ERROR", "level=error" };
    size_t count = sizeof(bad) / sizeof(bad[0]);
    char *log = server_log(server);

    if (server->errors_expected)
        count--;
    for (size_t i = 0; i < count; i++)
        cr_assert(!strstr(log, bad[i]), "'%s' in the log:\n%s", bad[i], log);
    free(log);
}

void server_stop(struct server *server)
{
    int status;
    char *log;

    kill(server->pid, SIGTERM);
    status = server_wait(server);
    log = server_log(server);
    cr_assert(status == 0, "exit status %d, log:\n%s", status, log);
    free(log);
    check_log(server);
    close(server->log);
}

/* --------------------------------------------------------------- clients */

static void client_begin(struct client *client, int fd,
                         const struct sockaddr *address, socklen_t length)
{
    *client = (struct client){ .fd = fd, .bytes = calloc(1, 1) };
    cr_assert(fd >= 0 && client->bytes);
    if (connect(fd, address, length) == 0)
        return;
    /* the server may reset it before connect(2) has returned */
    cr_assert(errno == ECONNRESET, "connect: %s", strerror(errno));
    client->ended = client->reset = true;
}

void client_connect(struct client *client, const struct server *server)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)server->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };

    client_begin(client, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
                 (struct sockaddr *)&address, sizeof(address));
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
}

void client_connect_unix(struct client *client, const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    client_begin(client, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0),
                 (struct sockaddr *)&address, sizeof(address));
}

void client_send_bytes(struct client *client, const char *bytes, size_t length)
{
    while (length) {
        struct pollfd room = { .fd = client->fd, .events = POLLOUT };
        ssize_t sent;

        cr_assert(poll(&room, 1, patience()) == 1, "the server reads nothing");
        sent = send(client->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN)
            continue;
        if (sent < 0)
            return; /* it has closed: what it said is to be read */
        bytes += sent;
        length -= (size_t)sent;
    }
}

void client_send(struct client *client, const char *text)
{
    client_send_bytes(client, text, strlen(text));
}

bool client_receive(struct client *client, int milliseconds)
{
    struct pollfd data = { .fd = client->fd, .events = POLLIN };
    char bytes[65536];
    ssize_t n;

    if (poll(&data, 1, milliseconds) != 1)
        return false;
    n = recv(client->fd, bytes, sizeof(bytes), 0);
    if (n <= 0) {
        client->ended = true;
        client->reset = n < 0;
        return true;
    }
    client->bytes = realloc(client->bytes, client->length + (size_t)n + 1);
    cr_assert(client->bytes);
    memcpy(client->bytes + client->length, bytes, (size_t)n);
    client->length += (size_t)n;
    client->bytes[client->length] = '\0';
    return true;
}

void client_await(struct client *client, size_t length)
{
    int64_t deadline = now_ms() + patience();

    while (client->length < length && !client->ended)
        cr_assert(client_receive(client, patience()) && now_ms() < deadline,
                  "waited for %zu bytes, have: %s", length, client->bytes);
    cr_assert(client->length >= length, "the connection ended, had: %s",
              client->bytes);
}

void client_await_end(struct client *client)
{
    int64_t deadline = now_ms() + patience();

    while (!client->ended)
        cr_assert(client_receive(client, patience()) && now_ms() < deadline,
                  "waited for the end, have: %s", client->bytes);
}

void client_use(struct client *client, size_t length)
{
    client->length -= length;
    memmove(client->bytes, client->bytes + length, client->length + 1);
}

void client_close(struct client *client)
{
    close(client->fd);
    free(client->bytes);
    client->bytes = NULL;
}

const char *response_field(const struct response *response, const char *name)
{
    static char value[1024];
    size_t length = strlen(name);

    for (const char *line = strstr(response->head, "\r\n"); line;
         line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, length) != 0 || line[2 + length] != ':')
            continue;
        snprintf(value, sizeof(value), "%.*s",
                 (int)strcspn(line + length + 4, "\r"), line + length + 4);
        return value;
    }
    return NULL;
}

/* Receives a head; it is then used. */
static void client_head(struct client *client, struct response *response)
{
    const char *end;

    while (!(end = strstr(client->bytes, "\r\n\r\n")))
        client_await(client, client->length + 1);
    memset(response->head, 0, sizeof(response->head));
    cr_assert((size_t)(end - client->bytes) < sizeof(response->head) - 2);
    memcpy(response->head, client->bytes, (size_t)(end - client->bytes) + 2);
    client_use(client, (size_t)(end - client->bytes) + 4);
    cr_assert(strncmp(response->head, "HTTP/1.1 ", 9) == 0, "head: %s",
              response->head);
    response->status = atoi(response->head + 9);
}

void client_response(struct client *client, struct response *response,
                     bool head_only)
{
    const char *field;
    size_t length = 0, copied;

    client_head(client, response);
    field = response_field(response, "Content-Length");
    if (field && !head_only)
        length = (size_t)atol(field);
    client_await(client, length);
    copied =
        length < sizeof(response->body) ? length : sizeof(response->body) - 1;
    memcpy(response->body, client->bytes, copied);
    response->body[copied] = '\0';
    response->length = length;
    client_use(client, length);
}

void ask(const struct server *server, const char *request,
         struct response *response)
{
    struct client client;

    client_connect(&client, server);
    client_send(&client, request);
    client_response(&client, response, strncmp(request, "HEAD ", 5) == 0);
    client_close(&client);
}

uint64_t publish_on(struct client *client, const char *text, size_t length)
{
    struct response response;
    char head[256], id[64];

    snprintf(head, sizeof(head),
             "POST /events HTTP/1.1\r\nHost: localhost\r\n"
             "Content-Length: %zu\r\n\r\n",
             length);
    client_send(client, head);
    client_send_bytes(client, text, length);
    client_response(client, &response, false);
    cr_assert(response.status == 201, "%d: %s", response.status, response.body);
    cr_assert(json_string(response.body, "id", id, sizeof(id)));
    return strtoull(id, NULL, 10);
}

void post(const struct server *server, const char *target, const char *type,
          const char *body, struct response *response)
{
    size_t size = strlen(target) + strlen(body) + 256;
    char *request = malloc(size);

    cr_assert(request);
    snprintf(request, size,
             "POST %s HTTP/1.1\r\nHost: localhost\r\n%s%s%s"
             "Content-Length: %zu\r\n\r\n%s",
             target, type ? "Content-Type: " : "", type ? type : "",
             type ? "\r\n" : "", strlen(body), body);
    ask(server, request, response);
    free(request);
}

void body_begin(struct client *client, const struct server *server,
                const char *target)
{
    char head[256];

    client_connect(client, server);
    snprintf(head, sizeof(head),
             "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: " EVENTS
             "; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
             target);
    client_send(client, head);
}

void body_send(struct client *client, const char *text)
{
    char size[32];

    snprintf(size, sizeof(size), "%zx\r\n", strlen(text));
    client_send(client, size);
    client_send(client, text);
    client_send(client, "\r\n");
}

void body_end(struct client *client, struct response *response)
{
    client_send(client, "0\r\n\r\n");
    client_response(client, response, false);
}

uint64_t publish_to(const struct server *server, const char *target,
                    const char *text)
{
    struct response response;
    char id[32];

    post(server, target, NULL, text, &response);
    cr_assert(response.status == 201, "%d %s", response.status, response.body);
    cr_assert(json_string(response.body, "id", id, sizeof(id)));
    return strtoull(id, NULL, 10);
}

uint64_t publish(const struct server *server, const char *text)
{
    struct client client;
    uint64_t id;

    client_connect(&client, server);
    id = publish_on(&client, text, strlen(text));
    client_close(&client);
    return id;
}

/* --------------------------------------------------------------- streams */

void stream_begin(struct stream *stream)
{
    struct response response;
    const char *coding;

    client_head(&stream->client, &response);
    cr_assert(response.status == 200, "%s", response.head);
    coding = response_field(&response, "Transfer-Encoding");
    stream->chunked = coding != NULL;
    stream->complete = false;
    stream->length = 0;
    stream->text = calloc(1, 1);
    cr_assert(stream->text);
}

static void stream_request(struct stream *stream, const struct server *server,
                           const char *request)
{
    client_connect(&stream->client, server);
    client_send(&stream->client, request);
    stream_begin(stream);
}

void stream_open(struct stream *stream, const struct server *server,
                 const char *target, const char *fields)
{
    char request[12288];

    snprintf(request, sizeof(request),
             "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", target, fields);
    stream_request(stream, server, request);
}

void stream_open_1_0(struct stream *stream, const struct server *server,
                     const char *target)
{
    char request[1024];

    snprintf(request, sizeof(request), "GET %s HTTP/1.0\r\n\r\n", target);
    stream_request(stream, server, request);
}

static void stream_append(struct stream *stream, size_t length)
{
    stream->text = realloc(stream->text, stream->length + length + 1);
    cr_assert(stream->text);
    memcpy(stream->text + stream->length, stream->client.bytes, length);
    stream->length += length;
    stream->text[stream->length] = '\0';
    client_use(&stream->client, length);
}

/* Decodes one chunk, if one has arrived whole. */
static bool stream_chunk(struct stream *stream)
{
    struct client *client = &stream->client;
    const char *line_end = strstr(client->bytes, "\r\n");
    char *digits_end;
    size_t size, head;

    if (!line_end)
        return false;
    size = strtoul(client->bytes, &digits_end, 16);
    head = (size_t)(line_end - client->bytes) + 2;
    cr_assert(digits_end == line_end && digits_end > client->bytes,
              "no chunk size: %.40s", client->bytes);
    if (client->length < head + size + 2)
        return false;
    client_use(client, head);
    stream_append(stream, size);
    cr_assert(strncmp(client->bytes, "\r\n", 2) == 0, "no end of chunk");
    client_use(client, 2);
    stream->complete = size == 0;
    return true;
}

/* Takes in what has been received; false if there is nothing new. */
static bool stream_decode(struct stream *stream)
{
    if (stream->complete)
        return false;
    if (stream->chunked)
        return stream_chunk(stream);
    if (stream->client.length == 0)
        return false;
    stream_append(stream, stream->client.length);
    return true;
}

static void take_field(struct block *block, const char *line, size_t length)
{
    static const struct {
        const char *name;
        size_t place, size;
    } fields[] = {
        { "id: ", offsetof(struct block, id), sizeof(block->id) },
        { "retry: ", offsetof(struct block, retry), sizeof(block->retry) },
        { "event: ", offsetof(struct block, event), sizeof(block->event) },
        { "data: ", offsetof(struct block, data), sizeof(block->data) },
    };

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        size_t name = strlen(fields[i].name), used;

        if (length < name || strncmp(line, fields[i].name, name) != 0)
            continue;
        used = 0;
        if (fields[i].place == offsetof(struct block, data) &&
            block->lines++ > 0) {
            used = strlen(block->data);
            block->data[used++] = '\n';
        }
        cr_assert(used + length - name < fields[i].size);
        snprintf((char *)block + fields[i].place + used, fields[i].size - used,
                 "%.*s", (int)(length - name), line + name);
        return;
    }
    cr_assert_fail("an unknown line: %.*s", (int)length, line);
}

static void take_block(struct stream *stream, const char *end,
                       struct block *block)
{
    const char *line = stream->text;

    block->id[0] = block->retry[0] = block->event[0] = block->data[0] = '\0';
    block->lines = 0;
    while (line <= end) {
        size_t length = strcspn(line, "\n");

        take_field(block, line, length);
        line += length + 1;
    }
    stream->length -= (size_t)(end - stream->text) + 2;
    memmove(stream->text, end + 2, stream->length + 1);
}

bool stream_take(struct stream *stream, struct block *block)
{
    const char *end;

    while (!(end = strstr(stream->text, "\n\n")))
        if (!stream_decode(stream))
            return false;
    take_block(stream, end, block);
    return true;
}

bool stream_next(struct stream *stream, struct block *block)
{
    int64_t deadline = now_ms() + patience();

    while (!stream_take(stream, block)) {
        if (stream->complete || stream->client.ended)
            return false;
        cr_assert(client_receive(&stream->client, patience()) &&
                      now_ms() < deadline,
                  "waited for an event, have: %s", stream->text);
    }
    return true;
}

void stream_expect(struct stream *stream, struct block *block, const char *type)
{
    char got[64];

    cr_assert(stream_next(stream, block), "the stream ended before '%s'", type);
    cr_assert(json_string(block->data, "type", got, sizeof(got)), "no type: %s",
              block->data);
    cr_assert_str_eq(got, type, "got %s for %s: %s", got, type, block->data);
}

void stream_expect_message(struct stream *stream, const char *type, uint64_t id,
                           const char *message)
{
    struct block block;
    char got[4096];
    uint64_t number;

    stream_expect(stream, &block, type);
    cr_assert(strtoull(block.id, NULL, 10) == id, "id %s, not %llu", block.id,
              (unsigned long long)id);
    cr_assert(json_number(block.data, "id", &number) && number == id);
    cr_assert(json_string(block.data, "message", got, sizeof(got)));
    cr_assert_str_eq(got, message);
}

void stream_expect_event(struct stream *stream, const char *id,
                         const char *event, const char *data)
{
    struct block block;

    cr_assert(stream_next(stream, &block), "the stream ended before %s %s", id,
              data);
    cr_assert(strcmp(block.id, id ? id : "") == 0 &&
                  strcmp(block.event, event ? event : "") == 0 &&
                  strcmp(block.data, data ? data : "") == 0,
              "got %s '%s' '%s' for %s '%s' '%s'", block.id, block.event,
              block.data, id, event, data);
}

void stream_expect_end(struct stream *stream)
{
    struct block block;

    cr_assert(!stream_next(stream, &block), "no end but %s %s", block.id,
              block.data);
    cr_assert(stream->complete || !stream->chunked, "it was cut");
}

void stream_close(struct stream *stream)
{
    client_close(&stream->client);
    free(stream->text);
    stream->text = NULL;
}

/* ------------------------------------------------------------------ JSON */

/* Passes over a string that begins after its quote; after its end. */
static const char *skip_string(const char *at)
{
    while (*at && *at != '"')
        at += *at == '\\' ? 2 : 1;
    return *at ? at + 1 : NULL;
}

/* Where the value of that name begins, or NULL. */
static const char *json_value(const char *json, const char *name)
{
    size_t length = strlen(name);
    const char *at = *json == '{' ? json + 1 : NULL;

    while (at && *at == '"') {
        const char *key = at + 1;
        const char *end = skip_string(key);

        if (!end || *end != ':')
            return NULL;
        if ((size_t)(end - 1 - key) == length &&
            strncmp(key, name, length) == 0)
            return end + 1;
        at = end[1] == '"' ? skip_string(end + 2)
                           : end + 1 + strcspn(end + 1, ",}");
        at = at && *at == ',' ? at + 1 : NULL;
    }
    return NULL;
}

static size_t put_utf8(char *out, unsigned long code)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | (code >> 6));
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    out[0] = (char)(0xE0 | (code >> 12));
    out[1] = (char)(0x80 | ((code >> 6) & 0x3F));
    out[2] = (char)(0x80 | (code & 0x3F));
    return 3;
}

/* Unescapes what is after the backslash at `at`; after it. */
static const char *unescape(const char *at, char *out, size_t *length)
{
    static const char letters[] = "bfnrt", values[] = "\b\f\n\r\t";
    const char *letter = strchr(letters, at[1]);
    char digits[5] = "";

    if (at[1] == 'u') {
        memcpy(digits, at + 2, 4);
        *length = put_utf8(out, strtoul(digits, NULL, 16));
        return at + 6;
    }
    *out = at[1];
    if (letter)
        *out = values[letter - letters];
    *length = 1;
    return at + 2;
}

bool json_string(const char *json, const char *name, char *value, size_t size)
{
    const char *at = json_value(json, name);
    size_t out = 0;

    if (!at || *at != '"')
        return false;
    at++;
    while (*at != '"' && out + 4 < size) {
        size_t length = 1;

        cr_assert((unsigned char)*at >= ' ', "a control byte in JSON");
        if (*at == '\\')
            at = unescape(at, value + out, &length);
        else
            value[out] = *at++;
        out += length;
    }
    value[out] = '\0';
    return true;
}

bool json_number(const char *json, const char *name, uint64_t *value)
{
    const char *at = json_value(json, name);
    char *end;

    if (!at || *at < '0' || *at > '9')
        return false;
    *value = strtoull(at, &end, 10);
    return *end == ',' || *end == '}';
}
