/* Writes numbered blocks to a volume, many at a time, makes them durable, reads them back and compares.
 *
 *     cc -std=c11 -o example example.c $(pkg-config --cflags --libs heliotrope)
 *     ./example host-7.helio disk             # 1000 blocks of 4 KiB, 64 requests under way
 *     ./example host-7.helio disk 100000 256
 *     ./example /var/lib/heliotrope/client.sock disk   # through the node on this machine
 *
 * What the volume held in these blocks is lost. It may be killed at any time, and so may the nodes.
 */
#include <heliotrope.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

enum { BLOCK = HELIO_BLOCK_BYTES };

/* What the callbacks share with the main thread. */
struct progress {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned under_way;
    int first_failure;
    char message[256];
};

/* One of the requests that may be under way together. Its buffer is the library's while `is_busy`. */
struct request {
    struct progress *progress;
    int is_busy;
    unsigned char buffer[BLOCK];
};

static int complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, helio_last_error());
    return 1;
}

static void fill(unsigned char *block, uint64_t number)
{
    for (size_t at = 0; at < BLOCK; at += sizeof number)
        memcpy(block + at, &number, sizeof number);
}

static int is_filled(const unsigned char *block, uint64_t number)
{
    unsigned char expected[BLOCK];
    fill(expected, number);
    return memcmp(block, expected, BLOCK) == 0;
}

/* On a thread of the library: short, and nothing here waits for long. */
static void done(void *user, int result)
{
    struct request *request = user;
    struct progress *progress = request->progress;
    pthread_mutex_lock(&progress->lock);
    request->is_busy = 0;
    progress->under_way--;
    if (result < 0 && progress->first_failure == 0) {
        progress->first_failure = result;
        snprintf(progress->message, sizeof progress->message, "%s", helio_last_error());
    }
    pthread_cond_signal(&progress->changed);
    pthread_mutex_unlock(&progress->lock);
}

/* A request that is free, once fewer than `depth` are under way; NULL when one failed. */
static struct request *take(struct progress *progress, struct request *requests, unsigned depth)
{
    struct request *found = NULL;
    pthread_mutex_lock(&progress->lock);
    while (progress->under_way == depth)
        pthread_cond_wait(&progress->changed, &progress->lock);
    if (progress->first_failure == 0) {
        for (found = requests; found->is_busy; found++)
            ;
        found->is_busy = 1;
        progress->under_way++;
    }
    pthread_mutex_unlock(&progress->lock);
    return found;
}

/* A request that could not be begun: its callback is never called. */
static void give_back(struct request *request)
{
    pthread_mutex_lock(&request->progress->lock);
    request->is_busy = 0;
    request->progress->under_way--;
    pthread_mutex_unlock(&request->progress->lock);
}

static int drain(struct progress *progress)
{
    pthread_mutex_lock(&progress->lock);
    while (progress->under_way > 0)
        pthread_cond_wait(&progress->changed, &progress->lock);
    pthread_mutex_unlock(&progress->lock);
    if (progress->first_failure < 0)
        fprintf(stderr, "a request failed: %s\n", progress->message);
    return progress->first_failure;
}

static int write_all(helio_volume *volume, struct request *requests, uint64_t blocks, unsigned depth)
{
    struct progress *progress = requests[0].progress;
    for (uint64_t number = 0; number < blocks; number++) {
        struct request *request = take(progress, requests, depth);
        if (request == NULL)
            break;
        fill(request->buffer, number);
        if (helio_aio_write(volume, number * BLOCK, request->buffer, BLOCK, 0, done, request) < 0) {
            give_back(request);
            drain(progress);
            return complain("a write cannot be begun");
        }
        if (number == blocks / 2) {
            printf("half is written\n");
            fflush(stdout);
        }
    }
    return drain(progress);
}

/* Reads with blocking calls, two blocks into two buffers at a time. */
static int compare_all(helio_volume *volume, uint64_t blocks)
{
    unsigned char first[BLOCK], second[BLOCK];
    for (uint64_t number = 0; number < blocks; number += 2) {
        int count = number + 1 < blocks ? 2 : 1;
        struct iovec parts[2] = {{first, BLOCK}, {second, BLOCK}};
        if (helio_readv(volume, number * BLOCK, parts, count, 0) < 0)
            return complain("a read failed");
        if (!is_filled(first, number) || (count == 2 && !is_filled(second, number + 1))) {
            fprintf(stderr, "block %" PRIu64 " or the next is not what was written\n", number);
            return 1;
        }
    }
    return 0;
}

/* What the library has to say while it waits for a node, for instance. On a thread of its own. */
static void print_line(void *user, uint32_t level, const char *text)
{
    (void)user;
    fprintf(stderr, "%s: %s\n", level == HELIO_LOG_ERROR ? "error" : "note", text);
}

static int print_volume(void *user, const helio_volume_info *volume)
{
    (void)user;
    printf("%s: %" PRIu64 " bytes%s\n", volume->name, volume->volume_bytes,
           volume->flags & HELIO_SNAPSHOT ? ", a snapshot" : "");
    return 0;
}

static int use(helio_volume *volume, uint64_t blocks, unsigned depth)
{
    struct progress progress = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct request *requests = calloc(depth, sizeof *requests);
    if (requests == NULL)
        return 1;
    for (unsigned i = 0; i < depth; i++)
        requests[i].progress = &progress;

    int failed = write_all(volume, requests, blocks, depth) != 0;
    free(requests);
    if (!failed && helio_flush(volume, 0) < 0)
        failed = complain("the flush failed");
    if (failed || compare_all(volume, blocks) != 0)
        return 1;

    helio_status status = {.size = sizeof status};
    if (helio_volume_status(volume, &status) < 0)
        return complain("no status");
    printf("%" PRIu64 " blocks are durable, owner %s, epoch %" PRIu64 "\n", blocks, status.owner, status.epoch);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s CREDENTIALS|SOCKET VOLUME [BLOCKS [REQUESTS]]\n", argv[0]);
        return 2;
    }
    uint64_t blocks = argc > 3 ? strtoull(argv[3], NULL, 10) : 1000;
    unsigned depth = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 64;
    if (depth == 0 || depth > HELIO_REQUESTS_MAX) {
        fprintf(stderr, "between 1 and %u requests\n", HELIO_REQUESTS_MAX);
        return 2;
    }

    helio_log(HELIO_LOG_INFO, print_line, NULL);
    helio_cluster *cluster;
    const char *ending = strrchr(argv[1], '.');
    int is_socket = ending != NULL && strcmp(ending, ".sock") == 0;
    if ((is_socket ? helio_cluster_open_socket : helio_cluster_open)(argv[1], NULL, &cluster) < 0)
        return complain(argv[1]);
    int failed = 1;
    helio_volume *volume;
    /* As long as it takes, but for a program like this two minutes are enough. */
    helio_open_options options = {.size = sizeof options, .give_up_ms = 120000};
    if (helio_cluster_volumes(cluster, options.give_up_ms, print_volume, NULL) < 0)
        complain("the volumes cannot be listed");
    else if (helio_volume_open(cluster, argv[2], &options, &volume) < 0)
        complain(argv[2]);
    else {
        failed = use(volume, blocks, depth);
        /* Flushes: only this says that what was written since the last flush is durable. */
        if (helio_volume_close(volume) < 0)
            failed = complain("closing failed");
    }
    helio_cluster_close(cluster);
    if (!failed)
        printf("all is well\n");
    return failed;
}
