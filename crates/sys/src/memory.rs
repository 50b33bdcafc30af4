//! Keeping long-living processes small.

/// Makes the C allocator use one arena and give memory back early. Call first thing in `main`,
/// before threads exist: many small daemons run beside each other on one machine.
pub fn stay_small() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `mallopt` with these documented parameters only sets allocator tunables.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        }
    }
}

/// Returns freed memory to the system, e.g. after start-up or a large list.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `malloc_trim` only releases pages the allocator itself holds as free.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
