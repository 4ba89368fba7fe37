/* Reads all that a ring holds in every form, as a server would, and aborts
 * where an iovec is not made of the ring's bytes or a chunk is not whole. */
#ifndef GATHER_ALL_H
#define GATHER_ALL_H

#include "sse.h"

#include <stdlib.h>
#include <string.h>

enum {
    GATHER_ROOM = 64, /* iovecs at most */
};

static inline void must(bool holds)
{
    if (!holds)
        abort();
}

/* Chunks that come in pieces. */
struct chunks {
    size_t left; /* of the chunk and the CR LF after it */
    char size[FRAME_HEAD + 1];
    size_t digits; /* of that, with its CR LF */
};

static inline void chunks_take(struct chunks *chunks, const char *bytes,
                               size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (chunks->left) {
            chunks->left--;
            must(chunks->left > 1 || bytes[i] == (chunks->left ? '\r' : '\n'));
            continue;
        }
        chunks->size[chunks->digits++] = bytes[i];
        if (chunks->digits < FRAME_HEAD)
            continue;
        must(strspn(chunks->size, "0123456789abcdef") == 8);
        must(memcmp(chunks->size + 8, "\r\n", 2) == 0);
        chunks->left = strtoul(chunks->size, NULL, 16) + FRAME_TAIL;
        must(chunks->left > FRAME_TAIL);
        chunks->digits = 0;
    }
}

static inline bool is_within(const void *bytes, size_t length, const void *of,
                             size_t size)
{
    uintptr_t begin = (uintptr_t)bytes - (uintptr_t)of;

    return begin < size && length <= size - begin;
}

static inline void check_iovec(const struct ring *ring, const struct iovec *iov)
{
    const void *bytes = iov->iov_base;

    must(is_within(bytes, iov->iov_len, ring->memory, ring->size) ||
         is_within(bytes, iov->iov_len, ring->splice_text.data,
                   ring->splice_text.length) ||
         is_within(bytes, iov->iov_len, ring->frames,
                   (size_t)(ring->mask + 1) * sizeof(struct frame)));
}

static inline void gather_with(const struct ring *ring,
                               const struct reader *reader, int room)
{
    struct iovec iov[GATHER_ROOM];
    struct chunks chunks = { 0 };
    struct progress cursor = { 0 };
    size_t all = 0;
    int count;

    while ((count = ring_gather(ring, reader, cursor.sent, iov, room, 1000)) >
           0) {
        size_t bytes = 0;

        for (int i = 0; i < count; i++) {
            check_iovec(ring, &iov[i]);
            bytes += iov[i].iov_len;
            if (reader->form & FORM_CHUNKED)
                chunks_take(&chunks, iov[i].iov_base, iov[i].iov_len);
        }
        must(ring_advance(ring, reader, &cursor, bytes) == 0);
        all += bytes;
        must(all <= ring->used + (size_t)(ring->next - ring->oldest) *
                                     ring->splice_text.length);
    }
    must(!chunks.left && !chunks.digits);
}

/* The topics of which something is held, as many as a reader can have. */
static inline unsigned held_topics(const struct ring *ring,
                                   struct topic *topics[READER_TOPICS_MAX])
{
    unsigned count = 0;

    for (uint64_t i = ring->oldest; i < ring->next; i++) {
        const struct frame *frame = ring_frame(ring, i);

        if (!frame->previous && count < READER_TOPICS_MAX)
            topics[count++] = frame->topic;
    }
    return count;
}

static inline void gather_all(const struct ring *ring)
{
    static const int rooms[] = { 1, 2, 3, 7, GATHER_ROOM };
    struct topic *topics[READER_TOPICS_MAX];
    unsigned count = held_topics(ring, topics);

    /* each topic alone, then all of them together */
    for (unsigned first = 0; count && first <= count; first++)
        for (unsigned form = FORM_PLAIN; form <= (FORM_CHUNKED | FORM_SPLICED);
             form++)
            for (size_t r = 0; r < sizeof(rooms) / sizeof(rooms[0]); r++) {
                struct place places[READER_TOPICS_MAX] = { 0 };
                unsigned from = first < count ? first : 0;
                struct reader reader = {
                    .places = places,
                    .count = first < count ? 1 : count,
                    .form = form,
                    .until = UINT64_MAX,
                };

                for (unsigned i = 0; i < reader.count; i++) {
                    places[i].topic = topics[from + i];
                    places[i].last = topic_start(topics[from + i]);
                }
                gather_with(ring, &reader, rooms[r]);
            }
}

#endif
