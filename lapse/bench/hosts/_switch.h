/* A switch between tap devices, with latency and paced links.
 *
 * A frame that is read from a device begins to arrive at its receiver after the delay, and takes as long as its bytes
 * need on the receiver's link: frames that come together queue there. Only those from and to a host that is cut off are
 * dropped. A sender's link is paced by its host's queue discipline, or else here: then the device is not read before
 * its link is free. */
#ifndef LAPSE_SWITCH
#define LAPSE_SWITCH

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define LAPSE_MAX_HOSTS 64
#define LAPSE_MAX_FRAME 65536
#define LAPSE_FRAMES_AT_ONCE 64     /* of one host, before the others have their turn */
#define LAPSE_BURST 65536           /* bytes that a sender may be ahead of its link: timers are not exact */
#define LAPSE_NEVER INT64_MAX

typedef struct lapse_frame {
    struct lapse_frame *next;
    int64_t due;
    int from;
    int length;
    unsigned char bytes[];
} lapse_frame;

typedef struct {
    lapse_frame *head, *tail;
} lapse_frames;

typedef struct {
    int device;
    int is_known;                   /* its address is known from a frame that it sent */
    int is_cut;                     /* what it sends and what is for it is dropped */
    unsigned char address[6];
    int64_t sending_until, receiving_until;     /* when its links are free */
    lapse_frames frames;            /* for it, in the order in which they are due */
} lapse_port;

typedef struct {
    int num_ports;
    lapse_port ports[LAPSE_MAX_HOSTS];
    lapse_frames for_all;
    int64_t delay;                  /* nanoseconds */
    double sending, receiving;      /* nanoseconds per byte of a link; 0: no limit */
    int64_t lost;                   /* frames that a device did not take */
} lapse_switch;

static inline int64_t lapse_switch_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* A new tap device of the current network namespace; -1 and errno if there is none. */
static int lapse_open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), error;
    if (device < 0) return -1;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(device, TUNSETIFF, &request)) {
        error = errno;
        close(device);
        errno = error;
        return -1;
    }
    return device;
}

static void lapse_append(lapse_frames *frames, lapse_frame *frame)
{
    frame->next = NULL;
    if (frames->tail) frames->tail->next = frame; else frames->head = frame;
    frames->tail = frame;
}

static lapse_frame *lapse_take_due(lapse_frames *frames, int64_t now)
{
    lapse_frame *frame = frames->head;
    if (!frame || frame->due > now) return NULL;
    frames->head = frame->next;
    if (!frames->head) frames->tail = NULL;
    return frame;
}

static void lapse_deliver(lapse_switch *s, int to, const lapse_frame *frame)
{
    if (s->ports[to].is_cut || s->ports[frame->from].is_cut) return;
    if (write(s->ports[to].device, frame->bytes, frame->length) < 0) s->lost++;
}

/* Deliver what is due; returns when the next frame is. */
static int64_t lapse_deliver_due(lapse_switch *s, int64_t now)
{
    int64_t next = LAPSE_NEVER;
    lapse_frame *frame;
    for (int i = 0; i < s->num_ports; i++) {
        lapse_frames *frames = &s->ports[i].frames;
        while ((frame = lapse_take_due(frames, now))) { lapse_deliver(s, i, frame); free(frame); }
        if (frames->head && frames->head->due < next) next = frames->head->due;
    }
    while ((frame = lapse_take_due(&s->for_all, now))) {
        for (int i = 0; i < s->num_ports; i++)
            if (i != frame->from) lapse_deliver(s, i, frame);
        free(frame);
    }
    if (s->for_all.head && s->for_all.head->due < next) next = s->for_all.head->due;
    return next;
}

/* The port that a frame goes to; -1: all. */
static int lapse_receiver_of(const lapse_switch *s, const unsigned char *bytes)
{
    if (bytes[0] & 1) return -1;
    for (int i = 0; i < s->num_ports; i++)
        if (s->ports[i].is_known && !memcmp(s->ports[i].address, bytes, 6)) return i;
    return -1;
}

static int lapse_accept(lapse_switch *s, int from, const unsigned char *bytes, int length, int64_t now)
{
    lapse_port *sender = &s->ports[from];
    lapse_frame *frame = (lapse_frame *)malloc(sizeof *frame + length);
    int to = lapse_receiver_of(s, bytes);
    if (!frame) return -1;
    memcpy(sender->address, bytes + 6, 6);
    sender->is_known = 1;
    if (s->sending > 0) {
        if (sender->sending_until < now) sender->sending_until = now;
        sender->sending_until += (int64_t)(length * s->sending);
    }
    frame->from = from;
    frame->length = length;
    frame->due = now + s->delay;
    memcpy(frame->bytes, bytes, length);
    if (to < 0) { lapse_append(&s->for_all, frame); return 0; }
    if (s->receiving > 0) {
        lapse_port *receiver = &s->ports[to];
        if (receiver->receiving_until < frame->due) receiver->receiving_until = frame->due;
        frame->due = receiver->receiving_until += (int64_t)(length * s->receiving);
    }
    lapse_append(&s->ports[to].frames, frame);
    return 0;
}

/* Carry out lines "cut N" and "join N": host N, from 1, has no connection, and has it again. 0 at the end of input. */
static int lapse_obey(lapse_switch *s, int orders)
{
    char line[256], *at = line;
    ssize_t length = read(orders, line, sizeof line - 1);
    if (length <= 0) return length < 0 && errno == EINTR;
    line[length] = 0;
    while (at) {
        char word[8];
        int host;
        if (sscanf(at, "%7s %d", word, &host) == 2 && host >= 1 && host <= s->num_ports)
            s->ports[host - 1].is_cut = !strcmp(word, "cut");
        at = strchr(at, '\n');
        if (at) at++;
    }
    return 1;
}

/* Until `orders` (a file descriptor) ends; 0, or -1 and errno. */
static int lapse_run_switch(lapse_switch *s, int orders)
{
    static unsigned char bytes[LAPSE_MAX_FRAME];
    struct pollfd polled[LAPSE_MAX_HOSTS + 1];
    const int64_t ahead = (int64_t)(LAPSE_BURST * s->sending);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    for (;;) {
        int64_t now = lapse_switch_now(), next = lapse_deliver_due(s, now);
        for (int i = 0; i < s->num_ports; i++) {
            int64_t free_at = s->ports[i].sending_until - ahead;
            polled[i] = (struct pollfd){free_at <= now ? s->ports[i].device : -1, POLLIN, 0};
            if (free_at > now && free_at < next) next = free_at;
        }
        polled[s->num_ports] = (struct pollfd){orders, POLLIN, 0};
        struct timespec pause, *limit = NULL;
        if (next != LAPSE_NEVER) {
            int64_t left = next - lapse_switch_now();
            if (left < 0) left = 0;
            pause = (struct timespec){left / 1000000000, left % 1000000000};
            limit = &pause;
        }
        if (ppoll(polled, s->num_ports + 1, limit, NULL) < 0) {
            if (errno == EINTR) continue;
            return -1;
        }
        if (polled[s->num_ports].revents && !lapse_obey(s, orders)) return 0;
        for (int i = 0; i < s->num_ports; i++) {
            if (!(polled[i].revents & POLLIN)) continue;
            for (int n = 0; n < LAPSE_FRAMES_AT_ONCE; n++) {
                int length = (int)read(s->ports[i].device, bytes, sizeof bytes);
                if (length < 14) break;
                now = lapse_switch_now();
                if (lapse_accept(s, i, bytes, length, now)) return -1;
                if (s->ports[i].sending_until - ahead > now) break;
            }
        }
    }
}

static void lapse_free_frames(lapse_switch *s)
{
    for (int i = 0; i <= s->num_ports; i++) {
        lapse_frames *frames = i < s->num_ports ? &s->ports[i].frames : &s->for_all;
        while (frames->head) { lapse_frame *frame = frames->head; frames->head = frame->next; free(frame); }
    }
}
#endif
