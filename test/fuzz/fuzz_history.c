/*
 * Fuzzes the history file: the input says which fields of a good one are
 * changed, and to what; then all checks are made right, so that nothing is
 * refused for them. It is opened, looked at, read in every form and published
 * into, in the same size or another.
 */
#include "test/gather_all.h"
#include "test/history_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum {
    LIMIT = 12,
    SIZE = 1500,
    EVENTS = 40,
    FILE_SIZE = 32 << 10,
    CHANGES_MAX = 16,
};

#define SPLICE "<spliced>"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static const uint8_t *next_input, *end_of_input;
static char folder[] = "/dev/shm/fuzz_history.XXXXXX"; /* no disk to sync */
static char path[64];
static char good[FILE_SIZE], changed[FILE_SIZE];
static size_t good_length;

static struct history_wanted wanted_size(uint64_t limit, size_t size)
{
    return (struct history_wanted){
        .path = path,
        .limit = limit,
        .size = size,
        .newest_id = 1000,
        .clock_id = 1000,
        .boot_id = "boot",
        .splice_text = SLICE(SPLICE),
    };
}

/* From the input: as many bytes as the limit has. */
static uint64_t below(uint64_t limit)
{
    uint64_t number = 0;

    for (uint64_t left = limit - 1; left && next_input < end_of_input;
         left >>= 8)
        number = number << 8 | *next_input++;
    return number % limit;
}

static void publish(struct ring *ring)
{
    static const char *const names[] = { "", "chat/1", "b" };
    const char *name = names[ring->next % 3];
    struct topic *topic =
        topic_hold(ring, (struct slice){ name, strlen(name) });
    uint64_t id = ring->newest_id + 1;
    char bytes[256];
    int head = snprintf(bytes, sizeof(bytes), "%08x\r\n", 0), all;

    must(topic && head == FRAME_HEAD);
    all = head + snprintf(bytes + head, sizeof(bytes) - FRAME_HEAD,
                          "id: %llu\ndata: %.*s\n\n", (unsigned long long)id,
                          (int)(ring->next * 7 % 90),
                          "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcd"
                          "efghijklmnopqrstuvwxyz0123456789abcdefghijklmnop");
    snprintf(bytes, FRAME_HEAD, "%08x\r", (unsigned)(all - head));
    bytes[FRAME_HEAD - 1] = '\n';
    memcpy(bytes + all, "\r\n", FRAME_TAIL);
    ring_append(ring, topic, id,
                (struct slice){ bytes, (size_t)all + FRAME_TAIL },
                *name ? 0 : FRAME_HEAD + 4, *name && id % 7 == 0);
    topic_drop(ring, topic);
}

static void remove_folder(void)
{
    unlink(path);
    rmdir(folder);
}

static void make_good(void)
{
    struct history_wanted wanted = wanted_size(LIMIT, SIZE);
    char error[ERROR_SIZE];
    struct recovery recovery;
    struct ring ring;
    ssize_t n;
    int fd;

    must(mkdtemp(folder) && atexit(remove_folder) == 0);
    snprintf(path, sizeof(path), "%s/log", folder);
    must(ring_open(&ring, &wanted, &recovery, error) == 0);
    for (int i = 0; i < EVENTS; i++)
        publish(&ring);
    ring_release(&ring);
    fd = open(path, O_RDONLY);
    n = read(fd, good, sizeof(good));
    must(n > 0 && n < FILE_SIZE);
    good_length = (size_t)n;
    close(fd);
}

static void write_changed(void)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    must(fd >= 0);
    must(write(fd, changed, good_length) == (ssize_t)good_length);
    close(fd);
}

static void use(const struct history_wanted *wanted)
{
    struct recovery recovery;
    struct ring ring;
    char error[ERROR_SIZE];

    if (ring_open(&ring, wanted, &recovery, error) < 0) {
        must(*error && !strchr(error, '\n'));
        return;
    }
    gather_all(&ring);
    must(ring.newest_id <= ID_MAX && ring.mark <= ring.newest_id);
    for (int i = 0; i < EVENTS && ring.newest_id < ID_MAX; i++)
        publish(&ring);
    gather_all(&ring);
    ring_release(&ring);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
    struct history_wanted wanted;
    struct recovery recovery;
    struct ring ring;
    char error[ERROR_SIZE];
    uint32_t pid;

    if (!good_length)
        make_good();
    next_input = input;
    end_of_input = input + length;
    wanted = below(4) ? wanted_size(LIMIT, SIZE)
                      : wanted_size(1 + below(20), 300 + below(2000));
    wanted.kept_ids = below(8) == 0;
    memcpy(changed, good, good_length);
    for (int i = 0; i < CHANGES_MAX && next_input < end_of_input; i++)
        change_file(changed, LIMIT, SIZE, below);
    fix_file(changed, LIMIT, SIZE);
    write_changed();
    if (ring_inspect(&ring, &wanted, &recovery, &pid, error) == 0) {
        gather_all(&ring);
        ring_release(&ring);
    }
    use(&wanted);
    use(&wanted);
    return 0;
}
