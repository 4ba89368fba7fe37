/*
 * Unit tests of sse.c from inside: its timers, the texts of its streams, where
 * a stream begins, the memory of requests, and what options are made of.
 */
#define main ssed_main

int ssed_main(int argc, char **argv);

/* NOLINTNEXTLINE(bugprone-suspicious-include): the server without its main */
#include "../sse.c"
#undef main

#include <criterion/criterion.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* A server that has memory, and neither sockets nor a loop. */
static void begin(struct server *server, uint32_t connections)
{
    *server = (struct server){
        .options = { .history = 100,
                     .history_bytes = 1 << 20,
                     .first_id = 1,
                     .max_event = 64 << 10,
                     .request_memory = 1 << 20,
                     .sync = SYNC_NEVER },
        .conn_limit = connections,
        .epoll = -1,
    };
    logger.level = LEVEL_ERROR;
    server->in_state[CONN_FREE] = connections;
    server->conns = calloc(connections + 1, sizeof(struct conn));
    cr_assert(server->conns);
    for (int i = 0; i < QUEUES; i++)
        server->queues[i] = (struct queue){ NONE, NONE, 0 };
    for (int i = 0; i < WHEEL_SLOTS; i++)
        server->wheel[i] = NONE;
    init_history(server);
}

/* None of its connections has anything of its own any more. */
static void finish(struct server *server)
{
    while (server->spare) {
        struct exchange *exchange = server->spare;

        server->spare = exchange->next_spare;
        exchange_free(exchange);
    }
    free(server->frame);
    free(server->conns);
    ring_release(&server->ring);
}

/* ----------------------------------------------------- queues and timers */

Test(queues, are_lists_from_which_any_can_leave)
{
    enum {
        MANY = 20
    };
    struct server server;
    uint32_t expected[MANY], count = 0;

    srandom(1);
    begin(&server, MANY);
    for (int round = 0; round < 2000; round++) {
        uint32_t fd = (uint32_t)random() % MANY, at = 0;
        struct conn *conn = conn_at(&server, fd);

        while (at < count && expected[at] != fd)
            at++;
        queue_remove(&server, conn);
        if (at < count) {
            count--;
            memmove(expected + at, expected + at + 1,
                    (count - at) * sizeof(*expected));
        } else {
            queue_push(&server, QUEUE_READY, conn);
            expected[count++] = fd;
        }
        cr_assert(server.queues[QUEUE_READY].count == count);
        if (random() % 8 || count == 0)
            continue;
        cr_assert(queue_pop(&server, QUEUE_READY) ==
                  conn_at(&server, expected[0]));
        memmove(expected, expected + 1, --count * sizeof(*expected));
    }
    finish(&server);
}

/* Each expires once, when it is due or a tick later, however far away that is
 * and however often it is put off. One that lingers is closed by it. */
Test(timers, expire_when_they_are_due)
{
    enum {
        MANY = 300,
        FAR = 200000 /* ms: more than the wheel has slots for */
    };
    struct server server;
    uint64_t due[MANY];

    srandom(2);
    begin(&server, MANY);
    for (uint32_t fd = 0; fd < MANY; fd++) {
        conn_set_state(&server, conn_at(&server, fd), CONN_LINGER);
        due[fd] = (uint64_t)random() % FAR;
        timer_start(&server, conn_at(&server, fd), due[fd]);
    }
    for (; server.now < FAR + 1000; server.now += (uint64_t)random() % 500) {
        uint32_t fd = (uint32_t)random() % MANY;
        struct conn *conn = conn_at(&server, fd);

        do
            expire_timers(&server);
        while (server.wheel_tick < server.now >> TICK_SHIFT);
        for (uint32_t i = 0; i < MANY; i++)
            cr_assert((conn_at(&server, i)->state == CONN_CLOSED) ==
                          (due[i] >> TICK_SHIFT < server.now >> TICK_SHIFT),
                      "due at %llu, now %llu", (unsigned long long)due[i],
                      (unsigned long long)server.now);
        if (conn->state == CONN_LINGER && random() % 2) {
            due[fd] = server.now + (uint64_t)random() % FAR;
            timer_start(&server, conn, due[fd] - server.now);
        }
        cr_assert(wheel_next(&server) > server.now ||
                  wheel_next(&server) == UINT64_MAX);
    }
    finish(&server);
}

/* ------------------------------------------------------ texts of streams */

/* A message takes the splice text after its `"type":"`, and is JSON whatever
 * the bytes are. */
Test(texts, a_message_is_json)
{
    static const char message[] = "\"message\":\"a\\\"\\\\\\n\\u0001\\ufffdz\"";
    char bytes[512];
    struct text text = { bytes, sizeof(bytes), 0 };
    size_t splice = put_message(&text, 5, slice_of("a\"\\\n\x01\xFFz"));

    cr_assert(memcmp(text.bytes + splice - 8, "\"type\":\"", 8) == 0);
    cr_assert(memmem(text.bytes, text.length, message, strlen(message)));
}

/* ------------------------------------------------ where a stream begins */

struct start_row {
    const char *header, *query;
    uint64_t last; /* the place: what is behind the reader */
    uint64_t position;
    uint64_t replay;
    bool gap;
};

/* Ids 1 to 150 of one topic, of which 51 to 150 are held. */
Test(start, is_where_the_request_says)
{
    static const struct start_row rows[] = {
        { "", "", 150, 150, 0, false },
        { "150", "", 150, 150, 0, false },
        { "149", "", 149, 149, 1, false },
        { "50", "", 50, 50, 100, false },
        { "49", "", 50, 50, 100, true },
        { "0", "", 50, 50, 100, true },
        { "151", "", 50, 50, 100, true },
        { "x", "", 50, 50, 100, true },
        { "007", "", 50, 50, 100, true },
        { "earliest", "", 50, 50, 100, false },
        { "", "lastEventId=149", 149, 149, 1, false },
        { "", "last_event_id=149", 149, 149, 1, false },
        { "148", "lastEventId=149", 148, 148, 2, false },
        { "", "last=3", 147, 147, 3, false },
        { "", "last=0", 150, 150, 0, false },
        { "", "last=9999", 50, 50, 100, false },
        { "149", "last=3", 149, 149, 1, false },
    };
    struct server server;
    struct topic *topic;

    begin(&server, 1);
    topic = topic_hold(&server.ring, SLICE("t"));
    for (uint64_t i = 1; i <= 150; i++) {
        struct event event = { .data = SLICE("x") };
        uint64_t id;

        cr_assert(publish_event(&server, topic, &event, &id) == PUBLISHED);
        cr_assert(id == i);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct place place = { .topic = topic };
        struct reader reader = { .places = &place, .count = 1 };
        struct request request = { .last_event_id = slice_of(rows[i].header),
                                   .query = slice_of(rows[i].query) };
        char buffer[REQUESTED_MAX];
        struct start start;
        uint64_t count;

        cr_assert(find_count(&request, &count));
        reader_start(&server.ring, &reader, find_requested(&request, buffer),
                     count, &start);
        cr_assert(place.last == rows[i].last, "row %zu", i);
        cr_assert(start.position == rows[i].position, "row %zu", i);
        cr_assert(start.replay == rows[i].replay, "row %zu", i);
        cr_assert(start.gap == rows[i].gap, "row %zu", i);
    }
    finish(&server);
}

/* ------------------------------------------------- the memory of requests */

Test(memory, is_bounded_and_comes_back)
{
    enum {
        MANY = 1000
    };
    struct server server;
    struct exchange *taken[MANY];
    size_t count = 0;
    char *bytes = NULL;
    size_t room = 0;

    begin(&server, 1);
    while (count < MANY && (taken[count] = exchange_take(&server)))
        count++;
    cr_assert(count > 100 && count < MANY && errno == EAGAIN);
    cr_assert(server.request_memory <= server.options.request_memory);
    cr_assert(!grow(&server, &bytes, &room, 100 << 10) && !bytes && !room);
    while (count)
        exchange_release(&server, taken[--count]);
    cr_assert(server.request_memory == 0);
    cr_assert(server.spare_count == SPARE_EXCHANGES);
    cr_assert(grow(&server, &bytes, &room, 1000) && room == 1000);
    cr_assert(grow(&server, &bytes, &room, 10) && room == 1000);
    cr_assert(server.request_memory == 1000);
    let_go(&server, &bytes, &room);
    cr_assert(server.request_memory == 0);
    finish(&server);
}

/* -------------------------------------------------- options and the log */

Test(log, no_byte_ends_a_value)
{
    static const struct {
        const char *value, *quoted;
    } rows[] = {
        { "chat/42", "chat/42" },
        { "", "\"\"" },
        { "a b", "\"a b\"" },
        { "a\"b\\", "\"a\\\"b\\\\\"" },
        { "a\nb\x1B[1m", "\"a\\x0ab\\x1b[1m\"" },
        { "\xC3\xA4", "\"\\xc3\\xa4\"" },
    };
    char buffer[64];

    for (size_t i = 0; i < COUNT(rows); i++)
        cr_assert_str_eq(
            log_quote(buffer, sizeof(buffer), slice_of(rows[i].value)),
            rows[i].quoted);
    for (size_t size = 8; size < sizeof(buffer); size++) {
        log_quote(buffer, size, slice_of("\x01\x02\x03\x04\x05\x06\x07\x08"));
        cr_assert(strlen(buffer) < size && buffer[0] == '"');
    }
}

Test(options, addresses)
{
    static const struct {
        const char *name, *host, *port; /* NULL: it is none */
    } rows[] = {
        { "127.0.0.1:3000", "127.0.0.1", "3000" },
        { "[::1]:0", "::1", "0" },
        { "3000", "127.0.0.1", "3000" },
        { "localhost:80", "127.0.0.1", "80" },
        { "::1:80", NULL, NULL },
        { ":80", NULL, NULL },
        { "1.2.3.4:", NULL, NULL },
        { "1.2.3.4:65536", NULL, NULL },
        { "1.2.3.4:8o", NULL, NULL },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        char host[64];
        const char *port;
        bool split = split_address(rows[i].name, host, &port);

        cr_assert(split == (rows[i].host != NULL), "%s", rows[i].name);
        if (!split)
            continue;
        cr_assert_str_eq(host, rows[i].host);
        cr_assert_str_eq(port, rows[i].port);
    }
}
