/*
 * What the black-box tests share: a server of their own on a free port, raw
 * clients, responses, event streams. Everything waits for a condition with a
 * deadline and fails the test when it has passed.
 *
 * Environment: SSED is the server's path (./ssed), SSED_UNDER a command that
 * it is run under (valgrind and its options), SSED_OPTIONS options before the
 * test's own (--sandbox off), SSED_PRELOAD a library that is loaded into it,
 * TEST_SLOWNESS a factor for all deadlines.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A running server. Its log goes to a file in memory. */
struct server {
    pid_t pid;
    int log;
    int port;
    char address[128];    /* of the first listener */
    bool errors_expected; /* lines with level=error are no failure */
};

/* Bytes that have been received and not been used. */
struct client {
    int fd;
    char *bytes; /* NUL-terminated */
    size_t length;
    bool ended; /* the peer has closed, or reset */
    bool reset;
};

struct response {
    int status;
    char head[8192];
    char body[65536]; /* NUL-terminated; what is longer is cut */
    size_t length;    /* of the content received */
};

/* A block of an event stream. Fields that it did not have are empty. */
struct block {
    char id[64];
    char retry[16];
    char event[256];
    char data[70000]; /* its lines joined by LF */
    unsigned lines;   /* of the data */
};

struct stream {
    struct client client;
    bool chunked;
    bool complete; /* the last chunk has come */
    char *text;    /* decoded, not used yet; NUL-terminated */
    size_t length;
};

/* Milliseconds that nothing may take longer than. */
int patience(void);

/* Starts a server with these options (the last one NULL), --port 0 and
 * --interval 0 before them, and waits until it is ready, or has found that it
 * cannot reach the log. */
#define server_start(server, ...) \
    server_start_list(server, (const char *[]){ __VA_ARGS__, NULL })
void server_start_list(struct server *server, const char *const options[]);
/* The same with this descriptor, which stays the caller's, as its standard
 * input. */
#define server_start_input(server, input, ...) \
    server_start_list_input(server, input,     \
                            (const char *[]){ __VA_ARGS__, NULL })
void server_start_list_input(struct server *server, int input,
                             const char *const options[]);
/* The same with a listening socket that is handed over as systemd does; it
 * stays the caller's. */
void server_start_handed(struct server *server, int listener,
                         const char *const options[]);
/* Starts one and does not wait; what it says then, server_await_either()
 * tells. */
void server_launch(struct server *server, const char *const options[]);
/* Waits until its log has one of the texts; true if it is the first. */
bool server_await_either(const struct server *server, const char *first,
                         const char *second);
/* Has the servers that are started from now on have a library, named by an
 * environment variable, that stands in for the kernel or for another process:
 * it makes calls that the sandbox refuses. The other variable says what for. */
void stand_in(const char *library, const char *variable, const char *file);
/* Has the servers that are started from now on held up at the call of this
 * variable, see test/black-box/hold.c. */
void hold_up(const char *variable, const char *file);
/* For waiting loops: pauses, and fails when it has been called, with what was
 * zero at first, for longer than anything may take. */
void await_tick(int64_t *deadline, const char *what);
/* Ends it with SIGTERM; it must exit with 0 and have logged no error. */
void server_stop(struct server *server);
/* Waits for its end; returns the exit status, or minus the signal. */
int server_wait(struct server *server);
/* Waits until its log has the text; the log so far. */
void server_await_log(const struct server *server, const char *text);
char *server_log(const struct server *server);
/* Runs the server to its end; returns its exit status, its output in `out`
 * and `err`, which have 4096 bytes each. */
int run_to_end(const char *const options[], char *out, char *err);
/* The same with a descriptor that is handed over. */
int run_to_end_handed(const char *const options[], int handed, char *out,
                      char *err);

/* As server_start_list(), with a descriptor as its standard output. */
void server_start_list_output(struct server *server, int output,
                              const char *const options[]);

/* As if a server with the default sizes had run with this history file in
 * another boot of the machine, until that crashed. */
void run_in_another_boot(const char *path, bool kept_ids);

/* Makes the signed token of a claims set, in JSON, into `token` of `size`
 * bytes. */
void sign_claims(const char *secret, const char *claims, char *token,
                 size_t size);

void client_connect(struct client *client, const struct server *server);
void client_connect_unix(struct client *client, const char *path);
void client_send(struct client *client, const char *text);
void client_send_bytes(struct client *client, const char *bytes, size_t length);
/* Receives until there are `length` bytes, or (0) until the peer ends. */
void client_await(struct client *client, size_t length);
void client_await_end(struct client *client);
/* Receives once, waiting for it; false when the deadline passes. */
bool client_receive(struct client *client, int milliseconds);
void client_use(struct client *client, size_t length);
void client_close(struct client *client);

/* Receives one response; of a HEAD request there is no content. */
void client_response(struct client *client, struct response *response,
                     bool head_only);
/* One request on a connection of its own; the text may be cut short. */
void ask(const struct server *server, const char *request,
         struct response *response);
/* A field's value, or NULL. Valid until the next call. */
const char *response_field(const struct response *response, const char *name);

/* One POST with this media type (NULL: none) and body. */
void post(const struct server *server, const char *target, const char *type,
          const char *body, struct response *response);
/* A body of events, in chunks: its head; a chunk; the last one, and the
 * answer. */
#define EVENTS "text/event-stream"
void body_begin(struct client *client, const struct server *server,
                const char *target);
void body_send(struct client *client, const char *text);
void body_end(struct client *client, struct response *response);
/* Publishes to a topic on a connection of its own; the id of the event. */
uint64_t publish_to(const struct server *server, const char *target,
                    const char *text);
/* Publishes on a connection of its own; the id of the event. */
uint64_t publish(const struct server *server, const char *text);
uint64_t publish_on(struct client *client, const char *text, size_t length);

/* Subscribes: GET TARGET with these fields ("Name: value\r\n"...). */
void stream_open(struct stream *stream, const struct server *server,
                 const char *target, const char *fields);
void stream_open_1_0(struct stream *stream, const struct server *server,
                     const char *target);
/* Takes over a connection on which a subscribing request was sent. */
void stream_begin(struct stream *stream);
/* The next block. False if the stream has ended instead. */
bool stream_next(struct stream *stream, struct block *block);
/* The next block if it has been received, without waiting. */
bool stream_take(struct stream *stream, struct block *block);
/* The next block, which must be of this type. */
void stream_expect(struct stream *stream, struct block *block,
                   const char *type);
/* The next block, which must be this message with this id. */
void stream_expect_message(struct stream *stream, const char *type, uint64_t id,
                           const char *message);
/* The next block, which must have this id, event name and data; NULL: none
 * of it. */
void stream_expect_event(struct stream *stream, const char *id,
                         const char *event, const char *data);
/* The stream must end, with its last chunk. */
void stream_expect_end(struct stream *stream);
void stream_close(struct stream *stream);

/* Values of a flat JSON object; the string unescaped into `value`. */
bool json_string(const char *json, const char *name, char *value, size_t size);
bool json_number(const char *json, const char *name, uint64_t *value);

#endif
