/*
 * ring.c's history file: what comes back after a good end, after a kill at
 * any moment, after a crash of the machine, in another size; what is refused;
 * and 6,000 torn and rotten files, each of which must give events that were
 * truly published, one behind the other, or a refusal.
 */
#include "sse.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    LIMIT = 24,
    SIZE = 6000,
    EVENTS = 200,
    FILE_MAX = 64 << 10,
    CONTENT_MAX = 400,
};

#define SPLICE "<spliced>"

static char folder[] = "/tmp/test_history.XXXXXX";
static char path[64];
static char error[HISTORY_ERROR_SIZE];

static void setup(void)
{
    strcpy(folder, "/tmp/test_history.XXXXXX");
    cr_assert(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/log", folder);
}

static void teardown(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_assert(system(command) == 0);
}

TestSuite(history, .init = setup, .fini = teardown);

static struct history_wanted wanted_like(const char *boot_id)
{
    return (struct history_wanted){
        .path = path,
        .limit = LIMIT,
        .size = SIZE,
        .newest_id = 1000,
        .clock_id = 1000,
        .boot_id = boot_id,
        .splice_text = SLICE(SPLICE),
    };
}

static struct recovery open_wanted(struct ring *ring,
                                   const struct history_wanted *wanted)
{
    struct recovery recovery;

    cr_assert(ring_open(ring, wanted, &recovery, error) == 0, "%s", error);
    return recovery;
}

static struct recovery open_ring(struct ring *ring, const char *boot_id)
{
    struct history_wanted wanted = wanted_like(boot_id);

    return open_wanted(ring, &wanted);
}

/* The event with that id: its topic is one of three, every tenth finishes. */
static const char *topic_of(uint64_t id)
{
    static const char *const names[] = { "", "chat/1", "a-longer-name" };

    return names[id * 7 % 11 % 3];
}

static struct slice frame_of(uint64_t id, char *bytes)
{
    size_t length = 20 + id * 37 % CONTENT_MAX;
    int head = sprintf(bytes, "%08zx\r\n", length);

    for (size_t i = 0; i < length; i++)
        bytes[(size_t)head + i] = (char)('a' + (id * 7 + i) % 26);
    memcpy(bytes + head + length, "\r\n", 2);
    return (struct slice){ bytes, (size_t)head + length + 2 };
}

static void publish(struct ring *ring, uint64_t id)
{
    char bytes[CONTENT_MAX + 64];
    struct slice name = { topic_of(id), strlen(topic_of(id)) };
    struct topic *topic = topic_hold(ring, name);

    ring->time = (int64_t)id * 10;
    ring_append(ring, topic, id, frame_of(id, bytes),
                *name.data ? 0 : FRAME_HEAD + 1, id % 10 == 0);
    topic_drop(ring, topic);
}

static void publish_until(struct ring *ring, uint64_t last)
{
    while (ring->newest_id < last)
        publish(ring, ring->newest_id + 1);
}

/* What is held is what was published with these ids, one after the other. */
static void check_frame(const struct ring *ring, uint64_t ordinal)
{
    const struct frame *frame = ring_frame(ring, ordinal);
    char expected[CONTENT_MAX + 64], name[64];
    struct slice bytes = frame_of(frame->id, expected);

    snprintf(name, sizeof(name), "%.*s", (int)frame->topic->name.length,
             frame->topic->name.data);
    cr_assert_str_eq(name, topic_of(frame->id));
    cr_assert(frame->length == bytes.length, "%u", frame->length);
    for (size_t i = 0; i < bytes.length; i++)
        cr_assert(ring->memory[(frame->offset + i) % ring->size] ==
                      bytes.data[i],
                  "byte %zu of %llu", i, (unsigned long long)frame->id);
    cr_assert(frame->end == (frame->id % 10 == 0));
    cr_assert(ring_time(ring, ordinal) == (int64_t)frame->id * 10);
    if (ordinal > ring->oldest)
        cr_assert(frame->id == ring_frame(ring, ordinal - 1)->id + 1);
}

static void check_held(const struct ring *ring)
{
    size_t used = 0;

    for (uint64_t ordinal = ring->oldest; ordinal < ring->next; ordinal++) {
        check_frame(ring, ordinal);
        used += ring_frame(ring, ordinal)->length;
    }
    cr_assert(used == ring->used && used <= ring->size);
    cr_assert(ring->next - ring->oldest <= ring->limit);
}

static uint64_t oldest_id(const struct ring *ring)
{
    return ring_frame(ring, ring->oldest)->id;
}

static uint64_t mark_of(struct ring *ring, const char *name)
{
    struct topic *topic =
        topic_hold(ring, (struct slice){ name, strlen(name) });
    uint64_t mark = topic->mark;

    topic_drop(ring, topic);
    return mark;
}

static void publish_quietly(struct ring *ring)
{
    struct topic *topic = topic_hold(ring, SLICE("quiet"));
    char bytes[CONTENT_MAX + 64];
    uint64_t id = ring->newest_id + 1;

    ring_append(ring, topic, id, frame_of(id, bytes), 0, false);
    topic_drop(ring, topic);
}

Test(history, a_new_one_is_empty_and_has_its_blocks)
{
    struct ring ring;
    struct recovery recovery = open_ring(&ring, "boot");
    struct stat status;

    cr_assert(recovery.made && !recovery.count && !recovery.crashed);
    cr_assert(ring.newest_id == 1000 && ring.mark == 1000);
    cr_assert(stat(path, &status) == 0);
    cr_assert((status.st_mode & 07777) == 0600);
    cr_assert(status.st_blocks * 512 >= status.st_size);
    ring_release(&ring);
}

/* At every moment: what the ring held is what comes back, with its marks. */
Test(history, comes_back_after_a_kill_at_any_event)
{
    static const char *const names[] = { "", "chat/1", "a-longer-name",
                                         "unknown" };
    struct ring ring;

    open_ring(&ring, "boot");
    for (uint64_t id = 1001; id < 1001 + EVENTS; id++) {
        uint64_t oldest, marks[4], next;
        struct recovery recovery;

        publish(&ring, id);
        oldest = oldest_id(&ring);
        next = ring.next;
        for (int i = 0; i < 4; i++)
            marks[i] = mark_of(&ring, names[i]);
        ring_release(&ring); /* as a kill does: nothing is written */
        recovery = open_ring(&ring, "boot");
        check_held(&ring);
        cr_assert(!recovery.made && !recovery.crashed && !recovery.dropped);
        cr_assert(ring.newest_id == id && ring.next == next);
        cr_assert(recovery.last_id == id &&
                  recovery.first_id == oldest_id(&ring));
        /* one that was evicted may be there again, if it is whole */
        cr_assert(oldest_id(&ring) <= oldest);
        for (int i = 0; i < 3; i++)
            cr_assert(mark_of(&ring, names[i]) <= marks[i] ||
                      !topic_find(
                          &ring, (struct slice){ names[i], strlen(names[i]) }));
        cr_assert(mark_of(&ring, names[3]) == marks[3]);
    }
    ring_release(&ring);
}

/* Who has had all that there was of a topic missed nothing, though it is gone
 * and forgotten: also after a restart, and in another size. */
Test(history, a_topic_of_which_nothing_is_held_keeps_its_mark)
{
    struct history_wanted wanted = wanted_like("boot");
    struct ring ring;

    open_wanted(&ring, &wanted);
    publish_until(&ring, 1010);
    publish_quietly(&ring);
    publish_until(&ring, 1100);
    cr_assert(oldest_id(&ring) > 1020);
    for (int i = 0; i < 4; i++) {
        ring_release(&ring);
        wanted.limit = LIMIT + (uint64_t)(i / 2);
        cr_assert(open_wanted(&ring, &wanted).resized == (i == 2));
        cr_assert(mark_of(&ring, "quiet") == 1011);
        publish_until(&ring, ring.newest_id + 5);
    }
    ring_release(&ring);
    wanted.limit = 3;
    open_wanted(&ring, &wanted);
    cr_assert(mark_of(&ring, "quiet") == oldest_id(&ring) - 1);
    ring_release(&ring);
}

Test(history, a_topic_keeps_its_mark)
{
    struct ring ring;

    open_ring(&ring, "boot");
    publish_until(&ring, 1100);
    ring_release(&ring);
    open_ring(&ring, "boot");
    for (int i = 0; i < 3; i++) {
        const char *name = topic_of(1000 + (uint64_t)i);
        uint64_t before = oldest_id(&ring) - 1;

        while (strcmp(topic_of(before), name) != 0)
            before--;
        cr_assert(mark_of(&ring, name) == before, "%s: %llu, not %llu", name,
                  (unsigned long long)mark_of(&ring, name),
                  (unsigned long long)before);
    }
    ring_release(&ring);
}

Test(history, a_raised_mark_comes_back)
{
    struct ring ring;
    struct topic *topic;

    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    topic = topic_hold(&ring, SLICE("chat/1"));
    topic_raise_mark(&ring, topic, 1500);
    ring_release(&ring);
    open_ring(&ring, "boot");
    cr_assert(ring.newest_id == 1500);
    cr_assert(mark_of(&ring, "chat/1") == 1500);
    ring_release(&ring);
}

Test(history, another_boot_without_an_end_is_a_gap_for_all)
{
    struct ring ring;
    struct recovery recovery;
    struct history_wanted wanted = wanted_like("another");

    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    ring_release(&ring);
    wanted.clock_id = 5000;
    recovery = open_wanted(&ring, &wanted);
    cr_assert(recovery.crashed && recovery.count == 10);
    check_held(&ring);
    cr_assert(ring.newest_id == 5000);
    cr_assert(mark_of(&ring, "chat/1") == 5000);
    cr_assert(mark_of(&ring, "unknown") == 5000);
    publish(&ring, 5001);
    ring_release(&ring);
    /* and it stays so */
    recovery = open_wanted(&ring, &wanted);
    cr_assert(!recovery.crashed && ring.newest_id == 5001);
    cr_assert(mark_of(&ring, "chat/1") == 5000);
    cr_assert(mark_of(&ring, "unknown") == 5000);
    ring_release(&ring);
}

Test(history, a_boot_that_is_not_known_is_another_one)
{
    struct ring ring;

    open_ring(&ring, "");
    publish_until(&ring, 1010);
    ring_release(&ring);
    cr_assert(open_ring(&ring, "").crashed);
    cr_assert(ring.newest_id == 1010); /* newer than the clock's */
    ring_release(&ring);
}

Test(history, another_boot_after_an_end_is_none)
{
    struct ring ring;
    struct recovery recovery;

    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    cr_assert(ring_end(&ring) == 0);
    ring_release(&ring);
    recovery = open_ring(&ring, "another");
    cr_assert(!recovery.crashed && ring.newest_id == 1010);
    cr_assert(mark_of(&ring, "unknown") == 1000);
    ring_release(&ring);
}

Test(history, kept_ids_go_on_where_the_feeder_does)
{
    struct ring ring;
    struct history_wanted wanted = wanted_like("boot");

    wanted.kept_ids = true;
    wanted.newest_id = 0;
    cr_assert(open_wanted(&ring, &wanted).made);
    cr_assert(ring.unbegun);
    ring_begin_after(&ring, 6);
    publish(&ring, 7);
    ring_release(&ring);
    cr_assert(!open_wanted(&ring, &wanted).crashed);
    cr_assert(!ring.unbegun && ring.newest_id == 7 && ring.mark == 6);
    ring_release(&ring);
    wanted.boot_id = "another";
    cr_assert(open_wanted(&ring, &wanted).crashed);
    cr_assert(ring.unbegun && ring.newest_id == 7);
    ring_release(&ring);
    cr_assert(!open_wanted(&ring, &wanted).crashed);
    cr_assert(ring.unbegun);
    ring_begin_after(&ring, 20);
    cr_assert(mark_of(&ring, topic_of(7)) == 20);
    ring_release(&ring);
}

/* Records that are whole, and bytes that are not: a power cut leaves that. */
static void tear_newest(struct ring *ring, uint64_t count)
{
    for (uint64_t i = 1; i <= count; i++)
        ring->memory[ring_frame(ring, ring->next - i)->offset] ^= 1;
}

Test(history, kept_ids_that_are_torn_may_come_again)
{
    struct ring ring;
    struct history_wanted wanted = wanted_like("boot");

    wanted.kept_ids = true;
    wanted.newest_id = 0;
    open_wanted(&ring, &wanted);
    ring_begin_after(&ring, 6);
    publish_until(&ring, 15);
    tear_newest(&ring, 3);
    ring_release(&ring);
    cr_assert(open_wanted(&ring, &wanted).crashed);
    cr_assert(ring.unbegun && ring.newest_id == 12);
    ring_release(&ring);
}

Test(history, own_ids_that_are_torn_are_not_given_again)
{
    struct ring ring;

    open_ring(&ring, "boot");
    publish_until(&ring, 1015);
    tear_newest(&ring, 3);
    ring_release(&ring);
    cr_assert(open_ring(&ring, "boot").crashed);
    cr_assert(ring.newest_id == 1015 && mark_of(&ring, "chat/1") == 1015);
    ring_release(&ring);
}

Test(history, another_size_keeps_the_newest)
{
    static const struct {
        uint64_t limit;
        size_t size;
    } sizes[] = {
        { LIMIT, SIZE }, { 5, SIZE },       { LIMIT, 1000 }, { 100, 60000 },
        { 1, SIZE },     { 1000000, 1000 }, { LIMIT, SIZE },
    };
    struct ring ring;

    open_ring(&ring, "boot");
    publish_until(&ring, 1100);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct history_wanted wanted = wanted_like("boot");
        uint64_t newest = ring.newest_id, oldest = oldest_id(&ring);
        uint64_t mark = mark_of(&ring, "chat/1");
        struct recovery recovery;
        struct stat status;

        wanted.limit = sizes[i].limit;
        wanted.size = sizes[i].size;
        ring_release(&ring);
        recovery = open_wanted(&ring, &wanted);
        cr_assert(recovery.resized == (i > 0));
        check_held(&ring);
        cr_assert(ring.newest_id == newest && !recovery.crashed);
        cr_assert(ring_frame(&ring, ring.next - 1)->id == newest);
        cr_assert(oldest_id(&ring) >= oldest);
        cr_assert(mark_of(&ring, "chat/1") >= mark);
        if (oldest_id(&ring) > oldest)
            cr_assert(mark_of(&ring, "unknown") == oldest_id(&ring) - 1);
        publish_until(&ring, newest + 7);
        check_held(&ring);
        cr_assert(stat(path, &status) == 0);
        cr_assert((status.st_mode & 07777) == 0600);
    }
    ring_release(&ring);
}

/* ---------------------------------------------------------------- refusals */

static void refused(const struct history_wanted *wanted, const char *why)
{
    struct ring ring;
    struct recovery recovery;

    cr_assert(ring_open(&ring, wanted, &recovery, error) == -1);
    cr_assert(strstr(error, why), "'%s' has no '%s'", error, why);
    cr_assert(strchr(error, '\n') == NULL);
}

static size_t read_file(char *bytes)
{
    int fd = open(path, O_RDONLY);
    ssize_t length = read(fd, bytes, FILE_MAX);

    cr_assert(fd >= 0 && length >= 0 && length < FILE_MAX);
    close(fd);
    return (size_t)length;
}

static void write_file(const char *bytes, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    cr_assert(fd >= 0 && write(fd, bytes, length) == (ssize_t)length);
    close(fd);
}

/* Changes a byte and expects a refusal, which leaves the file as it is. */
static void refused_with(size_t place, char value, const char *why)
{
    static char good[FILE_MAX], bad[FILE_MAX], after[FILE_MAX];
    struct history_wanted wanted = wanted_like("boot");
    size_t length = read_file(good);

    memcpy(bad, good, length);
    bad[place] = value;
    write_file(bad, length);
    refused(&wanted, why);
    cr_assert(read_file(after) == length && memcmp(bad, after, length) == 0);
    write_file(good, length);
}

Test(history, what_is_none_is_refused_and_left_alone)
{
    struct history_wanted wanted = wanted_like("boot");
    struct ring ring;

    open_ring(&ring, "boot");
    refused(&wanted, "another ssed has");
    refused(&wanted, "its process is ");
    ring_release(&ring);
    refused_with(0, 'x', "no history file");
    refused_with(8, 99, "of version 99");
    refused_with(16, 99, "header of");
    wanted.kept_ids = true;
    refused(&wanted, "leave out --ids keep");
    wanted.kept_ids = false;
    write_file("hello", 5);
    refused(&wanted, "no history file");
    write_file("", 0);
    refused(&wanted, "no history file");
    wanted.path = folder;
    refused(&wanted, "cannot open");
    wanted.path = "/nowhere/log";
    refused(&wanted, "cannot make '/nowhere/log.new'");
    wanted.path = path;
    wanted.size = (size_t)1 << 55;
    unlink(path);
    refused(&wanted, "no room for");
    cr_assert(access(path, F_OK) < 0);
}

Test(history, what_cannot_have_its_name_is_not_left_behind)
{
    struct history_wanted wanted = wanted_like("boot");

    cr_assert(chdir(folder) == 0);
    wanted.path = "";
    refused(&wanted, "cannot make ''");
    cr_assert(access(".new", F_OK) < 0);
}

Test(history, what_a_killed_server_left_half_made_is_used)
{
    char beside[80];
    struct ring ring;

    snprintf(beside, sizeof(beside), "%s.new", path);
    write_file("half", 4);
    cr_assert(rename(path, beside) == 0);
    cr_assert(open_ring(&ring, "boot").made);
    cr_assert(access(beside, F_OK) < 0);
    ring_release(&ring);
}

Test(history, a_deleted_file_is_noticed)
{
    struct ring ring;

    open_ring(&ring, "boot");
    cr_assert(!ring_deleted(&ring));
    unlink(path);
    cr_assert(ring_deleted(&ring));
    publish_until(&ring, 1010);
    check_held(&ring);
    ring_release(&ring);
}

Test(history, can_be_looked_at_while_a_server_has_it)
{
    struct history_wanted wanted = wanted_like("");
    struct recovery recovery;
    struct ring ring, looked_at;
    uint32_t pid;

    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    cr_assert(ring_inspect(&looked_at, &wanted, &recovery, &pid, error) == 0);
    cr_assert(pid == (uint32_t)getpid() && recovery.count == 10);
    check_held(&looked_at);
    ring_release(&looked_at);
    ring_release(&ring);
    cr_assert(ring_inspect(&looked_at, &wanted, &recovery, &pid, error) == 0);
    cr_assert(pid == 0);
    ring_release(&looked_at);
    wanted.path = "/nowhere";
    cr_assert(ring_inspect(&looked_at, &wanted, &recovery, &pid, error) < 0);
    cr_assert(strstr(error, "cannot open '/nowhere'"));
}

/* A kill while an event is being written: a process publishes as fast as it
 * can, and every id that it had before it was killed is there. */
Test(history, comes_back_after_a_real_kill)
{
    for (int round = 0; round < 20; round++) {
        int pipes[2];
        uint64_t id = 0, last = 0;
        struct history_wanted wanted = wanted_like("boot");
        struct ring ring;
        pid_t pid;

        if (round >= 10)
            wanted.limit = 1;
        cr_assert(pipe(pipes) == 0);
        pid = fork();
        if (pid == 0) {
            open_wanted(&ring, &wanted);
            for (;;) {
                publish(&ring, ring.newest_id + 1);
                if (write(pipes[1], &ring.newest_id, 8) != 8)
                    _exit(1);
            }
        }
        close(pipes[1]);
        for (int i = 0; i < 50 + round * 7; i++)
            cr_assert(read(pipes[0], &last, 8) == 8);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        while (read(pipes[0], &id, 8) == 8)
            last = id;
        close(pipes[0]);
        cr_assert(!open_wanted(&ring, &wanted).crashed);
        check_held(&ring);
        cr_assert(ring.newest_id == last || ring.newest_id == last + 1);
        ring_release(&ring);
    }
}

/* -------------------------------------------------------- torn and rotten */

static uint64_t random_state = 88172645463325252;

static size_t random_below(size_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state % limit);
}

/* Makes a bad file of a good one and an older state of it. */
static size_t spoil(char *bytes, const char *older, size_t length, int manner)
{
    size_t at = random_below(length), page = at / 512 * 512;
    size_t rest = length - page < 512 ? length - page : 512;

    switch (manner) {
    case 0:
        return random_below(length);
    case 1:
        return page;
    case 2:
        memset(bytes + page, 0, rest);
        break;
    case 3:
        memcpy(bytes + page, older + page, rest);
        break;
    case 4:
        bytes[at] = (char)(bytes[at] ^ 1 << random_below(8));
        break;
    case 5:
        bytes[random_below(1200)] = (char)random_below(256);
        break;
    case 6:
        memset(bytes + at, (int)random_below(256),
               random_below(length - at + 1));
        break;
    default:
        memmove(bytes + at, bytes + random_below(at + 1),
                random_below(length - at + 1));
        break;
    }
    return length;
}

/* Of each topic: who has not had what came before the oldest is told. */
static void check_marks(struct ring *ring)
{
    if (ring->next == ring->oldest)
        return;
    for (uint64_t id = oldest_id(ring) - 1; id > 1000; id--)
        cr_assert(mark_of(ring, topic_of(id)) >= id);
}

/* It opens with events that were published and goes on, or is refused. */
static int open_spoiled(const char *boot_id)
{
    struct history_wanted wanted = wanted_like(boot_id);
    struct recovery recovery;
    struct ring ring;
    uint64_t newest;

    wanted.clock_id = 9000;
    if (ring_open(&ring, &wanted, &recovery, error) < 0) {
        cr_assert(*error && !strchr(error, '\n'));
        return 0;
    }
    check_held(&ring);
    check_marks(&ring);
    newest = ring.newest_id;
    for (uint64_t id = newest + 1; id < newest + 60; id++)
        publish(&ring, id);
    ring_release(&ring);
    cr_assert(!open_wanted(&ring, &wanted).crashed);
    cr_assert(ring.newest_id == newest + 59);
    ring_release(&ring);
    return 1;
}

Test(history, torn_and_rotten_files, .timeout = 300)
{
    static char good[FILE_MAX], older[FILE_MAX], bad[2 * FILE_MAX];
    struct ring ring;
    size_t length;
    int opened = 0;

    open_ring(&ring, "boot");
    publish_until(&ring, 1050);
    length = read_file(older);
    publish_until(&ring, 1090);
    ring_release(&ring);
    cr_assert(read_file(good) == length);
    for (int i = 0; i < 6000; i++) {
        size_t now = length;

        memcpy(bad, good, length);
        for (size_t k = random_below(3) + 1; k-- > 0 && now == length;)
            now = spoil(bad, older, length, i % 8);
        write_file(bad, now);
        opened += open_spoiled(i % 3 ? "boot" : "another");
    }
    cr_assert(opened > 3000 && opened < 6000, "%d", opened);
}
