/* SPDX-License-Identifier: MIT */
#include "qemuctl/qmp.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

/* A line longer than this is an error: no answer to what we ask is near it. */
#define LINE_MAX_BYTES (4 * 1024 * 1024)

/* A command whose answer is awaited. QEMU answers in order (out-of-band execution is not used). */
struct pending {
    struct pending *next;
    qmp_reply reply;
    void *arg;
};

struct buffer {
    char *bytes;
    size_t length, room;
};

struct qmp {
    int fd;
    struct qmp_handlers handlers;
    bool greeted;
    bool ready;
    struct buffer in;
    size_t scanned; /* bytes of `in` that hold no newline */
    struct buffer out;
    struct buffer early; /* commands that wait for the negotiation */
    struct pending *first, **last;
};

static int buffer_append(struct buffer *buffer, const void *bytes, size_t length, struct error *err)
{
    if (buffer->room - buffer->length < length) {
        size_t room = buffer->room == 0 ? 4096 : buffer->room;
        while (room - buffer->length < length)
            room *= 2;
        char *larger = realloc(buffer->bytes, room);
        if (larger == NULL)
            return error_oom(err);
        buffer->bytes = larger;
        buffer->room = room;
    }
    memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
    return 0;
}

static void buffer_drop(struct buffer *buffer, size_t length)
{
    memmove(buffer->bytes, buffer->bytes + length, buffer->length - length);
    buffer->length -= length;
}

int qmp_new(int fd, const struct qmp_handlers *handlers, struct qmp **ret, struct error *err)
{
    _cleanup_close_ int owned = fd;

    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return error_set_errno(err, errno, "QMP: fcntl");
    struct qmp *qmp = calloc(1, sizeof(*qmp));
    if (qmp == NULL)
        return error_oom(err);
    qmp->fd = take_fd(&owned);
    qmp->handlers = *handlers;
    qmp->last = &qmp->first;
    *ret = qmp;
    return 0;
}

static void pop_pending(struct qmp *qmp, json_t *ret, const char *error)
{
    _cleanup_free_ struct pending *pending = qmp->first;

    qmp->first = pending->next;
    if (qmp->first == NULL)
        qmp->last = &qmp->first;
    if (pending->reply != NULL)
        pending->reply(ret, error, pending->arg);
}

static void hang_up(struct qmp *qmp)
{
    cleanup_close(&qmp->fd);
    qmp->ready = false;
    while (qmp->first != NULL)
        pop_pending(qmp, NULL, NULL);
}

void qmp_free(struct qmp *qmp)
{
    hang_up(qmp);
    free(qmp->in.bytes);
    free(qmp->out.bytes);
    free(qmp->early.bytes);
    free(qmp);
}

int qmp_fd(const struct qmp *qmp)
{
    return qmp->fd;
}

bool qmp_wants_write(const struct qmp *qmp)
{
    return qmp->fd >= 0 && qmp->out.length > 0;
}

bool qmp_ready(const struct qmp *qmp)
{
    return qmp->ready;
}

static int queue(struct qmp *qmp, struct buffer *where, const char *command, json_t *arguments,
                 qmp_reply reply, void *arg, struct error *err)
{
    _cleanup_json_ json_t *owned = arguments;
    _cleanup_json_ json_t *object = NULL;
    _cleanup_free_ struct pending *pending = NULL;
    _cleanup_free_ char *text = NULL;

    if (owned != NULL)
        object = json_pack("{s:s, s:O}", "execute", command, "arguments", owned);
    else
        object = json_pack("{s:s}", "execute", command);
    if (object != NULL)
        text = json_dumps(object, JSON_COMPACT);
    pending = calloc(1, sizeof(*pending));
    if (text == NULL || pending == NULL)
        return error_oom(err);
    int r = buffer_append(where, text, strlen(text), err);
    if (r == 0)
        r = buffer_append(where, "\n", 1, err);
    if (r < 0)
        return r;
    *pending = (struct pending){.reply = reply, .arg = arg};
    *qmp->last = TAKE_PTR(pending);
    qmp->last = &(*qmp->last)->next;
    return 0;
}

int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, qmp_reply reply, void *arg,
                struct error *err)
{
    if (qmp->fd < 0) {
        json_decref(arguments);
        return error_set(err, ENOTCONN, "QMP: %s: the connection has ended", command);
    }
    return queue(qmp, qmp->ready ? &qmp->out : &qmp->early, command, arguments, reply, arg, err);
}

static int start_negotiation(struct qmp *qmp, struct error *err)
{
    struct pending *waiting = qmp->first;
    int r;

    qmp->greeted = true;
    /* Its answer comes before those of the commands that were queued early. */
    qmp->first = NULL;
    qmp->last = &qmp->first;
    r = queue(qmp, &qmp->out, "qmp_capabilities", NULL, NULL, NULL, err);
    *qmp->last = waiting;
    while (*qmp->last != NULL)
        qmp->last = &(*qmp->last)->next;
    return r;
}

static int take_reply(struct qmp *qmp, json_t *ret, const json_t *error, struct error *err)
{
    const char *text = json_string_value(json_object_get(error, "desc"));

    if (qmp->first == NULL)
        return error_set(err, EPROTO, "QMP: an answer without a question");
    if (!qmp->ready) {
        if (ret == NULL)
            return error_set(err, EPROTO, "QMP: qmp_capabilities: %s",
                             text != NULL ? text : "refused");
        qmp->ready = true;
        pop_pending(qmp, ret, NULL);
        return buffer_append(&qmp->out, qmp->early.bytes != NULL ? qmp->early.bytes : "",
                             qmp->early.length, err);
    }
    pop_pending(qmp, ret, ret != NULL ? NULL : text != NULL ? text : "failed");
    return 0;
}

static int take_line(struct qmp *qmp, const char *line, size_t length, struct error *err)
{
    _cleanup_json_ json_t *object = NULL;
    json_error_t json_error;

    while (length > 0 && (line[length - 1] == '\r' || line[length - 1] == ' '))
        length--;
    if (length == 0)
        return 0;
    object = json_loadb(line, length, 0, &json_error);
    if (!json_is_object(object))
        return error_set(err, EPROTO, "QMP: not a JSON object: %.60s",
                         object == NULL ? json_error.text : "");
    const char *event = json_string_value(json_object_get(object, "event"));
    json_t *ret = json_object_get(object, "return");
    const json_t *error = json_object_get(object, "error");
    if (!qmp->greeted) {
        if (json_object_get(object, "QMP") == NULL)
            return error_set(err, EPROTO, "QMP: no greeting");
        return start_negotiation(qmp, err);
    }
    if (event != NULL) {
        if (qmp->handlers.event != NULL)
            qmp->handlers.event(event, json_object_get(object, "data"), qmp->handlers.arg);
        return 0;
    }
    if (ret != NULL || error != NULL)
        return take_reply(qmp, ret, error, err);
    return error_set(err, EPROTO, "QMP: neither an event nor an answer");
}

static int take_lines(struct qmp *qmp, struct error *err)
{
    size_t start = 0;
    char *newline;

    while ((newline = memchr(qmp->in.bytes + qmp->scanned, '\n', qmp->in.length - qmp->scanned)) !=
           NULL) {
        size_t end = (size_t)(newline - qmp->in.bytes);
        int r = take_line(qmp, qmp->in.bytes + start, end - start, err);
        if (r < 0)
            return r;
        start = qmp->scanned = end + 1;
    }
    buffer_drop(&qmp->in, start);
    qmp->scanned = qmp->in.length;
    if (qmp->in.length > LINE_MAX_BYTES)
        return error_set(err, EPROTO, "QMP: a line is longer than %d bytes", LINE_MAX_BYTES);
    return 0;
}

static int flush_out(struct qmp *qmp)
{
    while (qmp->out.length > 0) {
        ssize_t n = send(qmp->fd, qmp->out.bytes, qmp->out.length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -errno;
        buffer_drop(&qmp->out, (size_t)n);
    }
    return 0;
}

int qmp_dispatch(struct qmp *qmp, struct error *err)
{
    char chunk[4096];
    int r;

    while (qmp->fd >= 0) {
        ssize_t n = recv(qmp->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {
            hang_up(qmp);
            return 0;
        }
        r = buffer_append(&qmp->in, chunk, (size_t)n, err);
        if (r == 0)
            r = take_lines(qmp, err);
        if (r < 0) {
            hang_up(qmp);
            return r;
        }
    }
    if (qmp->fd >= 0 && flush_out(qmp) < 0)
        hang_up(qmp);
    return 0;
}
