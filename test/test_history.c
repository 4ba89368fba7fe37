/*
 * ring.c's history file: what comes back after a good end, after a kill at
 * any moment, after a crash of the machine, in another size; what is refused;
 * 6,000 torn and rotten files, each of which must give events that were truly
 * published, one behind the other, or a refusal; and files that were made by
 * hand, with all checks right.
 */
#include "test/gather_all.h"
#include "test/history_file.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    LIMIT = 24,
    SIZE = 6000,
    EVENTS = 200,
    FILE_MAX = 64 << 10,
    CONTENT_MAX = 400,
    FRAME_ROOM = CONTENT_MAX + 64,
};

#define SPLICE "<spliced>"

static char folder[] = "/tmp/test_history.XXXXXX";
static char path[64];
static char error[ERROR_SIZE];

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

/* The event with that id: its topic is one of three. */
static const char *topic_of(uint64_t id)
{
    static const char *const names[] = { "", "chat/1", "a-longer-name" };

    return names[id * 7 % 11 % 3];
}

/* Every tenth finishes its topic; the main stream has no end. */
static bool is_end(uint64_t id)
{
    return id % 10 == 0 && *topic_of(id);
}

static int64_t time_of(uint64_t id)
{
    return (int64_t)(id % 1000000) * 10;
}

/* As a server makes it. */
static struct slice frame_of(uint64_t id, char *bytes)
{
    size_t length = 20 + id * 37 % CONTENT_MAX;
    char *at = bytes + FRAME_HEAD;

    at += sprintf(at, "id: %llu\ndata: ", (unsigned long long)id);
    for (size_t i = 0; i < length; i++)
        *at++ = (char)('a' + (id * 7 + i) % 26);
    at = stpcpy(at, "\n\n");
    length = (size_t)(at - bytes) - FRAME_HEAD;
    sprintf(bytes, "%08zx\r", length);
    bytes[FRAME_HEAD - 1] = '\n';
    memcpy(at, "\r\n", FRAME_TAIL);
    return (struct slice){ bytes, FRAME_HEAD + length + FRAME_TAIL };
}

static void publish(struct ring *ring, uint64_t id)
{
    char bytes[FRAME_ROOM];
    struct slice name = { topic_of(id), strlen(topic_of(id)) };
    struct topic *topic = topic_hold(ring, name);

    ring->time = time_of(id);
    ring_append(ring, topic, id, frame_of(id, bytes),
                *name.data ? 0 : FRAME_HEAD + 1, is_end(id));
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
    char expected[FRAME_ROOM], name[64];
    struct slice bytes = frame_of(frame->id, expected);

    snprintf(name, sizeof(name), "%.*s", (int)frame->topic->name.length,
             frame->topic->name.data);
    cr_assert_str_eq(name, topic_of(frame->id));
    cr_assert(frame->length == bytes.length, "%u", frame->length);
    for (size_t i = 0; i < bytes.length; i++)
        cr_assert(ring->memory[(frame->offset + i) % ring->size] ==
                      bytes.data[i],
                  "byte %zu of %llu", i, (unsigned long long)frame->id);
    cr_assert(frame->end == is_end(frame->id));
    cr_assert(ring_time(ring, ordinal) == time_of(frame->id));
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
    char bytes[FRAME_ROOM];
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

/* A reader that has had all there was of a topic missed nothing, though it is
 * gone and forgotten: also after a restart, and in another size. */
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
    refused(&wanted, "cannot open the folder of '/nowhere/log'");
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
    refused(&wanted, "'' names no file");
    cr_assert(access(".new", F_OK) < 0);
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

/* ------------------------------------------------- whose file it is */

static char beside[80]; /* where a new file is made */

static void put_beside(const char *text, mode_t mode)
{
    snprintf(beside, sizeof(beside), "%s.new", path);
    write_file(text, strlen(text));
    cr_assert(rename(path, beside) == 0 && chmod(beside, mode) == 0);
}

static ino_t inode_of(const char *name)
{
    struct stat status;

    cr_assert(stat(name, &status) == 0, "%s", name);
    return status.st_ino;
}

/* Somebody else could write it, and may have it open. */
Test(history, what_lies_where_a_new_file_is_made_is_not_adopted)
{
    struct stat status;
    struct ring ring;
    int fd;

    put_beside("mine", 0666);
    fd = open(beside, O_RDWR);
    cr_assert(open_ring(&ring, "boot").made);
    cr_assert(stat(path, &status) == 0 && (status.st_mode & 07777) == 0600);
    cr_assert(access(beside, F_OK) < 0);
    cr_assert(fstat(fd, &status) == 0 && status.st_ino != inode_of(path));
    cr_assert(status.st_nlink == 0 && status.st_size == 4);
    close(fd);
    ring_release(&ring);
}

Test(history, a_new_file_is_made_through_no_link)
{
    static char text[FILE_MAX];
    char other[80];
    struct ring ring;

    put_beside("precious", 0600);
    snprintf(other, sizeof(other), "%s.other", path);
    cr_assert(rename(beside, other) == 0 && symlink(other, beside) == 0);
    cr_assert(open_ring(&ring, "boot").made);
    cr_assert(access(beside, F_OK) < 0);
    ring_release(&ring);
    unlink(path);
    cr_assert(rename(other, path) == 0);
    cr_assert(read_file(text) == 8 && memcmp(text, "precious", 8) == 0);
}

Test(history, a_file_that_is_being_made_is_left_alone)
{
    struct history_wanted wanted = wanted_like("boot");
    struct ring ring;
    int fd;

    put_beside("half", 0600);
    fd = open(beside, O_RDWR);
    cr_assert(fd >= 0 && flock(fd, LOCK_EX) == 0);
    refused(&wanted, "another ssed is making");
    cr_assert(access(beside, F_OK) == 0 && access(path, F_OK) < 0);
    close(fd);
    unlink(beside);
    cr_assert(mkdir(beside, 0700) == 0);
    refused(&wanted, ".new' is in the way: Is a directory");
    cr_assert(rmdir(beside) == 0);
    open_ring(&ring, "boot");
    ring_release(&ring);
}

/* Many at once with nothing there, or a stale one: one of them has it. */
Test(history, one_of_many_makes_it)
{
    alarm(120); /* it must not wait for ever */
    for (int round = 0; round < 50; round++) {
        int results[2], go[2], made = 0;
        char result;

        if (round % 2)
            put_beside("stale", 0600);
        cr_assert(pipe(results) == 0 && pipe(go) == 0);
        for (int i = 0; i < 4; i++) {
            struct history_wanted wanted = wanted_like("boot");
            struct recovery recovery;
            struct ring ring;

            if (fork() != 0)
                continue;
            close(go[1]);
            result = ring_open(&ring, &wanted, &recovery, error) == 0 ? 1 : 0;
            if (write(results[1], &result, 1) != 1 ||
                read(go[0], &result, 1) != 0)
                _exit(1);
            _exit(0);
        }
        for (int i = 0; i < 4; i++) {
            cr_assert(read(results[0], &result, 1) == 1);
            made += result;
        }
        cr_assert(made == 1, "%d", made);
        close(go[1]);
        while (wait(NULL) > 0)
            ;
        close(go[0]);
        close(results[0]);
        close(results[1]);
        unlink(path);
    }
}

/* The link stays one, also when the file behind it is written anew. */
Test(history, a_symbolic_link_is_followed_once)
{
    struct history_wanted wanted = wanted_like("boot");
    char other[80], target[64];
    struct stat status;
    struct ring ring;

    snprintf(other, sizeof(other), "%s/else", folder);
    cr_assert(mkdir(other, 0700) == 0);
    snprintf(other, sizeof(other), "%s/else/where", folder);
    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    ring_release(&ring);
    cr_assert(rename(path, other) == 0 && symlink("else/where", path) == 0);
    wanted.limit = LIMIT + 1;
    cr_assert(open_wanted(&ring, &wanted).resized);
    cr_assert(ring.newest_id == 1010);
    cr_assert(lstat(path, &status) == 0 && S_ISLNK(status.st_mode));
    cr_assert(readlink(path, target, sizeof(target)) == 10);
    cr_assert(inode_of(path) == inode_of(other));
    wanted.path = other;
    refused(&wanted, "another ssed has");
    wanted.path = path;
    refused(&wanted, "another ssed has");
    ring_release(&ring);
    unlink(other);
    refused(&wanted, "is a symbolic link to a file that does not exist");
    cr_assert(access(other, F_OK) < 0);
}

Test(history, a_name_in_the_folder_one_is_in_will_do)
{
    struct history_wanted wanted = wanted_like("boot");
    struct ring ring;

    cr_assert(chdir(folder) == 0);
    wanted.path = "log";
    for (int i = 0; i < 2; i++) {
        cr_assert(open_wanted(&ring, &wanted).made == (i == 0));
        cr_assert(access(path, F_OK) == 0);
        ring_release(&ring);
    }
}

static void refused_but_can_be_looked_at(const char *why)
{
    static char before[FILE_MAX], after[FILE_MAX];
    struct history_wanted wanted = wanted_like("boot");
    struct recovery recovery;
    struct ring ring;
    size_t length = read_file(before);
    uint32_t pid;

    refused(&wanted, why);
    cr_assert(read_file(after) == length);
    cr_assert(memcmp(before, after, length) == 0);
    cr_assert(ring_inspect(&ring, &wanted, &recovery, &pid, error) == 0, "%s",
              error);
    cr_assert(recovery.count == 10 && pid == 0);
    ring_release(&ring);
}

Test(history, what_others_can_write_is_refused)
{
    char other[80], inode[80];
    struct ring ring;

    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    ring_release(&ring);
    cr_assert(chmod(path, 0620) == 0);
    refused_but_can_be_looked_at("has mode 620");
    cr_assert(chmod(path, 0602) == 0);
    refused_but_can_be_looked_at("chmod 600 it");
    cr_assert(chmod(path, 0644) == 0);
    snprintf(other, sizeof(other), "%s.other", path);
    cr_assert(link(path, other) == 0);
    refused_but_can_be_looked_at("has 2 names");
    snprintf(inode, sizeof(inode), "find -inum %llu",
             (unsigned long long)inode_of(path));
    refused_but_can_be_looked_at(inode);
    unlink(other);
    if (geteuid() == 0) {
        cr_assert(chown(path, 12345, (gid_t)-1) == 0);
        refused_but_can_be_looked_at("belongs to user 12345, and this ssed "
                                     "runs as user 0: chown");
        cr_assert(chown(path, 0, (gid_t)-1) == 0);
    }
    cr_assert(open_ring(&ring, "boot").count == 10);
    ring_release(&ring);
}

static int count_descriptors(bool inherited)
{
    int count = 0;

    for (int fd = 0; fd < 100; fd++) {
        int flags = fcntl(fd, F_GETFD);

        count += flags >= 0 && !(inherited && (flags & FD_CLOEXEC));
    }
    return count;
}

/* A program that inherited one would keep the lock. */
Test(history, no_descriptor_is_inherited_or_left)
{
    struct history_wanted wanted = wanted_like("boot");
    int all = count_descriptors(false), inherited = count_descriptors(true);
    struct ring ring;

    for (int i = 0; i < 3; i++) {
        wanted.limit = LIMIT + (uint64_t)(i / 2);
        open_wanted(&ring, &wanted);
        cr_assert(count_descriptors(false) == all + 1);
        cr_assert(count_descriptors(true) == inherited);
        refused(&wanted, "another ssed has");
        ring_release(&ring);
    }
    wanted.path = folder;
    refused(&wanted, "cannot open");
    cr_assert(count_descriptors(false) == all);
}

Test(history, an_address_in_it_is_known)
{
    struct ring ring;
    const char *map;

    open_ring(&ring, "boot");
    map = ring.memory - memory_of(LIMIT);
    cr_assert(ring_is_mapped(map) && ring_is_mapped(ring.memory));
    cr_assert(ring_is_mapped(map + file_of(LIMIT, SIZE) - 1));
    cr_assert(!ring_is_mapped(map + file_of(LIMIT, SIZE)));
    cr_assert(!ring_is_mapped(map - 1) && !ring_is_mapped(NULL));
    cr_assert(!ring_is_mapped(ring.frames));
    ring_release(&ring);
    cr_assert(!ring_is_mapped(map));
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

/* ----------------------------------------------------- made by hand
 *
 * A check is no proof of who wrote it. These have all checks right, and a
 * field that no server would write.
 */

static char image[FILE_MAX];

/* A good file in `image`, up to that id. */
static size_t make_image(uint64_t last)
{
    struct ring ring;

    unlink(path);
    open_ring(&ring, "boot");
    publish_until(&ring, last);
    ring_release(&ring);
    return read_file(image);
}

static void refused_by_both(const char *why)
{
    struct history_wanted wanted = wanted_like("boot");
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    refused(&wanted, why);
    cr_assert(ring_inspect(&ring, &wanted, &recovery, &pid, error) == -1);
    cr_assert(strstr(error, why), "'%s' has no '%s'", error, why);
}

Test(history, a_header_that_none_writes_is_refused)
{
    static const struct {
        size_t place, size;
        uint64_t value;
        const char *why;
    } cases[] = {
        { HEADER_LIMIT, 8, 0, "header of" },
        { HEADER_LIMIT, 8, HISTORY_EVENTS_MAX + 1, "header of" },
        { HEADER_LIMIT, 8, UINT64_C(1) << 63, "header of" },
        { HEADER_LIMIT, 8, UINT64_MAX, "header of" },
        { HEADER_LIMIT, 8, HISTORY_EVENTS_MAX, "its header says" },
        { HEADER_BYTES, 8, 0, "header of" },
        { HEADER_BYTES, 8, HISTORY_BYTES_MAX + 1, "header of" },
        { HEADER_BYTES, 8, UINT64_MAX, "header of" },
        { HEADER_BYTES, 8, HISTORY_BYTES_MAX, "its header says" },
        { HEADER_RECORD_SIZE, 4, RECORD_SIZE - 1, "header of" },
        { HEADER_KEPT_IDS, 4, 2, "header of" },
        { HEADER_KEPT_IDS, 4, UINT32_MAX, "header of" },
    };
    size_t length = make_image(1030);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char good[HEADER_END];

        memcpy(good, image, sizeof(good));
        put_bytes(image + cases[i].place, cases[i].value, cases[i].size);
        fix_header(image);
        write_file(image, length);
        refused_by_both(cases[i].why);
        memcpy(image, good, sizeof(good));
    }
}

/* One of the two states is enough. */
Test(history, a_state_that_none_writes_is_not_whole)
{
    static const struct {
        size_t place, size;
        uint64_t value;
    } cases[] = {
        { STATE_SEQUENCE, 8, UINT64_MAX },
        { STATE_SEQUENCE, 8, UINT64_MAX - 1 },
        { STATE_MARK, 8, ID_MAX + 1 },
        { STATE_MARK, 8, UINT64_MAX },
        { STATE_NEWEST_ID, 8, ID_MAX + 1 },
        { STATE_NEWEST_ID, 8, UINT64_MAX },
        { STATE_CLEAN, 4, 2 },
        { STATE_UNBEGUN, 4, 2 },
        { STATE_BOOT_ID, 1, '\x1b' },
        { STATE_BOOT_ID + 1, 1, 0x7f },
        { STATE_BOOT_ID + 2, 1, 0x80 },
        { STATE_BOOT_ID + 3, 1, '\n' },
    };
    size_t length = make_image(1030);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char good[2 * STATE_SIZE];
        struct ring ring;

        memcpy(good, state_in(image, 0), sizeof(good));
        for (int which = 0; which < 2; which++) {
            char *state = state_in(image, which);

            put_bytes(state + cases[i].place, cases[i].value, cases[i].size);
            fix_state(state);
            write_file(image, length);
            if (which == 1)
                refused_by_both("header of");
            else if (cases[i].place != STATE_SEQUENCE)
                open_ring(&ring, "boot");
            else
                continue;
            if (which == 0)
                ring_release(&ring);
        }
        memcpy(state_in(image, 0), good, sizeof(good));
    }
    for (int which = 0; which < 2; which++) {
        memset(state_in(image, which) + STATE_BOOT_ID, 'x', 64);
        fix_state(state_in(image, which));
    }
    write_file(image, length);
    refused_by_both("header of");
}

/* Only what was published comes back, up to that id. */
static void recovered_up_to(uint64_t last)
{
    struct history_wanted wanted = wanted_like("boot");
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    cr_assert(ring_inspect(&ring, &wanted, &recovery, &pid, error) == 0, "%s",
              error);
    cr_assert(recovery.last_id == last, "%llu",
              (unsigned long long)recovery.last_id);
    check_held(&ring);
    gather_all(&ring);
    ring_release(&ring);
    recovery = open_wanted(&ring, &wanted);
    cr_assert(recovery.last_id == last, "%llu",
              (unsigned long long)recovery.last_id);
    check_held(&ring);
    gather_all(&ring);
    cr_assert(ring.newest_id <= ID_MAX && ring.mark <= ring.newest_id);
    publish_until(&ring, ring.newest_id + 40);
    ring_release(&ring);
}

/* The newest of the main stream is 1029, of a named topic 1030. */
enum {
    MAIN_LAST = 1029,
    NAMED_LAST = 1030,
};

/* What no server writes into a record. */
static const struct {
    uint64_t last;
    size_t place, size;
    uint64_t value;
    bool from_old; /* the value is the old one and that */
} unwritten[] = {
    { MAIN_LAST, RECORD_SPLICE, 4, 1, false },
    { MAIN_LAST, RECORD_SPLICE, 4, FRAME_HEAD - 1, false },
    { MAIN_LAST, RECORD_SPLICE, 4, UINT32_MAX, false },
    { MAIN_LAST, RECORD_SPLICE, 4, UINT32_MAX - 1, false },
    { MAIN_LAST, RECORD_SPLICE, 4, SIZE, false },
    { MAIN_LAST, RECORD_END, 1, 1, false },
    { NAMED_LAST, RECORD_END, 1, 2, false },
    { NAMED_LAST, RECORD_END, 1, 255, false },
    { NAMED_LAST, RECORD_ID, 8, 0, false },
    { NAMED_LAST, RECORD_ID, 8, 1, true },
    { NAMED_LAST, RECORD_ID, 8, ID_MAX + 1, false },
    { NAMED_LAST, RECORD_ID, 8, UINT64_MAX, false },
    { NAMED_LAST, RECORD_BEFORE, 8, NAMED_LAST, false },
    { NAMED_LAST, RECORD_BEFORE, 8, UINT64_MAX, false },
    { NAMED_LAST, RECORD_MARK, 8, NAMED_LAST, false },
    { NAMED_LAST, RECORD_MARK, 8, UINT64_MAX, false },
    { NAMED_LAST, RECORD_EMPTIED, 8, NAMED_LAST, false },
    { NAMED_LAST, RECORD_EMPTIED, 8, UINT64_MAX, false },
    { NAMED_LAST, RECORD_TIME, 8, (UINT64_C(1) << 53) + 1, false },
    { NAMED_LAST, RECORD_TIME, 8, (uint64_t)INT64_MAX, false },
    { NAMED_LAST, RECORD_TIME, 8, (uint64_t)INT64_MIN, false },
    { NAMED_LAST, RECORD_LENGTH, 4, 0, false },
    { NAMED_LAST, RECORD_LENGTH, 4, FRAME_HEAD + FRAME_TAIL - 1, false },
    { NAMED_LAST, RECORD_LENGTH, 4, FRAME_HEAD + FRAME_TAIL, false },
    { NAMED_LAST, RECORD_LENGTH, 4, UINT64_MAX, true },
    { NAMED_LAST, RECORD_LENGTH, 4, 1, true },
    { NAMED_LAST, RECORD_LENGTH, 4, SIZE + 1, false },
    { NAMED_LAST, RECORD_LENGTH, 4, UINT32_MAX, false },
    { NAMED_LAST, RECORD_OFFSET, 8, 1, true },
    { NAMED_LAST, RECORD_OFFSET, 8, SIZE, false },
    { NAMED_LAST, RECORD_OFFSET, 8, UINT64_MAX, false },
    { NAMED_LAST, RECORD_NAME_LENGTH, 1, 0, false },
    { NAMED_LAST, RECORD_NAME_LENGTH, 1, 255, false },
    { NAMED_LAST, RECORD_NAME, 1, '\x1b', false },
    { NAMED_LAST, RECORD_NAME, 1, '/', false },
    { NAMED_LAST, RECORD_NAME + 1, 1, 0, false },
    { NAMED_LAST, RECORD_NAME + 1, 1, 0x9b, false },
};

Test(history, a_record_that_none_writes_is_dropped)
{
    for (size_t i = 0; i < sizeof(unwritten) / sizeof(unwritten[0]); i++) {
        size_t length = make_image(unwritten[i].last);
        char *record = record_in(image, (unwritten[i].last - 1000) % 32);
        uint64_t value = unwritten[i].value;

        if (unwritten[i].from_old && unwritten[i].size == 8)
            value += get64(record + unwritten[i].place);
        else if (unwritten[i].from_old)
            value += get32(record + unwritten[i].place);
        put_bytes(record + unwritten[i].place, value, unwritten[i].size);
        fix_frame(record, image + memory_of(LIMIT), SIZE);
        write_file(image, length);
        recovered_up_to(unwritten[i].last - 1);
    }
}

/* Where the text ends and where it begins a splice text may stand. */
Test(history, a_splice_point_may_be_anywhere_in_the_text)
{
    for (int i = 0; i < 4; i++) {
        size_t length = make_image(MAIN_LAST);
        char *record = record_in(image, MAIN_LAST - 1000);
        uint32_t end = get32(record + RECORD_LENGTH) - FRAME_TAIL;
        const uint32_t splices[] = { FRAME_HEAD, end, end + 1, end + 2 };

        put_bytes(record + RECORD_SPLICE, splices[i], 4);
        fix_record(record);
        write_file(image, length);
        recovered_up_to(i < 2 ? MAIN_LAST : MAIN_LAST - 1);
    }
}

/* Ordinals that no server comes to, in the places that they give a record;
 * that of which it was made is there as well. */
Test(history, an_ordinal_above_its_id_is_dropped)
{
    static const uint64_t ordinals[] = {
        0, NAMED_LAST + 1, ID_MAX, ID_MAX + 1, UINT64_MAX - 2, UINT64_MAX,
    };

    alarm(60); /* it must not hang */
    for (size_t i = 0; i < sizeof(ordinals) / sizeof(ordinals[0]); i++) {
        size_t length = make_image(NAMED_LAST);
        char *record = record_in(image, ordinals[i] % 32);

        memcpy(record, record_in(image, (NAMED_LAST - 1000) % 32), RECORD_SIZE);
        put_bytes(record + RECORD_ORDINAL, ordinals[i], 8);
        fix_record(record);
        write_file(image, length);
        recovered_up_to(NAMED_LAST);
    }
}

/* In the largest file whose newest record is as new as can be, and whose
 * bytes are not there: one look at each record, however many bytes and
 * ordinals there are before it. */
Test(history, recovery_is_bounded_by_the_records)
{
    struct history_wanted wanted = wanted_like("boot");
    size_t length = make_image(NAMED_LAST);
    char *record = record_in(image, ID_MAX % 32);
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    alarm(60);
    memcpy(record, record_in(image, NAMED_LAST - 1000), RECORD_SIZE);
    put_bytes(record + RECORD_ORDINAL, ID_MAX, 8);
    put_bytes(record + RECORD_ID, ID_MAX, 8);
    record[RECORD_BYTES_CHECK] ^= 1;
    fix_record(record);
    put_bytes(image + HEADER_BYTES, HISTORY_BYTES_MAX, 8);
    fix_header(image);
    write_file(image, length);
    if (truncate(path, (off_t)file_of(LIMIT, HISTORY_BYTES_MAX)) < 0)
        cr_skip("no file may be so large here");
    cr_assert(ring_inspect(&ring, &wanted, &recovery, &pid, error) == 0, "%s",
              error);
    cr_assert(recovery.crashed && recovery.dropped);
    ring_release(&ring);
}

/* A frame as ring_append() takes it, but not as a server makes it, is the
 * newest: the file is right in itself. */
static void dropped_when(struct slice name, uint64_t id, struct slice bytes,
                         bool end)
{
    struct topic *topic;
    struct ring ring;

    unlink(path);
    open_ring(&ring, "boot");
    publish_until(&ring, NAMED_LAST);
    topic = topic_hold(&ring, name);
    ring_append(&ring, topic, id, bytes, 0, end);
    topic_drop(&ring, topic);
    ring_release(&ring);
    recovered_up_to(NAMED_LAST);
}

Test(history, a_frame_that_none_makes_is_dropped)
{
    static const char *const texts[] = {
        "",
        "00000000\r\n\r\n",
        "00000001\r\n\n\r\n",
        "0000000f\r\nid: 1031\ndata:\n\n\r\n", /* one less */
        "00000011\r\nid: 1031\ndata:\n\n\r\n", /* one more */
        "0000001G\r\nid: 1031\ndata:\n\n\r\n",
        "0000000A\r\nid: 1031\n\n\r\n",
        "00000010\n\nid: 1031\ndata:\n\n\r\n",
        "00000010\r\nid: 1031\ndata:\n\n\n\n",
        "00000010\r\nid: 1031\ndata:\n.\r\n",
        "00000010\r\nid: 1032\ndata:\n\n\r\n",
        "00000011\r\nid: 01031\ndata:\n\n\r\n",
        "00000010\r\nid: 1031.data:\n\n\r\n",
        "0000000c\r\ndata: 1031\n\n\r\n",
        "0000000f\r\nid: 103\ndata:\n\n\r\n",
    };
    struct slice named = SLICE("chat/1");

    for (size_t i = 1; i < sizeof(texts) / sizeof(texts[0]); i++)
        dropped_when(named, 1031, (struct slice){ texts[i], strlen(texts[i]) },
                     false);
}

Test(history, a_topic_that_none_makes_is_dropped)
{
    static const char *const names[] = {
        "/", "a//b", "..", "a b", "\x1b[2J", "a\r\n", "a/",
    };
    char bytes[FRAME_ROOM];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        dropped_when((struct slice){ names[i], strlen(names[i]) }, 1031,
                     frame_of(1031, bytes), false);
    dropped_when(SLICE(""), 1031, frame_of(1031, bytes), true);
    dropped_when(SLICE("chat/1"), ID_MAX + 1, frame_of(ID_MAX + 1, bytes),
                 false);
}

/* A mark above the ids that are held: another size keeps all of them. */
Test(history, what_another_size_writes_is_valid)
{
    struct history_wanted wanted = wanted_like("boot");
    struct ring ring;

    open_ring(&ring, "boot");
    publish_until(&ring, 1010);
    ring_begin_after(&ring, 5000);
    publish_until(&ring, 5003);
    for (int i = 0; i < 4; i++) {
        struct recovery recovery;

        ring_release(&ring);
        wanted.limit = LIMIT + (uint64_t)(i / 2);
        recovery = open_wanted(&ring, &wanted);
        cr_assert(recovery.resized == (i == 2));
        cr_assert(recovery.count == 13 && !recovery.dropped);
        cr_assert(!recovery.crashed);
        for (int k = 0; k < 3; k++)
            cr_assert(mark_of(&ring, topic_of(1000 + (uint64_t)k)) == 5000);
    }
    ring_release(&ring);
}

/* What is out of bounds aborts, or is found by the sanitizers. */
static int open_changed(void)
{
    struct history_wanted wanted = wanted_like("boot");
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    if (ring_inspect(&ring, &wanted, &recovery, &pid, error) == 0) {
        gather_all(&ring);
        ring_release(&ring);
    }
    if (ring_open(&ring, &wanted, &recovery, error) < 0) {
        cr_assert(*error && !strchr(error, '\n'));
        return 0;
    }
    gather_all(&ring);
    cr_assert(ring.newest_id <= ID_MAX && ring.mark <= ring.newest_id);
    for (int i = 0; i < 40 && ring.newest_id < ID_MAX; i++)
        publish(&ring, ring.newest_id + 1);
    gather_all(&ring);
    ring_release(&ring);
    recovery = open_wanted(&ring, &wanted);
    cr_assert(recovery.count > 0 || ring.newest_id == ID_MAX);
    ring_release(&ring);
    return 1;
}

static uint64_t random_number(uint64_t limit)
{
    return random_below((size_t)limit);
}

Test(history, changed_files_with_right_checks)
{
    static char changed[FILE_MAX];
    size_t length = make_image(1050);
    int opened = 0;

    for (int i = 0; i < 2500; i++) {
        memcpy(changed, image, length);
        for (size_t k = random_below(4) + 1; k > 0; k--)
            change_file(changed, LIMIT, SIZE, random_number);
        fix_file(changed, LIMIT, SIZE);
        write_file(changed, length);
        opened += open_changed();
    }
    cr_assert(opened > 1200 && opened < 2500, "%d", opened);
}

/* ---------------------------------------------------------------- promises */

/* The names of the topics in TOPICS_BROKEN, which is empty then. */
static const char *broken_topics(struct ring *ring)
{
    static char names[600];
    const struct topic *topic;

    *names = '\0';
    while ((topic = ring->queue_first[TOPICS_BROKEN])) {
        cr_assert(topic->broken);
        sprintf(names + strlen(names), "%.*s ", (int)topic->name.length,
                topic->name.data);
        topic_mended(ring);
    }
    return names;
}

static struct topic *promise(struct ring *ring, const char *name)
{
    struct topic *topic = topic_hold(ring, slice_of(name));

    cr_assert(topic_promise(ring, topic));
    return topic;
}

/* Whatever was promised and not settled when the process was killed; each topic
 * once; in a file of another size too. */
Test(history, promises_outlive_a_kill)
{
    struct history_wanted wanted = wanted_like("boot");
    struct ring ring;

    for (int resized = 0; resized < 2; resized++) {
        struct topic *twice, *broken, *kept;

        open_wanted(&ring, &wanted);
        cr_assert_str_eq(broken_topics(&ring), "");
        twice = promise(&ring, "twice");
        cr_assert(topic_promise(&ring, twice));
        topic_settle(&ring, twice, false);
        broken = promise(&ring, "broken");
        topic_settle(&ring, broken, true);
        topic_drop(&ring, broken);
        kept = promise(&ring, "kept");
        topic_settle(&ring, kept, false);
        topic_drop(&ring, kept);
        cr_assert(!topic_find(&ring, SLICE("kept")));
        ring_release(&ring);
        if (resized)
            wanted.limit = 100;
        cr_assert(open_wanted(&ring, &wanted).resized == resized);
        cr_assert_str_eq(broken_topics(&ring), "twice broken ");
        ring_release(&ring);
    }
}

/* After a good end they have been taken back. */
Test(history, promises_end_with_a_good_end)
{
    struct ring ring;

    open_ring(&ring, "boot");
    promise(&ring, "a");
    cr_assert(ring_end(&ring) == 0);
    ring_release(&ring);
    open_ring(&ring, "boot");
    cr_assert_str_eq(broken_topics(&ring), "");
    cr_assert(!topic_find(&ring, SLICE("a")));
    ring_release(&ring);
    open_ring(&ring, "boot");
    cr_assert_str_eq(broken_topics(&ring), "", "also after a kill then");
    ring_release(&ring);
}

/* As many as there may be events, in slots that are used again. */
Test(history, promises_have_bounded_room)
{
    struct topic *topics[LIMIT], *one_more;
    struct ring ring;
    char name[16];

    open_ring(&ring, "boot");
    for (int i = 0; i < LIMIT; i++) {
        sprintf(name, "t%d", i);
        topics[i] = promise(&ring, name);
    }
    one_more = topic_hold(&ring, SLICE("one/more"));
    for (int i = 0; i < 3 * LIMIT; i++) {
        struct topic *topic = topics[i * 7 % LIMIT];

        cr_assert(!topic_promise(&ring, one_more));
        cr_assert(topic_promise(&ring, topic), "it is remembered already");
        topic_settle(&ring, topic, false);
        topic_settle(&ring, topic, false);
        cr_assert(topic_promise(&ring, one_more));
        topic_settle(&ring, one_more, false);
        cr_assert(topic_promise(&ring, topic));
    }
    ring_release(&ring);
}

/* Slots that no server writes, and a topic that has been finished. */
Test(history, promises_that_none_writes_are_dropped)
{
    static const char *const names[] = { "good", "good", "",      "/",
                                         "a//b", ".",    "chat/1" };
    size_t length = make_image(1030); /* 1030 finishes chat/1 or another */
    struct ring ring;

    cr_assert(is_end(1030));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *slot = promise_in(image, LIMIT, SIZE, i);
        const char *name = i == 6 ? topic_of(1030) : names[i];

        slot[PROMISE_NAME_LENGTH] = (char)strlen(name);
        memcpy(slot + PROMISE_NAME, name, strlen(name));
        fix_promise(slot);
    }
    memcpy(promise_in(image, LIMIT, SIZE, 8), promise_in(image, LIMIT, SIZE, 0),
           PROMISE_SIZE);
    promise_in(image, LIMIT, SIZE, 8)[PROMISE_NAME] = 'w'; /* a wrong check */
    write_file(image, length);
    open_ring(&ring, "boot");
    cr_assert_str_eq(broken_topics(&ring), "good ");
    ring_release(&ring);
}

/* A file of version 2, which has no promises, is written anew. */
Test(history, version_2_is_taken_over)
{
    struct history_wanted wanted = wanted_like("boot");
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    make_image(1020);
    put_bytes(image + HEADER_VERSION, 2, 4);
    write_file(image, promises_of(LIMIT, SIZE));
    cr_assert(ring_inspect(&ring, &wanted, &recovery, &pid, error) == 0, "%s",
              error);
    cr_assert(recovery.count > 0 && recovery.last_id == 1020);
    ring_release(&ring);
    recovery = open_ring(&ring, "boot");
    cr_assert(recovery.resized && recovery.last_id == 1020);
    promise(&ring, "a");
    ring_release(&ring);
    recovery = open_ring(&ring, "boot");
    cr_assert(!recovery.resized && recovery.last_id == 1020);
    cr_assert_str_eq(broken_topics(&ring), "a ");
    ring_release(&ring);
    put_bytes(image + HEADER_VERSION, 1, 4);
    write_file(image, promises_of(LIMIT, SIZE));
    refused_by_both("version 1");
}
