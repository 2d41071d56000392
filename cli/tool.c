/* SPDX-License-Identifier: MIT */
#include "cli/tool.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

enum { MESSAGE_MAX = 4096 }; /* bytes of a program's message that are shown */

/* Reads all that comes, keeping the beginning. */
static void read_message(int fd, char message[static MESSAGE_MAX])
{
    char rest[512];
    size_t length = 0;

    for (;;) {
        bool room = length < MESSAGE_MAX - 1;
        ssize_t n = room ? read(fd, message + length, MESSAGE_MAX - 1 - length)
                         : read(fd, rest, sizeof(rest));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        if (room)
            length += (size_t)n;
    }
    message[length] = '\0';
}

/* One line, without the program's name in front. */
static const char *tidy_message(const char *program, char *message)
{
    size_t length = strlen(program);

    for (char *p = message; *p != '\0'; p++)
        if (*p == '\n')
            *p = p[1] == '\0' ? '\0' : ' ';
    if (strncmp(message, program, length) == 0 && strncmp(message + length, ": ", 2) == 0)
        message += length + 2;
    return message;
}

static int spawn(char *const argv[], const int fds[static TOOL_FDS], int message_fd, pid_t *ret,
                 struct error *err)
{
    extern char **environ;
    posix_spawn_file_actions_t actions;
    int r;

    r = posix_spawn_file_actions_init(&actions);
    if (r != 0)
        return error_set_errno(err, r, "%s: cannot run", argv[0]);
    r = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&actions, message_fd, STDERR_FILENO);
    for (int i = 0; r == 0 && i < TOOL_FDS; i++)
        if (fds[i] >= 0)
            r = posix_spawn_file_actions_adddup2(&actions, fds[i], TOOL_FD_FIRST + i);
    if (r == 0)
        r = posix_spawnp(ret, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r != 0)
        return error_set_errno(err, r, "%s: cannot run%s", argv[0],
                               r == ENOENT ? " (it comes with QEMU)" : "");
    return 0;
}

int tool_run(char *const argv[], const int fds[static TOOL_FDS], int *ret_status, struct error *err)
{
    _cleanup_close_ int read_end = -1, write_end = -1;
    char message[MESSAGE_MAX];
    int ends[2], status;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set_errno(err, errno, "cannot make a pipe");
    read_end = ends[0];
    write_end = ends[1];
    int r = spawn(argv, fds, write_end, &pid, err);
    if (r < 0)
        return r;
    cleanup_close(&write_end);
    read_message(read_end, message);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return error_set_errno(err, errno, "%s: cannot wait for it", argv[0]);
    if (WIFSIGNALED(status))
        return error_set(err, EIO, "%s: ended by signal %d", argv[0], WTERMSIG(status));
    if (ret_status != NULL)
        *ret_status = WEXITSTATUS(status);
    if (WEXITSTATUS(status) != 0)
        return error_set(err, EIO, "%s: %s", argv[0],
                         message[0] != '\0' ? tidy_message(argv[0], message) : "it failed");
    return 0;
}

int tool_fd(int fd, struct error *err)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, TOOL_FD_FIRST + TOOL_FDS);

    return high < 0 ? error_set_errno(err, errno, "cannot duplicate a descriptor") : high;
}

char *tool_image_options(const char *path)
{
    static const char start[] = "driver=qcow2,file.driver=file,file.locking=off,file.filename=";
    char *options = malloc(sizeof(start) + 2 * strlen(path));

    if (options == NULL)
        return NULL;
    char *to = stpcpy(options, start);
    for (; *path != '\0'; path++) {
        if (*path == ',')
            *to++ = ',';
        *to++ = *path;
    }
    *to = '\0';
    return options;
}
