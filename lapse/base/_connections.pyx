"""Floor 0. The TCP connections of this process with other hosts of its jobs, and which of these hosts do not answer."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp, memcpy

from lapse.base._sync cimport now

cdef extern from *:
    r"""
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <dirent.h>
    #include <ifaddrs.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/socket.h>

    static int lapse_address_of(const struct sockaddr *from, unsigned char *address) {
        static const unsigned char version_4[12] = {[10] = 0xff, [11] = 0xff};
        if (from->sa_family == AF_INET6) {
            memcpy(address, &((const struct sockaddr_in6 *)from)->sin6_addr, 16);
        } else if (from->sa_family == AF_INET) {
            memcpy(address, version_4, 12);
            memcpy(address + 12, &((const struct sockaddr_in *)from)->sin_addr, 4);
        } else {
            return 0;
        }
        return 1;
    }

    static int lapse_is_loopback(const unsigned char *address) {
        const struct in6_addr *whole = (const struct in6_addr *)address;
        return IN6_IS_ADDR_LOOPBACK(whole) || (IN6_IS_ADDR_V4MAPPED(whole) && address[12] == 127);
    }

    /* Writes at most so many addresses of this host, without those by which it reaches itself; returns their number. */
    static int lapse_own_addresses(unsigned char *addresses, int most) {
        struct ifaddrs *all, *each;
        int count = 0;
        if (getifaddrs(&all)) return 0;
        for (each = all; each && count < most; each = each->ifa_next)
            if (each->ifa_addr && lapse_address_of(each->ifa_addr, addresses + 16 * count)
                    && !lapse_is_loopback(addresses + 16 * count))
                count++;
        freeifaddrs(all);
        return count;
    }

    static void lapse_write_address(const unsigned char *address, char *text, int size) {
        int is_4 = IN6_IS_ADDR_V4MAPPED((const struct in6_addr *)address);
        if (!inet_ntop(is_4 ? AF_INET : AF_INET6, is_4 ? address + 12 : address, text, size)) text[0] = 0;
    }

    typedef struct {
        unsigned char address[16];  /* of the peer */
        int port;
        int is_open;                /* else it is being opened */
        long long unheard;          /* nanoseconds since something has come from the peer, if it is open */
    } lapse_connection;

    #ifdef __linux__
    static int lapse_look_at(int descriptor, lapse_connection *found) {
        struct sockaddr_storage peer;
        struct tcp_info info;
        socklen_t size = sizeof info;
        unsigned int unheard;
        memset(&info, 0, sizeof info);
        if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size)) return 0;
        if (info.tcpi_state != TCP_ESTABLISHED && info.tcpi_state != TCP_SYN_SENT) return 0;
        /* As getpeername, which does not know the peer of a connection that is being opened. It takes no size that is
           larger than the address. */
        size = sizeof(struct sockaddr_in);
        if (getsockopt(descriptor, SOL_SOCKET, SO_PEERNAME, &peer, &size)) return 0;
        size = sizeof(struct sockaddr_in6);
        if (peer.ss_family == AF_INET6 && getsockopt(descriptor, SOL_SOCKET, SO_PEERNAME, &peer, &size)) return 0;
        if (!lapse_address_of((struct sockaddr *)&peer, found->address)) return 0;
        found->port = peer.ss_family == AF_INET ? ((struct sockaddr_in *)&peer)->sin_port
                                                : ((struct sockaddr_in6 *)&peer)->sin6_port;
        found->is_open = info.tcpi_state == TCP_ESTABLISHED;
        unheard = info.tcpi_last_ack_recv < info.tcpi_last_data_recv ? info.tcpi_last_ack_recv
                                                                     : info.tcpi_last_data_recv;
        found->unheard = 1000000LL * unheard;
        return 1;
    }

    /* Lets the kernel ask the peer for a sign of life when it has not heard of it for a time, and never give up. */
    static int lapse_probe(int descriptor, long long nanoseconds) {
        int yes = 1, most = 127, seconds = (int)(nanoseconds / 1000000000);
        if (seconds < 1) seconds = 1;
        return !setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds)
            && !setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof seconds)
            && !setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPCNT, &most, sizeof most)
            && !setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    }
    #else
    static int lapse_look_at(int descriptor, lapse_connection *found) { (void)descriptor; (void)found; return 0; }
    static int lapse_probe(int descriptor, long long nanoseconds) { (void)descriptor; (void)nanoseconds; return 0; }
    #endif

    /* The descriptors of this process, ascending or not; -1 behind the last one. */
    static int lapse_next_descriptor(DIR *folder) {
        struct dirent *entry;
        while ((entry = readdir(folder)))
            if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') return atoi(entry->d_name);
        return -1;
    }
    """
    ctypedef struct DIR:
        pass
    ctypedef struct connection_t "lapse_connection":
        unsigned char* address
        int port
        bint is_open
        long long unheard

    int count_own_addresses "lapse_own_addresses"(unsigned char* addresses, int most)
    void write_address "lapse_write_address"(const unsigned char* address, char* text, int size) nogil
    bint look_at "lapse_look_at"(int descriptor, connection_t* found) nogil
    bint probe "lapse_probe"(int descriptor, long long nanoseconds) nogil
    int next_descriptor "lapse_next_descriptor"(DIR* folder) nogil
    DIR* opendir(const char* path) nogil
    int closedir(DIR* folder) nogil

cdef enum:
    MAX_OWN_ADDRESSES = 64
    MAX_DESCRIPTORS = 65536     # those above are not looked at
    PROBES = 6                  # in the time after which a host counts as silent


cdef struct seen_t:
    # A descriptor that was a connection with another host when it was looked at.
    int64_t since               # when it was for the first time; 0: it is none
    unsigned char[ADDRESS_BYTES] address
    int port
    bint is_open

cdef seen_t[MAX_DESCRIPTORS] seen


def own_addresses():
    """The addresses of this host by which others may reach it.

    Returns
    -------
    list of bytes
        Each of 16 bytes; those of version 4 as version 6 maps them.
    """
    cdef unsigned char[MAX_OWN_ADDRESSES * ADDRESS_BYTES] addresses
    cdef int count = count_own_addresses(addresses, MAX_OWN_ADDRESSES)
    return [(<char*>addresses)[i * ADDRESS_BYTES : (i + 1) * ADDRESS_BYTES] for i in range(count)]


def connections():
    """The connections of this process.

    Returns
    -------
    dict of int to bytes
        By file descriptor the peer's address, of 16 bytes.
    """
    cdef DIR* folder = opendir(b"/proc/self/fd")
    cdef connection_t connection
    cdef int descriptor
    found = {}
    if folder == NULL:
        return found
    while True:
        descriptor = next_descriptor(folder)
        if descriptor < 0:
            break
        if look_at(descriptor, &connection):
            found[descriptor] = (<char*>connection.address)[:ADDRESS_BYTES]
    closedir(folder)
    return found


cdef bint find_silent_host(const far_host_t* hosts, int32_t count, int64_t limit, silent_t* found) noexcept nogil:
    """Whether nothing came from one of some hosts for longer than a limit, though the kernel has asked it.

    To be called some times within that limit: a connection that is seen for the first time counts as heard of, and is
    probed from then on.
    """
    cdef DIR* folder = opendir(b"/proc/self/fd")
    cdef connection_t connection
    cdef const far_host_t* host
    cdef int descriptor
    cdef int64_t time = now(), silence
    found.silence = 0
    if folder == NULL:
        return False
    while True:
        descriptor = next_descriptor(folder)
        if descriptor < 0:
            break
        if descriptor >= MAX_DESCRIPTORS:
            continue
        host = host_of(hosts, count, descriptor, &connection)
        if host == NULL:
            seen[descriptor].since = 0
            continue
        if not is_known(&seen[descriptor], &connection):
            note(&seen[descriptor], &connection, time if probe(descriptor, limit // PROBES) else 0)
        if seen[descriptor].since == 0:
            continue
        silence = time - seen[descriptor].since
        if connection.is_open and connection.unheard < silence:
            silence = connection.unheard
        if silence > limit and silence > found.silence:
            found.silence = silence
            found.name = host.name
            write_address(host.address, found.address, HOST_NAME_BYTES)
    closedir(folder)
    return found.silence > 0


cdef const far_host_t* host_of(const far_host_t* hosts, int32_t count, int descriptor,
                               connection_t* connection) noexcept nogil:
    """The host with which a descriptor is a connection; NULL if it is none with any of them."""
    cdef int32_t i
    if look_at(descriptor, connection):
        for i in range(count):
            if memcmp(hosts[i].address, connection.address, ADDRESS_BYTES) == 0:
                return &hosts[i]
    return NULL


cdef inline bint is_known(const seen_t* each, const connection_t* connection) noexcept nogil:
    return (each.since and each.port == connection.port and each.is_open == connection.is_open
            and memcmp(each.address, connection.address, ADDRESS_BYTES) == 0)


cdef inline void note(seen_t* each, const connection_t* connection, int64_t time) noexcept nogil:
    each.since = time
    each.port = connection.port
    each.is_open = connection.is_open
    memcpy(each.address, connection.address, ADDRESS_BYTES)
