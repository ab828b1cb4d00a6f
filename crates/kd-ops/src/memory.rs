//! Keeping freed memory in the process.

/// Asks the C library's allocator to keep freed memory instead of giving it back to the system.
///
/// A training step allocates and frees the same large tensors again and again. glibc takes blocks
/// above 32 MiB from the system each time, and gives the top of the heap back whenever it can, so
/// every step pays for the same pages anew: without this call a step of the tutorial's teacher
/// spends a quarter of its time in page faults. Call it once, first thing in `main`. Where the C
/// library is not glibc it does nothing. The process's memory stays at its peak until it ends.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only changes the allocator's settings; it may be called at any time.
    unsafe {
        // No block comes from `mmap`, whatever its size; the heap's top is never given back; and
        // it grows by 64 MiB at a time.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
