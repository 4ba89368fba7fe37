/* A reader of one topic, for the tests of the ring. */
#ifndef ONE_READER_H
#define ONE_READER_H

#include "sse.h"

struct one {
    uint64_t last;
    uint32_t sent;
    uint32_t events;
};

static inline struct reader one_reader(struct place *place, uint64_t until,
                                       unsigned form)
{
    return (struct reader){
        .places = place, .count = 1, .form = form, .until = until
    };
}

static inline int one_gather(const struct ring *ring, struct topic *topic,
                             const struct one *one, uint64_t until,
                             unsigned form, struct iovec *iov, int room,
                             size_t budget)
{
    struct place place = { .topic = topic, .last = one->last };
    struct reader reader = one_reader(&place, until, form);

    return ring_gather(ring, &reader, one->sent, iov, room, budget);
}

static inline size_t one_advance(const struct ring *ring, struct topic *topic,
                                 struct one *one, uint64_t until, unsigned form,
                                 size_t bytes)
{
    struct place place = { .topic = topic, .last = one->last };
    struct progress cursor = { one->sent, one->events };
    struct reader reader = one_reader(&place, until, form);
    size_t beyond = ring_advance(ring, &reader, &cursor, bytes);

    *one = (struct one){ place.last, cursor.sent, cursor.events };
    return beyond;
}

static inline bool one_overrun(struct topic *topic, const struct one *one)
{
    struct place place = { .topic = topic, .last = one->last };
    struct reader reader = one_reader(&place, UINT64_MAX, FORM_PLAIN);

    return reader_overrun(&reader);
}

/* Where what follows is the newest `count` frames. */
static inline uint64_t one_back(const struct ring *ring, struct topic *topic,
                                uint64_t count)
{
    struct place place = { .topic = topic };
    struct reader reader = one_reader(&place, UINT64_MAX, FORM_PLAIN);

    reader_back(ring, &reader, count);
    return place.last;
}

#endif
