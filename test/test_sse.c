/*
 * Unit tests of sse.c from inside: the texts of its streams, where a stream
 * begins, and how values stand in the log.
 */
#define main ssed_main

int ssed_main(int argc, char **argv);

/* NOLINTNEXTLINE(bugprone-suspicious-include): the server without its main */
#include "../sse.c"
#undef main

#include <criterion/criterion.h>

/* A server that has a history, and neither connections nor a loop. */
static void begin(struct server *server)
{
    *server = (struct server){
        .options = { .history = 100,
                     .history_bytes = 1 << 20,
                     .first_id = 1,
                     .max_event = 64 << 10,
                     .sync = SYNC_NEVER },
    };
    logger.level = LEVEL_ERROR;
    init_history(server);
}

static void finish(struct server *server)
{
    free(server->frame);
    ring_release(&server->ring);
}

/* ------------------------------------------------------ texts of streams */

/* A message takes the splice text after its `"type":"`, and is JSON whatever
 * the bytes are. */
Test(texts, a_message_is_json)
{
    static const char message[] = "\"message\":\"a\\\"\\\\\\n\\u0001\\ufffdz\"";
    char bytes[512];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct event event = { .data = slice_of("a\"\\\n\x01\xFFz") };
    size_t splice = put_message(&text, 5, &event);

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

    begin(&server);
    topic = topic_hold(&server.ring, SLICE("t"));
    for (uint64_t i = 1; i <= 150; i++) {
        struct event event = { .data = SLICE("x") };

        cr_assert(publish_event(&server, topic, &event, NULL) == PUBLISHED);
        cr_assert(server.ring.newest_id == i);
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

/* ------------------------------------------------------------------ ends */

/* An end that would evict what a subscriber waits for is made later; one that
 * has been made otherwise is not made twice, also if the topic goes on. */
Test(ends, of_broken_promises_wait_for_room)
{
    struct event event = { .data = SLICE("x") };
    struct event end = { .finishes = true };
    struct server server;
    struct topic *topic;

    begin(&server);
    server.ring.limit = 2;
    topic = topic_hold(&server.ring, SLICE("t"));
    for (int i = 0; i < 2; i++)
        publish_event(&server, topic, &event, NULL);
    server.ready_from = server.ring.oldest;
    cr_assert(topic_promise(&server.ring, topic));
    topic_settle(&server.ring, topic, true);
    cr_assert(!finish_broken(&server) && !topic_finished(&server.ring, topic));
    server.ready_from = 0;
    cr_assert(finish_broken(&server) && topic_finished(&server.ring, topic));
    cr_assert(server.ring.newest_id == 3);
    cr_assert(topic_promise(&server.ring, topic));
    topic_settle(&server.ring, topic, true);
    publish_event(&server, topic, &event, NULL);
    publish_event(&server, topic, &end, NULL);
    publish_event(&server, topic, &event, NULL);
    cr_assert(finish_broken(&server) && !topic_finished(&server.ring, topic));
    cr_assert(topic->references == 1);
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
