/*
 * Fuzzes the event stream parser: the input is a stream that is read at once,
 * and again in pieces whose lengths follow from its bytes; both give the same
 * events, and no value goes over its bound. The input's first byte says how
 * much room there is for data.
 */
#include "sse.h"

#include <stdlib.h>
#include <string.h>

enum {
    ROOM_MAX = 256,
    EVENTS_MAX = 4096,
};

struct digest {
    uint64_t events[EVENTS_MAX]; /* a hash of each one's values */
    size_t count;
};

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/ */
static uint64_t hash(uint64_t value, const char *bytes, size_t length)
{
    value = (value ^ length) * UINT64_C(0x100000001B3);
    for (size_t i = 0; i < length; i++)
        value = (value ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001B3);
    return value;
}

static void take_event(const struct event_parser *parser, size_t room,
                       struct digest *digest)
{
    uint64_t value = UINT64_C(0xCBF29CE484222325);

    check(parser->has_data && parser->length <= room);
    check(parser->name_length <= EVENT_NAME_MAX + 1);
    check(parser->id_length <= EVENT_NUMBER_MAX + 1);
    check(parser->retry_length <= EVENT_NUMBER_MAX);
    for (size_t i = 0; i < parser->retry_length; i++)
        check(parser->retry[i] >= '0' && parser->retry[i] <= '9');
    if (!parser->too_long)
        value = hash(value, parser->data, parser->length);
    value = hash(value, parser->name, parser->name_length);
    value = hash(value, parser->id, parser->has_id ? parser->id_length : 0);
    value = hash(value, parser->retry, parser->retry_length);
    value += parser->too_long + 2U * parser->has_id;
    if (digest->count < EVENTS_MAX)
        digest->events[digest->count++] = value;
}

/* Reads `piece` from memory of its own, so that no byte behind it is there. */
static void feed(struct event_parser *parser, const uint8_t *piece,
                 size_t length, size_t room, struct digest *digest)
{
    char *copy = malloc(length);
    struct slice data = { copy, length };

    if (length == 0) {
        free(copy);
        return;
    }
    check(copy != NULL);
    memcpy(copy, piece, length);
    while (data.length) {
        size_t taken = event_parser_read(parser, data);

        check(taken > 0 && taken <= data.length);
        check(parser->complete || taken == data.length);
        if (parser->complete)
            take_event(parser, room, digest);
        data.data += taken;
        data.length -= taken;
    }
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
    static struct digest whole, pieces;
    struct event_parser parser;
    char data[ROOM_MAX];
    size_t room, at = 1;

    if (length == 0)
        return 0;
    room = input[0];
    whole.count = pieces.count = 0;
    event_parser_init(&parser, data, room);
    feed(&parser, input + 1, length - 1, room, &whole);
    event_parser_init(&parser, data, room);
    while (at < length) {
        size_t piece = input[at] % 11;

        if (piece > length - at)
            piece = length - at;
        if (piece == 0)
            piece = 1;
        feed(&parser, input + at, piece, room, &pieces);
        at += piece;
    }
    check(whole.count == pieces.count);
    check(memcmp(whole.events, pieces.events,
                 whole.count * sizeof(whole.events[0])) == 0);
    return 0;
}
