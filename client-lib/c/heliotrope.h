/* Volumes of a Heliotrope cluster, for C and whatever calls C. docs/c-library.md tells the rest.
 *
 * Calls return 0 (or what they say), or a negative number of errno.h, about which helio_last_error
 * tells on the same thread. Any thread may make any call; those that block return -EDEADLK in
 * callbacks. Handles that were closed are refused with -EBADF.
 *
 * Written from the code (client-lib/src/capi): not to be edited.
 */
#ifndef HELIOTROPE_H
#define HELIOTROPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HELIO_VERSION "0.1.0"
#define HELIO_VERSION_MAJOR 0
#define HELIO_VERSION_MINOR 1
#define HELIO_VERSION_PATCH 0

/* Offsets and lengths are multiples of this. */
#define HELIO_SECTOR_BYTES 512u

/* Requests of whole such blocks are cheapest. */
#define HELIO_BLOCK_BYTES 4096u

/* A request of at most this is carried out as one. */
#define HELIO_REQUEST_BYTES_MAX 33554432u

/* Most requests with callbacks of a volume under way. */
#define HELIO_REQUESTS_MAX 1024u

/* Of a write: durable on completion, in the volume's class. */
#define HELIO_FUA 1u

/* Of an open volume: writes are refused. */
#define HELIO_READ_ONLY 2u

/* Of a listed volume: it is a snapshot. */
#define HELIO_SNAPSHOT 4u

/* Of helio_extents: tell what the owner has yet to fetch, too. */
#define HELIO_RESIDENCY 8u

/* State of a volume: what is asked of it is done. */
#define HELIO_CONNECTED 1u

/* State of a volume: what is asked of it waits. */
#define HELIO_WAITING 2u

/* State of a volume: it cannot be used any more. Close it and open it anew. */
#define HELIO_FAILED 3u

/* Level of a line: something is over, or broken. */
#define HELIO_LOG_ERROR 1u

/* Level of a line: something waits, and why. */
#define HELIO_LOG_WARNING 2u

/* Level of a line: something goes on. */
#define HELIO_LOG_INFO 3u

/* State of an extent: there is data; asked for residency: at the owner. */
#define HELIO_DATA 1u

/* State of an extent: it reads as zeroes. */
#define HELIO_ZERO 2u

/* State of an extent: there is data, and the owner has yet to fetch it. */
#define HELIO_STALE 3u

/* <sys/uio.h> */
struct iovec;

/* A cluster. */
typedef struct helio_cluster helio_cluster;

/* A volume or snapshot in use. */
typedef struct helio_volume helio_volume;

/* How a cluster is used. 0 in every field but the first is the default. */
typedef struct helio_cluster_options {
    /* sizeof this structure. */
    uint32_t size;
    /* Threads of the library for this cluster, at most 64; 0: one. */
    uint32_t threads;
} helio_cluster_options;

/* How a volume is used. 0 in every field but the first is the default. */
typedef struct helio_open_options {
    /* sizeof this structure. */
    uint32_t size;
    /* HELIO_READ_ONLY or 0. */
    uint32_t flags;
    /* Milliseconds that an operation may wait for a node that can carry it out; 0: as long as it
     * takes. */
    uint64_t give_up_ms;
    /* Bytes of writes that are kept in memory until they are durable; 0: 64 MiB. At half of it the
     * volume is flushed by itself; when it is full, writes wait for that. */
    uint64_t journal_bytes;
    /* The file of the key that opens an encrypted volume, 32 bytes or 64 hexadecimal digits, which
     * only its owner may read; NULL: none. With a key, here or by key_command, a volume that is not
     * encrypted is refused. */
    const char *key_file;
    /* A line for /bin/sh that prints the key that HELIO_KEY_NAME names; NULL: none. Not together
     * with key_file. */
    const char *key_command;
} helio_open_options;

/* A volume or snapshot, as helio_cluster_volumes tells of it. */
typedef struct helio_volume_info {
    /* How many bytes of this structure there are. */
    uint32_t size;
    /* HELIO_SNAPSHOT or 0. */
    uint32_t flags;
    /* Its size. */
    uint64_t volume_bytes;
    /* VOLUME or VOLUME@SNAPSHOT; during the call only. */
    const char *name;
} helio_volume_info;

/* A node, as helio_cluster_nodes tells of it. The texts are there during the call only. */
typedef struct helio_node_info {
    /* How many bytes of this structure there are. */
    uint32_t size;
    /* 0. */
    uint32_t flags;
    /* Its name. */
    const char *name;
    /* Its provider; empty if not known. */
    const char *provider;
    /* Where it listens for the cluster, as HOST:PORT. */
    const char *address;
} helio_node_info;

/* How a volume stands. */
typedef struct helio_status {
    /* sizeof this structure. */
    uint32_t size;
    /* HELIO_CONNECTED, HELIO_WAITING or HELIO_FAILED. */
    uint32_t state;
    /* HELIO_READ_ONLY or 0. */
    uint32_t flags;
    /* As HELIO_SECTOR_BYTES. */
    uint32_t sector_bytes;
    /* As HELIO_BLOCK_BYTES. */
    uint32_t block_bytes;
    /* As HELIO_REQUEST_BYTES_MAX. */
    uint32_t request_bytes_max;
    /* Its size. */
    uint64_t volume_bytes;
    /* The epoch of its ownership. */
    uint64_t epoch;
    /* Writes that are kept because they are not durable yet. */
    uint64_t journal_bytes;
    /* The node that owns it; empty while that is not known, and for a snapshot. */
    char owner[64];
    /* Why it is not HELIO_CONNECTED; else empty. */
    char reason[256];
} helio_status;

/* Called exactly once for a request that was begun, on a thread of the library; result is 0 or a
 * negative error, about which helio_last_error tells then. Must not block, and nothing may be
 * thrown out of it. */
typedef void (*helio_callback)(void *user, int result);

/* Called for each volume. Anything but 0 ends the listing, which returns it. */
typedef int (*helio_volume_visitor)(void *user, const helio_volume_info *volume);

/* Called for each node. Anything but 0 ends the listing, which returns it. */
typedef int (*helio_node_visitor)(void *user, const helio_node_info *node);

/* Called for each extent, in order and without gaps. Anything but 0 ends the listing, which returns
 * it. */
typedef int (*helio_extent_visitor)(void *user, uint64_t offset, uint64_t length, uint32_t state);

/* Called with a line, without its end, on a thread that does nothing else. The text is there during
 * the call. */
typedef void (*helio_logger)(void *user, uint32_t level, const char *text);

/* Called with how the volume stands, on a thread of the library. As with helio_callback. */
typedef void (*helio_watcher)(void *user, const helio_status *status);

/* ---- The library. ---- */

/* The version of the library that runs, as HELIO_VERSION is that of the header. */
const char *helio_version(void);

/* What the last failure on this thread was and, where it helps, what to do; in a callback, of that
 * request. Never NULL. There until the next call on this thread. */
const char *helio_last_error(void);

/* Has logger called with what the library tells of by itself, up to level; for the whole process,
 * and from now on. NULL: nobody, as in the beginning. When this returns whoever was told before is
 * not called any more. */
int helio_log(uint32_t level, helio_logger logger, void *user);

/* ---- Clusters. ---- */

/* The cluster of these credentials, a file that `helio cluster client` wrote. Connects to nobody
 * yet. options may be NULL. Starts threads, which have the signal mask of this one. */
int helio_cluster_open(const char *credentials, const helio_cluster_options *options,
                       helio_cluster **cluster);

/* The cluster of the node whose socket for clients this is (client.sock in its data directory), on
 * this machine. Everything goes through that node, and waits while it does not run. Else as
 * helio_cluster_open. */
int helio_cluster_open_socket(const char *path, const helio_cluster_options *options,
                              helio_cluster **cluster);

/* Ends the handle. Volumes that are open stay so; connections and threads end with the last of
 * them. Not in callbacks. */
int helio_cluster_close(helio_cluster *cluster);

/* Calls visit for every volume and snapshot, by name, on this thread. give_up_ms: milliseconds that
 * it may wait for a node that answers; 0: as long as it takes. */
int helio_cluster_volumes(helio_cluster *cluster, uint64_t give_up_ms, helio_volume_visitor visit,
                          void *user);

/* Calls visit for every node, on this thread. give_up_ms as with helio_cluster_volumes. */
int helio_cluster_nodes(helio_cluster *cluster, uint64_t give_up_ms, helio_node_visitor visit,
                        void *user);

/* ---- Volumes. ---- */

/* Opens a volume, or by VOLUME@SNAPSHOT a snapshot, which can only be read. options may be NULL.
 * Returns when a node knows it; what is asked of it then waits until its owner is found. */
int helio_volume_open(helio_cluster *cluster, const char *name, const helio_open_options *options,
                      helio_volume **volume);

/* Waits until every request is done and its callback has returned, flushes, and ends the handle, in
 * any case. 0 means that everything that was written is durable. Not in callbacks. */
int helio_volume_close(helio_volume *volume);

/* Ends whatever waits, also in other threads and in helio_volume_close, now and later, with
 * -ECANCELED. What was being written may be done or not. Does not wait. */
int helio_volume_cancel(helio_volume *volume);

/* Bytes. A volume may grow while it is in use. */
int64_t helio_volume_size(helio_volume *volume);

/* How the volume stands now. Set status->size before. */
int helio_volume_status(helio_volume *volume, helio_status *status);

/* Calls watcher with how the volume stands, now and after every change of anything but
 * journal_bytes, until helio_volume_close returns. Changes that follow each other closely may be
 * told as one. */
int helio_volume_watch(helio_volume *volume, helio_watcher watcher, void *user);

/* ---- Reading and writing: these block. Offsets and lengths are bytes, multiples of HELIO_SECTOR_BYTES. ---- */

/* Reads the newest acked write of every byte. flags: 0. */
int helio_read(helio_volume *volume, uint64_t offset, void *buffer, size_t length, uint32_t flags);

/* helio_read into count buffers, one behind the other; at most 1024. */
int helio_readv(helio_volume *volume, uint64_t offset, const struct iovec *parts, int count,
                uint32_t flags);

/* Writes. flags: HELIO_FUA or 0. */
int helio_write(helio_volume *volume, uint64_t offset, const void *buffer, size_t length,
                uint32_t flags);

/* helio_write from count buffers, one behind the other; at most 1024. flags: HELIO_FUA or 0. */
int helio_writev(helio_volume *volume, uint64_t offset, const struct iovec *parts, int count,
                 uint32_t flags);

/* Makes a range read as zeroes, and frees its space. flags: HELIO_FUA or 0. */
int helio_write_zeroes(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags);

/* Tells that a range is not needed (TRIM): it reads as zeroes from now on. flags: 0. */
int helio_discard(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags);

/* Makes everything durable that was acked before, whoever wrote it, in the volume's class. flags:
 * 0. */
int helio_flush(helio_volume *volume, uint32_t flags);

/* Has the owner fetch what it lacks of a range, so that later reads need not wait for that. flags:
 * 0. */
int helio_cache(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags);

/* Calls visit, on this thread, for the extents of a range: where there is data, and where zeroes.
 * flags: HELIO_RESIDENCY or 0. */
int helio_extents(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags,
                  helio_extent_visitor visit, void *user);

/* ---- The same as requests. 0: it is under way, and the callback is called exactly once. Negative: it
 * was not begun, and the callback is not called. Requests under way together are carried out in any
 * order. ---- */

/* As helio_read. The buffer is the library's until the callback. */
int helio_aio_read(helio_volume *volume, uint64_t offset, void *buffer, size_t length,
                   uint32_t flags, helio_callback callback, void *user);

/* As helio_readv. The buffers are the library's until the callback; parts itself is not needed any
 * more on return. */
int helio_aio_readv(helio_volume *volume, uint64_t offset, const struct iovec *parts, int count,
                    uint32_t flags, helio_callback callback, void *user);

/* As helio_write. The buffer is the library's until the callback. */
int helio_aio_write(helio_volume *volume, uint64_t offset, const void *buffer, size_t length,
                    uint32_t flags, helio_callback callback, void *user);

/* As helio_writev. The buffers are the library's until the callback; parts itself is not needed any
 * more on return. */
int helio_aio_writev(helio_volume *volume, uint64_t offset, const struct iovec *parts, int count,
                     uint32_t flags, helio_callback callback, void *user);

/* As helio_write_zeroes. */
int helio_aio_write_zeroes(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags,
                           helio_callback callback, void *user);

/* As helio_discard. */
int helio_aio_discard(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags,
                      helio_callback callback, void *user);

/* As helio_flush: everything durable whose callback was called, or whose call returned, before this
 * was begun. */
int helio_aio_flush(helio_volume *volume, uint32_t flags, helio_callback callback, void *user);

/* As helio_cache. */
int helio_aio_cache(helio_volume *volume, uint64_t offset, uint64_t length, uint32_t flags,
                    helio_callback callback, void *user);

#ifdef __cplusplus
}
#endif

#endif
