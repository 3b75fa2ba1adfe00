"""Floor 0. Address ranges from the system: memory is taken page by page, when it is first written."""

cdef extern from *:
    r"""
    #ifndef LAPSE_MEMORY
    #define LAPSE_MEMORY
    #include <stddef.h>
    #include <sys/mman.h>
    #ifndef MAP_NORESERVE
    #define MAP_NORESERVE 0
    #endif
    static inline void *lapse_reserve(size_t bytes) {
        void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return 0;
    #ifdef MADV_HUGEPAGE
        if (bytes >= ((size_t)16 << 20)) madvise(p, bytes, MADV_HUGEPAGE);
    #endif
        return p;
    }
    /* The same bytes for every process that maps this file; a file without a name disappears with its last user. */
    static inline void *lapse_map_shared(int descriptor, size_t bytes) {
        void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0);
        if (p == MAP_FAILED) return 0;
    #ifdef MADV_HUGEPAGE
        if (bytes >= ((size_t)16 << 20)) madvise(p, bytes, MADV_HUGEPAGE);
    #endif
        return p;
    }
    static inline void lapse_release(void *p, size_t bytes) { munmap(p, bytes); }
    #endif
    """
    void* reserve "lapse_reserve"(size_t size) noexcept nogil
    void* map_shared "lapse_map_shared"(int descriptor, size_t size) noexcept nogil
    void release "lapse_release"(void* address, size_t size) noexcept nogil
