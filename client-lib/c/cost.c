/* What an operation of 4 KiB costs through the C library: one at a time, and with 32 requests under way.
 *
 *     ./cost host-7.helio disk 2000
 *
 * Prints `write`, `read`, `write 32` and `read 32`, each with nanoseconds and, of these, nanoseconds of this process's threads on
 * a processor. The volume is overwritten.
 */
#include <heliotrope.h>

#include <inttypes.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BLOCK = HELIO_BLOCK_BYTES, DEPTH = 32 };

static unsigned char buffers[DEPTH][BLOCK];

struct run {
    helio_volume *volume;
    uint64_t blocks, next, end;
    int is_write, failed;
    unsigned under_way;
    sem_t done;
};

struct slot {
    struct run *run;
    unsigned number;
};

static uint64_t now(void)
{
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

struct measure {
    uint64_t begun;
    clock_t cpu;
};

static struct measure begin_measure(void)
{
    return (struct measure){now(), clock()};
}

static void end_measure(struct measure measure, const char *name, uint64_t operations)
{
    uint64_t cpu = (uint64_t)(clock() - measure.cpu) * (1000000000u / CLOCKS_PER_SEC);
    printf("%s %" PRIu64 " %" PRIu64 "\n", name, (now() - measure.begun) / operations, cpu / operations);
}

static void next(void *user, int result);

/* On the library's one thread, but for the first of each slot, which the main thread begins before it waits. */
static int begin(struct slot *slot)
{
    struct run *run = slot->run;
    uint64_t offset = run->next++ % run->blocks * BLOCK;
    unsigned char *buffer = buffers[slot->number];
    return run->is_write ? helio_aio_write(run->volume, offset, buffer, BLOCK, 0, next, slot)
                         : helio_aio_read(run->volume, offset, buffer, BLOCK, 0, next, slot);
}

static void next(void *user, int result)
{
    struct slot *slot = user;
    struct run *run = slot->run;
    run->failed |= result < 0;
    if (run->failed || run->next >= run->end || begin(slot) < 0)
        sem_post(&run->done);
}

/* The slots begin from within a request, so that only the library's thread touches `run`. */
static void begin_all(void *user, int result)
{
    struct slot *slots = user;
    struct run *run = slots[0].run;
    run->failed |= result < 0;
    for (unsigned i = 0; i < DEPTH; i++) {
        if (run->failed || begin(&slots[i]) < 0) {
            run->failed = 1;
            sem_post(&run->done);
        }
    }
}

static int many(helio_volume *volume, uint64_t blocks, uint64_t operations, int is_write, const char *name)
{
    struct run run = {.volume = volume, .blocks = blocks, .end = operations, .is_write = is_write};
    struct slot slots[DEPTH];
    for (unsigned i = 0; i < DEPTH; i++)
        slots[i] = (struct slot){&run, i};
    sem_init(&run.done, 0, 0);
    struct measure measure = begin_measure();
    if (helio_aio_flush(volume, 0, begin_all, slots) < 0)
        return -1;
    for (unsigned i = 0; i < DEPTH; i++)
        while (sem_wait(&run.done) != 0)
            ;
    end_measure(measure, name, operations);
    return run.failed ? -1 : 0;
}

static int one_by_one(helio_volume *volume, uint64_t blocks, uint64_t operations, int is_write, const char *name)
{
    struct measure measure = begin_measure();
    for (uint64_t i = 0; i < operations; i++) {
        uint64_t offset = i % blocks * BLOCK;
        int result = is_write ? helio_write(volume, offset, buffers[0], BLOCK, 0)
                              : helio_read(volume, offset, buffers[0], BLOCK, 0);
        if (result < 0)
            return result;
    }
    end_measure(measure, name, operations);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return fprintf(stderr, "usage: %s CREDENTIALS VOLUME OPERATIONS\n", argv[0]), 2;
    uint64_t operations = strtoull(argv[3], NULL, 10);
    helio_cluster *cluster;
    helio_volume *volume;
    if (helio_cluster_open(argv[1], NULL, &cluster) < 0 || helio_volume_open(cluster, argv[2], NULL, &volume) < 0)
        return fprintf(stderr, "%s\n", helio_last_error()), 1;
    uint64_t blocks = (uint64_t)helio_volume_size(volume) / BLOCK;
    int failed = one_by_one(volume, blocks, operations, 1, "write") < 0
                 || one_by_one(volume, blocks, operations, 0, "read") < 0
                 || many(volume, blocks, operations, 1, "write 32") < 0
                 || many(volume, blocks, operations, 0, "read 32") < 0;
    if (failed)
        fprintf(stderr, "%s\n", helio_last_error());
    failed |= helio_volume_close(volume) < 0;
    helio_cluster_close(cluster);
    return failed;
}
