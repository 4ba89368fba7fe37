/*
 * Fuzzes what is read from Redis: the input is what comes on the connection
 * that reads, at once, and again in pieces whose lengths follow from its bytes.
 * Both give the same entries, and no value goes over its bound.
 */
/* NOLINTNEXTLINE(bugprone-suspicious-include): the connections from inside */
#include "../../http.c"

enum {
    EVENT_MAX = 64,
};

struct digest {
    uint64_t value;
    uint64_t count;
};

static struct digest *digest;

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/ */
static void add(const char *bytes, size_t length)
{
    digest->value = (digest->value ^ length) * UINT64_C(0x100000001B3);
    for (size_t i = 0; i < length; i++)
        digest->value =
            (digest->value ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001B3);
}

static bool on_entry(struct server *server, const struct log_entry *entry)
{
    const struct slice *fields = entry->fields;

    (void)server;
    check(fields[ENTRY_DATA].length <= EVENT_MAX + 1);
    check(fields[ENTRY_TOPIC].length <= TOPIC_NAME_MAX + 1);
    check(fields[ENTRY_EVENT].length <= EVENT_NAME_MAX + 1);
    for (int i = 0; i < ENTRY_FIELDS; i++)
        add(fields[i].data, fields[i].length);
    digest->value += entry->ms * 31 + entry->id;
    /* now and then there is no room at first */
    return ++digest->count % 5 != 0;
}

static void on_gap(struct server *server, uint64_t id)
{
    (void)server;
    digest->value += id * 7;
}

static void on_change(struct server *server)
{
    (void)server;
}

static void on_end(struct server *server, uint32_t fd, void *context,
                   enum flight_end end, uint64_t id, const char *why)
{
    (void)server, (void)fd, (void)context, (void)end, (void)id, (void)why;
}

static const struct handlers fuzz_handlers = {
    .log_changed = on_change,
    .log_round = on_change,
    .entry = on_entry,
    .log_gap = on_gap,
    .flight_ended = on_end,
};

static void take(struct http *http, const uint8_t *bytes, size_t length)
{
    struct redis_peer *reader = &http->redis.reader;

    reader->in.bytes = malloc(length + 1); /* no byte behind it is there */
    memcpy(reader->in.bytes, bytes, length);
    reader->in.start = 0;
    reader->in.end = length;
    while (http->redis.state != REDIS_RESTING &&
           !peer_take(http, reader, UINT64_MAX))
        ;
    free(reader->in.bytes);
    reader->in.bytes = NULL;
    /* what has been said goes nowhere */
    reader->out.start = reader->out.end = 0;
}

static struct digest run(const uint8_t *input, size_t length, bool in_pieces)
{
    static struct http http;
    static char entry[2 * EVENT_MAX + 4096], out[2][4096];
    struct digest result = { 0 };
    size_t at = 0;

    http = (struct http){ .handlers = &fuzz_handlers,
                          .redis = { .address = "",
                                     .key = "k",
                                     .max_event = EVENT_MAX,
                                     .state = REDIS_CATCHING_UP,
                                     .flight_first = 1,
                                     .flight_next = 1,
                                     .flight_answered = 1,
                                     .run_id = "run",
                                     .entry_bytes = entry } };
    digest = &result;
    http.redis.writer.fd = http.redis.reader.fd = -1;
    http.redis.writer.out = (struct buffer){ out[0], sizeof(out[0]), 0, 0 };
    http.redis.reader.out = (struct buffer){ out[1], sizeof(out[1]), 0, 0 };
    strcpy(http.redis.sha, "sha");
    check(field_begin(&http.redis, ENTRY_FIELDS) <= sizeof(entry));
    say_range(&http);
    while (at < length && http.redis.state != REDIS_RESTING) {
        size_t piece = in_pieces ? input[at] % 7 + 1U : length;

        if (piece > length - at)
            piece = length - at;
        take(&http, input + at, piece);
        at += piece;
    }
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
    struct digest whole = run(input, length, false);
    struct digest pieces = run(input, length, true);

    check(whole.value == pieces.value && whole.count == pieces.count);
    return 0;
}
