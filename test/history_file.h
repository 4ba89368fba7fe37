/*
 * The history file as bytes: where each field lies, and its checks, spelled
 * out once more. A test writes with it what a server would not, checks that
 * are right included; and no change of ring.c changes the format unnoticed.
 */
#ifndef HISTORY_FILE_H
#define HISTORY_FILE_H

#include "sse.h"

#include <string.h>

enum {
    PAGE_SIZE = 4096,
    STATE_SIZE = 512, /* of each of two, behind as many bytes of the header */
    RECORD_SIZE = 336,
    PROMISE_SIZE = 260,
    PROMISES_MAX = 16384,

    HEADER_VERSION = 8,

    HEADER_CHECK = 12, /* of what is behind it */
    HEADER_LIMIT = 16,
    HEADER_BYTES = 24,
    HEADER_RECORD_SIZE = 32,
    HEADER_KEPT_IDS = 36,
    HEADER_END = 40,

    STATE_CHECK = 0,
    STATE_PID = 4,
    STATE_SEQUENCE = 8,
    STATE_MARK = 16,
    STATE_NEWEST_ID = 24,
    STATE_CLEAN = 32,
    STATE_UNBEGUN = 36,
    STATE_BOOT_ID = 40,
    STATE_END = 104,

    RECORD_CHECK = 0,
    RECORD_BYTES_CHECK = 4,
    RECORD_ORDINAL = 8,
    RECORD_ID = 16,
    RECORD_BEFORE = 24,
    RECORD_MARK = 32,
    RECORD_EMPTIED = 40,
    RECORD_OFFSET = 48,
    RECORD_TIME = 56,
    RECORD_LENGTH = 64,
    RECORD_SPLICE = 68,
    RECORD_END = 72,
    RECORD_NAME_LENGTH = 73,
    RECORD_NAME = 74,

    PROMISE_CHECK = 0,
    PROMISE_NAME_LENGTH = 4,
    PROMISE_NAME = 5,
};

static inline uint64_t get64(const char *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return value;
}

static inline uint32_t get32(const char *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return value;
}

/* Of a number, its `size` lowest bytes. */
static inline void put_bytes(char *bytes, uint64_t value, size_t size)
{
    memcpy(bytes, &value, size);
}

/* CRC-32C, a bit at a time. */
static inline uint32_t crc_of(uint32_t sum, const char *bytes, size_t length)
{
    sum = ~sum;
    while (length-- > 0) {
        sum ^= (unsigned char)*bytes++;
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? 0x82F63B78 : 0);
    }
    return ~sum;
}

static inline size_t pages_of(size_t length)
{
    return (length + PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE;
}

static inline uint64_t slots_of(uint64_t limit)
{
    uint64_t slots = 2;

    while (slots < limit)
        slots *= 2;
    return slots;
}

static inline size_t memory_of(uint64_t limit)
{
    return PAGE_SIZE + pages_of((size_t)slots_of(limit) * RECORD_SIZE);
}

static inline size_t promises_of(uint64_t limit, size_t size)
{
    return memory_of(limit) + pages_of(size);
}

static inline size_t file_of(uint64_t limit, size_t size)
{
    size_t count = limit < PROMISES_MAX ? (size_t)limit : PROMISES_MAX;

    return promises_of(limit, size) + pages_of(count * PROMISE_SIZE);
}

static inline char *state_in(char *file, int which)
{
    return file + (size_t)STATE_SIZE * (size_t)(1 + which);
}

static inline char *record_in(char *file, uint64_t slot)
{
    return file + PAGE_SIZE + slot * RECORD_SIZE;
}

static inline char *promise_in(char *file, uint64_t limit, size_t size,
                               uint64_t slot)
{
    return file + promises_of(limit, size) + slot * PROMISE_SIZE;
}

static inline void fix_header(char *file)
{
    put_bytes(file + HEADER_CHECK,
              crc_of(0, file + HEADER_LIMIT, HEADER_END - HEADER_LIMIT), 4);
}

static inline void fix_state(char *state)
{
    put_bytes(state + STATE_CHECK,
              crc_of(0, state + STATE_PID, STATE_END - STATE_PID), 4);
}

static inline void fix_record(char *record)
{
    size_t end =
        RECORD_NAME + (size_t)(unsigned char)record[RECORD_NAME_LENGTH];

    put_bytes(record + RECORD_CHECK,
              crc_of(0, record + RECORD_BYTES_CHECK, end - RECORD_BYTES_CHECK),
              4);
}

static inline void fix_promise(char *promise)
{
    size_t length = (unsigned char)promise[PROMISE_NAME_LENGTH];

    put_bytes(promise + PROMISE_CHECK,
              crc_of(0, promise + PROMISE_NAME_LENGTH, length + 1), 4);
}

/* The check of the frame's bytes, where they can be in a memory of that size;
 * then the record's own. */
static inline void fix_frame(char *record, const char *memory, size_t size)
{
    uint64_t offset = get64(record + RECORD_OFFSET);
    size_t length = get32(record + RECORD_LENGTH);

    if (offset < size && length <= size) {
        size_t rest = size - (size_t)offset;
        size_t first = length < rest ? length : rest;
        uint32_t check = crc_of(0, memory + offset, first);

        put_bytes(record + RECORD_BYTES_CHECK,
                  crc_of(check, memory, length - first), 4);
    }
    fix_record(record);
}

/* All checks of a file whose ring has that limit and that size. */
static inline void fix_file(char *file, uint64_t limit, size_t size)
{
    fix_header(file);
    for (int which = 0; which < 2; which++)
        fix_state(state_in(file, which));
    for (uint64_t slot = 0; slot < slots_of(limit); slot++)
        fix_frame(record_in(file, slot), file + memory_of(limit), size);
    for (uint64_t slot = 0; slot < limit && slot < PROMISES_MAX; slot++)
        if (get32(promise_in(file, limit, size, slot)))
            fix_promise(promise_in(file, limit, size, slot));
}

/* The fields, for changing them at random. */
struct field {
    unsigned short place;
    unsigned short size; /* of a number; more: text */
};

static const struct field header_fields[] = {
    { HEADER_LIMIT, 8 },
    { HEADER_BYTES, 8 },
    { HEADER_RECORD_SIZE, 4 },
    { HEADER_KEPT_IDS, 4 },
};

static const struct field state_fields[] = {
    { STATE_PID, 4 },      { STATE_SEQUENCE, 8 },  { STATE_MARK, 8 },
    { STATE_CLEAN, 4 },    { STATE_NEWEST_ID, 8 }, { STATE_UNBEGUN, 4 },
    { STATE_BOOT_ID, 64 },
};

static const struct field record_fields[] = {
    { RECORD_ORDINAL, 8 },     { RECORD_ID, 8 },
    { RECORD_BEFORE, 8 },      { RECORD_MARK, 8 },
    { RECORD_EMPTIED, 8 },     { RECORD_OFFSET, 8 },
    { RECORD_TIME, 8 },        { RECORD_LENGTH, 4 },
    { RECORD_SPLICE, 4 },      { RECORD_END, 1 },
    { RECORD_NAME_LENGTH, 1 }, { RECORD_NAME, TOPIC_NAME_MAX },
};

/* Values at the edges, and what is not far from the old one. */
static inline uint64_t other_value(uint64_t old,
                                   uint64_t (*below)(uint64_t limit))
{
    switch (below(8)) {
    case 0:
        return below(4);
    case 1:
        return UINT64_MAX - below(4);
    case 2:
        return ID_MAX - 1 + below(4);
    case 3:
        return UINT64_C(1) << below(64);
    case 4:
        return below(UINT64_MAX);
    case 5:
        return old ^ UINT64_C(1) << below(64);
    default:
        return old + below(64) - 32;
    }
}

static inline void change_field(char *bytes, const struct field *field,
                                uint64_t (*below)(uint64_t limit))
{
    uint64_t old = 0;

    if (field->size > 8) {
        bytes[field->place + below(field->size)] = (char)below(256);
        return;
    }
    memmove(&old, bytes + field->place, field->size);
    put_bytes(bytes + field->place, other_value(old, below), field->size);
}

/* Changes one field or a frame's byte; `below` gives a number below another
 * one. The checks are for fix_file() to put right. */
static inline void change_file(char *file, uint64_t limit, size_t size,
                               uint64_t (*below)(uint64_t limit))
{
    char *record = record_in(file, below(slots_of(limit)));
    char *promise = promise_in(file, limit, size, below(limit));

    switch (below(16)) {
    case 0:
        change_field(file, &header_fields[below(4)], below);
        break;
    case 1:
        change_field(state_in(file, (int)below(2)), &state_fields[below(7)],
                     below);
        break;
    case 2: /* in another's place */
        memmove(record, record_in(file, below(slots_of(limit))), RECORD_SIZE);
        break;
    case 3: /* in the place that its ordinal gives it */
        memcpy(record_in(file, get64(record + RECORD_ORDINAL) &
                                   (slots_of(limit) - 1)),
               record, RECORD_SIZE);
        break;
    case 4:
    case 5:
        file[memory_of(limit) + below(size)] = (char)below(256);
        break;
    case 6: /* any check: fix_file() puts it right */
        promise[PROMISE_CHECK] = 1;
        promise[PROMISE_NAME_LENGTH] = (char)below(256);
        memcpy(promise + PROMISE_NAME, record + RECORD_NAME, TOPIC_NAME_MAX);
        promise[PROMISE_NAME + below(TOPIC_NAME_MAX)] = (char)below(256);
        break;
    default:
        change_field(record, &record_fields[below(12)], below);
        break;
    }
}

#endif
