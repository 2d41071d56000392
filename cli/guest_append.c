/* SPDX-License-Identifier: MIT */
#include "cli/guest_append.h"

#include <errno.h>
#include <string.h>

#include "hashtree/verity.h"
#include "qemuctl/cmdline.h"

static char *default_line(const struct guest_append *append)
{
    char root[32] = "/dev/dm-0";
    char *line;
    int n;

    if (append->no_verity && append->partition != 0)
        snprintf(root, sizeof(root), "/dev/sda%u", append->partition);
    else if (append->no_verity)
        snprintf(root, sizeof(root), "/dev/sda");
    if (append->writable)
        n = asprintf(&line, "console=ttyS0 root=%s rw", root);
    else
        /* Nobody is to log in to a finished guest, unless a port is forwarded for that. */
        n = asprintf(&line,
                     "%sfsck.mode=skip ro console=ttyS0 overlayroot=tmpfs root=%s rootflags=noload",
                     append->ssh ? "" : "systemd.mask=ssh.service ", root);
    return n < 0 ? NULL : line;
}

int guest_append_make(const struct guest_append *append, const char *table, char **ret,
                      struct error *err)
{
    _cleanup_free_ char *line =
        append->given != NULL ? strdup(append->given) : default_line(append);

    if (line == NULL)
        return error_oom(err);
    if (table != NULL && !append->no_dm_init) {
        _cleanup_free_ char *create = verity_dm_mod_create(table);
        _cleanup_free_ char *longer = NULL;
        if (create == NULL)
            return error_oom(err);
        int r = cmdline_append(line, "--append", create, &longer, err);
        if (r == -EEXIST)
            return cli_usage_error(err, "%s; leave it out, or use --no-dm-init",
                                   error_message(err));
        if (r < 0)
            return r;
        free(line);
        line = TAKE_PTR(longer);
    }
    int r = cmdline_check(line, err);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(line);
    return 0;
}
