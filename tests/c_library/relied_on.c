/* What a program relies on that was compiled with heliotrope.h: the layout of structures, the numbers of errors, what a forked
 * child is told. Compiled as C and as C++ by tests/tests/c_library.rs. */
#include <heliotrope.h>

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __cplusplus
#define CHECK(condition) static_assert(condition, #condition)
#else
#define CHECK(condition) _Static_assert(condition, #condition)
#endif

/* Later versions may be larger, and begin with the same fields. */
CHECK(sizeof(helio_cluster_options) == 8);
CHECK(sizeof(helio_open_options) == 40);
CHECK(offsetof(helio_open_options, give_up_ms) == 8);
CHECK(offsetof(helio_open_options, journal_bytes) == 16);
CHECK(offsetof(helio_open_options, key_file) == 24);
CHECK(offsetof(helio_open_options, key_command) == 32);
CHECK(sizeof(helio_volume_info) == 24);
CHECK(offsetof(helio_volume_info, volume_bytes) == 8);
CHECK(offsetof(helio_volume_info, name) == 16);
CHECK(sizeof(helio_node_info) == 32);
CHECK(offsetof(helio_node_info, address) == 24);
CHECK(sizeof(helio_status) == 368);
CHECK(offsetof(helio_status, volume_bytes) == 24);
CHECK(offsetof(helio_status, owner) == 48);
CHECK(offsetof(helio_status, reason) == 112);

/* The library was compiled with these (client-lib/src/capi/failure.rs). */
CHECK(ENOENT == 2 && EIO == 5 && E2BIG == 7 && EBADF == 9 && EAGAIN == 11 && EBUSY == 16 && EEXIST == 17);
CHECK(EINVAL == 22 && ENOSPC == 28 && EROFS == 30 && EDEADLK == 35 && EBADMSG == 74 && ENOTSUP == 95);
CHECK(ETIMEDOUT == 110 && ESTALE == 116 && ECANCELED == 125);

static int child_is_refused(helio_cluster *cluster)
{
    helio_cluster *other;
    return helio_cluster_close(cluster) == -ENOTSUP && strstr(helio_last_error(), "forked") != NULL
           && helio_cluster_open_socket("/nowhere", NULL, &other) == -ENOTSUP;
}

int main(void)
{
    helio_cluster *cluster;
    if (strcmp(helio_version(), HELIO_VERSION) != 0 || helio_cluster_open_socket("/nowhere", NULL, &cluster) != 0)
        return 1;
    pid_t child = fork();
    if (child == 0)
        _exit(child_is_refused(cluster) ? 0 : 1);
    int status = 1;
    if (waitpid(child, &status, 0) != child || status != 0)
        return 2;
    return helio_cluster_close(cluster);
}
