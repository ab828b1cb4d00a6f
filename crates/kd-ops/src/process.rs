//! Settings of the whole process that make a training step faster. A program asks for them in its `main`.

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

/// Lets candle's own elementwise operations run on the thread that asks for them, unless
/// `CANDLE_NUM_THREADS` is set already.
///
/// candle 0.11 hands tensors of 64 Ki values and more to a pool of threads of its own, which wait by
/// spinning and so take the processor from rayon's threads, on which this crate's operations run. With
/// two cores that was 40 % of a step of the tutorial's student; without it the step fell from 10.9 to
/// 9.4 ms, the teacher's from 241 to 214 ms. Results don't change.
///
/// # Safety
/// It sets an environment variable: call it first thing in `main`, before any other thread is there.
pub unsafe fn keep_candle_single_threaded() {
    const NAME: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: the caller promises that no other thread reads the environment now.
        unsafe { std::env::set_var(NAME, "1") };
    }
}
